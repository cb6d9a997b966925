"""The loss of one task: a criterion over the columns of the task's own classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional

from avalanche_compress.core.batches import rows_of
from avalanche_compress.core.heads import MASKED_LOGIT
from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.errors import UnsupportedPluginError
from avalanche_compress.host.strategy import Criterion, Strategy, criterion_of
from avalanche_compress.shaping.criterion_state import (
    IGNORED,
    function_of,
    is_of_stream,
    kept_by,
    may_be_of_stream,
    options_of,
    read_outside,
    restricted,
    stream_width,
)

Known = bool | Tensor
"""Whether something is so; a bool tensor, scalar, where it is not waited for."""


class TaskLoss:
    """A criterion as it would be on a model that has the outputs of one task alone.

    It is given the logits of the task's classes, and targets that are renumbered from 0 in their
    order, so that label smoothing, class weights, soft targets and binary criteria mean what they
    mean on a plain model. What of the criterion has an entry for each class of the stream (class
    weights, of a module, an object or a ``functools.partial``) is restricted to the task's classes
    for the call, and what the criterion writes into it is kept; all else is taken as it is. That
    an entry is a class's is known

    - of ``weight`` and ``pos_weight`` of torch's losses, which may also be of more classes;
    - of tensors and arrays (1-D, or square: costs of confusion, rows and columns), lists and
      dictionaries by class number that have as many entries as the stream has classes. Tuples are
      never looked at: a place for what has as many by chance.

    Targets are

    - class numbers of any shape; negative ones, and the criterion's ``ignore_index``, stay ignored;
    - or an entry for each column of the logits (one-hot, mixed, multi-hot), of the stream's classes
      or of the task's alone; what smoothing gives all other classes alike is left out;
    - or tuples and lists of such.

    :param criterion: of logits and targets; a function, a ``partial`` of one, or a module.
    :param classes: ascending class numbers of the task.
    :param width: the stream's highest class number and one, if that is known.

    >>> loss = TaskLoss(torch.nn.CrossEntropyLoss(label_smoothing=0.1), [2, 3])
    >>> logits, targets = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    >>> wide = torch.cat([torch.full((4, 2), -1000.0), logits], dim=1)
    >>> plain = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    >>> bool(loss(wide, targets + 2) == plain(logits, targets))
    True
    """

    def __init__(self, criterion: Any, classes: Sequence[int], width: int | None = None):
        self.criterion: Criterion = criterion
        self.classes, self._width = tuple(classes), width
        self._first, self._count = self.classes[0], len(self.classes)
        self._in_a_row = self.classes[-1] - self._first + 1 == self._count
        ignored = options_of(criterion).get("ignore_index", IGNORED)
        self._ignored = ignored if isinstance(ignored, int) else IGNORED
        self._ignores_own = self._ignored in self.classes
        self._plain = frozenset(() if self._ignores_own else self.classes)  # never ignored
        self._replaced = [
            kept
            for kept in kept_by(criterion)
            if kept.is_of_stream(self.classes, width)
            or (kept.name == "ignore_index" and self._ignored >= 0)
        ]

    def __call__(self, logits: Tensor, targets: Any) -> Tensor:
        """The loss; a target that is none of the task's counts as one of its classes.

        :param logits: ``(..., W)`` with a column for each class number, or for each of the task's.
        :param targets: see above.
        :raises UnsupportedPluginError: if the criterion cannot do with the task's columns, or what
            it returns is no loss.
        """
        return self.checked(logits, targets)[0]

    def checked(
        self, logits: Tensor, targets: Any, classes: frozenset[int] | None = None
    ) -> tuple[Tensor, Known]:
        """The loss, and whether all targets are of the task's classes.

        :param logits: as in a call.
        :param targets: as in a call.
        :param classes: of which all targets are known to be, if that is known.
        :return: the latter a bool, or where it would have to be waited for, a bool tensor, scalar.
        """
        columns = self._columns(logits)
        known: Known = True
        if classes is not None and classes <= self._plain:
            numbers = self._places(targets)
        else:
            numbers, known = self._renumbered(targets, columns)
        loss = self._loss(columns, numbers)
        _check_loss(loss, columns)
        return loss, known

    def knows(self, logits: Tensor, targets: Any) -> bool:
        """Whether all targets are of the task's classes.

        :param logits: as in a call.
        :param targets: as in a call.
        """
        return bool(self._renumbered(targets, self._columns(logits))[1])

    def _loss(self, columns: Tensor, targets: Any) -> Tensor:
        try:
            if not self._replaced:
                return self.criterion(columns, targets)
            with restricted(self._replaced, self.classes):
                return self.criterion(columns, targets)
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise UnsupportedPluginError(
                f"the criterion failed on logits of shape {tuple(columns.shape)}, those of "
                f"the task's classes {list(self.classes)}, with targets renumbered from 0 "
                f"({error}): take the number of classes from the logits, as in "
                "F.one_hot(targets, logits.shape[-1]), and give class weights as an attribute of "
                "the criterion, such as nn.CrossEntropyLoss(weight=...), one for each class of the "
                "stream or of the task. A head has an output for each class of its task, also "
                "where the model's had one."
            ) from error

    def check(self) -> None:
        """Refuse class weights that nobody can restrict: outside a function, or of unknown number.

        :raises UnsupportedPluginError: naming the variable.
        """
        given = f"the logits of the task's {self._count} classes and targets renumbered from 0"
        for name, value in read_outside(self.criterion).items():
            known = is_of_stream(value, self.classes, self._width)
            if known or may_be_of_stream(value, self.classes):
                function = function_of(self.criterion).__name__
                raise UnsupportedPluginError(
                    f"the criterion {function} reads {name}, whose {len(value)} entries may be "
                    f"those of classes, from outside, and it is given {given}: make it an "
                    f"argument, functools.partial({function}, {name}={name}), or an attribute of a "
                    "module."
                )
        for kept in kept_by(self.criterion) if self._width is None else ():
            if not kept.weighs_classes and may_be_of_stream(kept.value, self.classes):
                raise UnsupportedPluginError(
                    f"the criterion keeps {kept.name}, whose {len(kept.value)} entries may be "
                    f"those of classes, and is given {given}, and how many classes the stream has "
                    "is unknown: build the benchmark with with_classes_timeline(), or keep what "
                    "has nothing to do with classes as a tuple."
                )

    def _columns(self, logits: Tensor) -> Tensor:
        if logits.shape[-1] == self._count:
            return logits
        if self._in_a_row:
            return logits.narrow(-1, self._first, self._count)
        return logits[..., list(self.classes)]

    def _renumbered(self, targets: Any, columns: Tensor) -> tuple[Any, Known]:
        """Targets as a plain model of the task has them, and whether all are of its classes."""
        if isinstance(targets, (tuple, list)):
            parts = [self._renumbered(part, columns) for part in targets]
            known: Known = True
            for _, flag in parts:
                known = flag if known is True else known & flag
            return type(targets)([part for part, _ in parts]), known
        if not isinstance(targets, Tensor):
            return targets, True
        if targets.dim() == columns.dim() and targets.dim() > 0:
            return self._own_entries(targets)
        if targets.is_floating_point() or targets.dtype is torch.bool:
            return targets, True
        return self._own_numbers(targets)

    def _own_entries(self, targets: Tensor) -> tuple[Tensor, Known]:
        if targets.shape[-1] == self._count:
            return targets, True
        if targets.shape[-1] <= self.classes[-1]:
            raise UnsupportedPluginError(
                f"targets of shape {tuple(targets.shape)} have no entry for class "
                f"{self.classes[-1]}: give one for each class of the stream, or of the task alone."
            )
        columns = targets[..., list(self.classes)]
        others = sorted(set(range(targets.shape[-1])) - set(self.classes))
        if not others or not columns.numel():
            return columns, True
        least, most = targets[..., others].aminmax(dim=-1)
        return columns, ((least == most) & (most <= columns.amin(dim=-1))).all()

    def foreign(self, logits: Tensor, targets: Any) -> list[int]:
        """Classes that targets are of, and the task is not.

        :param logits: as in a call.
        :param targets: as in a call.
        """
        if isinstance(targets, (tuple, list)):
            return sorted({number for part in targets for number in self.foreign(logits, part)})
        if not isinstance(targets, Tensor):
            return []
        if targets.dim() == logits.dim() and targets.dim() > 0:
            if targets.shape[-1] == self._count:
                return []
            entries = targets.flatten(0, -2)
            found = (entries > entries.amin(dim=-1, keepdim=True)).any(dim=0).nonzero().flatten()
        elif targets.is_floating_point() or targets.dtype is torch.bool:
            return []
        else:
            found = targets[targets >= 0].unique()
        return [number for number in found.tolist() if number not in self.classes]

    def _own_numbers(self, targets: Tensor) -> tuple[Tensor, Known]:
        places = self._places(targets)
        # no value can be read of what vmap hands out
        looked_at = targets.device.type == "cpu" and not is_functorch_wrapped_tensor(targets)
        if looked_at and not self._ignores_own and targets.numel():
            least, most = map(int, places.aminmax())  # most mini-batches need nothing more
            if least >= 0 and most < self._count:
                return places, True
        ignored = targets < 0
        if self._ignored >= 0:
            ignored = ignored | (targets == self._ignored)
        left_out = targets if self._ignored < 0 else torch.full_like(targets, IGNORED)
        known = ((places >= 0) & (places < self._count)) | ignored
        places = places.clamp(0, self._count - 1).to(targets.dtype)
        return torch.where(ignored, left_out, places), known.all()

    def _places(self, targets: Tensor) -> Tensor:
        """Where each target is among the task's classes; below 0 or above if it is none of them."""
        if self._in_a_row:
            return targets - self._first if self._first else targets
        last = self.classes[-1]
        return _table(self.classes, targets.device)[targets.to(torch.int64).clamp(-1, last + 1)]


