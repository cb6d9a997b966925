"""Paired tests and the Pareto front, against brute force."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from benchmarks_for_tests import make_result
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report.statistics import (
    EXACT_PAIRS,
    holm,
    paired_differences,
    pareto_front,
    sign_flip_p,
    smallest_p,
)

WHOLE = st.lists(st.integers(-6, 6), min_size=2, max_size=8)


def exact_p(differences):
    """The definition, in whole numbers."""
    observed = abs(sum(differences))
    patterns = list(product((-1, 1), repeat=len(differences)))
    extreme = sum(
        abs(sum(sign * own for sign, own in zip(signs, differences))) >= observed
        for signs in patterns
    )
    return Fraction(extreme, len(patterns))


@given(WHOLE)
def test_the_test_takes_every_pattern_of_signs(differences):
    # thirds of a percent are not exact in binary: ties have to be seen all the same
    assert sign_flip_p([own / 300 for own in differences]) == pytest.approx(
        float(exact_p(differences))
    )


@given(WHOLE)
def test_no_p_is_below_the_smallest_one(differences):
    assert sign_flip_p(differences) >= smallest_p(len(differences))


@pytest.mark.parametrize("pairs", range(2, 9))
def test_the_smallest_p_is_that_of_differences_of_one_sign(pairs):
    assert sign_flip_p([0.01 * (1 + own) for own in range(pairs)]) == smallest_p(pairs)


def test_a_single_pair_has_no_test():
    assert sign_flip_p([0.5]) is None and sign_flip_p([]) is None


def test_many_pairs_are_sampled_and_the_same_every_time():
    differences = np.random.default_rng(3).normal(0.02, 0.05, EXACT_PAIRS + 5).tolist()
    signs = np.random.default_rng(4).choice([-1, 1], (200_000, len(differences)))
    near = (abs(signs @ differences) >= abs(sum(differences))).mean()
    assert sign_flip_p(differences) == pytest.approx(near, abs=0.01)
    assert sign_flip_p(differences) == sign_flip_p(differences)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_correction_is_that_of_the_definition(values):
    ascending = sorted(values)
    count = len(values)
    expected = [
        max(min(1.0, (count - j) * ascending[j]) for j in range(k + 1)) for k in range(count)
    ]
    assert sorted(holm(values)) == pytest.approx(expected)
    assert all(corrected >= own for corrected, own in zip(holm(values), values))


def test_pairs_have_the_same_seed_and_order():
    runs = [
        make_result(strategy="wsn", seed=1, accuracy=0.5),
        make_result(strategy="wsn", seed=0, accuracy=0.75),
        make_result(strategy="wsn", seed=0, order_index=1, accuracy=0.875),
        make_result(strategy="ewc", seed=0, accuracy=0.5),
        make_result(strategy="ewc", seed=0, order_index=1, accuracy=1.0),
        make_result(strategy="naive", seed=7),
    ]
    (only,) = paired_differences(runs)
    assert (only.first, only.second) == ("wsn", "ewc")
    assert only.differences == (0.25, -0.125)
    assert only.mean == 0.0625
    assert only.deviation == pytest.approx(np.std([0.25, -0.125], ddof=1))
    assert only.p == 1.0


def test_one_common_run_has_a_difference_and_no_deviation():
    (only,) = paired_differences([make_result(), make_result(strategy="ewc", accuracy=0.75)])
    assert (only.mean, only.deviation, only.p) == (pytest.approx(0.15), None, None)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nobody_beats(points):
    front = pareto_front(points)
    for index, (size, accuracy) in enumerate(points):
        beaten = any(
            (s < size and a >= accuracy) or (s <= size and a > accuracy) for s, a in points
        )
        assert (index in front) == (not beaten)
    assert [points[index] for index in front] == sorted(points[index] for index in front)
