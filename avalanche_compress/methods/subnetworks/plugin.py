"""When and how much a task is pruned."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypedDict

import torch

from avalanche_compress.codec import magnitude_mask
from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.core.options import check_types, plain
from avalanche_compress.errors import TaskStateError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.methods.subnetworks.store import MaskedStore
from avalanche_compress.methods.subnetworks.subnetwork import SubnetworkStore, is_faster_lifted
from avalanche_compress.shaping.plugin import ShapingPlugin, Stage, check_known, stores_of
from avalanche_compress.shaping.size_budget import find_budget, planned_part
from avalanche_compress.shaping.validation import (
    Comparison,
    ValidationPlugin,
    check_loss_tolerance,
    restart_comparisons,
    validation_of,
)


@dataclass(frozen=True)
class DensityRange:
    """Every layer of every task keeps a fraction of its own, drawn from U(low, high).

    Ada-QPacknet's "adaptive pruning" without the search (Pietron et al., arXiv 2308.07939; its
    public code draws the fraction to prune from 0.4..0.7).

    :param low: least fraction kept, 0..1.
    :param high: largest fraction kept, low..1.
    :raises TaskStateError: if they are outside their ranges.

    >>> 0.3 <= DensityRange(0.3, 0.6).draw(random.Random(0)) <= 0.6
    True
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.low <= self.high <= 1:
            raise TaskStateError(
                f"a density between low={self.low} and high={self.high} cannot be drawn: "
                "0 <= low <= high <= 1 was expected."
            )

    def draw(self, source: random.Random) -> float:
        """A density between low and high.

        :param source: of the draw.
        """
        return source.uniform(self.low, self.high)


@dataclass(frozen=True)
class DensitySearch(DensityRange):
    """The best of several draws of all layers' densities, by accuracy and sparsity.

    Each candidate prunes the same trained weights and is scored by
    ``F = 0.8 accuracy + 0.2 sparsity``, both 0..1: accuracy on held-out data, sparsity the part of
    all weights that the task does not add. The mask that scored best is kept itself (Ada-QPacknet's
    ``dynamic_mask_search``, whose public code trains each candidate from random weights and draws
    the winner's mask anew).

    :param low: least fraction kept, 0..1.
    :param high: largest fraction kept, low..1.
    :param candidates: how many are drawn, at least one.
    :raises TaskStateError: if an argument is outside its range.

    >>> DensitySearch(0.3, 0.6, candidates=4).score(accuracy=0.5, sparsity=0.5)
    0.5
    """

    candidates: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1:
            raise TaskStateError(f"candidates={self.candidates} must be one at least.")

    def score(self, accuracy: float, sparsity: float) -> float:
        """F of a candidate.

        :param accuracy: on held-out data, 0..1.
        :param sparsity: part of the weights that the task does not add, 0..1.
        """
        return 0.8 * accuracy + 0.2 * sparsity


TaskDensity = float | Sequence[float] | Callable[[int], float]
"""Fraction of weights kept: for all tasks, or by position in the stream."""
Fractions = TaskDensity | Mapping[str, TaskDensity]
"""The same for all layers, or by a weight's name."""
Density = Fractions | DensityRange | DensitySearch | Mapping[str, TaskDensity | DensityRange]
"""Given, drawn, or searched for."""


class MaskingOptions(TypedDict, total=False):
    """Options of :class:`MaskingPlugin`."""

    density: Density
    post_prune_epochs: int
    prune_rounds: int
    prune_fraction: float
    prune_tolerance: float
    loss_tolerance: float
    seed: int


