"""What a criterion keeps for each class, and the part of it that a task is given."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.loss import _Loss

from avalanche_compress.core.experiences import width_of_stream
from avalanche_compress.errors import UnsupportedPluginError

IGNORED = -100
"""The target that torch's criteria ignore unless they are told another one."""

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm)
"""Of a criterion that has layers, the tensors of these are never entries of classes."""
_WEIGHTS = ("weight", "pos_weight")
"""What torch's losses call weights of classes."""


class Kept(NamedTuple):
    """Something that a criterion keeps."""

    holder: dict[str, Any]
    name: str
    torchs: bool
    """Whether one of torch's losses keeps it, whose class weights are known by name."""

    @property
    def value(self) -> Any:
        """What it is at the moment."""
        return self.holder[self.name]

    def is_of_stream(self, classes: Sequence[int], width: int | None) -> bool:
        """Whether it has an entry for each class of the stream, and not only the task's.

        :param classes: ascending class numbers of the task.
        :param width: see :func:`is_of_stream`.
        """
        if self.weighs_classes:
            return classes[-1] < len(self.value) != len(classes)
        return is_of_stream(self.value, classes, width)

    @property
    def weighs_classes(self) -> bool:
        """Whether it is known to weigh classes, however many."""
        known = self.torchs and self.name in _WEIGHTS
        return known and isinstance(self.value, Tensor) and self.value.dim() == 1


def kept_by(criterion: Any) -> list[Kept]:
    """Everything that a criterion keeps: a module, an object, a method of one, or a ``partial``.

    :param criterion: of logits and targets.
    """
    if isinstance(criterion, MethodType):
        return kept_by(criterion.__self__)
    if isinstance(criterion, partial):
        torchs = getattr(criterion.func, "__module__", None) == nn.functional.__name__
        own = [Kept(criterion.keywords, name, torchs) for name in criterion.keywords]
        return [*own, *kept_by(criterion.func)]
    if not isinstance(criterion, nn.Module):
        options = options_of(criterion)
        return [Kept(options, name, False) for name in options]
    return [
        Kept(holder, name, isinstance(module, _Loss))
        for module in criterion.modules()
        if not isinstance(module, _LAYERS)
        for holder in (vars(module), module._parameters, module._buffers)
        for name in holder
    ]


def options_of(criterion: Any) -> dict[str, Any]:
    """What a criterion was made with, as far as it says so.

    :param criterion: of logits and targets.
    """
    if isinstance(criterion, partial):
        return criterion.keywords
    return getattr(criterion, "__dict__", {})


def read_outside(criterion: Any) -> dict[str, Any]:
    """The variables by name that a function reads and is not given.

    :param criterion: of logits and targets; nothing is found of what is no function.
    """
    function = function_of(criterion)
    if not inspect.isfunction(function):
        return {}
    outside = inspect.getclosurevars(function)
    return {**outside.globals, **outside.nonlocals}


def function_of(criterion: Any) -> Any:
    """The function behind a ``partial`` or a method; anything else as it is.

    :param criterion: of logits and targets.
    """
    function = getattr(criterion, "func", criterion)
    return getattr(function, "__func__", function)


def stream_width(criterion: Any, experience: Any) -> int | None:
    """The stream's highest class number and one.

    :param criterion: of logits and targets.
    :param experience: of the stream.
    :return: None if that is unknown, or the criterion has no use for it.
    """
    values = [*(kept.value for kept in kept_by(criterion)), *read_outside(criterion).values()]
    asks = any(
        isinstance(value, (Tensor, np.ndarray, list))
        or (isinstance(value, dict) and isinstance(next(iter(value), None), int))
        for value in values
    )
    return width_of_stream(experience) if asks else None


def is_of_stream(value: Any, classes: Sequence[int], width: int | None) -> bool:
    """Whether something has exactly one entry for each class of the stream, and more than a task.

    :param value: a tensor or an array that is 1-D or square, a list, or a dictionary that has the
        stream's last class number as its last; nothing else is of the stream.
    :param classes: ascending class numbers of the task.
    :param width: the stream's highest class number and one; None if it is unknown.
    """
    if width is None or not classes[-1] < width != len(classes):
        return False
    if isinstance(value, dict):
        return width - 1 in value and set(classes) <= value.keys() <= set(range(width))
    return _entries(value) == width


def may_be_of_stream(value: Any, classes: Sequence[int]) -> bool:
    """Whether a tensor or an array is, in a stream of as many classes as it has entries.

    :param value: anything.
    :param classes: ascending class numbers of the task.
    """
    if not isinstance(value, (Tensor, np.ndarray)):
        return False
    return is_of_stream(value, classes, _entries(value))


