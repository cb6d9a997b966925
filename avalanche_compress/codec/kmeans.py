"""Optimal one-dimensional k-means: the codebook of a layer's kept weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.codec._segments import (
    Moments,
    equal_error_cuts,
    lloyd,
    optimal_cuts,
    safe_exponent,
)

_EXACT_VALUES = 4096
_LEAST_BINS = 1024
_BINS_PER_CLUSTER = 32
_MOST_BINS = 8192
_LARGEST_PROGRAMME = 1024
_CHUNK = 1 << 16


def kmeans_1d(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""Split values into at most ``k`` groups with the least sum of squared errors.

    .. math:: \min_{c, q} \sum_i (w_i - c_{q_i})^2

    Up to 4,096 distinct values: the exact optimum, by dynamic programming over the sorted values
    (Wu 1991, in divide-and-conquer form). More: the same programme over 1,024 to 8,192 bins of
    about equal error, then Lloyd's iteration on the sorted values, which comes within 1e-4 of the
    optimal error up to ``k = 256`` (our choice). Above that it is good but without a promise, and
    above ``k = 1024`` Lloyd's iteration starts from ``k`` bins of about equal error.
    Errors are compared in float64, so a difference below 1e-13 of the values' total squared
    deviation is not seen. The work is done on the CPU and needs about 30 bytes per value.

    :param values: floating-point tensor of any shape, n elements; it may be empty.
    :param k: the largest number of groups.
    :return: ``(centroids, codes)``: the means of the groups, ascending, all different, shape (K,)
        with K = min(k, number of distinct values), dtype and device of ``values``; and the int32
        index of each element's group, shape (n,).
    :raises ValueError: if ``k < 1``, or ``values`` is not floating-point or not finite.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import kmeans_1d
        >>> centroids, codes = kmeans_1d(torch.tensor([4.0, -50.0, 5.0, 80.0, 100.0]), k=3)
        >>> centroids.tolist(), codes.tolist()
        ([-50.0, 4.5, 90.0], [1, 0, 1, 2, 2])
    """
    if k < 1:
        raise ValueError(f"k is {k}, but k-means needs at least one group; give k >= 1.")
    if not values.is_floating_point():
        raise ValueError(f"values are {values.dtype}, expected floating point; convert them first.")
    flat = values.detach().reshape(-1)
    numbers = _to_numpy(flat)
    if not np.isfinite(numbers).all():
        raise ValueError("values contain NaN or infinity, expected finite numbers; remove them.")
    centroids, starts = _cluster(np.sort(numbers), k)
    codes = torch.from_numpy(_assign(numbers, starts))
    return (
        torch.from_numpy(centroids).to(dtype=values.dtype, device=values.device),
        codes.to(values.device),
    )


def _to_numpy(flat: Tensor) -> np.ndarray:
    """The values in the smallest dtype NumPy sorts fast that holds them exactly."""
    kept = flat.dtype if flat.dtype == torch.float64 else torch.float32
    return flat.to(device="cpu", dtype=kept).contiguous().numpy()


def _cluster(ordered: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The centroids and the smallest value of every group of sorted values."""
    size = ordered.size
    if size == 0:
        return ordered, ordered
    runs = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    if runs.size <= k:
        return ordered[runs], ordered[runs]
    cuts = _cut(ordered, np.append(runs, size), k)
    first, last = ordered[cuts[:-1]], ordered[cuts[1:] - 1]
    means = _means(ordered, cuts)
    # Rounding must not move a mean out of its own group: centroids stay ascending and different.
    return np.clip(means, first, last).astype(ordered.dtype), first


def _means(ordered: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The mean of every group, summed in float64 without overflow."""
    exponent = safe_exponent(max(-float(ordered[0]), float(ordered[-1])))
    scaled = np.ldexp(ordered, -exponent) if exponent else ordered
    means = np.add.reduceat(scaled, cuts[:-1], dtype=np.float64) / np.diff(cuts)
    return np.ldexp(means, exponent)


def _cut(ordered: np.ndarray, runs: np.ndarray, k: int) -> np.ndarray:
    """The ranks where the groups begin, then the number of values.

    :param runs: the ranks where a new value begins, then the number of values.
    """
    moments = Moments.of(ordered)
    guess = lloyd(ordered, moments, equal_error_cuts(ordered, moments, k))
    bins = min(max(_LEAST_BINS, _BINS_PER_CLUSTER * k), _MOST_BINS)
    exact = runs.size <= max(_EXACT_VALUES, bins) + 1
    if not exact and k > _LARGEST_PROGRAMME:
        return guess
    edges = runs if exact else equal_error_cuts(ordered, moments, bins)
    edges = np.union1d(edges, guess)
    cuts = edges[optimal_cuts(moments.at(edges), k, np.searchsorted(edges, guess))]
    return cuts if exact else lloyd(ordered, moments, cuts)


def _assign(numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The index of the last group that starts at or below each value, int32."""
    if starts.size > 256:
        return (np.searchsorted(starts, numbers, side="right") - 1).astype(np.int32)
    # Comparing with every start, a cache-sized chunk at a time, beats a binary search per value.
    codes = np.zeros(numbers.size, dtype=np.uint8)
    for begin in range(0, numbers.size, _CHUNK):
        part, code = numbers[begin : begin + _CHUNK], codes[begin : begin + _CHUNK]
        for start in starts[1:]:
            code += (part >= start).view(np.uint8)
    return codes.astype(np.int32)
