"""Paired tests, their correction for many, and which of several series or points stand out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import permutation_test

EXACT_PAIRS = 15
"""Up to so many pairs the test takes every pattern of signs; beyond, that many random ones."""

Series = Mapping[Hashable, float]
"""Numbers by what makes them pairs, such as seed and task order."""


def paired(first: Series, second: Series) -> list[float]:
    """The first minus the second, where both have a number, by ascending key.

    >>> paired({0: 3.0, 2: 1.0}, {2: 0.5, 1: 9.0})
    [0.5]
    """
    common: list[Any] = [key for key in first if key in second]
    return [first[key] - second[key] for key in sorted(common)]


def best_series(series: Mapping[str, Series], level: float = 0.05) -> set[str]:
    """The series of highest mean, and those that cannot be told from it.

    A series is told from the best by :func:`sign_flip_p` of their pairs, corrected by
    :func:`holm` for the number of tests; without two pairs there is no test.

    :param series: by name.
    :param level: below it, a corrected p-value tells two series apart.
    :return: names; none if no series at all can be told from the best.

    >>> better = {seed: 0.9 + seed / 100 for seed in range(8)}
    >>> worse = {seed: accuracy - 0.1 for seed, accuracy in better.items()}
    >>> best_series({"a": better, "b": worse}), best_series({"a": {0: 0.9}, "b": {0: 0.8}})
    ({'a'}, set())
    """
    if not series:
        return set()
    best = max(series, key=lambda name: mean(series[name].values()))
    tests = {name: sign_flip_p(paired(series[best], series[name])) for name in series}
    known = {name: p for name, p in tests.items() if p is not None and name != best}
    corrected = dict(zip(known, holm(list(known.values()))))
    worse = {name for name, p in corrected.items() if p < level}
    return set(series) - worse if worse else set()


def sign_flip_p(differences: Sequence[float]) -> float | None:
    r"""Two-sided p-value of the paired permutation test that flips signs.

    If the two series were alike, each difference ``d_i`` would be as likely as ``-d_i``::

        p = |{s in {-1, 1}^n : |sum_i s_i d_i| >= |sum_i d_i|}| / 2^n

    It is exact up to :data:`EXACT_PAIRS` differences, and assumes nothing of how they are
    distributed; for more of them, 2^15 patterns are drawn.

    :param differences: one a pair.
    :return: None for fewer than two, of which no test can say anything.

    >>> sign_flip_p([0.01, 0.02, 0.03]), sign_flip_p([0.01, -0.01, 0.02, 0.05])
    (0.25, 0.375)
    """
    if len(differences) < 2:
        return None
    halves = np.asarray(differences) / 2
    exact = len(differences) <= EXACT_PAIRS
    tested = permutation_test(
        (halves, -halves),
        _mean_difference,
        permutation_type="samples",
        n_resamples=np.inf if exact else 2**EXACT_PAIRS - 1,
        vectorized=True,
        random_state=0,
    )
    return float(tested.pvalue)


def _mean_difference(first: Any, second: Any, axis: int) -> Any:
    """Rounded, so that sums of the same numbers in another order are the same number."""
    return np.round(np.mean(first - second, axis=axis), 12)


def smallest_p(pairs: int) -> float:
    """The least that :func:`sign_flip_p` can be, ``2^(1 - n)``: all differences of one sign.

    :param pairs: how many differences.

    >>> smallest_p(3), smallest_p(6)
    (0.25, 0.03125)
    """
    return 2.0 ** (1 - pairs)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979): the chance of any false alarm among them.

    With ``p_(1) <= ... <= p_(m)`` the corrected ``p_(k)`` is
    ``max_{j <= k} min(1, (m - j + 1) p_(j))``.

    :param values: p-values of one family of tests.
    :return: in the same order.

    >>> holm([0.03, 0.01, 0.5])
    [0.06, 0.03, 0.5]
    """
    corrected = [0.0] * len(values)
    highest = 0.0
    ascending = sorted(range(len(values)), key=lambda index: values[index])
    for place, index in enumerate(ascending):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = highest
    return corrected


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one beats: none has as few bytes and more accuracy, or the reverse.

    :param points: bytes and accuracy.
    :return: their indices, by ascending bytes; of equal points all.

    >>> pareto_front([(10, 0.9), (5, 0.8), (20, 0.85), (40, 0.95)])
    [1, 0, 3]
    """
    front = [
        index
        for index, (size, accuracy) in enumerate(points)
        if not any(
            other_size <= size and other >= accuracy and (other_size, other) != (size, accuracy)
            for other_size, other in points
        )
    ]
    return sorted(front, key=lambda index: points[index])
