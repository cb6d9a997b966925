"""The speed table has a line for every strategy, with the references that it is read against."""

from __future__ import annotations

import pytest

from benchmarks import speed


@pytest.fixture(scope="module")
def figures():
    return speed.epochs(images=600, batch=100, rounds=1)


def test_epochs_compare_every_strategy_with_a_plain_loop_and_with_naive(figures):
    compared = {(figure.what.split(",")[0], figure.reference) for figure in figures}
    strategies = {"naive", *speed.OURS}
    assert compared == {
        ("naive on its own loader", "plain loop"),
        *((name, "plain loop") for name in strategies),
        *((name, "naive on its own loader") for name in strategies),
    }


def test_every_figure_is_a_time_and_a_ratio(figures):
    for figure in figures:
        assert figure.milliseconds > 0
        assert figure.reference_milliseconds > 0
        assert figure.ratio == pytest.approx(figure.milliseconds / figure.reference_milliseconds)