@dataclass(eq=False)
class MaskingPlugin(ShapingPlugin):
    """Gives every task a sub-network: by magnitude after training, or by learned scores.

    With scores (a network of ``MaskedStore(scored=True)``; WSN, Kang et al., ICML 2022) the mask
    of ``density`` is learned along with the weights. Without (PackNet, Mallya and Lazebnik, CVPR
    2018; a ``SlottedStore``) all writable weights are trained and the largest are kept;
    ``density`` is then the part of the *writable* weights that the task keeps. When
    ``post_prune_epochs`` are left the mask is fixed and only the weights in it train on.

    Layers may draw their densities (:class:`DensityRange`), or the best of several draws is
    searched for when pruning (:class:`DensitySearch`; it needs a :class:`ValidationPlugin` and no
    scores).

    Afterwards ``prune_rounds`` times a random layer loses the ``prune_fraction`` smallest of the
    task's own weights, unless validation accuracy falls by ``prune_tolerance`` or more
    (TinySubNets, Pietron et al., AAAI 2025, Algorithm 2) or the loss rises by more than
    ``loss_tolerance`` (our choice: few samples do not see it); that needs a
    :class:`ValidationPlugin`. Under a ``size_budget`` there are no such rounds, as it says how much
    is kept.

    :param density: fraction kept, 0..1; a float, a list by position of the task in the stream, a
        function of that position, a DensityRange, or a mapping from a weight's name to any of
        these (others: 1); or a DensitySearch.
    :param post_prune_epochs: epochs of training with the mask fixed; 0 fixes it after training.
    :param prune_rounds: rounds of post-training pruning.
    :param prune_fraction: fraction of a layer's own weights dropped in a round.
    :param prune_tolerance: loss of accuracy that undoes a round, in percentage points.
    :param loss_tolerance: what all rounds may add to the criterion's mean over held-out and some
        training samples (of cross-entropy, nats).
    :param seed: of the choice of layers and of densities.
    :raises TaskStateError: if an argument is outside its range.

    >>> MaskingPlugin(density=[0.5, 0.4]).density_at(1, "fc.weight")
    0.4
    """

    density: Density = 0.5
    post_prune_epochs: int = 0
    prune_rounds: int = 0
    prune_fraction: float = 0.2
    prune_tolerance: float = 0.2
    loss_tolerance: float = 0.05
    seed: int = 0

    stage = Stage.PRUNE
    state_attributes = ("_random", "_pruned")

    def __post_init__(self) -> None:
        super().__init__()
        if self.post_prune_epochs < 0 or self.prune_rounds < 0 or self.prune_tolerance < 0:
            raise TaskStateError(
                "post_prune_epochs, prune_rounds and prune_tolerance count something and cannot be "
                f"negative: they are {self.post_prune_epochs}, {self.prune_rounds} and "
                f"{self.prune_tolerance}."
            )
        check_loss_tolerance(self.loss_tolerance)
        if not 0 < self.prune_fraction < 1:
            raise TaskStateError(f"prune_fraction={self.prune_fraction} must lie between 0 and 1.")
        if isinstance(self.density, Mapping):
            self.density = {name: plain(value) for name, value in self.density.items()}
            for density in self.density.values():
                _check_given(density)
        else:
            _check_given(self.density)
        self._random = random.Random(self.seed)
        self._pruned = False

    def density_at(self, position: int, name: str) -> float:
        """The fraction that a layer keeps of a task.

        :param position: how many tasks were finished before.
        :param name: the weight's dotted name.
        :return: 1 where a :class:`DensitySearch` decides only when the task is pruned.
        :raises TaskStateError: if it is outside 0..1, or the list is too short.
        """
        density: Any = self.density
        if isinstance(density, DensitySearch):
            return 1.0
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
        if isinstance(density, DensitySearch):
            raise TaskStateError(
                f"density= of {name} is a DensitySearch, and a search is for all layers and tasks: "
                "give it as density= itself."
            )
        if isinstance(density, DensityRange):
            density = density.draw(self._source(position, name))
        _check_fraction(density)
        return float(density)

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        network = network_of(strategy)
        stores = subnetwork_stores(network)
        if isinstance(self.density, DensitySearch) and any(store.scored for store in stores):
            raise TaskStateError(
                "a DensitySearch prunes by magnitude and the network learns scores: give a density "
                "or a DensityRange, or build it with TaskNetwork(model, store=MaskedStore)."
            )
        for store in stores:
            store.lifts_gradients = is_faster_lifted(strategy.optimizer)
        self._pruned = False
        self.plan(strategy)

    def plan(self, strategy: Strategy) -> None:
        if self._pruned:
            return
        network = network_of(strategy)
        stores = subnetwork_stores(network)
        part = planned_part(
            strategy, lambda part, bits: sum(store.planned_bytes(part, bits) for store in stores)
        )
        for store in stores:
            store.density = min(part, self.density_at(len(network.tasks), store.name))

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, *args, **kwargs)
        if isinstance(self.density, DensitySearch):
            validation_of(strategy, "a DensitySearch")  # refused now, not after training

    def before_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        left = strategy.train_epochs - strategy.clock.train_exp_epochs
        if not self._pruned and 0 < left <= self.post_prune_epochs < strategy.train_epochs:
            self._prune(strategy)
            restart_comparisons(strategy)

    def shape(self, strategy: Strategy) -> None:
        network = network_of(strategy)
        if not self._pruned:
            self._prune(strategy)
        if self.prune_rounds and network.weight_stores and find_budget(strategy) is None:
            self._prune_further(strategy)

    def _prune(self, strategy: Strategy) -> None:
        network = network_of(strategy)
        if isinstance(self.density, DensitySearch) and network.weight_stores:
            self._search(network, self.density, validation_of(strategy, "a DensitySearch"))
        else:
            if find_budget(strategy) is not None:
                self.plan(strategy)
            for store in subnetwork_stores(network):
                if store.scored:
                    store.fix_mask(store.mask)
                else:
                    store.prune(1 - store.density)
        self._pruned = True

    def _search(
        self, network: TaskNetwork, search: DensitySearch, validation: ValidationPlugin
    ) -> None:
        stores = subnetwork_stores(network)
        size = sum(store.shape.numel() for store in stores)
        best: tuple[float, list[tuple[float, torch.Tensor]]] | None = None
        for number in range(search.candidates):
            for store in stores:
                store.density = search.draw(self._source(len(network.tasks), store.name, number))
                store.prune(1 - store.density)
            sparsity = 1 - sum(int(store.owned.sum()) for store in stores) / size
            score = search.score(validation.accuracy(network) / 100, sparsity)
            if best is None or score > best[0]:
                best = score, [(store.density, store.mask) for store in stores]
        assert best is not None
        for store, (density, mask) in zip(stores, best[1]):
            store.density = density
            store.fix_mask(mask)

    def _source(self, *what: Any) -> random.Random:
        """Draws that depend on the seed and on what is drawn, not on what was drawn before."""
        return random.Random(repr((self.seed, *what)))

    def _prune_further(self, strategy: Strategy) -> None:
        stores = subnetwork_stores(network_of(strategy))
        comparison = Comparison(
            strategy, "post-training pruning", self.prune_tolerance, self.loss_tolerance
        )
        for _ in range(self.prune_rounds):
            store = self._random.choice(stores)
            before = store.mask
            store.fix_mask(self._without_smallest(store))
            if not comparison.accepts_less():
                store.fix_mask(before)

    def _without_smallest(self, store: SubnetworkStore) -> torch.Tensor:
        owned, mask = store.owned, store.mask.clone()
        mask[owned] = magnitude_mask(store.scratch.detach()[owned], self.prune_fraction)
        return mask


