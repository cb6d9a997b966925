"""Which group of the optimiser a parameter belongs to."""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.models.dynamic_optimizers import update_optimizer
from torch import nn
from torch.optim import Optimizer

from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.errors import TaskStateError

Groups = list[list[nn.Parameter]]


def plan_groups(model: nn.Module, optimizer: Optimizer, without: Any = None) -> Groups:
    """The optimiser's groups with all of a model's trainable parameters; nothing is changed.

    As with any Avalanche strategy, a parameter that was left out joins: the only group, or the one
    in which all of its neighbours by name are. One of a shape that the optimiser does not take
    stays out, and is not trained.

    :param model: plain.
    :param optimizer: over its parameters, or some of them.
    :param without: a strategy that trained the model before; its stores' parameters are left out.
    :raises TaskStateError: if it is unclear which group a parameter would join.
    """
    former = set()
    if without is not None:
        former = {
            id(part) for store in without.network.weight_stores for part in store.parameters()
        }
    groups = [
        [param for param in group["params"] if id(param) not in former]
        for group in optimizer.param_groups
    ]
    known = {id(parameter) for group in groups for parameter in group}
    trained = {
        name: param
        for name, param in model.named_parameters()
        if param.requires_grad and takes(optimizer, param)
    }
    plan = SimpleNamespace(param_groups=[{"params": group} for group in groups], state={})
    try:
        update_optimizer(plan, trained)
    except AttributeError as error:
        missing = next(name for name, param in trained.items() if id(param) not in known)
        raise TaskStateError(
            f"the optimiser has {len(groups)} groups and {missing!r} is in none of them, nor are "
            "its neighbours all in one that it could join: put it into a group, or freeze it with "
            "requires_grad_(False)."
        ) from error
    return groups


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimiser that cannot step after a backward pass.

    :param optimizer: any.
    :raises TaskStateError: if it asks for a function that computes the loss again, as LBFGS does.
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TaskStateError(
            f"{type(optimizer).__name__} computes the loss several times a step, by a closure that "
            "Avalanche's training loop does not give it: choose another optimiser."
        )


def taken_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """A model's trainable parameters that an optimiser can hold; warns of the others.

    :param model: any.
    :param optimizer: that trains it.
    """
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    taken = {name: param for name, param in trained.items() if takes(optimizer, param)}
    left = [name for name in trained if name not in taken]
    if left:
        warnings.warn(
            f"{type(optimizer).__name__} takes no parameters of the shape of {left[0]!r}: "
            f"{len(left)} of {len(trained)} are not trained. For those, choose an optimiser that "
            "takes all shapes.",
            stacklevel=3,
        )
    return taken


def takes(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether an optimiser can hold a parameter; Muon, for one, takes matrices only.

    :param optimizer: any; it is not changed.
    :param parameter: that it may have already.
    """
    dims = {member.dim() for group in optimizer.param_groups for member in group["params"]}
    kind: Any = type(optimizer)
    return parameter.dim() in dims or bool(_takes_dims(kind, parameter.dim()))


@cache
def _takes_dims(kind: Any, dims: int) -> bool:
    """Whether an optimiser can be built over a parameter of so many dimensions."""
    try:
        kind([nn.Parameter(torch.zeros([1] * dims))])
    except ValueError:
        return False
    except Exception:  # it needs options that only its user knows
        return True
    return True


def join_groups(network: TaskNetwork, optimizer: Optimizer, groups: Groups) -> None:
    """Let the optimiser have planned groups, and the stores' parameters next to their weights.

    :param network: of the model that the groups were planned for.
    :param optimizer: whose groups change.
    :param groups: of :func:`plan_groups`.
    """
    known = {id(parameter) for group in groups for parameter in group}
    for store in network.weight_stores:
        for position, members in enumerate(groups):
            if any(parameter is store.scratch for parameter in members):
                for part in store.parameters():
                    if id(part) not in known and takes(optimizer, part):
                        groups[_group_of(part, position, optimizer)].append(part)
                break
    for group, planned in zip(optimizer.param_groups, groups):
        group["params"] = planned


def _group_of(part: nn.Parameter, position: int, optimizer: Optimizer) -> int:
    """Where a part of a weight belongs: next to it, unless a flag has matrices there only.

    :param part: of a store.
    :param position: of the weight's group.
    :param optimizer: whose groups may say ``use_muon``, as those that combine Muon with Adam do.
    """
    flags = [group.get("use_muon") for group in optimizer.param_groups]
    is_vector = flags[position] is True and part.dim() < 2 and False in flags
    return flags.index(False) if is_vector else position


def rejoin_groups(network: TaskNetwork, optimizer: Optimizer, former: set[int]) -> None:
    """Let the optimiser follow when other layers are compressed than before.

    :param network: whose stores are new in part.
    :param optimizer: over its parameters.
    :param former: ids of the parameters of the stores before.
    """
    now = {id(part) for store in network.weight_stores for part in store.parameters()}
    for group in optimizer.param_groups:
        group["params"] = [
            part for part in group["params"] if id(part) not in former or id(part) in now
        ]
    join_groups(network, optimizer, plan_groups(network.backbone, optimizer))