def _check_loss(loss: Any, logits: Tensor) -> None:
    """Refuse what a step cannot be taken by.

    :param loss: what a criterion returned.
    :param logits: that it was given.
    :raises UnsupportedPluginError: unless it is one number, with a gradient where logits have one.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise UnsupportedPluginError(
            f"the criterion returned a {type(loss).__name__}{shape}, and a tensor with one number "
            "for the mini-batch was expected: take the mean of the samples' losses, as "
            "reduction='mean' does, and return it alone."
        )
    if torch.is_grad_enabled() and logits.requires_grad and not loss.requires_grad:
        raise UnsupportedPluginError(
            "the criterion returned a loss without a gradient, from which nothing is learned: "
            "compute it from the logits by torch's functions, without detach(), item() or argmax()."
        )


def check_plain_loss(strategy: Strategy) -> None:
    """Refuse a criterion that reads columns of other classes, where it is given those.

    Avalanche's own strategies hand it logits of the stream's width, which are -1000 at the classes
    of other tasks.

    :param strategy: whose network has an open task; those of this package, which have a
        ``network``, give a criterion the task's columns.
    :raises UnsupportedPluginError: if the loss of some logits is another one on the task's columns.
    """
    network: Any = strategy.model
    if not isinstance(network, TaskNetwork) or network.open_task is None:
        return
    if hasattr(strategy, "network"):
        return
    classes = list(network.classes_of(network.open_task))
    width = max(max(classes) + 1, network.max_class_label)
    logits = torch.full((len(classes), width), MASKED_LOGIT)
    logits[:, classes] = torch.linspace(-1, 1, len(classes) ** 2).view(len(classes), -1)
    targets = torch.tensor(classes)
    try:
        criterion = criterion_of(strategy)
        # copies, as what a criterion counts is no sample of the user's
        wide = copy.deepcopy(criterion)(logits, targets)
        stream = stream_width(criterion, strategy.experience)
        own = TaskLoss(copy.deepcopy(criterion), classes, stream)(logits, targets)
        alike = torch.allclose(wide, own, rtol=1e-4, atol=1e-5, equal_nan=True)
    except Exception:  # it wants other targets, or another device: the training will tell
        return
    if not alike:
        raise UnsupportedPluginError(
            f"the criterion {getattr(criterion, '__name__', type(criterion).__name__)} gives "
            f"{float(wide.mean()):.4g} on the stream's columns, which {type(strategy).__name__} "
            f"hands it, and {float(own.mean()):.4g} on those of task {network.open_task}: it reads "
            f"the columns of other classes, which hold {MASKED_LOGIT:g}. Train with a strategy of "
            "this package, whose loss sees the task's columns alone, or give plain cross-entropy."
        )


def task_loss(strategy: Strategy) -> TaskLoss:
    """The loss that a strategy's open task is trained by.

    :param strategy: whose network has an open task.
    """
    network = network_of(strategy)
    assert network.open_task is not None
    criterion = criterion_of(strategy)
    width = stream_width(criterion, strategy.experience)
    return TaskLoss(criterion, network.classes_of(network.open_task), width)


def loss_by_task(
    criterion: Any,
    network: TaskNetwork,
    logits: Tensor,
    targets: Any,
    labels: int | Tensor,
    width: int | None = None,
) -> Tensor:
    """The mean loss of samples of several tasks, each over the columns of its task.

    Where a task answers for one that it is not, its targets' columns count as well.

    :param criterion: of logits and targets.
    :param network: that answered.
    :param logits: ``(N, ..., W)``.
    :param targets: see :class:`TaskLoss`.
    :param labels: the task that was asked for each sample, (N,), or for all.
    :param width: the stream's highest class number and one, if that is known.
    """
    if not isinstance(labels, Tensor):
        return _loss_of(criterion, network, logits, targets, labels, width)
    asked = labels.unique().tolist()
    if len(asked) == 1:
        return _loss_of(criterion, network, logits, targets, asked[0], width)
    total, add = logits.new_zeros(()), getattr(criterion, "reduction", "mean") == "sum"
    for label in asked:
        chosen = labels == label
        parts = logits[chosen], rows_of(targets, chosen)
        loss = _loss_of(criterion, network, *parts, label, width)
        total = total + loss * (1 if add else chosen.float().mean())
    return total


def _loss_of(
    criterion: Any,
    network: TaskNetwork,
    logits: Tensor,
    targets: Any,
    label: int,
    width: int | None,
) -> Tensor:
    task = network.answering(label)
    # before any task was opened, all columns are the model's own
    classes = range(logits.shape[-1]) if task is None else network.classes_of(task)
    loss = TaskLoss(criterion, classes, width)
    if not loss.knows(logits, targets):
        more = sorted({*loss.classes, *loss.foreign(logits, targets)})
        missing = max(0, more[-1] + 1 - logits.shape[-1])
        logits = functional.pad(logits, (0, missing), value=MASKED_LOGIT)
        loss = TaskLoss(criterion, more, width)
        if not loss.knows(logits, targets):
            return criterion(logits, targets)  # type: ignore[no-any-return]
    return loss(logits, targets)


@lru_cache(maxsize=64)
def _table(classes: tuple[int, ...], device: torch.device) -> Tensor:
    """The place of each class number among a task's classes, -1 if it is none of them.

    The last entry, which -1 finds as well, is of all numbers outside.
    """
    places = torch.full((classes[-1] + 2,), -1)
    places[list(classes)] = torch.arange(len(classes))
    return places.to(device)
