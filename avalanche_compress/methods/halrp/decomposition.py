"""One layer between its whole weight and its perturbation."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_compress.core.deferred import full_precision
from avalanche_compress.methods.halrp.maths import LeadingSVD, balanced_factors, leading_svd
from avalanche_compress.methods.halrp.store import PerturbedStore


class Layer:
    """A layer between its whole weight and its perturbation.

    :param store: with a whole weight in training.
    :param r: scales of its outputs, (G, n).
    :param s: scales of its inputs, (G, m).
    :param mode: ``"spatial_mean"`` or ``"flatten"``.
    :param method: of the singular value decomposition.
    """

    def __init__(self, store: PerturbedStore, r: Tensor, s: Tensor, mode: str, method: str):
        self.store = store
        self.mode = mode
        self.cost = store.parameters_per_rank(mode)
        self.kernel_size = 1 if mode == "flatten" else store.kernel_size
        """K, the kernel positions over which a component is constant."""
        self._r, self._s = r, s
        self._method = method
        self._residual = store.residual(r, s, mode)
        self._svds: list[LeadingSVD] = []

    def flattened(self) -> Layer:
        """The same layer with its kernel as one matrix."""
        return Layer(self.store, self._r, self._s, "flatten", self._method)

    def decompose(self, rank: int) -> None:
        """Find the leading components of every group's matrix.

        :param rank: how many, if there are so many.
        """
        self.components = min(rank, self.store.full_rank(self.mode))
        with full_precision(self._residual.device):
            self._svds = [
                leading_svd(matrix, self.components, method=self._method)
                for matrix in self._residual
            ]

    @property
    def singular_values(self) -> Tensor:
        """Of all groups together: components of one index stand or fall with each other."""
        groups = torch.stack([svd.singular_values for svd in self._svds])
        values: Tensor = torch.linalg.vector_norm(groups, dim=0)
        return values

    @property
    def energy(self) -> float | None:
        """Sum of all squared singular values, if not all of them were found."""
        if all(svd.exact for svd in self._svds):
            return None
        return sum(svd.energy for svd in self._svds)

    def cap(self, max_rank: int, limited: bool) -> int:
        """The largest rank that may be chosen.

        :param max_rank: for any layer.
        :param limited: whether no layer may keep its whole weight instead.
        """
        store = self.store
        most = store.break_even_rank if limited else store.full_rank
        return min(max_rank, most(self.mode))

    def planned_bytes(self, most: int, bits: float) -> list[float]:
        """About what a task takes at the ranks 0 to the largest one.

        :param most: the largest.
        :param bits: of a value.
        """
        none = self.store.planned_bytes(0, bits)
        return [none + rank * self.cost * bits / 8 for rank in range(most + 1)]

    def perturb(self, rank: int) -> None:
        """Let the store train scales and this many components.

        :param rank: at most as many as were found.
        """
        factors = [balanced_factors(svd, rank) for svd in self._svds]
        left, right = (torch.stack(parts) for parts in zip(*factors))
        self.store.perturb(self._r, self._s, left, right)
