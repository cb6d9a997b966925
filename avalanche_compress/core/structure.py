"""The structure of a model, apart from the values of its tensors: modules, attributes, hooks."""

from __future__ import annotations

import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_compress.core.batches import contiguous
from avalanche_compress.core.copying import (
    UNCHANGEABLE,
    copy_modules,
    copy_pre_hooks,
    holds_values,
    plain_attributes,
    release_hooks,
    slot_of,
    slots_of,
)
from avalanche_compress.core.store import Place

_DEPTH = 4
"""How many containers within each other are looked into."""


class Structure:
    """A model as it was when this was taken, from which modules with other tensors are built.

    It holds copies of the modules, of their buffers and plain attributes; parameters and hooks are
    the model's own. So a training that moves what all tasks share, which is refused as soon as it
    is seen, moves no finished task.

    :param model: any.

    >>> layer = nn.Linear(2, 1)
    >>> ones, _ = Structure(layer).copy([(Place(layer, "weight"), torch.ones(1, 2))])
    >>> ones.weight.tolist(), ones.bias.data_ptr() == layer.bias.data_ptr()
    ([[1.0, 1.0]], True)
    """

    def __init__(self, model: nn.Module):
        self._modules = list(model.modules())
        self.retake()

    def retake(self) -> None:
        """Take buffers and plain attributes as they are now; which modules there are stays."""
        memo: dict[int, Any] = {}
        for module in self._modules:
            for name, tensor in slots_of(module):
                memo[id(tensor)] = tensor if name in module._parameters else _plain_copy(tensor)
        for tensor in constants_of(self._modules):
            memo.setdefault(id(tensor), _plain_copy(tensor))
        self._twins = copy_modules(self._modules, memo)
        for module, twin in zip(self._modules, self._twins):
            copy_pre_hooks(module, twin, {}, known=module._forward_pre_hooks)

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the buffers as the model's own are moved.

        :param fn: gives the moved tensor.
        """
        for twin in self._twins:
            for name, buffer in list(twin._buffers.items()):
                if buffer is not None:
                    twin._buffers[name] = fn(buffer)

    def copy(
        self, tensors: Iterable[tuple[Place, Tensor]]
    ) -> tuple[nn.Module, dict[int, nn.Module]]:
        """The model with other tensors, in evaluation mode; none of its parameters is trainable.

        :param tensors: by place in the model; all others are the model's own.
        :return: a module that shares nothing with the model that an evaluation changes, and its
            parts by the ids of the model's modules.
        """
        twin_of = self._twin_of()
        memo: dict[int, Any] = {id(tensor): tensor for tensor in constants_of(self._twins)}
        for module, twin in zip(self._modules, self._twins):
            for name, parameter in twin._parameters.items():
                memo[id(parameter)] = _fixed(module._parameters.get(name))
        fixed: dict[int, Tensor | None] = {}
        for (module, name), tensor in tensors:
            twin = twin_of[id(module)]
            if id(tensor) not in fixed:  # tied where the model's are
                is_parameter = name in twin._parameters
                fixed[id(tensor)] = _fixed(tensor) if is_parameter else tensor
            memo[id(slot_of(twin, name))] = fixed[id(tensor)]
        copies = copy_modules(self._twins, memo, known_as=self._modules)
        for module, twin, made in zip(self._modules, self._twins, copies):
            if module._forward_pre_hooks:
                copy_pre_hooks(module, made, memo, known=twin._forward_pre_hooks)
        return _settled(copies), dict(zip(map(id, self._modules), copies))

    def copy_of_now(self, tensors: Iterable[tuple[Place, Tensor]]) -> nn.Module:
        """The same of the model's plain attributes as they are now.

        :param tensors: by place in the model; all others are the model's own.
        """
        return Structure(self._modules[0]).copy(tensors)[0]

    def has_method(self, name: str) -> bool:
        """Whether a module of the model has such a method.

        :param name: of it.
        """
        return any(callable(getattr(type(module), name, None)) for module in self._modules)

    def differences(self, heads: Sequence[nn.Module]) -> list[str]:
        """Modules, parameters and buffers that came, went or were replaced, by dotted name.

        :param heads: the modules whose parameters may change their number of rows.
        """
        twin_of, found = self._twin_of(), []
        names = {id(twin): name for name, twin in self._twins[0].named_modules()}
        for module, twin in zip(self._modules, self._twins):
            changed = [] if type(module) is type(twin) else ["__class__"]
            for name in {**twin._modules, **module._modules}:
                child, known = module._modules.get(name), twin._modules.get(name)
                if (child is None) != (known is None) or twin_of.get(id(child)) is not known:
                    changed.append(name)
            skipped = module._non_persistent_buffers_set | twin._non_persistent_buffers_set
            for name in dict.fromkeys(name for m in (twin, module) for name, _ in slots_of(m)):
                then, now = slot_of(twin, name), slot_of(module, name)
                first = int(module in heads)
                if name not in skipped and (
                    then is None or now is None or then.shape[first:] != now.shape[first:]
                ):
                    changed.append(name)
            found += [f"{names[id(twin)]}.{name}".lstrip(".") for name in changed]
        return found

    def moved_by_modes(self) -> list[str]:
        """Parameters that ``train()`` and ``eval()`` change themselves, by dotted name."""
        if all(type(module).train is nn.Module.train for module in self._modules):
            return []
        model = independent_copy(self._modules[0])[0]
        then = {}
        for name, own in model.named_parameters():
            if own.is_floating_point():  # what is merged may start as zeros
                own.data.mul_(1.5).add_(0.01)
            then[name] = own.detach().clone()
        now = dict(model.train().named_parameters())
        return [name for name, own in then.items() if not torch.equal(own, now[name])]

    def changed_attributes(self) -> list[str]:
        """Plain attributes and buffers that no archive holds of other values, by dotted name."""
        twin_of, found = self._twin_of(), []
        names = {id(twin): name for name, twin in self._twins[0].named_modules()}
        for module, twin in zip(self._modules, self._twins):
            then, now = _attributes(twin), _attributes(module)
            for name in {**then, **now}:
                known = name in then and name in now
                if not known or not _alike(then[name], now[name], twin_of):
                    found.append(f"{names[id(twin)]}.{name}".lstrip("."))
        return found

    def constants(self) -> dict[str, int]:
        """Fingerprints of what no archive holds and whoever builds the model has to make again.

        :return: of the tensors and arrays in each plain attribute and each buffer that is not
            persistent, by dotted name.
        """
        registered = {id(tensor) for twin in self._twins for _, tensor in slots_of(twin)}
        names = {id(twin): name for name, twin in self._twins[0].named_modules()}
        found = {}
        for twin in self._twins:
            registered -= {id(twin._buffers[name]) for name in twin._non_persistent_buffers_set}
        registered |= {id(twin) for twin in self._twins}
        for twin in self._twins:
            for name, value in _attributes(twin).items():
                marks = [fingerprint(tensor) for tensor in _values_in(value, registered)]
                if marks:
                    mark = marks[0] if len(marks) == 1 else zlib.crc32(repr(marks).encode())
                    found[f"{names[id(twin)]}.{name}".lstrip(".")] = mark
        return found

    def views_of_parameters(self) -> list[str]:
        """Plain attributes that share memory with a parameter and are not the parameter itself."""
        slots = (slot for module in self._modules for slot in module._parameters.values())
        parameters = {id(slot): slot for slot in slots if slot is not None}
        memory = {_storage_of(p) for p in parameters.values() if p.numel()} - {None}
        names = {id(module): name for name, module in self._modules[0].named_modules()}
        found = []
        for module in self._modules:
            for name, value in plain_attributes(module).items():
                others = (t for t in _tensors_in(value) if id(t) not in parameters)
                if any(t.numel() and _storage_of(t) in memory for t in others):
                    found.append(f"{names.get(id(module), '')}.{name}".lstrip("."))
        return found

    def _twin_of(self) -> dict[int, nn.Module]:
        return {id(module): twin for module, twin in zip(self._modules, self._twins)}


def make_contiguous(model: nn.Module) -> None:
    """Lay parameters and buffers out row by row, whatever memory format they are in.

    Kernels for other layouts round otherwise, and no archive knows of layouts.

    :param model: any, changed in place.
    """
    for module in model.modules():
        for _, tensor in slots_of(module):
            tensor.data = contiguous(tensor.data)


def independent_copy(model: nn.Module) -> tuple[nn.Module, dict[int, nn.Module]]:
    """A copy of a model that shares no tensor and no hook with it, in evaluation mode.

    :param model: any.
    :return: the copy, and its parts by the ids of the model's modules.
    """
    modules = list(model.modules())
    tensors = [*(t for m in modules for _, t in slots_of(m)), *constants_of(modules)]
    copies = copy_modules(modules, {id(tensor): _plain_copy(tensor) for tensor in tensors})
    for module in copies:
        release_hooks(module)
    return _settled(copies), dict(zip(map(id, modules), copies))


def _settled(modules: list[nn.Module]) -> nn.Module:
    """A copied model, ready to be evaluated."""
    for module in modules:
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # noqa: SLF001 - what its constructor does
    # models that keep what they derive from their weights drop it when their mode changes
    modules[0].train()
    return modules[0].eval()


def _attributes(module: nn.Module) -> dict[str, Any]:
    constants = {name: module._buffers.get(name) for name in module._non_persistent_buffers_set}
    return {**plain_attributes(module), **constants}


def constants_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Tensors in plain attributes, and buffers that are not persistent.

    :param modules: of a model.
    """
    for module in modules:
        for value in _attributes(module).values():
            yield from _tensors_in(value)


