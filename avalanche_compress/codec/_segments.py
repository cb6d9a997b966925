"""Cutting a sorted sequence into segments of least squared error: the engine of 1-D k-means.

A partition is written as its cuts: the ranks where segments begin, then the number of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STRIDE = 32
_HALVINGS = (16, 8, 4, 2, 1)
_LLOYD_PASSES = 100
_LLOYD_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Moments:
    """Running count, sum and sum of squares of ``(value - origin) / 2**exponent`` at some ranks."""

    count: np.ndarray
    total: np.ndarray
    square: np.ndarray
    origin: float = 0.0
    exponent: int = 0

    @classmethod
    def of(cls, ordered: np.ndarray) -> Moments:
        """Moments at every rank of n >= 1 sorted values, each of shape (n + 1,), float64.

        The origin is the median and sums run outwards from it, so that the squares of far
        outliers at either end cannot drown the differences among ordinary values.
        """
        middle = ordered.size // 2
        shifted = ordered.astype(np.float64)
        exponent = safe_exponent(max(-shifted[0], shifted[-1]))
        if exponent:
            shifted = np.ldexp(shifted, -exponent)
        origin = float(shifted[middle])
        shifted -= origin
        total = _outward_sums(shifted, middle)
        np.multiply(shifted, shifted, out=shifted)
        square = _outward_sums(shifted, middle)
        return cls(np.arange(ordered.size + 1.0), total, square, origin, exponent)

    def at(self, ranks: np.ndarray) -> Moments:
        """The moments at some of the ranks."""
        return Moments(self.count[ranks], self.total[ranks], self.square[ranks])

    def reverse(self) -> Moments:
        """The moments seen from the other end; only their differences have a meaning."""
        return Moments(-self.count[::-1], -self.total[::-1], -self.square[::-1])

    def means(self, cuts: np.ndarray) -> np.ndarray:
        """The mean of every segment, in the units of the values."""
        means = np.diff(self.total[cuts]) / np.diff(self.count[cuts]) + self.origin
        scaled: np.ndarray = np.ldexp(means, self.exponent)
        return scaled

    def errors(self, cuts: np.ndarray) -> np.ndarray:
        """The squared error of every segment around its mean, in scaled units."""
        count, total = np.diff(self.count[cuts]), np.diff(self.total[cuts])
        errors: np.ndarray = np.maximum(np.diff(self.square[cuts]) - total * total / count, 0.0)
        return errors


def safe_exponent(largest: float) -> int:
    """A power of two to divide by where squares would overflow or vanish, else 0."""
    exponent = int(np.frexp(largest)[1])
    return exponent if abs(exponent) > 300 else 0


def _outward_sums(values: np.ndarray, middle: int) -> np.ndarray:
    sums = np.empty(values.size + 1)
    sums[middle] = 0.0
    np.cumsum(values[middle:], out=sums[middle + 1 :])
    below = sums[:middle][::-1]
    np.cumsum(values[:middle][::-1], out=below)
    np.negative(below, out=below)
    return sums


def equal_error_cuts(ordered: np.ndarray, moments: Moments, count: int) -> np.ndarray:
    """Cuts into ``count`` segments of about equal squared error (fewer if values run out).

    Segments of the largest error are halved in value until there are enough of them. Equal errors
    are what an optimal quantiser has (Panter and Dite 1951), outliers and gaps included.
    """
    cuts = np.array([0, ordered.size])
    while True:
        first, last = ordered[cuts[:-1]], ordered[cuts[1:] - 1]
        room = count - first.size
        errors = np.where(first < last, moments.errors(cuts), -1.0)
        largest = errors.max()
        if room <= 0 or largest < 0:
            return cuts
        chosen = np.flatnonzero(errors >= largest / 4)
        if chosen.size > room:
            chosen = chosen[np.argsort(-errors[chosen], kind="stable")[:room]]
        first, last = first[chosen], last[chosen]
        middle = first / 2 + last / 2
        # Between neighbouring floats the middle rounds to one of them: both sides keep a value.
        middle = np.where((middle > first) & (middle <= last), middle, last)
        cuts = np.union1d(cuts, np.searchsorted(ordered, middle, side="left"))


def lloyd(ordered: np.ndarray, moments: Moments, cuts: np.ndarray) -> np.ndarray:
    """Move every cut to the middle between two means while this lowers the squared error."""
    error = moments.errors(cuts).sum()
    for _ in range(_LLOYD_PASSES):
        means = moments.means(cuts)
        # Keys of another dtype would make NumPy convert all values on every pass.
        middle = (means[1:] / 2 + means[:-1] / 2).astype(ordered.dtype)
        inner = np.searchsorted(ordered, middle, side="left")
        moved = np.concatenate(([0], inner, [ordered.size]))
        if (np.diff(moved) <= 0).any():
            return cuts
        lower = moments.errors(moved).sum()
        if not lower < error:
            return cuts
        cuts, gain, error = moved, error - lower, lower
        if gain < _LLOYD_TOLERANCE * error:
            return cuts
    return cuts


def optimal_cuts(moments: Moments, k: int, guess: np.ndarray) -> np.ndarray:
    r"""The cuts into ``k`` segments of least total squared error, by dynamic programming.

    .. math:: D_j(i) = \min_s D_{j-1}(s) + e(s, i)

    :math:`D_j(i)` is the least error of the first i elements in j segments. The programme runs
    k/2 rows from either end and joins them where their sum is least: prefixes that alone cost
    more than a good guess are left out, which leaves few of them in the early rows.

    :param moments: moments at the m + 1 allowed cuts.
    :param guess: indices into them: the k + 1 cuts of a good partition.
    :return: indices of the k + 1 best cuts, ascending.
    """
    size = moments.count.size - 1
    whole = moments.errors(np.array([0, size]))[0]
    # The slack is for rounding: sums of squares are known to about 1e-15 of the whole.
    limit = moments.errors(guess).sum() * (1 + 1e-9) + 1e-12 * whole
    near, near_cuts = _prefix_errors(moments, k // 2, guess, limit)
    far, far_cuts = _prefix_errors(moments.reverse(), k - k // 2, size - guess[::-1], limit)
    joint = int(np.argmin(near + far[::-1]))
    head, tail = _trace(near_cuts, joint), _trace(far_cuts, size - joint)
    return np.concatenate((head, size - tail[-2::-1]))


def _trace(rows: list[np.ndarray], end: int) -> np.ndarray:
    cuts = [end]
    for row in reversed(rows):
        cuts.append(int(row[cuts[-1]]))
    return np.array(cuts[::-1])


def _prefix_errors(
    moments: Moments, rows: int, guess: np.ndarray, limit: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The last row of D, infinite where it exceeds the limit, and the best last cut of each row."""
    size = moments.count.size - 1
    error = np.full(size + 1, np.inf)
    error[0] = 0.0
    last_cuts: list[np.ndarray] = []
    previous = np.zeros(size + 1, dtype=np.int64)
    for row in range(1, rows + 1):
        error, previous = _next_row(moments, error, previous, row, int(guess[row]), limit)
        last_cuts.append(previous.astype(np.int32))
    return error, last_cuts


