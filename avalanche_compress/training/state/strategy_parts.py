"""What a strategy consists of while it trains, taken out of it as a tree and put back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.errors import TrainingStateError
from avalanche_compress.host.plugin_state import STATE_ATTRIBUTES
from avalanche_compress.host.strategy import Strategy, criterion_of
from avalanche_compress.host.training_loop import TrainingLoop
from avalanche_compress.training.state.attributes import Remembered, put_attributes
from avalanche_compress.training.state.generators import generator_states, set_generators
from avalanche_compress.training.state.metric_counts import evaluator_counts, restore_evaluator
from avalanche_compress.training.state.tree import is_plain

State = dict[str, Any]


class Position(NamedTuple):
    """How far a run has come."""

    experience: int
    """The experience to train next, or on: as many are finished."""
    epochs: int
    """How many of its epochs are finished."""


class RememberingLoop(TrainingLoop):
    """A training loop that knows how the attributes of its parts were before it trained."""

    names_of_every_strategy: Collection[str] = ()
    own_names: Collection[str] = ()
    """Attributes that a subclass has added."""
    remembered: Remembered | None = None

    def remember(self) -> None:
        """Look at the attributes of all parts, unless that has been done."""
        if self.remembered is None:
            self.own_names = sorted(vars(self).keys() - set(self.names_of_every_strategy))
            self.remembered = Remembered(self)


def capture(strategy: RememberingLoop) -> State:
    """Everything that the rest of a training depends on, as a tree of plain values and tensors.

    :param strategy: between two epochs or two experiences.
    :raises TrainingStateError: naming what in the strategy cannot be kept in this way.
    """
    network, clock = network_of(strategy), strategy.clock
    task = network.open_task
    return {
        "position": (clock.train_exp_counter, 0 if task is None else clock.train_exp_epochs),
        "built": what_it_is_built_of(strategy),
        "task": None if task is None else _open_task(strategy),
        "network": dict(network.state_dict()),
        "optimizer": _optimizer_state(strategy),
        "criterion": criterion_state(strategy),
        "attributes": strategy.remembered.changed(strategy) if strategy.remembered else {},
        "frozen": [n for n, p in network.named_parameters() if not p.requires_grad],
        "plugins": [_plugin_state(plugin, strategy) for plugin in kept_plugins(strategy)],
        "evaluator": evaluator_counts(strategy.evaluator),
        "stop": strategy.told_to_stop,
        "generators": generator_states(),
    }


def restore(strategy: RememberingLoop, state: State) -> None:
    """The inverse of :func:`capture`.

    :param strategy: built as the one that was captured; if a task was open, one of its shape is.
    :param state: of :func:`capture`, which the strategy was checked to fit.
    """
    network = network_of(strategy)
    network.load_state_dict(state["network"])
    strategy.optimized_param_id = restore_optimizer(strategy.optimizer, network, state["optimizer"])
    if state["criterion"] is not None:
        criterion_of(strategy).load_state_dict(state["criterion"])
    for plugin, saved in zip(kept_plugins(strategy), state["plugins"]):
        _restore_plugin(plugin, saved, strategy)
    restore_evaluator(strategy.evaluator, state["evaluator"])
    put_attributes(strategy, state.get("attributes", {}))  # which earlier versions did not keep
    if network.open_task is not None and "frozen" in state:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in state["frozen"])
    strategy.told_to_stop = state["stop"]
    set_generators(state["generators"])  # last: the rest may draw numbers


def check_supported(strategy: Strategy) -> None:
    """Refuse a strategy with parts whose state is not known.

    :param strategy: any.
    :raises TrainingStateError: naming the plugin.
    """
    for plugin in kept_plugins(strategy):
        attributes_of(plugin, strategy)


def check_same_task(strategy: Strategy, state: State) -> None:
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


def what_it_is_built_of(strategy: Strategy) -> dict[str, Any]:
    """What has to be the same where a training goes on.

    :param strategy: any.
    """
    groups = strategy.optimizer.param_groups
    return {
        "strategy": type(strategy).__name__,
        "optimizer": f"{type(strategy.optimizer).__name__} of {len(groups)} groups",
        "list of plugins": [type(plugin).__name__ for plugin in kept_plugins(strategy)],
        "list of metrics": [type(metric).__name__ for metric in strategy.evaluator.metrics],
    }


def _open_task(strategy: Strategy) -> dict[str, Any]:
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


# ---------------------------------------------------------------------------- optimiser


def _optimizer_state(strategy: Strategy) -> State:
    """Groups with the names of their parameters; moments by name while a task is open."""
    optimizer: Optimizer = strategy.optimizer
    names = _names_in_optimizer(strategy)
    groups = []
    for group in optimizer.param_groups:
        unknown = [parameter for parameter in group["params"] if id(parameter) not in names]
        if unknown:
            raise TrainingStateError(
                f"the optimiser has a parameter of shape {list(unknown[0].shape)} that is not the "
                "model's, so a training state cannot name it: use save_checkpoint instead."
            )
        params = [names[id(parameter)] for parameter in group["params"]]
        groups.append({**group, "params": params})
    moments = {}
    if network_of(strategy).open_task is not None:  # the next task starts without
        moments = {names[id(parameter)]: dict(kept) for parameter, kept in optimizer.state.items()}
    known = strategy.optimized_param_id
    return {
        "groups": groups,
        "moments": moments,
        "known": None if known is None else list(known),
    }


def _names_in_optimizer(strategy: Strategy) -> dict[int, str]:
    """Names by id, of parameters that a plugin has replaced in the model too."""
    names = {id(parameter): name for name, parameter in network_of(strategy).named_parameters()}
    names.update(
        {id(parameter): name for name, parameter in (strategy.optimized_param_id or {}).items()}
    )
    return names


def restore_optimizer(
    optimizer: Optimizer, network: TaskNetwork, state: State
) -> dict[str, nn.Parameter] | None:
    """Let an optimiser go on.

    :param optimizer: with as many groups.
    :param network: with the parameters that it trains.
    :param state: what :func:`capture` keeps of the optimiser.
    :return: the parameters that Avalanche is to know in it, by name.
    """
    named = dict(network.named_parameters())
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
    return None if known is None else {name: named[name] for name in known}


def criterion_state(strategy: Strategy) -> Any:
    """The state of a loss that is a module; None of any other.

    :param strategy: any.
    """
    criterion = criterion_of(strategy)
    return dict(criterion.state_dict()) if isinstance(criterion, nn.Module) else None


# ---------------------------------------------------------------------------- plugins


def kept_plugins(strategy: Strategy) -> list[Any]:
    """The plugins whose state is kept: all but those that keep it.

    :param strategy: any.
    """
    return [p for p in strategy.plugins if not getattr(p, "saves_training_state", False)]


def attributes_of(plugin: Any, strategy: Strategy) -> Sequence[str] | None:
    """The attributes that are a plugin's state; None if it has a ``state_dict`` of its own.

    :param plugin: of the strategy.
    :param strategy: any.
    :raises TrainingStateError: if nobody knows what changes in it.
    """
    declared = getattr(type(plugin), "state_attributes", None)
    if declared is not None:
        return declared  # type: ignore[no-any-return]
    if plugin is strategy.evaluator or not vars(plugin):
        return ()
    if type(plugin) in STATE_ATTRIBUTES:
        return STATE_ATTRIBUTES[type(plugin)]
    if _has_state_dict(plugin):
        return None
    name = type(plugin).__name__
    raise TrainingStateError(
        f"{name} may change in training and does not say how, so no training state can be saved: "
        f"list the names of what changes in {name}.state_attributes (an empty tuple if nothing "
        "does), or use save_checkpoint between tasks, which pickles whole plugins."
    )


def _plugin_state(plugin: Any, strategy: Strategy) -> Any:
    names = attributes_of(plugin, strategy)
    if names is None:
        return value_state(plugin)
    state = {name: value_state(getattr(plugin, name)) for name in names}
    for name, value in state.items():
        if not is_plain(value):
            raise TrainingStateError(
                f"{type(plugin).__name__}.{name} holds more than tensors and plain values, so no "
                "training state can be saved: use save_checkpoint between tasks, which pickles."
            )
    return state


def _restore_plugin(plugin: Any, state: Any, strategy: Strategy) -> None:
    names = attributes_of(plugin, strategy)
    if names is None:
        plugin.load_state_dict(state)
        return
    for name in names:
        value, saved = getattr(plugin, name), state[name]
        if _has_state_dict(value):
            value.load_state_dict(saved)
        elif hasattr(value, "setstate"):
            value.setstate(saved)
        else:
            setattr(plugin, name, saved)


def value_state(value: Any) -> Any:
    """What is kept of a value: its state, if it says what that is, or itself.

    :param value: an attribute of a plugin, or a plugin.
    """
    if _has_state_dict(value):
        return value.state_dict()
    return value.getstate() if hasattr(value, "getstate") else value


def _has_state_dict(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
