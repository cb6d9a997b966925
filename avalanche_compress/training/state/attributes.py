"""What parts of a strategy remember in plain attributes, which no ``state_dict`` has.

A counter in a model or a criterion, the probability of a dropout that a plugin lowers, a generator
of one's own: such attributes are kept by a training state once they have changed, if they hold
numbers, text, tensors, arrays, containers of these, or a generator of torch or Python. Values that
require gradients are derived in a step, and what a plugin remembers it says itself.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections import deque
from collections.abc import Callable, Collection
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from avalanche_compress.core.copying import (
    COMPUTING_WEIGHTS,
    holds_values,
    plain_attributes,
    slots_of,
)
from avalanche_compress.core.network import network_of
from avalanche_compress.host.strategy import Strategy, criterion_of
from avalanche_compress.training.state.generators import is_python_generator, is_torch_generator
from avalanche_compress.training.state.tree import SCALARS, pack

Values = dict[str, dict[str, Any]]
"""By owner and name."""
_DEPTH = 8
"""How many containers within each other are looked into."""
_ARRAYS = (*map(np.dtype, ("bool", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")),)
_OF_EVERY_OPTIMIZER = {"defaults", "state", "param_groups"}


class _Kind(NamedTuple):
    """Objects that are kept by a plain state of theirs."""

    take: Callable[[Any], Any]
    put: Callable[[Any, Any], Any]
    fits: Callable[[Any], bool]


def _anything(state: Any) -> bool:
    return True


_KINDS: dict[type, _Kind] = {
    torch.Generator: _Kind(
        torch.Generator.get_state, torch.Generator.set_state, is_torch_generator
    ),
    random.Random: _Kind(random.Random.getstate, random.Random.setstate, is_python_generator),
    np.ndarray: _Kind(
        lambda array: torch.from_numpy(array.copy()),
        lambda array, kept: np.copyto(array, kept.numpy()),
        _anything,
    ),
    deque: _Kind(list, lambda queue, kept: (queue.clear(), queue.extend(kept)), _anything),
}


class Remembered:
    """How the attributes of a strategy's parts were before it trained.

    :param strategy: built, and not trained or brought to a state yet.
    """

    def __init__(self, strategy: Strategy):
        self._marks = {
            (place, name): _mark(value)
            for place, values in attributes(strategy).items()
            for name, value in values.items()
        }

    def changed(self, strategy: Strategy) -> Values:
        """The attributes that are otherwise now, as plain values.

        :param strategy: the same, or one that was built alike.
        """
        found: Values = {}
        for place, values in attributes(strategy).items():
            for name, value in values.items():
                if self._marks.get((place, name)) != _mark(value):
                    found.setdefault(place, {})[name] = plain_state(value)
        return found


def attributes(strategy: Strategy) -> Values:
    """All attributes that could be kept, by owner.

    :param strategy: any.
    """
    found = {}
    modules = network_of(strategy).modules()
    registered = {id(tensor) for module in modules for _, tensor in slots_of(module)}
    for place, owner in _owners(strategy).items():
        values = _values(owner, strategy)
        found[place] = {n: v for n, v in values.items() if _is_kept(v, registered)}
    return found


def put_attributes(strategy: Strategy, kept: Values) -> None:
    """Set attributes to what they were.

    :param strategy: built as the one that they are of.
    :param kept: of :meth:`Remembered.changed`, for which :func:`misfit` has found nothing.
    """
    owners = _owners(strategy)
    for place, values in kept.items():
        now = _values(owners[place], strategy)
        for name, value in values.items():
            on_device = tree_map_only(Tensor, lambda tensor: tensor.to(strategy.device), value)
            kind = _KINDS.get(type(now.get(name)))  # whose states are on the CPU
            _put(owners[place], name, now.get(name), value if kind else on_device)


def misfit(strategy: Strategy, ours: Values, kept: Values) -> str:
    """Why an attribute out of a file cannot be set; nothing if all can.

    :param strategy: that they are for.
    :param ours: its :func:`attributes`.
    :param kept: those of the file.
    """
    owners = _owners(strategy)
    for place, values in kept.items():
        if place not in owners:
            return f"there is no {place}"
        for name, value in values.items():
            if name not in ours[place]:
                if _is_taken(strategy, owners[place], name):
                    return f"{place}.{name} cannot be set"
                continue
            kind = _KINDS.get(type(ours[place][name]))
            if kind is not None and not kind.fits(value):
                return f"{place}.{name} has no such state"
    return ""


def _is_taken(strategy: Strategy, owner: Any, name: str) -> bool:
    """Whether a name is one that training cannot have set first."""
    # nothing that is there already may be set, as a method or a parameter is
    default = getattr(type(owner), name, owner)
    of_class = type(default) in SCALARS and name not in vars(owner)
    return owner is strategy or name.startswith("__") or (hasattr(owner, name) and not of_class)


def plain_state(value: Any) -> Any:
    """A value that can be kept, as a plain one.

    :param value: of :func:`attributes`.
    """
    kind = _KINDS.get(type(value))
    if kind is not None:
        return kind.take(value)
    return value.item() if isinstance(value, np.generic) else value


def _owners(strategy: Strategy) -> dict[str, Any]:
    modules = network_of(strategy).backbone.named_modules()
    owners: dict[str, Any] = {f"model.{name}".rstrip("."): module for name, module in modules}
    owners.update(optimizer=strategy.optimizer, strategy=strategy)
    criterion = criterion_of(strategy)
    while isinstance(criterion, functools.partial):
        criterion = criterion.func
    if isinstance(criterion, nn.Module):
        named = criterion.named_modules()
        return {**owners, **{f"criterion.{name}".rstrip("."): module for name, module in named}}
    criterion = getattr(criterion, "__self__", criterion)  # of a method, its object
    taken = [strategy, *strategy.plugins, *owners.values()]
    if not isinstance(criterion, ModuleType) and all(criterion is not part for part in taken):
        owners["criterion"] = criterion
    return owners


def _values(owner: Any, strategy: Strategy) -> dict[str, Any]:
    if isinstance(owner, nn.Module):
        hooks = [h for h in owner._forward_pre_hooks.values() if isinstance(h, COMPUTING_WEIGHTS)]
        computed = {vars(h).get("name", vars(h).get("_tensor_name")) for h in hooks}
        return {n: value for n, value in plain_attributes(owner).items() if n not in computed}
    values = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
    if owner is strategy:  # what a subclass of the user's has of its own
        known: Collection[str] = strategy.own_names  # type: ignore[attr-defined]
        return {name: value for name, value in values.items() if name in known}
    if isinstance(owner, Optimizer):
        hidden = {name for name in values if name.startswith("_")}
        return {n: v for n, v in values.items() if n not in _OF_EVERY_OPTIMIZER | hidden}
    return {**values, **{name: cell.cell_contents for name, cell in _cells(owner).items()}}


def _cells(function: Any) -> dict[str, Any]:
    """Variables of a closure that have a value."""
    if not isinstance(function, FunctionType):
        return {}
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    return {name: cell for name, cell in cells.items() if _has_value(cell)}


def _has_value(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises where there is none
    except ValueError:
        return False
    return True


def _is_kept(value: Any, registered: Collection[int], depth: int = _DEPTH) -> bool:
    if isinstance(value, Tensor):
        plain = type(value) is Tensor and value.layout is torch.strided and not value.is_meta
        real = not (value.is_complex() or value.is_quantized)
        return plain and real and not value.requires_grad and id(value) not in registered
    if type(value) is dict:
        keys = all(type(key) in (str, int) for key in value)
        return keys and _are_kept(value.values(), registered, depth)
    if type(value) in (list, tuple, deque):
        return _are_kept(value, registered, depth)
    if isinstance(value, np.generic):
        return value.dtype in _ARRAYS
    if type(value) is np.ndarray:
        return value.dtype in _ARRAYS and bool(value.flags.writeable)
    if type(value) is torch.Generator:
        return value.device.type == "cpu"
    return type(value) in SCALARS or type(value) in _KINDS


def _are_kept(entries: Collection[Any], registered: Collection[int], depth: int) -> bool:
    if holds_values(entries):
        return {bytes, complex}.isdisjoint(map(type, entries))
    # one that holds itself has no end
    return depth > 0 and all(
        not isinstance(entry, (*_KINDS, np.generic)) and _is_kept(entry, registered, depth - 1)
        for entry in entries
    )


def _mark(value: Any) -> Any:
    """What is another one after a change."""
    if type(value) in SCALARS:
        return type(value), value
    return hashlib.sha256(pack(plain_state(value))).digest()


def _put(owner: Any, name: str, now: Any, value: Any) -> None:
    """Set an attribute; in place where others may hold the same object."""
    kind = _KINDS.get(type(now))
    if kind is not None:
        kind.put(now, value)
    elif isinstance(now, Tensor) and isinstance(value, Tensor) and now.shape == value.shape:
        now.copy_(value)
    elif type(now) is dict and type(value) is dict:
        now.clear()
        now.update(value)
    elif type(now) is list and type(value) is list:
        now[:] = value
    else:
        value = type(now)(value) if isinstance(now, np.generic) else value
        if name in _cells(owner):
            _cells(owner)[name].cell_contents = value
        else:
            vars(owner)[name] = value