def _next_row(
    moments: Moments, error: np.ndarray, previous: np.ndarray, row: int, known: int, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """One row of the programme from the one before.

    The best last cut grows with the prefix and with the row (the error is a Monge function), so a
    solved prefix bounds the search of its neighbours: every 32nd first, then those between them.
    """
    size = error.size - 1
    reach = int(np.flatnonzero(np.isfinite(error))[-1])
    gain = error - moments.square
    result = np.full(size + 1, np.inf)
    best = np.full(size + 1 + _STRIDE, size, dtype=np.int64)
    ends = np.arange(row, size + 1, _STRIDE)
    result[ends], best[ends] = _search(moments, gain, ends, previous[ends], ends - 1, reach)
    last = _last_needed(ends, result[ends], known, limit, size)
    for stride in _HALVINGS:
        ends = np.arange(row + stride, last + 1, 2 * stride)
        if ends.size:
            lower = np.maximum(previous[ends], best[ends - stride])
            upper = np.minimum(ends - 1, best[ends + stride])
            result[ends], best[ends] = _search(moments, gain, ends, lower, upper, reach)
    best = best[: size + 1]
    best[last + 1 :] = best[last]
    affordable = row + int(np.searchsorted(result[row : last + 1], limit, side="right"))
    result[max(known + 1, affordable) :] = np.inf
    return result, best


def _last_needed(ends: np.ndarray, errors: np.ndarray, known: int, limit: float, size: int) -> int:
    """The last prefix worth solving: beyond it, the row costs more than the guess in all."""
    enough = np.flatnonzero((errors > limit) & (ends >= known))
    return int(ends[enough[0]]) if enough.size else size


def _search(
    moments: Moments,
    gain: np.ndarray,
    ends: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    reach: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The least error of each prefix over its range of last cuts, and the first cut with it."""
    upper = np.minimum(upper, reach)
    lower = np.minimum(lower, upper)
    lengths = upper - lower + 1
    begins = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(ends.size), lengths)
    cut = np.arange(owner.size) + (lower - begins)[owner]
    spread = moments.total[ends][owner] - moments.total[cut]
    spread *= spread
    spread /= moments.count[ends][owner] - moments.count[cut]
    errors = gain[cut] - spread
    least = np.minimum.reduceat(errors, begins)
    hits = np.flatnonzero(errors == least[owner])
    return least + moments.square[ends], cut[hits[np.searchsorted(hits, begins)]]