def _entries(value: Any) -> int:
    """How many there are; 0 if that says nothing of classes."""
    if isinstance(value, list):
        return 0 if value and isinstance(value[0], str) else len(value)  # names are in no loss
    if not isinstance(value, (Tensor, np.ndarray)):
        return 0
    # a square one says what it costs to take one class for another
    square = value.ndim == 2 and value.shape[0] == value.shape[1]
    return len(value) if value.ndim == 1 or square else 0


@contextmanager
def restricted(state: Sequence[Kept], classes: Sequence[int]) -> Iterator[None]:
    """Lets a criterion have the entries of a task's classes; what it writes into them is kept.

    If the criterion fails, all is as it was.

    :param state: of the criterion, what has an entry for each class of the stream; an
        ``ignore_index`` among it is that of renumbered targets meanwhile.
    :param classes: ascending class numbers of the task.
    :raises UnsupportedPluginError: if the criterion put something in the place of entries that has
        not one for each of the task's classes.
    """
    values = [kept.value for kept in state]
    parts = [_given(kept, classes) for kept in state]
    versions = [_version(part) for part in parts]
    for kept, part in zip(state, parts):
        kept.holder[kept.name] = part
    after = values
    try:
        yield
        after = [
            value if _is_unwritten(kept, part, version) else _merged(kept, value, part, classes)
            for kept, value, part, version in zip(state, values, parts, versions)
        ]
    finally:
        for kept, value in zip(state, after):
            kept.holder[kept.name] = value


def _given(kept: Kept, classes: Sequence[int]) -> Any:
    return IGNORED if kept.name == "ignore_index" else _part(kept.value, classes)


def _part(value: Any, classes: Sequence[int]) -> Any:
    """What is of the task's classes, in their order."""
    if isinstance(value, dict):
        part = copy.copy(value)  # of its own kind, such as a Counter
        part.clear()
        for place, number in enumerate(classes):
            part[place] = value[number]
        return part
    if isinstance(value, list):
        return [value[number] for number in classes]
    for dim in range(value.ndim):
        value = value[(slice(None),) * dim + (list(classes),)]
    return value


def _version(part: Any) -> int | None:
    """That tells whether a tensor was written into; None of what has none."""
    return None if not isinstance(part, Tensor) or part.is_inference() else part._version


def _is_unwritten(kept: Kept, part: Any, version: int | None) -> bool:
    """Whether a criterion has left what it was given as it was, as far as that is easily told.

    What ``vmap`` hands out are not the criterion's numbers, but those of samples by themselves.
    """
    now: Any = kept.holder.get(kept.name)
    if kept.name == "ignore_index":
        return True
    if isinstance(now, Tensor) and is_functorch_wrapped_tensor(now):
        return True
    return now is part and version is not None and _version(part) == version


@torch.no_grad()
def _merged(kept: Kept, value: Any, part: Any, classes: Sequence[int]) -> Any:
    """A criterion's entries of all classes, with those of the task's as they are now."""
    now: Any = kept.holder.get(kept.name)
    if now is not part:
        value = _copied(value, now)
    if isinstance(now, dict) and isinstance(value, dict) and now.keys() == set(range(len(classes))):
        for place, number in enumerate(classes):  # not by update(), which in a Counter adds
            value[number] = now[place]
        return value
    if isinstance(now, list) and isinstance(value, list) and len(now) >= len(classes):
        for number, entry in zip(classes, now):
            value[number] = entry
        value.extend(now[len(classes) :])  # a record that had as many entries by chance
        return value
    shape = (len(classes),) * getattr(value, "ndim", 0)
    if isinstance(value, (Tensor, np.ndarray)) and getattr(now, "shape", None) == shape:
        index = np.ix_(*[classes] * value.ndim)
        tensor = isinstance(value, Tensor)
        value[tuple(map(torch.from_numpy, index)) if tensor else index] = now
        return value
    length = f" of {len(now)}" if isinstance(now, (dict, list)) else ""
    length = f" of shape {tuple(now.shape)}" if hasattr(now, "shape") else length
    raise UnsupportedPluginError(
        f"the criterion has put a {type(now).__name__}{length} in the place of {kept.name}, of "
        f"which it was given the entries of the task's {len(classes)} classes: change entries and "
        "not how many there are, or keep the new ones under another name."
    )


def _copied(value: Any, like: Any) -> Any:
    """Entries of all classes, of the kind of some of them; None if they cannot be."""
    if isinstance(like, Tensor) and isinstance(value, (Tensor, np.ndarray, list)):
        full = torch.as_tensor(value).detach().to(like, copy=True)
        return nn.Parameter(full, like.requires_grad) if isinstance(like, nn.Parameter) else full
    if isinstance(like, np.ndarray) and isinstance(value, (np.ndarray, list)):
        return np.array(value, dtype=like.dtype)
    return copy.copy(value) if isinstance(value, (dict, list)) else None
