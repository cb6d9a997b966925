"""What the runs of several strategies say of their differences, and which of them nobody beats."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev
from typing import Any, Sequence

import numpy as np
from scipy.stats import permutation_test

from benchmarks.runs.results import RunResult, by_strategy

EXACT_PAIRS = 15
"""Up to so many pairs the test takes every pattern of signs; beyond, that many random ones."""


@dataclass(frozen=True)
class PairedDifference:
    """How two strategies differ in accuracy over the runs that both have.

    :param first: label of a strategy.
    :param second: label of the other one.
    :param differences: accuracy of the first minus that of the second, by seed and order, 0 to 1.
    """

    first: str
    second: str
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean difference."""
        return mean(self.differences)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the differences; None for a single pair."""
        return stdev(self.differences) if len(self.differences) > 1 else None

    @property
    def p(self) -> float | None:
        """See :func:`sign_flip_p`."""
        return sign_flip_p(self.differences)


def paired_differences(runs: Sequence[RunResult]) -> list[PairedDifference]:
    """All pairs of strategies, by the runs of the same seed and task order.

    :param runs: of one stream in one scenario.
    :return: pairs in order of first appearance; none for two strategies without a common run.
    """
    accuracies = {
        label: {(run.seed, run.order_index): run.accuracy for run in own}
        for label, own in by_strategy(runs).items()
    }
    found = []
    for (first, ours), (second, theirs) in combinations(accuracies.items(), 2):
        differences = tuple(ours[run] - theirs[run] for run in sorted(ours) if run in theirs)
        if differences:
            found.append(PairedDifference(first, second, differences))
    return found


def sign_flip_p(differences: Sequence[float]) -> float | None:
    r"""Two-sided p-value of the paired permutation test that flips signs.

    If the two strategies were alike, each difference ``d_i`` would be as likely as ``-d_i``::

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
