"""What the public code of HALRP does otherwise, for studies that compare with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.errors import TaskStateError
from avalanche_compress.methods.halrp.budget import magnitudes, shaped_like
from avalanche_compress.methods.halrp.growth import (
    added_parameters,
    base_parameters,
    fixed_parameters,
    perturbed_stores,
)
from avalanche_compress.methods.halrp.maths import EPS, scaling_products
from avalanche_compress.methods.halrp.plugin import PerturbationPlugin
from avalanche_compress.methods.halrp.store import PerturbedStore


class ReferencePerturbation(PerturbationPlugin):
    """Three departures of the public code from the idea of the paper.

    B1: s is not the least-squares solution (:func:`reference_scalings`). B22: the penalty draws r
    and s to 0, so that the base fades where it is of no use. B4: factors are pruned by a threshold
    that takes all added parameters for prunable (:func:`reference_prune`), which may miss the
    bound; without a bound nothing is pruned.

    :param options: of :class:`PerturbationPlugin`; ``scale_center`` has no meaning, and neither
        shares of the bound nor more than one sweep can be asked for.
    :raises TaskStateError: if one is outside its range.

    >>> ReferencePerturbation(growth_bound=0.2).scale_center
    0.0
    """

    def __init__(self, *options: Any, **named_options: Any):
        super().__init__(*options, **{**named_options, "scale_center": 0.0})
        if self.als_iters > 1:
            raise TaskStateError(
                f"als_iters={self.als_iters} must be 1 with reference_compat: the public code "
                "solves once."
            )
        if self.rank_method == "budget":
            raise TaskStateError(
                "rank_method='budget' meets its limit exactly, and the public code does not: leave "
                "reference_compat off, or give rank_method='importance'."
            )
        if (self.limit.tasks, self.limit.per_task) != (None, None):
            raise TaskStateError(
                f"tasks={self.limit.tasks} and per_task_budget={self.limit.per_task} cannot be "
                "held with reference_compat, which prunes by growth_bound alone: leave them out."
            )

    @property
    def _limited(self) -> bool:
        return False

    def _scalings(self, store: PerturbedStore) -> tuple[Tensor, Tensor]:
        return store.scalings(solve=reference_scalings)

    def _masks(self, factors: Sequence[Tensor], network: TaskNetwork) -> list[Tensor]:
        if self.limit.bound is None:
            return [torch.ones_like(factor, dtype=torch.bool) for factor in factors]
        assert network.open_task is not None
        classes = len(network.classes_of(network.open_task))
        base = base_parameters(network, classes)
        entries = sum(factor.numel() for factor in factors)
        earlier = sum(_unpruned_parameters(network, task) for task in network.tasks)
        dense = base + earlier + fixed_parameters(network, classes) + entries
        return reference_prune(factors, base, dense, self.limit.bound, self.prune_floor)


def reference_scalings(tuned: Tensor, base: Tensor, sweeps: int = 1) -> tuple[Tensor, Tensor]:
    """Scales of the public code: the weights of s are summed over outputs before they multiply.

    ``s_i = (sum r / sum r^2) <W_i, W_base_i> / ||W_base_i||^2``, with r as in
    :func:`~avalanche_compress.methods.halrp.maths.least_squares_scalings`.

    :param tuned: weight W, shape (O, I) or (O, I, ...) with kernel positions last.
    :param base: weight W_base, same shape.
    :param sweeps: has no meaning, there is one.
    :return: ``(r, s)`` of shapes (O,) and (I,).

    >>> tuned = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    >>> reference_scalings(tuned, torch.ones(2, 2))
    (tensor([1.5000, 4.5000]), tensor([0.5333, 1.0667]))
    """
    products, powers = scaling_products(tuned, base)
    ones = torch.ones_like(powers[0])
    r = (products @ ones) / (powers @ ones).clamp(min=EPS)
    return r, r.sum() * products.sum(0) / (r.square().sum() * powers.sum(0)).clamp(min=EPS)


def reference_prune(
    tensors: Sequence[Tensor], base_count: int, dense_count: int, bound: float, floor: float = 0.0
) -> list[Tensor]:
    """What the public code of HALRP keeps under a bound on growth, which it may miss.

    With growth ``g = dense_count / base_count - 1`` it drops what is not above the
    ``1 - bound / g`` quantile of the magnitudes, as if all added parameters could be pruned.

    :param tensors: factors of all layers, of one task or of all; see :func:`prune_to_count`.
    :param base_count: parameters of the base network.
    :param dense_count: parameters of the base network and all tasks, nothing pruned.
    :param bound: what all tasks may add, as a fraction of the base.
    :param floor: entries of this magnitude or less never stay if anything is pruned.
    :return: bool masks of what stays, all True if the growth is below the bound.
    :raises NonFiniteError: if an entry is NaN or infinite.

    >>> masks = reference_prune([torch.tensor([0.3, -0.1, 0.2, 0.4])], 10, 14, bound=0.2)
    >>> masks[0].tolist()
    [True, False, False, True]
    """
    growth = dense_count / base_count - 1
    magnitude = magnitudes(tensors)
    if growth < bound:
        return shaped_like(tensors, torch.ones_like(magnitude, dtype=torch.bool))
    quantile = np.quantile(magnitude.cpu().double().numpy(), 1 - bound / growth)
    return shaped_like(tensors, magnitude > max(floor, float(quantile)))


def _unpruned_parameters(network: TaskNetwork, task: int) -> int:
    """What a finished task added to the base, the pruned entries of its factors counted."""
    stores = perturbed_stores(network)
    pruned = sum(store.stored_unpruned(task) - store.added_values(task) for store in stores)
    return added_parameters(network, task) + pruned
