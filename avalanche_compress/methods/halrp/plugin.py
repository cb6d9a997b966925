"""Weights that perturb a base: the ranks are chosen after a warm-up, then few numbers train on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypedDict

import torch
from torch import Tensor

from avalanche_compress.core.batches import moved_to
from avalanche_compress.core.experiences import classes_in
from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.core.options import is_count
from avalanche_compress.errors import TaskStateError, ValidationDataError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.methods.halrp.budget import prune_to_count
from avalanche_compress.methods.halrp.decomposition import Layer
from avalanche_compress.methods.halrp.growth import (
    GrowthLimit,
    perturbed_stores,
)
from avalanche_compress.methods.halrp.importance import IMPORTANCE, Batch, layer_importance
from avalanche_compress.methods.halrp.rank_selection import (
    choose_conv_mode,
    ranks_within_budget,
    ranks_within_bytes,
    select_ranks,
)
from avalanche_compress.methods.halrp.store import PerturbedStore
from avalanche_compress.shaping.from_base import FromBasePlugin, trains_base
from avalanche_compress.shaping.plugin import Stage, check_known
from avalanche_compress.shaping.size_budget import PLANNED_BITS, find_budget
from avalanche_compress.shaping.task_loss import task_loss
from avalanche_compress.shaping.validation import (
    ValidationPlugin,
    iterate_batches,
    restart_comparisons,
    validation_of,
)

RANK_METHODS = ("importance", "flat", "budget")
IMPORTANCE_DATA = ("train", "validation")
SVD_METHODS = ("auto", "gram", "randomised", "exact")


class PerturbationOptions(TypedDict, total=False):
    """Options of :class:`PerturbationPlugin`."""

    approx_rate: float
    warmup_epochs: int | float
    max_rank: int
    min_rank: int
    rank_method: str
    importance: str
    importance_data: str
    l1: float
    l2: float
    scale_center: float
    growth_bound: float | None
    tasks: int | None
    per_task_budget: int | None
    prune_floor: float
    post_prune_epochs: int
    svd: str
    als_iters: int


@dataclass(eq=False)
class PerturbationPlugin(FromBasePlugin):
    """Turns each task's weights into small perturbations of a base while the task is trained.

    A task starts from the base, its biases, norms and running statistics included, and trains
    whole weights for ``warmup_epochs``. Then each becomes ``diag(r) W_base diag(s) + U A``: r and s
    by least squares, U and A by singular value decomposition of what is left, at ranks that keep
    ``approx_rate`` of what all layers' components are worth, ``K h sigma^2`` with h the layer's
    importance for the loss. These train for the remaining epochs under the penalty
    ``l1 (||U||_1 + ||A||_1) + l2/2 (||r - c||^2 + ||s - c||^2 + ||U||^2 + ||A||^2)``, and the
    smallest entries of U and A are pruned (Li et al., HALRP, TKDE 2024). It needs a network of
    :class:`~avalanche_compress.PerturbedStore`.

    If the first task is the base, it is trained as it is, under ``l2/2 ||W||^2``. A layer whose
    rank comes out so large that its whole weight has fewer numbers goes on with that. Earlier
    tasks are never touched. The optimiser keeps its object and learning rate, so schedulers go on;
    its state starts anew.

    :param approx_rate: part of the components' worth to keep, 0 < approx_rate <= 1.
    :param warmup_epochs: epochs with whole weights: an int from 1 on, or a part (float in 0..1) of
        the strategy's epochs. Where a single epoch is left for both, the factors come half-way
        through it.
    :param max_rank: of any layer.
    :param min_rank: of any layer that has so many components.
    :param rank_method: ``"importance"``; ``"flat"``, ``max_rank`` everywhere; or ``"budget"``, the
        components that are worth most per parameter, as many as the limit on growth allows.
    :param importance: ``"mean_sq"``, ``"sum"``, ``"fisher_diag"`` or ``"uniform"``, see
        :func:`~avalanche_compress.methods.halrp.importance.layer_importance`.
    :param importance_data: ``"train"``, or ``"validation"`` for those that a
        :class:`ValidationPlugin` has set aside.
    :param l1: weight of the factors' absolute values in the loss.
    :param l2: weight of the squares in the loss.
    :param scale_center: the c in the loss: at 1 a task stays near the base, at 0 the base fades
        where it is of no use, as in the public code.
    :param growth_bound: what all tasks may add to the base, as a part of its parameters and as
        :func:`~avalanche_compress.methods.halrp.growth.growth` counts for reference. The smallest
        entries of the factors are pruned until the bound holds exactly, and no layer keeps a whole
        weight that need not.
    :param tasks: how many there will be, the base's included, to share the bound equally; if None,
        a task may take all that is left.
    :param per_task_budget: parameters that a single task may add, counted in the same way.
    :param prune_floor: entries of the factors of this magnitude or less are always pruned.
    :param post_prune_epochs: epochs left for training when factors are pruned; 0 prunes in the end.
    :param svd: ``"auto"``, ``"gram"``, ``"randomised"`` or ``"exact"``, see
        :func:`~avalanche_compress.methods.halrp.maths.leading_svd`.
    :param als_iters: how many times r and s are solved for in turn.
    :raises TaskStateError: if an argument is outside its range.

    >>> PerturbationPlugin(0.9, warmup_epochs=0.25).warmup(train_epochs=12)
    3
    """

    approx_rate: float = 0.9
    warmup_epochs: int | float = 1
    max_rank: int = 100
    min_rank: int = 1
    rank_method: str = "importance"
    importance: str = "mean_sq"
    importance_data: str = "train"
    l1: float = 1e-4
    l2: float = 1e-4
    scale_center: float = 1.0
    growth_bound: float | None = None
    tasks: int | None = None
    per_task_budget: int | None = None
    prune_floor: float = 1e-5
    post_prune_epochs: int = 0
    svd: str = "auto"
    als_iters: int = 1

    stage = Stage.PRUNE
    state_attributes = (*FromBasePlugin.state_attributes, "_perturbed", "_pruned")

    def __post_init__(self) -> None:
        super().__init__()
        if not 0 < self.approx_rate <= 1:
            raise TaskStateError(
                f"approx_rate={self.approx_rate} must be above 0 and at most 1: it is the part of "
                "the components' worth that is kept, and 1 keeps all."
            )
        if not (is_count(self.warmup_epochs) or _is_part(self.warmup_epochs)):
            raise TaskStateError(
                f"warmup_epochs={self.warmup_epochs!r} must be an int of at least 1, or a float "
                "between 0 and 1 (a part of the strategy's epochs)."
            )
        if not (0 <= self.min_rank <= self.max_rank and self.max_rank > 0):
            raise TaskStateError(
                f"min_rank={self.min_rank} and max_rank={self.max_rank} must be 0 <= min_rank <= "
                f"max_rank and max_rank at least 1: give max_rank={max(1, self.min_rank)} or more."
            )
        check_known(
            rank_method=(self.rank_method, RANK_METHODS),
            importance=(self.importance, IMPORTANCE),
            importance_data=(self.importance_data, IMPORTANCE_DATA),
            svd=(self.svd, SVD_METHODS),
        )
        for name in ("l1", "l2", "prune_floor", "post_prune_epochs"):
            if not getattr(self, name) >= 0:
                raise TaskStateError(
                    f"{name}={getattr(self, name)} cannot be negative: give 0 to do without."
                )
        if not isfinite(self.scale_center):
            raise TaskStateError(
                f"scale_center={self.scale_center} must be a finite number: 1 draws r and s to the "
                "base."
            )
        if self.als_iters < 1:
            raise TaskStateError(f"als_iters={self.als_iters} must be at least 1.")
        self.limit = GrowthLimit(self.growth_bound, self.tasks, self.per_task_budget)
        if self.rank_method == "budget" and not self.limit.given:
            raise TaskStateError(
                "rank_method='budget' spends what growth_bound= or per_task_budget= allows: give "
                "one of them, such as growth_bound=0.2."
            )
        self._perturbed = False
        self._pruned = False
        self._room: float | None = None

    def warmup(self, train_epochs: int) -> float:
        """Epochs of a task with whole weights; part of an epoch if the task has but one for both.

        :param train_epochs: of the task.
        :raises TaskStateError: if no epoch is left for the factors, or none before they are pruned.

        >>> PerturbationPlugin().warmup(train_epochs=5), PerturbationPlugin().warmup(train_epochs=1)
        (1, 0.5)
        """
        epochs, left = self.warmup_epochs, train_epochs - self.post_prune_epochs
        part = epochs if isinstance(epochs, float) else 0.5
        if isinstance(epochs, float):
            epochs = max(1, round(epochs * train_epochs))
        if epochs < left:
            return epochs
        if epochs == left == 1:
            return part
        if train_epochs == self.post_prune_epochs == 0:
            return 0  # the task is kept as it starts
        raise TaskStateError(
            f"{epochs} warm-up epochs and post_prune_epochs={self.post_prune_epochs} of "
            f"train_epochs={train_epochs} leave none to train the factors: give "
            f"train_epochs={epochs + self.post_prune_epochs + 1} at least."
        )

    # ------------------------------------------------------------------ when

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        network = network_of(strategy)
        stores = perturbed_stores(network)
        self.warmup(strategy.train_epochs)
        if self.importance_data == "validation" and not any(
            isinstance(plugin, ValidationPlugin) for plugin in strategy.plugins
        ):
            raise ValidationDataError(
                "importance_data='validation' needs data that is set aside, and none is: add "
                "ValidationPlugin(fraction=0.1) to plugins=, or take importance_data='train'."
            )
        if self._limited and not trains_base(network):
            least = 0
            if self.rank_method == "budget":
                least = sum(_least_entries(store, self.min_rank) for store in stores)
            self.limit.entries(network, len(classes_in(strategy.experience)), least)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, *args, **kwargs)
        network = network_of(strategy)
        self._perturbed = self._pruned = trains_base(network)
        if not self._perturbed:
            self.start_from_base(network)

    def before_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        done, epochs = strategy.clock.train_exp_epochs, strategy.train_epochs
        if not self._perturbed and done >= self.warmup(epochs):
            self._perturb(strategy)
        if not self._pruned and 0 < epochs - done <= self.post_prune_epochs:
            self._prune(strategy)

    def before_training_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        part = self.warmup(strategy.train_epochs) - strategy.clock.train_exp_epochs
        if not self._perturbed and part < 1:
            try:
                steps = len(strategy.dataloader)
            except TypeError as error:
                raise TaskStateError(
                    "a task's warm-up ends within an epoch, whose steps the loader does not know: "
                    "train for two epochs or more, with a whole number of warmup_epochs=."
                ) from error
            if strategy.clock.train_epoch_iterations / steps >= part:
                self._perturb(strategy)

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        strategy.loss = strategy.loss + self.penalty(network_of(strategy))

    def shape(self, strategy: Strategy) -> None:
        if not self._perturbed:  # training was stopped early
            self._perturb(strategy)
        if not self._pruned:
            self._prune(strategy)
        for store in perturbed_stores(network_of(strategy)):
            store.compact_rows()

    def penalty(self, network: TaskNetwork) -> Tensor:
        """What is added to the loss of the open task; nothing in its warm-up.

        :param network: in training.
        :return: scalar.
        """
        stores = [store for store in perturbed_stores(network) if store.scratch.requires_grad]
        if trains_base(network) and stores:
            sums = [store.scratch.square().sum() for store in stores]
            return self.l2 / 2 * torch.stack(sums).sum()
        stores = [store for store in stores if not store.dense]
        if not stores:
            return torch.zeros((), device=network.head.weight.device)
        factors = torch.cat([part.flatten() for s in stores for part in (s.left, s.right)])
        scales = torch.cat([p.flatten() for s in stores for p in (s.row_scale, s.column_scale)])
        if self.scale_center:
            scales = scales - self.scale_center
        squares = factors.square().sum() + scales.square().sum()
        return self.l1 * factors.abs().sum() + self.l2 / 2 * squares

    # ------------------------------------------------------------------ how

    @property
    def _limited(self) -> bool:
        """Whether a limit on growth has to be met exactly."""
        return self.limit.given

    def _bytes_for_factors(self, strategy: Strategy) -> float | None:
        """What a budget leaves for the weights that are perturbed; None without a budget."""
        network, budget = network_of(strategy), find_budget(strategy)
        if budget is None:
            return None
        assert network.open_task is not None
        room = budget.room_for_weights(network, len(network.classes_of(network.open_task)))
        whole = [store for store in perturbed_stores(network) if not store.factored]
        return room - sum(store.planned_bytes(0, PLANNED_BITS) for store in whole)

    def _scalings(self, store: PerturbedStore) -> tuple[Tensor, Tensor]:
        """The r and s that a layer is perturbed with."""
        return store.scalings(self.als_iters)

    def _perturb(self, strategy: Strategy) -> None:
        """Replace whole weights by perturbations, and the optimiser's parameters with them."""
        network = network_of(strategy)
        stores = [store for store in perturbed_stores(network) if store.factored]
        importance = self._importance(strategy, stores)
        self._room = self._bytes_for_factors(strategy)
        layers = [
            Layer(store, *self._scalings(store), store.modes[0], self.svd) for store in stores
        ]
        for layer in layers:
            layer.decompose(self.max_rank)
        ranks = self._ranks(layers, importance, network)
        flat = [self._better_flat(layer, rank) for layer, rank in zip(layers, ranks)]
        if any(flat):
            layers = [other or layer for layer, other in zip(layers, flat)]
            ranks = self._ranks(layers, importance, network)
        for layer, rank in zip(layers, ranks):
            if rank <= layer.store.break_even_rank(layer.mode):
                layer.perturb(rank)
        self._perturbed = True
        strategy.make_optimizer(reset_optimizer_state=True)
        restart_comparisons(strategy)

    def _importance(self, strategy: Strategy, stores: Sequence[PerturbedStore]) -> Tensor:
        kind = "uniform" if self.rank_method == "flat" else self.importance
        batches: Iterable[Batch]
        if self.importance_data == "validation":
            batches = validation_of(strategy, "importance_data='validation'").batches
        else:
            data = strategy.adapted_dataset.eval()
            loaded = iterate_batches(data, strategy.train_mb_size)
            batches = (moved_to(batch, strategy.device) for batch in loaded)
        return layer_importance(network_of(strategy), stores, batches, task_loss(strategy), kind)

    def _ranks(
        self, layers: Sequence[Layer], importance: Tensor, network: TaskNetwork
    ) -> list[int]:
        """The rank of each layer, which may be above its break-even."""
        limited = self._limited or self._room is not None
        caps = [layer.cap(self.max_rank, limited) for layer in layers]
        if self.rank_method == "flat":
            return caps
        sizes = [layer.kernel_size for layer in layers]
        if self._room is not None:
            return ranks_within_bytes(
                [layer.singular_values for layer in layers],
                importance,
                [layer.planned_bytes(cap, PLANNED_BITS) for layer, cap in zip(layers, caps)],
                self._room,
                kernel_sizes=sizes,
            )
        if self.rank_method == "budget":
            assert network.open_task is not None
            return ranks_within_budget(
                [layer.singular_values for layer in layers],
                importance,
                [layer.cost for layer in layers],
                self.limit.entries(network, len(network.classes_of(network.open_task))),
                kernel_sizes=sizes,
                min_rank=self.min_rank,
                caps=caps,
            )
        while True:
            selection = select_ranks(
                [layer.singular_values for layer in layers],
                importance,
                self.approx_rate,
                kernel_sizes=sizes,
                min_rank=self.min_rank,
                caps=caps,
                energies=[layer.energy for layer in layers],
            )
            for layer, certain in zip(layers, selection.certified):
                if not certain:
                    layer.decompose(2 * layer.components)
            if all(selection.certified):
                return selection.ranks

    def _better_flat(self, layer: Layer, rank: int) -> Layer | None:
        """The layer with a flattened kernel, if it has the choice and that captures more.

        Both may spend as many parameters as one component of the flattened kernel takes at least.

        :param layer: with a product that is constant over kernel positions.
        :param rank: of that product.
        """
        if "flatten" not in layer.store.modes[1:]:
            return None
        flat = layer.flattened()
        spent, least = rank * layer.cost, max(1, self.min_rank) * flat.cost
        if self.rank_method == "budget" and spent < least:
            return None
        flat.decompose(self.max_rank)
        store = layer.store
        better = choose_conv_mode(
            layer.singular_values,
            flat.singular_values,
            store.rows,
            store.columns,
            store.kernel_size,
            max(spent, least) // store.groups,
        )
        return flat if better == "flatten" else None

    def _prune(self, strategy: Strategy) -> None:
        """Drop the smallest entries of the open task's factors."""
        network = network_of(strategy)
        stores = [store for store in perturbed_stores(network) if not store.dense]
        factors = [part.detach() for store in stores for part in (store.left, store.right)]
        masks = iter(self._masks(factors, network))
        for store, left, right in zip(stores, masks, masks):
            if not bool(left.all() and right.all()):
                store.fix_masks(left, right)
        self._pruned = True
        restart_comparisons(strategy)

    def _masks(self, factors: Sequence[Tensor], network: TaskNetwork) -> list[Tensor]:
        """Which entries stay, of all layers' factors."""
        keep = sum(factor.numel() for factor in factors)
        if self.limit.given:
            assert network.open_task is not None
            classes = len(network.classes_of(network.open_task))
            keep = min(keep, self.limit.entries(network, classes))
        return prune_to_count(factors, keep, self.prune_floor)


def _least_entries(store: PerturbedStore, min_rank: int) -> int:
    """Entries of a layer's factors that cannot be saved by a lower rank."""
    if not store.factored:
        return 0
    mode = store.modes[0]
    return min(min_rank, store.break_even_rank(mode)) * store.parameters_per_rank(mode)


def _is_part(epochs: object) -> bool:
    return isinstance(epochs, float) and 0 < epochs < 1
