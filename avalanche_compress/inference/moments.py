"""Mean and scatter of each class's features, gathered as a stream."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Counts, sums and scatter of C classes in d features; samples are added and not kept.

    Sums are of differences from the first batch's mean, in float64, so that features far from 0
    lose no digits. Memory: ``8 C d^2`` bytes, or ``8 C d`` for variances alone.

    :param classes: C.
    :param width: d.
    :param diagonal: whether only the variance of each feature is wanted.

    >>> moments = Moments(classes=2, width=1)
    >>> moments.add(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1]))
    >>> moments.means().flatten().tolist(), moments.covariances().flatten().tolist()
    ([2.0, 9.0], [1.0, 0.0])
    """

    def __init__(self, classes: int, width: int, diagonal: bool = False):
        self.counts = torch.zeros(classes, dtype=torch.int64)
        self._diagonal = diagonal
        self._sums = torch.zeros(classes, width, dtype=torch.float64)
        shape = (classes, width) if diagonal else (classes, width, width)
        self._scatter = torch.zeros(shape, dtype=torch.float64)
        self._origin: Tensor | None = None

    @torch.no_grad()
    def add(self, features: Tensor, positions: Tensor) -> None:
        """Count samples in.

        :param features: ``(N, d)``.
        :param positions: ``(N,)``, the class of each, 0..C-1.
        """
        if not len(features):
            return
        features = features.detach().cpu().double()
        if self._origin is None:
            self._origin = features.mean(dim=0)
        moved = features - self._origin
        for position in positions.unique().tolist():
            members = moved[positions == position]
            self.counts[position] += len(members)
            self._sums[position] += members.sum(dim=0)
            if self._diagonal:
                self._scatter[position] += members.square().sum(dim=0)
            else:
                self._scatter[position].addmm_(members.T, members)

    def means(self) -> Tensor:
        """Class means ``(C, d)``, float64; a class without samples has the mean of all."""
        counts = self.counts[:, None]
        overall = self._sums.sum(dim=0) / counts.sum().clamp_min(1)
        moved = torch.where(counts > 0, self._sums / counts.clamp_min(1), overall)
        return moved if self._origin is None else moved + self._origin

    def covariances(self) -> Tensor:
        """Covariances divided by the number of samples, 0 where there are none, float64.

        :return: ``(C, d, d)``, or variances ``(C, d)``.
        """
        counts = self.counts[:, None].clamp_min(1)
        means = self._sums / counts
        if self._diagonal:
            return self._scatter / counts - means.square()
        return self._scatter / counts[..., None] - means[:, :, None] * means[:, None, :]
