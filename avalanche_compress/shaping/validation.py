"""Held-out data for decisions that are made by accuracy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.utils.data import DataLoader

from avalanche_compress.core.batches import moved_to, parts_of, size_of
from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.core.substitution import evaluating
from avalanche_compress.errors import TaskStateError, ValidationDataError
from avalanche_compress.host.early_stopping import forget_best_epoch
from avalanche_compress.host.strategy import Strategy, forward_size
from avalanche_compress.host.tensor_data import NoTensorsError, read_samples
from avalanche_compress.shaping.plugin import ShapingPlugin
from avalanche_compress.shaping.task_loss import task_loss

_FAMILIAR = 1024  # samples that were trained on and are looked at again, at most

Batches = Sequence[tuple[Tensor, Any]]
Measure = Callable[[Tensor, Any], float]
"""Something that adds up over the samples of a batch, by logits and targets."""


class Quality(NamedTuple):
    """How well a task answers."""

    accuracy: float
    """Percent of the held-out samples' targets, 0..100."""
    loss: float
    """Mean over the held-out samples and as many as 1,024 that were trained on."""


@dataclass(eq=False)
class ValidationPlugin(ShapingPlugin):
    """Sets a seeded part of each experience's training data aside; the test stream is never used.

    Put it before plugins that add data (replay). Plugins that decide by accuracy need it.

    :param fraction: part of the training samples, 0 < fraction < 1.
    :param seed: of the split; experience e is split with seed + e.
    :param keep_best: when the task ends, go back to its epoch of least validation loss. A change of
        phase (pruning) starts the comparison again; a loss that is NaN is never the least.
    :raises ValidationDataError: if the fraction is outside (0, 1).

    >>> ValidationPlugin(0.1, seed=3).fraction
    0.1
    """

    fraction: float = 0.1
    seed: int = 0
    keep_best: bool = False

    state_attributes = ("_best",)

    def __post_init__(self) -> None:
        super().__init__()
        if not 0 < self.fraction < 1:
            raise ValidationDataError(
                f"fraction={self.fraction} of the training data cannot be set aside: "
                "give a number between 0 and 1, such as 0.1."
            )
        self._best: tuple[float, list[Tensor]] | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._familiar: list[tuple[Tensor, Tensor]] = []
        self._trained_on: Any = None

    def state_examples(self, network: TaskNetwork) -> dict[str, Any]:
        return {"_best": (0.0, _trained_tensors(network))}

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        dataset = strategy.adapted_dataset
        held_out = round(self.fraction * len(dataset))
        if not 0 < held_out < len(dataset):
            raise ValidationDataError(
                f"fraction={self.fraction} of {len(dataset)} samples leaves {held_out} for "
                f"validation and {len(dataset) - held_out} for training, and both need at least "
                "one: give the task more samples, or the plugin another fraction=."
            )
        generator = torch.Generator().manual_seed(self.seed + strategy.clock.train_exp_counter)
        order = torch.randperm(len(dataset), generator=generator).tolist()
        strategy.adapted_dataset = dataset.subset(order[held_out:])
        self.restart()
        self._batches = load_batches(
            dataset.subset(order[:held_out]).eval(), forward_size(strategy)
        )
        self._familiar = []  # loaded when they are asked for
        self._trained_on = dataset.subset(order[held_out : held_out + _FAMILIAR]).eval()

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, *args, **kwargs)
        self._batches = [moved_to(batch, strategy.device) for batch in self._batches]

    def after_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        if not self.keep_best:
            return
        loss = self.loss(strategy)
        if not math.isnan(loss) and (self._best is None or loss < self._best[0]):
            state = _trained_tensors(network_of(strategy))
            self._best = loss, [tensor.detach().clone() for tensor in state]

    def restart(self) -> None:
        """Forget the best epoch so far: what follows is not to be compared with it."""
        self._best = None

    @torch.no_grad()
    def shape(self, strategy: Strategy) -> None:
        if self._best is not None:
            for tensor, best in zip(_trained_tensors(network_of(strategy)), self._best[1]):
                tensor.copy_(best)
        self.restart()

    def after_training(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self._batches, self._familiar, self._trained_on = [], [], None

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The current task's held-out inputs (n, ...) and targets (n,), batch by batch."""
        return self._batches

    @torch.no_grad()
    def accuracy(self, network: TaskNetwork) -> float:
        """Accuracy of the open task on the held-out samples, see :func:`right_answers`.

        :param network: with an open task; its training modes come back as they were.
        :return: percent of the targets, 0..100.
        """
        right, judged = _sums(network, self._batches, *_judges(network))
        return 100 * right / max(1, judged)

    @torch.no_grad()
    def loss(self, strategy: Strategy) -> float:
        """The open task's loss on the held-out samples.

        :param strategy: whose network has an open task.
        :return: mean over samples.
        """
        (loss,) = _sums(network_of(strategy), self._batches, summed_loss(strategy))
        return loss / _samples_in(self._batches)

    @torch.no_grad()
    def quality(self, strategy: Strategy) -> Quality:
        """How well the open task answers, by more than accuracy, which few samples hardly tell.

        :param strategy: whose network has an open task.
        """
        if not self._familiar:
            batches = iterate_batches(self._trained_on, forward_size(strategy))
            self._familiar = [moved_to(batch, strategy.device) for batch in batches]
        network, loss = network_of(strategy), summed_loss(strategy)
        right, judged, loss_on_new = _sums(network, self._batches, *_judges(network), loss)
        (loss_on_familiar,) = _sums(network, self._familiar, loss)
        samples = _samples_in(self._batches) + _samples_in(self._familiar)
        return Quality(100 * right / max(1, judged), (loss_on_new + loss_on_familiar) / samples)


class Comparison:
    """What the open task loses from now on, and whether that is little enough.

    Accuracy on held-out samples alone is too coarse: of 25, none may be lost by a width at which a
    hundredth of all samples is. So the loss of samples that were trained on counts too.

    :param strategy: with a :class:`ValidationPlugin` and an open task.
    :param purpose: of the comparison, for messages.
    :param accuracy: that may be lost, in percentage points.
    :param loss: that may be added, as the criterion measures it: of cross-entropy, nats.
    :raises ValidationDataError: if there is no held-out data.
    """

    def __init__(self, strategy: Strategy, purpose: str, accuracy: float, loss: float):
        self._validation = validation_of(strategy, purpose)
        self._strategy = strategy
        self._accuracy, self._loss = accuracy, loss
        samples = _samples_in(self._validation.batches)
        if 0 < accuracy < 100 / samples:
            warnings.warn(
                f"{purpose} may cost {accuracy:g} points of accuracy and one of {samples} held-out "
                f"samples is {100 / samples:.3g}: the rise of the loss, {loss:g} at most, decides. "
                "Hold more samples out (validation_fraction=) or raise the tolerance.",
                stacklevel=2,
            )
        self._before = self._validation.quality(strategy)

    def lost(self) -> Quality:
        """The accuracy that is lost, and the loss that is added, both since the beginning."""
        now = self._validation.quality(self._strategy)
        return Quality(self._before.accuracy - now.accuracy, now.loss - self._before.loss)

    def accepts(self) -> bool:
        """Whether what is lost now is within both tolerances."""
        accuracy, loss = self.lost()
        return accuracy <= self._accuracy and loss <= self._loss

    def accepts_less(self) -> bool:
        """Whether less accuracy is lost now than may be, and no more loss is added."""
        accuracy, loss = self.lost()
        return accuracy < self._accuracy and loss <= self._loss


def check_loss_tolerance(tolerance: float) -> None:
    """Refuse a tolerance that no loss is within.

    :param tolerance: of a :class:`Comparison`.
    :raises TaskStateError: if it is negative or NaN.
    """
    if not tolerance >= 0:
        raise TaskStateError(
            f"loss_tolerance={tolerance} cannot be negative: it is what few bits and weights may "
            "add to the loss."
        )


def summed_loss(strategy: Strategy) -> Measure:
    """The open task's loss of a batch, added up over its samples.

    :param strategy: whose network has an open task.
    :return: of logits (N, C) and targets.
    """
    loss = task_loss(strategy)
    if getattr(loss.criterion, "reduction", "mean") == "sum":
        return lambda logits, targets: float(loss(logits, targets))
    return lambda logits, targets: float(loss(logits, targets)) * size_of(targets)


def right_answers(logits: Tensor, targets: Any, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which of a task's answers are right, and which are judged at all.

    :param logits: ``(N, ..., C)`` with a column for each class number.
    :param targets: class numbers ``(N, ...)``, of which those of other classes, such as the one
        that the criterion ignores, are not judged; or an entry ``(N, ..., C)`` for each class of
        the stream or of the task, the largest of which is right. Of a tuple the first tensor.
    :param classes: ascending class numbers of the task.
    :return: both bool, ``(N, ...)``.
    :raises ValidationDataError: if there are other numbers of targets and of answers.

    >>> logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]])
    >>> right, judged = right_answers(logits, torch.tensor([[1, -100]]), [0, 1, 2])
    >>> right.tolist(), judged.tolist()
    ([[True, False]], [[True, False]])
    """
    targets = next(iter(parts_of(targets)))
    if targets.dim() < logits.dim():
        answers = logits.argmax(dim=-1)
        if answers.shape != targets.shape:
            raise ValidationDataError(
                f"targets of shape {tuple(targets.shape)} do not say which of the answers with "
                f"logits of shape {tuple(logits.shape)} are right: give one for each row of C "
                "logits, or a method that does not judge held-out samples by accuracy."
            )
        judged = torch.isin(targets.long(), torch.tensor(classes, device=targets.device))
        return (answers == targets) & judged, judged
    own = list(classes)
    entries = targets if targets.shape[-1] == len(own) else targets[..., own]
    answers = logits[..., own].argmax(dim=-1, keepdim=True)
    right = entries.gather(-1, answers).squeeze(-1) == entries.amax(dim=-1)
    return right, torch.ones_like(right)


def _judges(network: TaskNetwork) -> tuple[Measure, Measure]:
    """How many of the open task's answers are right, and how many there are."""
    assert network.open_task is not None
    classes = network.classes_of(network.open_task)
    return (
        lambda logits, targets: int(right_answers(logits, targets, classes)[0].sum()),
        lambda logits, targets: int(right_answers(logits, targets, classes)[1].sum()),
    )


