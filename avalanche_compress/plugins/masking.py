"""When and how much a task is pruned."""

from __future__ import annotations

import random
from typing import Any, Callable, Mapping, Sequence, Union

import torch

from avalanche_compress.coding import magnitude_mask
from avalanche_compress.errors import TaskStateError
from avalanche_compress.network import TaskNetwork, network_of
from avalanche_compress.plugins.base import ShapingPlugin
from avalanche_compress.plugins.validation import ValidationPlugin, validation_of
from avalanche_compress.stores import MaskedStore

TaskDensity = Union[float, Sequence[float], Callable[[int], float]]
"""Fraction of weights kept: for all tasks, or by position in the stream."""
Density = Union[TaskDensity, Mapping[str, TaskDensity]]
"""The same for all layers, or by a weight's name."""


class MaskingPlugin(ShapingPlugin):
    """Gives every task a sub-network: by magnitude after training, or by learned scores.

    With scores (a network of ``MaskedStore(scored=True)``; WSN, Kang et al., ICML 2022) the mask
    of ``density`` is learned along with the weights. Without (PackNet, Mallya and Lazebnik, CVPR
    2018) all free weights are trained and the largest are kept; ``density`` is then the part of
    the *free* weights that the task keeps. When ``post_prune_epochs`` are left the mask is fixed
    and only the weights in it train on.

    Afterwards ``prune_rounds`` times a random layer loses the ``prune_fraction`` smallest of the
    task's own weights, unless validation accuracy falls by ``prune_tolerance`` or more
    (TinySubNets, Pietron et al., AAAI 2025, Algorithm 2); that needs a :class:`ValidationPlugin`.

    :param density: fraction kept, 0..1; a float, a list by position of the task in the stream, a
        function of that position, or a mapping from a weight's name to any of these (others: 1).
    :param post_prune_epochs: epochs of training with the mask fixed; 0 fixes it after training.
    :param prune_rounds: rounds of post-training pruning.
    :param prune_fraction: fraction of a layer's own weights dropped in a round.
    :param prune_tolerance: loss of accuracy that undoes a round, in percentage points.
    :param seed: of the choice of layers.
    :raises TaskStateError: if an argument is outside its range.

    >>> MaskingPlugin(density=[0.5, 0.4]).density_at(1, "fc.weight")
    0.4
    """

    turn = 1

    def __init__(
        self,
        density: Density = 0.5,
        *,
        post_prune_epochs: int = 0,
        prune_rounds: int = 0,
        prune_fraction: float = 0.2,
        prune_tolerance: float = 0.2,
        seed: int = 0,
    ):
        super().__init__()
        if post_prune_epochs < 0 or prune_rounds < 0 or prune_tolerance < 0:
            raise TaskStateError(
                "post_prune_epochs, prune_rounds and prune_tolerance count something and cannot be "
                f"negative: they are {post_prune_epochs}, {prune_rounds} and {prune_tolerance}."
            )
        if not 0 < prune_fraction < 1:
            raise TaskStateError(f"prune_fraction={prune_fraction} must lie between 0 and 1.")
        self.density = density
        self.post_prune_epochs = post_prune_epochs
        self.prune_rounds = prune_rounds
        self.prune_fraction = prune_fraction
        self.prune_tolerance = prune_tolerance
        self._random = random.Random(seed)
        self._pruned = False

    def density_at(self, position: int, name: str) -> float:
        """The fraction that a layer keeps of a task.

        :param position: how many tasks were finished before.
        :param name: the weight's dotted name.
        :raises TaskStateError: if it is outside 0..1, or the list is too short.
        """
        density: Any = self.density
        if isinstance(density, Mapping):
            density = density.get(name, 1.0)
        if callable(density):
            density = density(position)
        elif isinstance(density, Sequence):
            if position >= len(density):
                raise TaskStateError(
                    f"density= lists {len(density)} tasks and the stream has at least "
                    f"{position + 1}: give one fraction a task, or a single float."
                )
            density = density[position]
        if not 0 <= density <= 1:
            raise TaskStateError(f"density={density} of {name} must lie between 0 and 1.")
        return float(density)

    def after_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        network = network_of(strategy)
        for store in masked_stores(network):
            store.density = self.density_at(len(network.tasks), store.name)
        self._pruned = False

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        left = strategy.train_epochs - strategy.clock.train_exp_epochs
        if not self._pruned and 0 < left <= self.post_prune_epochs < strategy.train_epochs:
            self._prune(network_of(strategy))
            for plugin in strategy.plugins:
                if isinstance(plugin, ValidationPlugin):
                    plugin.restart()

    def shape(self, strategy: Any) -> None:
        network = network_of(strategy)
        if not self._pruned:
            self._prune(network)
        if self.prune_rounds:
            self._prune_further(network, validation_of(strategy, "post-training pruning"))

    def _prune(self, network: TaskNetwork) -> None:
        for store in masked_stores(network):
            if store.scored:
                store.fix_mask(store.mask)
            else:
                store.prune(1 - store.density)
        self._pruned = True

    def _prune_further(self, network: TaskNetwork, validation: ValidationPlugin) -> None:
        stores = masked_stores(network)
        reference = validation.accuracy(network)
        for _ in range(self.prune_rounds):
            store = self._random.choice(stores)
            before = store.mask
            store.fix_mask(self._without_smallest(store))
            if reference - validation.accuracy(network) >= self.prune_tolerance:
                store.fix_mask(before)

    def _without_smallest(self, store: MaskedStore) -> torch.Tensor:
        own, mask = store.own, store.mask.clone()
        mask[own] = magnitude_mask(store.scratch.detach()[own], self.prune_fraction)
        return mask


def masked_stores(network: TaskNetwork) -> list[MaskedStore]:
    """The network's masked weights.

    :param network: any.
    :raises TaskStateError: if it has none.
    """
    stores = [store for store in network.weight_stores if isinstance(store, MaskedStore)]
    if not stores:
        raise TaskStateError(
            "a MaskingPlugin needs masked weights and the network has none: build it with "
            "TaskNetwork(model, store=MaskedStore)."
        )
    return stores
