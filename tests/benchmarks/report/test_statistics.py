"""Paired tests and the Pareto front, against brute force."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report.statistics import (
    EXACT_PAIRS,
    best_series,
    holm,
    paired,
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
        abs(sum(sign * each for sign, each in zip(signs, differences))) >= observed
        for signs in patterns
    )
    return Fraction(extreme, len(patterns))


@given(WHOLE)
def test_the_test_takes_every_pattern_of_signs(differences):
    # thirds of a percent are not exact in binary: ties have to be seen all the same
    assert sign_flip_p([each / 300 for each in differences]) == pytest.approx(
        float(exact_p(differences))
    )


@given(WHOLE)
def test_no_p_is_below_the_smallest_one(differences):
    assert sign_flip_p(differences) >= smallest_p(len(differences))


@pytest.mark.parametrize("pairs", range(2, 9))
def test_the_smallest_p_is_that_of_differences_of_one_sign(pairs):
    assert sign_flip_p([0.01 * (1 + pair) for pair in range(pairs)]) == smallest_p(pairs)


def test_a_single_pair_has_no_test():
    assert sign_flip_p([0.5]) is None
    assert sign_flip_p([]) is None


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
    assert all(corrected >= value for corrected, value in zip(holm(values), values))


def test_pairs_have_the_same_key():
    first = {("seed 1", 0): 0.5, ("seed 0", 1): 0.875, ("seed 0", 0): 0.75}
    second = {("seed 0", 0): 0.5, ("seed 0", 1): 1.0, ("seed 7", 0): 0.0}
    assert paired(first, second) == [0.25, -0.125]
    assert paired(first, {}) == []


def test_the_best_and_what_no_test_tells_from_it_stand_out():
    noise = np.random.default_rng(0).normal(0, 0.001, (3, 10))
    best = dict(enumerate(0.90 + noise[0]))
    near = dict(enumerate(0.8999 + noise[1]))
    far = dict(enumerate(0.80 + noise[2]))
    assert sign_flip_p(paired(best, near)) > 0.05 > 2 * sign_flip_p(paired(best, far))
    assert best_series({"far": far, "near": near, "best": best}) == {"best", "near"}
    # of three pairs p is at least .25, whatever the difference
    few = {
        name: {seed: rows[seed] for seed in range(3)} for name, rows in (("a", best), ("b", far))
    }
    assert best_series(few) == set() == best_series({}) == best_series({"a": best})


def test_a_series_of_one_pair_is_not_told_from_the_best():
    best = {seed: 0.9 + seed / 100 for seed in range(10)}
    worse = {seed: accuracy - 0.1 for seed, accuracy in best.items()}
    assert best_series({"best": best, "worse": worse, "once": {0: 0.1}}) == {"best", "once"}


def test_many_tests_are_corrected_for():
    best = {seed: 0.9 + seed / 100 for seed in range(6)}
    worse = {seed: accuracy - 0.1 for seed, accuracy in best.items()}
    assert best_series({"best": best, "a": worse}) == {"best"}  # p = .03125
    assert best_series({"best": best, "a": worse, "b": worse}) == set()  # twice that


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nobody_beats(points):
    front = pareto_front(points)
    for index, (size, accuracy) in enumerate(points):
        beaten = any(
            (s < size and a >= accuracy) or (s <= size and a > accuracy) for s, a in points
        )
        assert (index in front) == (not beaten)
    assert [points[index] for index in front] == sorted(points[index] for index in front)
