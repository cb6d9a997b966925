"""Which weights stay: thresholds on scores and magnitudes, as pure functions."""

from __future__ import annotations

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


def _threshold(values: Tensor, k: int) -> Tensor | float:
    """The k-th smallest element; on a GPU a scalar there, so that nobody waits for it."""
    if values.device.type != "cpu":
        return values.flatten().kthvalue(k).values
    if values.dtype == torch.bfloat16:  # unknown to NumPy; float32 holds each of its values
        values = values.float()
    return float(_kth_smallest(values.numpy().ravel(), k))


SAMPLE = 4096
"""Elements from which the place of the k-th smallest of many is estimated."""


def _kth_smallest(values: np.ndarray, k: int) -> np.floating:
    """The k-th smallest; of many values, by those between two of a sample.

    Floyd and Rivest (CACM 1975). Four to six times faster than a partition of all of them, and ten
    times faster than ``torch.kthvalue``.
    """
    if len(values) < 2 * SAMPLE:
        return np.partition(values, k - 1)[k - 1]
    sample = values[:: len(values) // SAMPLE]
    # three standard deviations of the rank in the sample, sqrt(n) / 2 at most
    place, margin = k / len(values) * len(sample), 1.5 * len(sample) ** 0.5
    low, high = max(int(place - margin), 0), min(int(place + margin), len(sample) - 1)
    ends = np.partition(sample, (low, high))[[low, high]]
    below = np.count_nonzero(values < ends[0])
    between = values.compress((values >= ends[0]) & (values <= ends[1]))
    if not below < k <= below + len(between):  # a sample that is not like the whole
        return np.partition(values, k - 1)[k - 1]
    return np.partition(between, k - 1 - below)[k - 1 - below]


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
    count = magnitude.numel()
    kept = kept_count(density, count)
    if kept == count:
        return magnitude.fill_(1)
    # in place the comparison gives floats: on a CPU 5 times faster than a bool and a cast
    return magnitude.ge_(_threshold(magnitude, count - kept + 1))


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
