"""What a strategy consists of while it trains, taken out of it as a tree and put back."""

from __future__ import annotations

import random
from typing import Any, Dict, NamedTuple, Sequence

import numpy as np
import torch
from avalanche.training.plugins import EarlyStoppingPlugin, LRSchedulerPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.errors import TrainingStateError
from avalanche_compress.host.tensor_data.plugin import TensorDataPlugin
from avalanche_compress.training.autocast import AutocastPlugin
from avalanche_compress.training.channels_last import ChannelsLastPlugin
from avalanche_compress.training.state.metric_counts import evaluator_counts, restore_evaluator
from avalanche_compress.training.state.tree import is_plain

State = Dict[str, Any]

KNOWN_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    AutocastPlugin: (),
    ChannelsLastPlugin: (),
    Clock: tuple(vars(Clock())),
    EarlyStoppingPlugin: ("best_state", "best_val", "best_step"),
    LRSchedulerPlugin: (
        "scheduler",
        "_was_training",
        "_just_validated",
        "_executed_train_iteration",
    ),
    PeriodicEval: ("do_final",),
    TensorDataPlugin: (),
}
"""What changes in training in plugins that do not say so themselves by ``state_attributes``."""


class Position(NamedTuple):
    """How far a run has come."""

    experience: int
    """The experience to train next, or on: as many are finished."""
    epochs: int
    """How many of its epochs are finished."""


def capture(strategy: Any) -> State:
    """Everything that the rest of a training depends on, as a tree of plain values and tensors.

    :param strategy: between two epochs or two experiences.
    :raises TrainingStateError: naming what in the strategy cannot be kept in this way.
    """
    network, clock = network_of(strategy), strategy.clock
    task = network.open_task
    return {
        "position": (clock.train_exp_counter, 0 if task is None else clock.train_exp_epochs),
        "built": _built(strategy),
        "task": None if task is None else _open_task(strategy),
        "network": dict(network.state_dict()),
        "optimizer": _optimizer_state(strategy),
        "criterion": _criterion_state(strategy),
        "plugins": [_plugin_state(plugin, strategy) for plugin in _kept_plugins(strategy)],
        "evaluator": evaluator_counts(strategy.evaluator),
        "stop": strategy._stop_training,
        "generators": _generators(),
    }


def restore(strategy: Any, state: State) -> None:
    """The inverse of :func:`capture`.

    :param strategy: built as the one that was captured; if a task was open, one of its shape is.
    :param state: of :func:`capture`, checked by :func:`check_fits`.
    """
    network = network_of(strategy)
    network.load_state_dict(state["network"])
    _check_weights(network)
    _restore_optimizer(strategy, state["optimizer"])
    if state["criterion"] is not None:
        strategy._criterion.load_state_dict(state["criterion"])
    for plugin, own in zip(_kept_plugins(strategy), state["plugins"]):
        _restore_plugin(plugin, own, strategy)
    restore_evaluator(strategy.evaluator, state["evaluator"])
    strategy._stop_training = state["stop"]
    _set_generators(state["generators"])  # last: the rest may draw numbers


def check_fits(strategy: Any, state: State, source: object) -> None:
    """Refuse the state of a strategy that was built in another way.

    :param strategy: that it is for.
    :param state: of :func:`capture`.
    :param source: where it comes from, for messages.
    :raises TrainingStateError: naming the first difference.
    """
    theirs, ours = state["built"], _built(strategy)
    for what, own in ours.items():
        if theirs[what] != own:
            raise TrainingStateError(
                f"{source} is the state of another training: its {what} is {theirs[what]} and "
                f"this strategy has {own}. Build the strategy as in the run that wrote it."
            )
    network = network_of(strategy)
    expected, found = _layout(network, network.state_dict()), _layout(network, state["network"])
    if expected != found:
        names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        raise TrainingStateError(
            f"{source} is the state of another model: {names[0]} is {found.get(names[0])} in it "
            f"and {expected.get(names[0])} here."
        )
    head = state["network"][f"backbone.{network.head_name}.weight"]
    if state["network"]["_extra_state"]["head_rows"] != head.shape[0]:
        raise TrainingStateError(f"{source} is damaged: its head has {head.shape[0]} rows.")
    _check_values(strategy, state)


