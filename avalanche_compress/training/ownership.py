"""Which strategy trains a model: the one that was built over it last."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from torch import nn

from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.errors import TaskStateError
from avalanche_compress.host.strategy import Strategy

_OWNERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""Modules whose parameters a strategy trains; not in the model, so that copies are free."""


def take_over(network: TaskNetwork, strategy: Strategy) -> None:
    """Let a strategy be the one that trains a network's modules, for as long as it exists.

    Frozen modules may be shared, as nobody trains them.

    :param network: that it trains.
    :param strategy: any.
    """
    for place in (*(store.place for store in network.weight_stores), *network.private.places):
        _OWNERS[place.module] = weakref.ref(strategy)


def former_owner(model: nn.Module) -> Any:
    """A strategy that trains some of a model's modules; None if there is none.

    :param model: plain or a :class:`TaskNetwork`.
    """
    return _other_owner(model, None)


def check_not_owned(model: nn.Module, strategy: Strategy) -> None:
    """Refuse a model with modules that another strategy has taken over.

    :param model: plain or a :class:`TaskNetwork`.
    :param strategy: that is to train it.
    :raises TaskStateError: if another strategy has.
    """
    if _other_owner(model, strategy) is None:
        return
    gc.collect()  # it may be unreachable
    owner = _other_owner(model, strategy)
    if owner is not None:
        raise TaskStateError(
            f"the model is trained by another strategy now ({type(owner).__name__}), which was "
            "built over it later, and two would change its weights under each other: train with "
            "that one, or give each a model of its own, copy.deepcopy(model)."
        )


def _other_owner(model: nn.Module, strategy: Strategy | None) -> Any:
    for module in model.modules():
        reference = _OWNERS.get(module)
        owner = None if reference is None else reference()
        if owner is not None and owner is not strategy:
            return owner
    return None
