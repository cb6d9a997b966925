"""A budget in bytes: what a task adds to the archive, met as nearly as can be from below."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_compress.archive import archive_bytes
from avalanche_compress.codec import (
    Float,
    allocate,
    quantise_fixed_point,
    quantise_steps,
    smallest_total,
)
from avalanche_compress.core.batches import moved_to
from avalanche_compress.core.experiences import classes_in
from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.core.options import check_types, is_count
from avalanche_compress.core.store import WeightStore
from avalanche_compress.core.substitution import evaluating
from avalanche_compress.errors import CapacityExhaustedError, TaskStateError
from avalanche_compress.host.strategy import Strategy, forward_size
from avalanche_compress.sections import write_task_sections
from avalanche_compress.shaping.from_base import trains_base
from avalanche_compress.shaping.ladder import FLOAT_BITS, Ladder, fill_budget
from avalanche_compress.shaping.plugin import ShapingPlugin, Stage, shaping_plugins
from avalanche_compress.shaping.quantization import MATRIX, QuantizationPlugin, keep_private
from avalanche_compress.shaping.validation import find_validation, iterate_batches

PLANNED_BITS = 4.0
"""Of a value, with which weights or terms are planned before they are trained (our choice)."""
_PLANNED_SLOT_BITS = 3.0
"""The same where codes have 8 bits at most, which leaves less to choose from above it."""
_PLANNING_STEPS = 14
_PROBE_BITS = 2.0
_SLOT_BITS = 8
_SAMPLES = 1024
_HEADER = 8
"""Bytes that the header of a file may grow by, as its numbers have more digits."""
_LEAST_SECTION = 16
"""About what a store's section takes that keeps nothing."""
_LEAST_SHARE = 0.01
"""Of the largest curvature: what a layer counts of which the samples show none."""


@dataclass(frozen=True)
class ArchiveBudget:
    """Bytes of the whole archive, when so many tasks have been learned.

    What is left of them when a task begins is divided evenly among it and those to come.

    :param total: bytes.
    :param tasks: of the stream.
    :raises TaskStateError: if one of them is no int above 0.

    >>> ArchiveBudget(60_000, tasks=10).tasks
    10
    """

    total: int
    tasks: int

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("total", "tasks"):
            _check_int(name, getattr(self, name), 1, math.inf)

    def of_next_task(self, network: TaskNetwork) -> int:
        """Bytes that the next task may add.

        :param network: with the tasks that are finished.
        :raises TaskStateError: if the budget is for no further task.
        """
        finished = len(network.tasks)
        if finished >= self.tasks:
            raise TaskStateError(
                f"size_budget={self} is for {self.tasks} tasks, which are finished: name as many "
                "as the stream has."
            )
        return (self.total - len(archive_bytes(network))) // (self.tasks - finished)