def _fixed(parameter: Tensor | None) -> nn.Parameter | None:
    """A parameter as a module holds it that is not trained."""
    if parameter is None:
        return None
    # torch takes other kernels, with other roundings, if a weight requires a gradient
    return nn.Parameter(parameter.detach(), requires_grad=False)


def _storage_of(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, of a subclass without memory
        return None


def _plain_copy(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied


def _tensors_in(value: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    """The tensors that an attribute holds, in containers and plain objects too."""
    if isinstance(value, Tensor):
        yield value
    elif depth and not isinstance(value, nn.Module):
        for entry in _entries(value).values():
            yield from _tensors_in(entry, depth - 1)


def _values_in(value: Any, known: set[int], depth: int = _DEPTH) -> Iterator[Tensor]:
    """Tensors and arrays that an attribute holds; those that are known by their id left out."""
    if id(value) in known:
        return
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        # as bytes: torch has not all of NumPy's types, and none in another order of bytes
        yield torch.from_numpy(np.ascontiguousarray(value).view(np.uint8))
    elif isinstance(value, Tensor):
        if not value.is_meta and value.layout is torch.strided:
            yield value
    elif depth:
        for entry in _entries(value).values():
            yield from _values_in(entry, known, depth - 1)


def bytes_of(tensor: Tensor) -> bytes:
    """The values as they lie in memory, one after another.

    :param tensor: any that has memory of its own.
    """
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()  # NumPy lacks bfloat16


def fingerprint(tensor: Tensor) -> int:
    """A number by which a change of a tensor shows.

    :param tensor: any that has memory of its own.
    """
    return zlib.crc32(bytes_of(tensor))


def _entries(value: Any) -> dict[Any, Any]:
    """What a container or a plain object holds, or a module that is registered nowhere."""
    if isinstance(value, nn.Module):
        return {**dict(slots_of(value)), **value._modules, **plain_attributes(value)}
    if isinstance(value, (*UNCHANGEABLE, weakref.ref)) or callable(value):
        return {}
    if isinstance(value, (Mapping, list, tuple, deque)):
        if holds_values(value):
            return {}
        return dict(value) if isinstance(value, Mapping) else dict(enumerate(value))
    fields = getattr(value, "__dict__", None)
    return dict(fields) if isinstance(fields, dict) else {}


def _alike(then: Any, now: Any, twin_of: Mapping[int, nn.Module], depth: int = _DEPTH) -> bool:
    """Whether an attribute is what it was when the structure was taken."""
    if then is now or (then is not None and twin_of.get(id(now)) is then):
        return True
    if isinstance(then, Tensor) and isinstance(now, Tensor):
        return _equal_tensors(then, now)
    if type(then) is not type(now):
        return False
    if isinstance(then, np.ndarray):
        return bool(np.array_equal(then, now))
    first, second = _entries(then), _entries(now)
    if not first and not second:
        kind: Any = type(then)
        compares = kind.__eq__ is not object.__eq__ and not callable(then)
        return not compares or bool(then == now)
    if not depth:
        return True
    return first.keys() == second.keys() and all(
        _alike(first[key], second[key], twin_of, depth - 1) for key in first
    )


def _equal_tensors(then: Tensor, now: Tensor) -> bool:
    if then.shape != now.shape or then.dtype != now.dtype or then.device != now.device:
        return False
    if then.is_meta or then.layout is not torch.strided:
        return True
    return bool(((then == now) | ((then != then) & (now != now))).all())  # NaN is as NaN