def check_supported(strategy: Any) -> None:
    """Refuse a strategy with parts whose state is not known.

    :param strategy: any.
    :raises TrainingStateError: naming the plugin.
    """
    for plugin in _kept_plugins(strategy):
        _attributes_of(plugin, strategy)


def check_same_task(strategy: Any, state: State) -> None:
    """Refuse to go on with another task than the one that was in training.

    :param strategy: that has just opened a task.
    :param state: with an open task.
    :raises TrainingStateError: if label, classes or number of samples differ.
    """
    opened = _open_task(strategy)
    if opened != state["task"]:
        raise TrainingStateError(
            f"the state is of a training on {_described(state['task'])} and the experience "
            f"has {_described(opened)}: go on with stream[position.experience] of the same stream."
        )


# ---------------------------------------------------------------------------- what it is built of


def _built(strategy: Any) -> dict[str, Any]:
    groups = strategy.optimizer.param_groups
    return {
        "strategy": type(strategy).__name__,
        "optimizer": f"{type(strategy.optimizer).__name__} of {len(groups)} groups",
        "list of plugins": [type(plugin).__name__ for plugin in _kept_plugins(strategy)],
        "list of metrics": [type(metric).__name__ for metric in strategy.evaluator.metrics],
    }


def _open_task(strategy: Any) -> dict[str, Any]:
    network = network_of(strategy)
    assert network.open_task is not None
    classes = list(network.classes_of(network.open_task))
    return {
        "label": network.open_task,
        "classes": classes,
        "samples": len(strategy.adapted_dataset),
    }


def _described(task: dict[str, Any]) -> str:
    return f"task {task['label']}, classes {task['classes']}, {task['samples']} samples"


def _check_values(strategy: Any, state: State) -> None:
    """Refuse plain values of another kind than those in the strategy."""
    _check_kind("the flag to stop", strategy._stop_training, state["stop"])
    for group, saved in zip(strategy.optimizer.param_groups, state["optimizer"]["groups"]):
        for option, value in group.items():
            _check_kind(f"{option} of the optimiser", value, saved[option])
    for plugin, own in zip(_kept_plugins(strategy), state["plugins"]):
        for name in _attributes_of(plugin, strategy) or ():
            _check_kind(f"{type(plugin).__name__}.{name}", getattr(plugin, name), own[name])


def _check_kind(what: str, ours: Any, theirs: Any) -> None:
    for kind in (bool, (int, float), str):
        if isinstance(ours, kind):
            same = isinstance(theirs, kind) and isinstance(ours, bool) == isinstance(theirs, bool)
            if not same and theirs is not None:
                raise TrainingStateError(f"{what} is {theirs!r} in the state and {ours!r} here.")
            return


# ---------------------------------------------------------------------------- network


def _layout(network: TaskNetwork, state: dict[str, Any]) -> dict[str, str]:
    """Type and shape of each tensor, as far as these are the same at all times."""
    varying = {name for name, _ in network.named_parameters() if name.startswith("stores.")}
    head = f"backbone.{network.head_name}."
    layout = {}
    for name, own in state.items():
        if not isinstance(own, Tensor):
            layout[name] = type(own).__name__
        elif name in varying:
            layout[name] = f"{own.dtype}"
        else:
            layout[name] = f"{own.dtype} {list(own.shape[name.startswith(head) :])}"
    return layout


@torch.no_grad()
def _check_weights(network: TaskNetwork) -> None:
    """Refuse parts of weights that do not make one of the model's shapes."""
    for store in network.weight_stores if network.open_task is not None else []:
        if store.weight().shape != store.shape:
            raise TrainingStateError(f"the parts of {store.name} do not make a weight of its shape")


# ---------------------------------------------------------------------------- optimiser


def _optimizer_state(strategy: Any) -> State:
    """Groups with the names of their parameters; moments by name while a task is open."""
    optimizer: Optimizer = strategy.optimizer
    names = _names_in_optimizer(strategy)
    groups = []
    for group in optimizer.param_groups:
        unknown = [own for own in group["params"] if id(own) not in names]
        if unknown:
            raise TrainingStateError(
                f"the optimiser has a parameter of shape {list(unknown[0].shape)} that is not the "
                "model's, so a training state cannot name it: use save_checkpoint instead."
            )
        params = [names[id(own)] for own in group["params"]]
        groups.append({**group, "params": params})
    moments = {}
    if network_of(strategy).open_task is not None:  # the next task starts without
        moments = {names[id(own)]: dict(kept) for own, kept in optimizer.state.items()}
    known = strategy.optimized_param_id
    return {
        "groups": groups,
        "moments": moments,
        "known": None if known is None else list(known),
    }