def _sums(network: TaskNetwork, batches: Batches, *measures: Measure) -> list[float]:
    """What each measure of the open task's answers adds up to over some batches."""
    totals = [0.0] * len(measures)
    with evaluating(network):
        for x, y in batches:
            logits = network(x, network.open_task)
            totals = [total + of(logits, y) for total, of in zip(totals, measures)]
    return totals


def _samples_in(batches: Batches) -> int:
    return sum(size_of(y) for _, y in batches)


def _trained_tensors(network: TaskNetwork) -> list[Tensor]:
    """Everything that training the open task changes."""
    return [*network.parameters(), *(place.tensor for place in network.private.places)]


def find_validation(strategy: Strategy) -> ValidationPlugin | None:
    """The strategy's validation plugin, if there is one and it has data.

    :param strategy: an Avalanche strategy.
    """
    for plugin in strategy.plugins:
        if isinstance(plugin, ValidationPlugin) and plugin.batches:
            return plugin
    return None


def restart_comparisons(strategy: Strategy) -> None:
    """Let the best epoch be sought again: that of the phase before had weights of another form.

    That holds for a :class:`ValidationPlugin` and for Avalanche's ``EarlyStoppingPlugin``.

    :param strategy: an Avalanche strategy whose open task has just been pruned or decomposed.
    """
    validation = find_validation(strategy)
    if validation is not None:
        validation.restart()
    forget_best_epoch(strategy)


