"""The speed table has a line for every strategy, with the references that it is read against."""

from __future__ import annotations

import pytest
import torch

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


def test_steps_are_compared_with_naives_and_with_a_plain_loops():
    steps = speed.training_steps("lenet", 4, 1, ("wsn",), tasks=2)
    compared = {(figure.what, figure.reference) for figure in steps}
    what = "{} step, lenet, batch 4"
    assert compared == {
        (what.format("naive"), "plain loop"),
        (what.format("wsn"), "plain loop"),
        (what.format("wsn"), "naive"),
    }


def test_an_evaluation_is_timed_by_the_pass():
    figure = speed.evaluation("mlp", 2, passes=3)
    assert figure.what == "evaluation of an active task, mlp, batch 2"
    assert 0 < figure.milliseconds < 1
    assert figure.reference == "plain backbone"


def test_on_a_gpu_the_clock_waits_for_what_is_queued(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    assert speed.seconds_of(lambda: waits.append(0), speed.clock_of("cuda")) >= 0
    assert waits == [1, 0, 1]


def test_a_gpu_is_timed_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert speed.on_gpu() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(speed, "training_steps", lambda *given, device: [(given[0], device)])
    backbones = ("mlp", "lenet", "alexnet", "resnet18")
    assert speed.on_gpu() == [(own, "cuda") for own in backbones]


def test_every_figure_is_a_time_and_a_ratio(figures):
    for figure in figures:
        assert figure.milliseconds > 0
        assert figure.reference_milliseconds > 0
        assert figure.ratio == pytest.approx(figure.milliseconds / figure.reference_milliseconds)