SCORE_INITS = ("magnitude", "random")


def start_scores(network: TaskNetwork, how: str) -> None:
    """Say how the scores of a new network start; one that has learned tasks goes on with its own.

    :param network: of :class:`~avalanche_compress.MaskedStore` with scores.
    :param how: ``"magnitude"``, at ``|weight|``, so that a pretrained model keeps what it can; or
        ``"random"``, as WSN's code draws them.
    :raises TaskStateError: if it is none of these.
    """
    check_known(score_init=(how, SCORE_INITS))
    if how == "random" and not network.tasks:
        for store in network.weight_stores:
            if isinstance(store, MaskedStore):
                store.draw_scores()


def _check_given(density: Any) -> None:
    """Refuse what can be told before a task: of a list each entry, and numbers."""
    listed = isinstance(density, Sequence) and not isinstance(density, str)
    for fraction in density if listed else [density]:
        if not callable(fraction) and not isinstance(fraction, DensityRange):
            _check_fraction(fraction)


def _check_fraction(density: Any) -> None:
    if not isinstance(density, Real) or not 0 <= float(density) <= 1:
        raise TaskStateError(f"density={density!r} must be a number between 0 and 1.")


def subnetwork_stores(network: TaskNetwork) -> list[SubnetworkStore]:
    """The weights of a network that have a mask for each task; none where nothing is compressed.

    :param network: any.
    :raises TaskStateError: if its weights are kept in another way.
    """
    kind: Any = SubnetworkStore  # abstract, which mypy does not take for a type
    return stores_of(network, kind, "MaskingPlugin", "masked", "MaskedStore")
