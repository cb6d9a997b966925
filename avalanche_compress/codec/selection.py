"""Which weights stay: thresholds on scores and magnitudes, as pure functions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def kth_smallest(values: Tensor, k: int) -> float:
    """The k-th smallest element, k = 1 being the minimum.

    :param values: any shape, not empty, without NaN.
    :param k: 1..values.numel().

    >>> kth_smallest(torch.tensor([3.0, 1.0, 2.0]), 2)
    2.0
    """
    return float(_threshold(values.detach(), k))


class ThresholdWindow:
    """Where the k-th smallest of values is expected that move little from one search to the next.

    As that of scores does from one training step to the next: those below a window about the last
    one are counted, and the few within it are looked through. Where it has left the window all are,
    so that what is found is always exact.

    >>> window = ThresholdWindow()
    >>> [float(window.kth_smallest(np.array(values), 2)) for values in ([3, 1, 2], [3, 1, 2.5])]
    [2.0, 2.5]
    """

    def __init__(self) -> None:
        self._last = self._reach = math.nan

    def kth_smallest(self, values: np.ndarray, k: int) -> np.floating:
        """The k-th smallest element.

        :param values: (n,), not empty, without NaN.
        :param k: 1..n.
        """
        found = self._found_within(values, k)
        if found is None:
            found = _kth_smallest(values, k)
        moved = abs(float(found) - self._last)
        # of values that lie evenly up to twice the threshold a window holds some percent at most
        least, most = 1e-3 * float(found), 2e-2 * float(found)
        self._reach = most if math.isnan(moved) else min(max(4 * moved, least), most)
        self._last = float(found)
        return found

    def _found_within(self, values: np.ndarray, k: int) -> np.floating | None:
        """It, if it lies in the window."""
        if not self._reach > 0:
            return None
        low, high = (values.dtype.type(self._last + side * self._reach) for side in (-1, 1))
        below = values < low
        inside = values <= high
        inside ^= below
        between = values.take(inside.nonzero()[0])
        place = k - 1 - int(np.count_nonzero(below))
        return _partitioned(between, place) if 0 <= place < len(between) else None


def _threshold(values: Tensor, k: int, window: ThresholdWindow | None = None) -> Tensor | float:
    """The k-th smallest element; on a GPU a scalar there, so that nobody waits for it."""
    if values.device.type != "cpu":
        return values.flatten().kthvalue(k).values
    if values.dtype == torch.bfloat16:  # unknown to NumPy; float32 holds each of its values
        values = values.float()
    numbers = values.numpy().ravel()
    return float(_kth_smallest(numbers, k) if window is None else window.kth_smallest(numbers, k))


SAMPLE = 4096
"""Elements from which the place of the k-th smallest of many is estimated."""


def _kth_smallest(values: np.ndarray, k: int) -> np.floating:
    """The k-th smallest; of many values, by those between two of a sample.

    Floyd and Rivest (CACM 1975). Two to six times faster than a partition of all of them, and ten
    times faster than ``torch.kthvalue``.
    """
    if len(values) < 4 * SAMPLE:
        return _partitioned(values, k - 1)
    sample = values[:: len(values) // SAMPLE]
    # three standard deviations of the rank in the sample, sqrt(n) / 2 at most
    place, margin = k / len(values) * len(sample), 1.5 * len(sample) ** 0.5
    low, high = max(int(place - margin), 0), min(int(place + margin), len(sample) - 1)
    inside = values >= _partitioned(sample, low)
    below = len(values) - int(np.count_nonzero(inside))
    inside &= values <= _partitioned(sample, high)
    between = values.take(np.flatnonzero(inside))
    if not below < k <= below + len(between):  # a sample that is not like the whole
        return _partitioned(values, k - 1)
    return _partitioned(between, k - 1 - below)


def _partitioned(values: np.ndarray, place: int) -> np.floating:
    # one place at a time: NumPy has a vectorised selection for one, which is many times faster
    smallest: np.floating = np.partition(values, place)[place]
    return smallest


def kept_count(density: float, count: int) -> int:
    """How many of ``count`` weights a density keeps, in the convention of WSN.

    ``n - k + 1`` with ``k = 1 + round((1 - density) (n - 1))``, so at least one is kept
    (Kang et al., ICML 2022; the percentile rule of its public code).

    :param density: fraction to keep, 0..1.
    :param count: number of weights.

    >>> [kept_count(c, 10) for c in (0.0, 0.5, 0.75, 1.0)]
    [1, 6, 8, 10]
    """
    if count == 0:
        return 0
    return count - round((1 - density) * (count - 1))


def top_mask_(magnitude: Tensor, density: float) -> Tensor:
    """1.0 where a magnitude is among the largest, else 0.0; ties at the threshold are all kept.

    :param magnitude: float tensor of any shape, what scores are compared by; it is overwritten,
        since this runs at every training step and memory is what costs there.
    :param density: fraction to keep, 0..1 (see :func:`kept_count`).
    :return: ``magnitude``, now the mask: a float, because it multiplies in a forward pass.

    >>> top_mask_(torch.tensor([0.9, 0.1, 0.4, 0.7]), 0.5).tolist()
    [1.0, 0.0, 0.0, 1.0]
    """
    # in place the comparison gives floats: on a CPU 5 times faster than a bool and a cast
    return magnitude.ge_(top_threshold(magnitude, density))


def top_threshold(
    magnitude: Tensor, density: float, window: ThresholdWindow | None = None
) -> Tensor | float:
    """The least magnitude that is among the largest.

    :param magnitude: float tensor of any shape.
    :param density: fraction to keep, 0..1 (see :func:`kept_count`).
    :param window: of searches in magnitudes that were much like these.
    :return: on a GPU a scalar there, so that nobody waits for it; -inf where all are kept.

    >>> top_threshold(torch.tensor([0.5, 0.125, 0.25, 0.75]), 0.5)
    0.5
    """
    count = magnitude.numel()
    kept = kept_count(density, count)
    return -math.inf if kept == count else _threshold(magnitude, count - kept + 1, window)


def where_top(values: Tensor, scores: Tensor, threshold: Tensor | float) -> Tensor:
    """The values whose score has a magnitude of the threshold or more, others 0.

    :param values: of any shape.
    :param scores: of this shape.
    :param threshold: see :func:`top_threshold`.

    >>> where_top(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-0.5, 0.2, 0.4]), 0.4).tolist()
    [1.0, 0.0, 3.0]
    """
    scores = scores.detach()
    if isinstance(threshold, float) and values.dtype == scores.dtype == torch.float32:
        # one pass: torch drops the values of magnitudes up to a bound, the next number below
        below = float(np.nextafter(np.float32(threshold), np.float32(-math.inf)))
        kept: Tensor = torch.ops.aten.hardshrink_backward(values, scores, below)
        return kept
    return values * (scores.abs() >= threshold)


def magnitude_mask(values: Tensor, prune_fraction: float) -> Tensor:
    """Drop the ``round(p n)`` weights of smallest magnitude; ties at the threshold all go.

    The rule of PackNet (Mallya and Lazebnik, CVPR 2018). ``round`` is to even.

    :param values: the weights that this task may keep, any shape.
    :param prune_fraction: fraction p to drop, 0..1.
    :return: bool mask of what is kept.

    >>> magnitude_mask(torch.tensor([0.9, -0.1, 0.4, -0.7]), 0.5).int().tolist()
    [1, 0, 0, 1]
    """
    dropped = round(prune_fraction * values.numel())
    if dropped == 0:
        return torch.ones_like(values, dtype=torch.bool)
    magnitude = values.detach().abs()
    return magnitude > _threshold(magnitude, dropped)