def validation_of(strategy: Strategy, purpose: str) -> ValidationPlugin:
    """The strategy's validation plugin.

    :param strategy: an Avalanche strategy.
    :param purpose: what needs it, for the message.
    :raises ValidationDataError: if there is none, or it has no data.
    """
    network_of(strategy)
    plugin = find_validation(strategy)
    if plugin is None:
        raise ValidationDataError(
            f"{purpose} is decided by accuracy on held-out data and none was set aside: add "
            "ValidationPlugin(fraction=0.1) to plugins=."
        )
    return plugin


def validation_unless_given(
    plugins: Sequence[SupervisedPlugin] | None, fraction: float, seed: int
) -> list[SupervisedPlugin]:
    """A validation plugin for a strategy whose user has not brought one.

    :param plugins: the user's.
    :param fraction: of the training samples.
    :param seed: of the split.
    :return: one plugin or none.

    >>> validation_unless_given([ValidationPlugin(0.2)], 0.1, 0)
    []
    """
    if any(isinstance(plugin, ValidationPlugin) for plugin in plugins or []):
        return []
    return [ValidationPlugin(fraction, seed)]


def load_batches(dataset: Any, size: int) -> list[tuple[Tensor, Tensor]]:
    """All samples in memory, since they are looked at many times.

    :param dataset: one of Avalanche's.
    :param size: samples in a batch.
    :return: inputs (n, ...) and targets (n,), batch by batch.
    """
    return list(iterate_batches(dataset, size))


def iterate_batches(dataset: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples in their order, one batch in memory at a time; no random number is drawn.

    :param dataset: one of Avalanche's.
    :param size: samples in a batch.
    :return: inputs (n, ...) and targets (n,), batch by batch.
    """
    try:
        yield from read_samples([dataset]).batches(size)
        return
    except NoTensorsError:
        pass  # sample by sample, then
    loader = DataLoader(
        dataset,
        batch_size=size,
        collate_fn=getattr(dataset, "collate_fn", None),
        # of its own: drawing from torch's would change the order of the training batches
        generator=torch.Generator(),
    )
    for x, y, *_ in loader:
        yield x, y
