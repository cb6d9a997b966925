"""Copies of modules in which chosen tensors stand for the original ones."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

UNCHANGEABLE = (
    *(type(None), bool, int, float, complex, str, bytes, type, BuiltinFunctionType, ModuleType),
    *(torch.dtype, torch.device, torch.Size),
)
"""Types of values that copies may share."""
_VALUES = frozenset({type(None), bool, int, float, complex, str, bytes})
_OF_EVERY_MODULE = ("_parameters", "_buffers", "_modules", "training", "_compiled_call_impl")
_OF_RECURRENT_LAYERS = ("_flat_weights", "_flat_weight_refs")
COMPUTING_WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Hooks that compute a weight from other parameters before each forward pass."""
_DEPTH = 4
"""How many functions within each other are looked into."""


def copy_modules(
    modules: Sequence[nn.Module], memo: dict[int, Any], known_as: Sequence[nn.Module] = ()
) -> list[nn.Module]:
    """Copies of a model's modules that refer to each other, and to the tensors that a memo says.

    As ``copy.deepcopy`` makes them with that memo; but no class's own way to be copied is used (it
    may register what it holds again), a value that cannot be copied is shared, functions follow
    what they refer to, and hooks are the original's, so that those that are registered later run
    too (but see :func:`copy_pre_hooks`). Recurrent layers have to have their flat weights set.

    :param modules: all of a model, the root first.
    :param memo: what stands for a tensor, by its id; copies are added.
    :param known_as: modules that hooks and functions may refer to in place of these.
    """
    copies: list[Any] = [object.__new__(type(module)) for module in modules]
    memo.update((id(module), made) for module, made in zip(known_as, copies))
    memo.update((id(module), made) for module, made in zip(modules, copies))
    for module, made in zip(modules, copies):
        fields: dict[str, Any] = made.__dict__
        for name in ("_parameters", "_buffers", "_modules"):
            entries = vars(module)[name]
            fields[name] = type(entries)((key, memo.get(id(v), v)) for key, v in entries.items())
        for name, hooks in vars(module).items():
            if _is_hooks(name):
                fields[name] = _remapped(hooks, memo) if hooks else hooks
        fields["training"] = module.training
        if isinstance(module, nn.RNNBase):
            names = module._flat_weights_names  # noqa: SLF001 - torch has no other list of them
            fields["_flat_weights"] = [None] * len(names)
            fields["_flat_weight_refs"] = list(fields["_flat_weights"])
        for name, value in plain_attributes(module).items():
            fields[name] = _copied(value, memo)
    return copies


def copy_pre_hooks(
    module: nn.Module, made: nn.Module, memo: dict[int, Any], known: Mapping[int, Any]
) -> None:
    """Give a copied module those hooks that now run before the original's forward pass.

    Those by which torch computes a weight from other parameters are left out if they came later:
    a copy has the parameters of before.

    :param module: the original.
    :param made: its copy.
    :param memo: of :func:`copy_modules`.
    :param known: hooks of before.
    """
    made._forward_pre_hooks = OrderedDict(
        (key, _remapped(hook, memo))
        for key, hook in module._forward_pre_hooks.items()
        if key in known or not isinstance(hook, COMPUTING_WEIGHTS)
    )


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What the user's code has set on a module, without tensors that are registered.

    Nor what a ``functools.cached_property`` keeps, which is computed again where it is missing.

    :param module: any.
    """
    registered = module._parameters.keys() | module._buffers.keys() | cached_properties(module)
    known = {*_OF_EVERY_MODULE, *(_OF_RECURRENT_LAYERS if isinstance(module, nn.RNNBase) else ())}
    return {
        name: value
        for name, value in vars(module).items()
        # a registered name is there while its tensor is substituted
        if name not in registered and name not in known and not _is_hooks(name)
    }


def cached_properties(module: nn.Module) -> frozenset[str]:
    """Names of the properties that a module computes once (``functools.cached_property``).

    :param module: any.
    """
    kind: Any = type(module)
    names: frozenset[str] = _cached_properties(kind)
    return names


def slots_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers by name.

    :param module: any.
    """
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield name, tensor


def slot_of(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of a module by its name; None if it has none.

    :param module: any.
    :param name: not dotted.
    """
    tensor = module._parameters.get(name)
    return module._buffers.get(name) if tensor is None else tensor


def holds_values(container: Any) -> bool:
    """Whether a container, a vocabulary say, holds numbers and text alone, nothing to look into.

    :param container: a mapping, or a list or the like.
    """
    entries = container.values() if isinstance(container, Mapping) else container
    return _VALUES.issuperset(map(type, entries))


def release_hooks(module: nn.Module) -> None:
    """Let a copied module have hooks of its own, the same as the original's so far.

    :param module: of :func:`copy_modules`.
    """
    for name, hooks in vars(module).items():
        if isinstance(hooks, dict) and _is_hooks(name):
            module.__dict__[name] = type(hooks)(hooks)


@cache
def _cached_properties(kind: type) -> frozenset[str]:
    attributes = {
        name: value for base in reversed(kind.__mro__) for name, value in vars(base).items()
    }
    return frozenset(n for n, value in attributes.items() if isinstance(value, cached_property))


@cache  # a model has hundreds of modules, and every one of them the same names
def _is_hooks(name: str) -> bool:
    return name.startswith("_") and ("_hooks" in name or name == "_is_full_backward_hook")


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """An attribute's value for a copied module; shared if it cannot be copied."""
    if isinstance(value, UNCHANGEABLE):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, (FunctionType, MethodType, weakref.ref)):
        return _remapped(value, memo)
    if type(value) in (list, dict, tuple, set) and holds_values(value):
        return memo.setdefault(id(value), type(value)(value))
    if type(value) is list:
        made: Any = memo.setdefault(id(value), [])
        made.extend(_copied(entry, memo) for entry in value)
        return made
    if type(value) is dict:
        made = memo.setdefault(id(value), {})
        made.update((key, _copied(entry, memo)) for key, entry in value.items())
        return made
    if type(value) in (tuple, set):
        return type(value)(_copied(entry, memo) for entry in value)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a file, a generator: whatever its class raises
        return value


def _remapped(value: Any, memo: dict[int, Any], depth: int = _DEPTH) -> Any:
    """A function that refers to copies where it referred to their originals; else the same one.

    All else that it refers to, such as a list to collect in, is its author's and never copied.
    """
    if id(value) in memo:
        return memo[id(value)]
    if not depth:
        return value
    if isinstance(value, MethodType):
        instance = _remapped(value.__self__, memo, depth - 1)
        return value if instance is value.__self__ else MethodType(value.__func__, instance)
    if isinstance(value, weakref.ref):
        target = value()
        return value if id(target) not in memo else weakref.ref(memo[id(target)])
    if isinstance(value, FunctionType):
        return _remapped_function(value, memo, depth)
    if isinstance(value, dict) and all(map(callable, value.values())):
        entries = {key: _remapped(entry, memo, depth - 1) for key, entry in value.items()}
        same = all(entries[key] is value[key] for key in value)
        return value if same else type(value)(entries)
    return value


def _remapped_function(function: FunctionType, memo: dict[int, Any], depth: int) -> Any:
    try:
        contents = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # a variable that has no value yet
        return function
    defaults = function.__defaults__ or ()
    values = [_remapped(value, memo, depth - 1) for value in (*contents, *defaults)]
    if all(new is old for new, old in zip(values, (*contents, *defaults))):
        return function
    made = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        tuple(values[len(contents) :]) or None,
        tuple(map(CellType, values[: len(contents)])),
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made