@dataclass(eq=False)
class SizeBudgetPlugin(ShapingPlugin):
    r"""Lets each task add so many bytes to the archive and no more: within 1 % of them, from below.

    The budget is for all that the archive has of a task: its weights in all layers, heads, biases,
    norms, its label and classes. What task inference, or sharing by similarity, keeps of samples
    comes on top of it. A task that becomes the base of others (:class:`~avalanche_compress.HALRP`,
    :class:`~avalanche_compress.LoRA`) is kept as it is, for no budget.

    First the method plans: a task trains as dense a mask, or as many terms, as fit the budget at 4
    bits a value (3 where codes share a word), if its own options do not say less. When it has been
    trained and pruned, each layer may keep all its weights or terms or a part of them, those that
    matter most, at 1 to 16 bits a value (:func:`~avalanche_compress.codec.quantise_steps`) or as
    floats. Choice c of layer l changes its weight by :math:`\Delta_{lc}` and is taken to raise the
    loss by

    .. math:: h_l \, \lVert \Delta_{lc} \rVert^2,

    the second-order estimate with one curvature a layer. It is measured: how far 2 bits in that
    layer alone move the answers to training and held-out samples (the Kullback-Leibler divergence,
    by which cross-entropy rises at its minimum), by what these 2 bits change of the weight. Bytes
    then go where they save most loss a byte (:func:`~avalanche_compress.codec.allocate`), and
    what is left makes one layer after another a little finer. A task that has nothing left to spend
    bytes on takes fewer, with a warning.

    As a strategy's ``size_budget=`` it stands in the place of the
    :class:`~avalanche_compress.QuantizationPlugin` that :class:`~avalanche_compress.TinySubNets`
    and :class:`~avalanche_compress.AdaQPackNet` have: of its options only ``private_bits`` and, as
    the most, ``bits`` count then. The archive of T tasks takes T times the budget, and the base; to
    limit it, base and all, give an :class:`ArchiveBudget`.

    :param size_budget: bytes a task, or an :class:`ArchiveBudget`.
    :param private_bits: of a value of heads and other matrices that are not compressed, 2..16;
        biases, norms and statistics are kept as bfloat16.
    :param max_bits: of a code at most, 1..16; None for no limit, up to floats. Where codes of
        several tasks share a word (:class:`~avalanche_compress.AdaQPackNet`), 8 if not given.
    :raises TaskStateError: if an argument is outside its range.

    >>> SizeBudgetPlugin(4000).private_bits
    8
    """

    size_budget: int | ArchiveBudget
    private_bits: int = 8
    max_bits: int | None = None

    stage = Stage.QUANTISE

    def __post_init__(self) -> None:
        super().__init__()
        if not isinstance(self.size_budget, ArchiveBudget):
            _check_int("size_budget", self.size_budget, 1, math.inf)
        _check_int("private_bits", self.private_bits, 2, 16)
        if self.max_bits is not None:
            _check_int("max_bits", self.max_bits, 1, 16)
        self._known: tuple[int, int] | None = None

    def bytes_of_task(self, network: TaskNetwork) -> int:
        """The next task's budget, or the open one's.

        :param network: any.
        """
        if not isinstance(self.size_budget, ArchiveBudget):
            return self.size_budget
        finished = len(network.tasks)
        if self._known is None or self._known[0] != finished:
            self._known = finished, self.size_budget.of_next_task(network)
        return self._known[1]

    # ------------------------------------------------------------------ before training

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        network = network_of(strategy)
        for store in network.weight_stores:
            if store.counts_bits:
                store.reserved_bits = self.max_bits or _SLOT_BITS
        if not trains_base(network):
            self.room_for_weights(network, len(classes_in(strategy.experience)))

    def before_training_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        # scores that were trained choose more of earlier tasks' weights
        if strategy.clock.train_epoch_iterations in (0, len(strategy.dataloader) // 2):
            for plugin in shaping_plugins(strategy):
                plugin.plan(strategy)

    def room_for_weights(self, network: TaskNetwork, classes: int) -> int:
        """Bytes that the budget leaves for the compressed weights of the next task.

        :param network: any.
        :param classes: of the task.
        :raises CapacityExhaustedError: if that is less than they take at the least.
        """
        stores = network.weight_stores
        fixed = _HEADER + _private_bytes(network, classes, self.private_bits)
        fixed += len(write_task_sections([(1 << 30, range(classes), {}, [])])) + 3 * classes
        least = fixed + sum(_LEAST_SECTION + math.ceil(s.planned_bytes(0, 2)) for s in stores)
        budget = self.bytes_of_task(network)
        if budget < least:
            what = "heads, biases, norms and what says how weights are kept"
            raise self._too_small(budget, least, what)
        return budget - fixed

    # ------------------------------------------------------------------ after training

    @torch.no_grad()
    def shape(self, strategy: Strategy) -> None:
        network = network_of(strategy)
        if trains_base(network):
            return
        before = [place.tensor.clone() for place in network.private.places]
        self._keep_private(network)
        task = network.open_task
        assert task is not None
        private = network.private.encode()
        named = write_task_sections([(task, network.classes_of(task), {}, [private])])
        budget = self.bytes_of_task(network)
        room = budget - _HEADER - len(named)
        ladders = [
            Ladder(store, curvature, room, self._most_bits(store))
            for store, curvature in zip(network.weight_stores, self._curvatures(strategy))
        ]
        choices = [ladder.choices for ladder in ladders]
        chosen = allocate(choices, room)
        if chosen is None:
            for place, tensor in zip(network.private.places, before):
                place.tensor.copy_(tensor)
            network.private.keep_values({})
            least = budget - room + smallest_total(choices)
            raise self._too_small(budget, least, "all that it has to keep, at the fewest bits")
        kept = [ladder.options[number] for ladder, number in zip(ladders, chosen)]
        left = fill_budget(ladders, kept, room, budget)
        for ladder, option in zip(ladders, kept):
            ladder.store.thin(option.part)
            ladder.store.keep_values(option.values)
        if left > budget // 100:
            warnings.warn(
                f"task {task} takes {budget - left} bytes of the {budget} of its size_budget= and "
                "has nothing left to spend more on: give a larger density or rank, or a smaller "
                "budget.",
                stacklevel=2,
            )

    def finish(self, strategy: Strategy) -> None:
        network = network_of(strategy)
        if not trains_base(network):
            self._keep_private(network)  # statistics of norms have been estimated since

    # ------------------------------------------------------------------ within

    def _keep_private(self, network: TaskNetwork) -> None:
        keep_private(network, partial(quantise_fixed_point, bits=self.private_bits))

    def _most_bits(self, store: WeightStore) -> float:
        if store.counts_bits:
            return store.reserved_bits
        return FLOAT_BITS if self.max_bits is None else self.max_bits

    def _too_small(self, budget: int, least: int, what: str) -> CapacityExhaustedError:
        has, enough = f"size_budget={budget} bytes is", f"size_budget={least} at least"
        if isinstance(self.size_budget, ArchiveBudget):
            has = f"size_budget={self.size_budget} leaves {budget} bytes for a task, which is"
            enough = f"{least - budget} bytes more for each of the tasks that are to come"
        return CapacityExhaustedError(f"{has} less than it takes for {what}: give {enough}.")

    def _curvatures(self, strategy: Strategy) -> list[float]:
        """h of each layer: what a change of its weight costs, by the square of the change."""
        network, answers = network_of(strategy), _sample_answers(strategy)
        before, curvatures = answers(), []
        for store in network.weight_stores:
            weight, originals = store.weight().clone(), store.kept_values()
            originals = [values.clone() for values in originals]
            most = min(16, int(self._most_bits(store)))
            store.keep_values([quantise_steps(v, _PROBE_BITS, most) for v in originals])
            change = float((before.exp() * (before - answers())).sum(1).mean())
            square = float((store.weight() - weight).double().square().sum())
            store.keep_values([Float(values) for values in originals])
            curvatures.append(change / square if square and math.isfinite(change) else 0.0)
        least = _LEAST_SHARE * max(curvatures, default=0.0) or 1.0
        return [max(curvature, least) for curvature in curvatures]


def _check_int(name: str, value: object, least: int, most: float) -> None:
    if not is_count(value) or not least <= value <= most:  # type: ignore[operator]
        limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise TaskStateError(f"{name}={value!r} must be an int {limits}.")


def _sample_answers(strategy: Strategy) -> Callable[[], Tensor]:
    """Gives the open task's logarithmic probabilities (N, C) of some samples, held-out ones too."""
    network, dataset = network_of(strategy), strategy.adapted_dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    chosen = dataset.subset(order[:_SAMPLES].tolist()).eval()
    loaded = iterate_batches(chosen, forward_size(strategy))
    batches = [moved_to(x, strategy.device) for x, _ in loaded]
    validation = find_validation(strategy)
    batches += [] if validation is None else [x for x, _ in validation.batches]

    def answer() -> Tensor:
        with evaluating(network):
            logits = torch.cat([network(x, network.open_task) for x in batches])
        return logits.double().log_softmax(1)

    return answer


def _private_bytes(network: TaskNetwork, classes: int, bits: int) -> int:
    """The most bytes of what the next task has for itself, under a budget.

    :param network: any.
    :param classes: of the task.
    :param bits: of a matrix' value.
    """
    total = 4
    for place in network.private.places:
        tensor = place.tensor
        rows = tensor.shape[0] if tensor.dim() else 1
        count = tensor.numel() // max(1, rows)
        rows = classes if place.module in network.heads else rows
        total += 7 + _value_bytes(tensor, rows * count, bits)
    return total


def _value_bytes(tensor: Tensor, count: int, bits: int) -> int:
    if not tensor.is_floating_point():
        return count * tensor.element_size()
    return (count * bits + 7) // 8 if tensor.dim() >= MATRIX else 2 * count


def find_budget(strategy: Strategy) -> SizeBudgetPlugin | None:
    """The strategy's budget, if it has one and the next task is not the base of others.

    :param strategy: an Avalanche strategy.
    """
    if trains_base(network_of(strategy)):
        return None
    return next((p for p in strategy.plugins if isinstance(p, SizeBudgetPlugin)), None)


def planned_part(strategy: Strategy, planned_bytes: Callable[[float, float], float]) -> float:
    """The largest part of what a task may train that the budget has room for at 4 bits a value.

    :param strategy: whose next task is not yet open.
    :param planned_bytes: of a part, 0..1, and bits a value: about what the task's weights take.
    :return: 1 without a budget.
    """
    budget = find_budget(strategy)
    if budget is None:
        return 1.0
    network = network_of(strategy)
    room = budget.room_for_weights(network, len(classes_in(strategy.experience)))
    in_slots = any(store.counts_bits for store in network.weight_stores)
    bits = _PLANNED_SLOT_BITS if in_slots else PLANNED_BITS
    low, high = 0.0, 1.0
    if planned_bytes(high, bits) <= room:
        return high
    for _ in range(_PLANNING_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if planned_bytes(middle, bits) <= room else (low, middle)
    return low


def with_budget(
    shaping: Sequence[SupervisedPlugin],
    plugins: Sequence[SupervisedPlugin],
    size_budget: int | ArchiveBudget | None,
) -> list[SupervisedPlugin]:
    """A method's plugins and the user's, with a budget in the place of what chooses bits otherwise.

    :param shaping: the method's.
    :param plugins: the user's.
    :param size_budget: bytes a task, or of the archive; None for no budget.
    :raises TaskStateError: if the user has brought what chooses bits.
    """
    if size_budget is None:
        return [*shaping, *plugins]
    if any(isinstance(plugin, QuantizationPlugin) for plugin in plugins):
        raise TaskStateError(
            f"size_budget={size_budget} chooses the bits of all layers: leave QuantizationPlugin "
            "out of plugins=, or the budget."
        )
    quantising = [plugin for plugin in shaping if isinstance(plugin, QuantizationPlugin)]
    budget = SizeBudgetPlugin(size_budget)
    for plugin in quantising:
        if isinstance(plugin.bits, int):
            budget.max_bits = plugin.bits
        budget.private_bits = plugin.private_bits or budget.private_bits
    rest = [plugin for plugin in shaping if plugin not in quantising]
    return [*rest, budget, *plugins]
