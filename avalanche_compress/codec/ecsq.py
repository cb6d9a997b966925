"""Entropy-constrained scalar quantisation: the least error at a rate, in one dimension."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.codec._segments import Moments, equal_error_cuts

_MOST_CUTS = 1024
"""Places where cells may end; more values are binned first, at about equal error."""
_CUTS_A_CELL = 32
"""Such places for each of the cells that equally long codes would tell apart."""
_HALVINGS = 18
"""Steps of the search for a rate: the weight is then known to a factor of 1.0002."""


def ecsq_1d(values: Tensor, weight: float, cell_bits: float = 16.0) -> tuple[Tensor, Tensor]:
    r"""Quantise values so that squared error and entropy-coded length together are least.

    .. math:: \min \sum_i (w_i - c_{q_i})^2 + \lambda
              \Bigl( \sum_k n_k \log_2 \frac{n}{n_k} + K b \Bigr)

    over the number of cells K, their bounds and their means: :math:`n_k` of the n values lie in
    cell k, and a centroid takes b bits. A cell's part depends on its two bounds alone, so the
    optimum over all partitions into intervals is found by dynamic programming (Chou, Lookabaugh
    and Gray 1989 iterate to a local one). Up to 1,024 distinct values the bounds may lie between
    any two; of more, between bins of about equal error (our choice).

    :param values: floating-point tensor of any shape, n elements.
    :param weight: :math:`\lambda`, squared error that a bit may cost, 0 or more.
    :param cell_bits: b.
    :return: ``(centroids, codes)``: the means, ascending, (K,), in the dtype of ``values``; and the
        int32 index of each element's cell, (n,).
    :raises ValueError: if the weight is negative, or a value is not finite.

    >>> values = torch.tensor([0.0, 0.1, 0.2, 9.0])
    >>> centroids, codes = ecsq_1d(values, weight=0.01)
    >>> codes.tolist()
    [0, 0, 0, 1]
    """
    if not weight >= 0:
        raise ValueError(f"the weight of a bit is {weight}, expected zero or more.")
    problem = _Problem.of(values)
    return problem.quantise(problem.best_cuts(weight, cell_bits))


def quantise_at_rate(values: Tensor, bits: float, cell_bits: float = 16.0) -> tuple[Tensor, Tensor]:
    """The quantiser of :func:`ecsq_1d` of least error whose codes have at most this entropy.

    Cells may end at ``32 * 2**bits`` places, 1,024 at most, where there are more values than that.

    :param values: floating-point tensor of any shape, n elements.
    :param bits: bits a value, on average, the centroids' own included; above 0.
    :param cell_bits: of a centroid.
    :return: ``(centroids, codes)`` as there.
    :raises ValueError: if ``bits`` is not positive, or a value is not finite.

    >>> values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    >>> centroids, codes = quantise_at_rate(values, bits=2.0)
    >>> share = torch.bincount(codes) / 5000
    >>> bool(-(share * share.log2()).sum() <= 2.0), len(centroids) > 4
    (True, True)
    """
    if not bits > 0:
        raise ValueError(f"{bits} bits a value were asked for, expected more than zero.")
    most_cuts = round(min(_CUTS_A_CELL * 2.0**bits, _MOST_CUTS))
    problem = _Problem.of(values, most_cuts)
    limit = bits * problem.count
    finest = problem.best_cuts(0.0, cell_bits)
    if problem.length(finest, cell_bits) <= limit:
        return problem.quantise(finest)
    # in logarithms: the error of a bit falls by a factor of four with each bit there is
    low, high = problem.least_weight, problem.most_weight
    best = np.array([0, problem.edges.size - 1])
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        cuts = problem.best_cuts(middle, cell_bits)
        if problem.length(cuts, cell_bits) <= limit:
            best, high = cuts, middle
        else:
            low = middle
    return problem.quantise(best)


class _Problem:
    """Sorted values and the ranks between which cells may lie.

    :param values: flat, as given.
    :param ordered: the same, ascending.
    :param most_cuts: how many ranks there may be.
    """

    def __init__(self, values: Tensor, ordered: np.ndarray, most_cuts: int):
        self._values = values
        self._ordered = ordered
        self.count = ordered.size
        runs = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))[: self.count]
        self.edges = np.append(runs, self.count)
        if self.count:
            moments = Moments.of(ordered)
            if runs.size > most_cuts:
                self.edges = equal_error_cuts(ordered, moments, most_cuts)
            self._errors, self._bits = _cells(moments.at(self.edges))
            self.most_weight = max(float(moments.errors(np.array([0, self.count]))[0]), 1e-300)
            self.least_weight = self.most_weight * 1e-12 / self.count

    @classmethod
    def of(cls, values: Tensor, most_cuts: int = _MOST_CUTS) -> _Problem:
        if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
            raise ValueError("values must be finite floating-point numbers.")
        flat = values.detach().reshape(-1).cpu().double().numpy()
        return cls(values.detach().reshape(-1), np.sort(flat), most_cuts)

    def best_cuts(self, weight: float, cell_bits: float) -> np.ndarray:
        """Indices into the edges where the cells of the best partition begin, and the end."""
        size = self.edges.size - 1
        if size < 1:
            return np.zeros(1, dtype=np.int64)
        of_cell = self._errors + weight * (self._bits + cell_bits)
        cost, last = np.zeros(size + 1), np.zeros(size + 1, dtype=np.int64)
        for end in range(1, size + 1):
            costs = cost[:end] + of_cell[end, :end]
            last[end] = costs.argmin()
            cost[end] = costs[last[end]]
        cuts = [size]
        while cuts[-1]:
            cuts.append(int(last[cuts[-1]]))
        return np.array(cuts[::-1])

    def length(self, cuts: np.ndarray, cell_bits: float) -> float:
        """Bits of all codes at their entropy, and of the centroids."""
        counts = np.diff(self.edges[cuts])
        return float((counts * np.log2(self.count / counts)).sum() + cell_bits * counts.size)

    def quantise(self, cuts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Centroids and codes of a partition."""
        starts = self.edges[cuts[:-1]]
        dtype, device = self._values.dtype, self._values.device
        if not self.count:
            return self._values.new_empty(0), torch.empty(0, dtype=torch.int32, device=device)
        sums = np.add.reduceat(self._ordered, starts)
        means = np.clip(
            sums / np.diff(self.edges[cuts]),
            self._ordered[starts],
            self._ordered[self.edges[cuts[1:]] - 1],
        )
        bounds = torch.from_numpy(self._ordered[starts[1:]])
        codes = torch.bucketize(self._values.cpu().double(), bounds, right=True, out_int32=True)
        return torch.from_numpy(means).to(device=device, dtype=dtype), codes.to(device)


def _cells(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Squared error, and bits of all codes, of each cell: by its end, then its start."""
    count = np.subtract.outer(moments.count, moments.count)
    before = count > 0
    total = np.subtract.outer(moments.total, moments.total)
    error = np.subtract.outer(moments.square, moments.square)
    error -= np.divide(total**2, count, out=np.zeros_like(count), where=before)
    share = np.divide(count, moments.count[-1], out=np.ones_like(count), where=before)
    return np.maximum(error, 0.0), -count * np.log2(share)