def _names_in_optimizer(strategy: Any) -> dict[int, str]:
    """Names by id, of parameters that a plugin has replaced in the model too."""
    names = {id(own): name for name, own in network_of(strategy).named_parameters()}
    names.update({id(own): name for name, own in (strategy.optimized_param_id or {}).items()})
    return names


def _restore_optimizer(strategy: Any, state: State) -> None:
    optimizer: Optimizer = strategy.optimizer
    named = dict(network_of(strategy).named_parameters())
    numbers: dict[str, int] = {}
    groups = []
    for group, saved in zip(optimizer.param_groups, state["groups"]):
        group["params"] = [named[name] for name in saved["params"]]
        for name in saved["params"]:
            numbers[name] = len(numbers)
        groups.append({**saved, "params": [numbers[name] for name in saved["params"]]})
    moments = {numbers[name]: kept for name, kept in state["moments"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    known = state["known"]
    strategy.optimized_param_id = None if known is None else {name: named[name] for name in known}


def _criterion_state(strategy: Any) -> Any:
    criterion = strategy._criterion
    return dict(criterion.state_dict()) if isinstance(criterion, nn.Module) else None


# ---------------------------------------------------------------------------- plugins


def _kept_plugins(strategy: Any) -> list[Any]:
    return [own for own in strategy.plugins if not getattr(own, "saves_training_state", False)]


def _attributes_of(plugin: Any, strategy: Any) -> Sequence[str] | None:
    """The attributes that are a plugin's state; None if it has a ``state_dict`` of its own."""
    declared = getattr(type(plugin), "state_attributes", None)
    if declared is not None:
        return declared  # type: ignore[no-any-return]
    if plugin is strategy.evaluator or not vars(plugin):
        return ()
    if type(plugin) in KNOWN_ATTRIBUTES:
        return KNOWN_ATTRIBUTES[type(plugin)]
    if _has_state_dict(plugin):
        return None
    name = type(plugin).__name__
    raise TrainingStateError(
        f"{name} may change in training and does not say how, so no training state can be saved: "
        f"list the names of what changes in {name}.state_attributes (an empty tuple if nothing "
        "does), or use save_checkpoint between tasks, which pickles whole plugins."
    )


def _plugin_state(plugin: Any, strategy: Any) -> Any:
    names = _attributes_of(plugin, strategy)
    if names is None:
        return _value_state(plugin)
    state = {name: _value_state(getattr(plugin, name)) for name in names}
    for name, own in state.items():
        if not is_plain(own):
            raise TrainingStateError(
                f"{type(plugin).__name__}.{name} holds more than tensors and plain values, so no "
                "training state can be saved: use save_checkpoint between tasks, which pickles."
            )
    return state


def _restore_plugin(plugin: Any, state: Any, strategy: Any) -> None:
    names = _attributes_of(plugin, strategy)
    if names is None:
        plugin.load_state_dict(state)
        return
    for name in names:
        value, own = getattr(plugin, name), state[name]
        if _has_state_dict(value):
            value.load_state_dict(own)
        elif hasattr(value, "setstate"):
            value.setstate(own)
        else:
            setattr(plugin, name, own)


def _value_state(value: Any) -> Any:
    if _has_state_dict(value):
        return value.state_dict()
    return value.getstate() if hasattr(value, "getstate") else value


def _has_state_dict(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


# ---------------------------------------------------------------------------- random numbers


def _generators() -> State:
    """The states of the generators of Python, NumPy and torch, on the CPU and on all GPUs."""
    kind, keys, *others = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *others),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_generators(state: State) -> None:
    kind, keys, *others = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *others))
    torch.set_rng_state(state["torch"])
    for device in range(min(len(state["cuda"]), torch.cuda.device_count())):
        torch.cuda.set_rng_state(state["cuda"][device], device)
