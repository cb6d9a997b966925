"""Whether a training can go on from a state: all of it is looked at before any is taken over.

A file of another training, of a damaged disk, or with a checksum that somebody computed again may
say anything. So each part is compared with the strategy's own (kinds, names, shapes, ranges), and
what is left to be found out is tried on a copy of the network and its optimiser.
"""

from __future__ import annotations

import copy
import inspect
import math
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from avalanche.training.plugins import EarlyStoppingPlugin
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.errors import CompressError, TrainingStateError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.host.training_loop import TrainingLoop
from avalanche_compress.training.state.attributes import attributes, misfit, plain_state
from avalanche_compress.training.state.generators import check_generators, is_python_generator
from avalanche_compress.training.state.metric_counts import check_counts
from avalanche_compress.training.state.strategy_parts import (
    State,
    attributes_of,
    criterion_state,
    kept_plugins,
    restore_optimizer,
    value_state,
    what_it_is_built_of,
)

_PARTS = {
    "position",
    "built",
    "task",
    "network",
    "optimizer",
    "criterion",
    "plugins",
    "evaluator",
    "stop",
    "generators",
}


_NEWER_PARTS: dict[str, Any] = {"attributes": {}, "frozen": []}
"""What states of earlier versions lack, and what that means."""


def check_fits(strategy: TrainingLoop, state: Any, source: object) -> None:
    """Refuse a state that the strategy cannot go on from; nothing of the strategy changes.

    :param strategy: that it is for.
    :param state: what a file held.
    :param source: where it comes from, for messages.
    :raises TrainingStateError: naming the first thing that does not fit.
    """
    try:
        _check(strategy, copy.deepcopy(state))  # what tries it changes it
    except TrainingStateError as error:
        raise TrainingStateError(f"{source} cannot be gone on from: {error}") from error
    except Exception as error:  # whatever a file may bring about
        raise TrainingStateError(
            f"{source} cannot be gone on from, as it is no state of this strategy: {error!r}"
        ) from error


def _check(strategy: TrainingLoop, state: Any) -> None:
    known = isinstance(state, dict) and state.keys() - _NEWER_PARTS.keys() == _PARTS
    _expect(known, "it is no training state")
    state = {**_NEWER_PARTS, **state}
    for what, ours in what_it_is_built_of(strategy).items():
        theirs = state["built"][what]
        _expect(
            theirs == ours,
            f"it is the state of another training: its {what} is {theirs} and this strategy has "
            f"{ours}. Build the strategy as in the run that wrote it",
        )
    check_generators(state["generators"])
    _check_like("the flag to stop", strategy.told_to_stop, state["stop"])
    _check_like("the criterion", criterion_state(strategy), state["criterion"])
    _check_attributes(strategy, state["attributes"])
    _follow_heads(strategy, state["network"])
    _check_network(network_of(strategy), state["network"])
    network, optimizer = copy.deepcopy((network_of(strategy), strategy.optimizer))
    network.load_state_dict(state["network"])
    names = {name for name, _ in network.named_parameters()}
    _expect(set(state["frozen"]) <= names, "it has frozen others")
    _check_open(network_of(strategy), network)
    _check_progress(strategy, network, state)
    _check_plugins(strategy, network, state["plugins"])
    check_counts(strategy.evaluator, state["evaluator"])
    _check_optimizer(optimizer, network, state["optimizer"])
    if network.open_task is not None:
        _try_weights(network)
        _try_step(optimizer)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise TrainingStateError(f"{otherwise}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


# ---------------------------------------------------------------------------- values


def _check_like(what: str, ours: Any, theirs: Any, *, strictly: bool = True) -> None:
    """Refuse a value of another kind than the strategy has in its place.

    :param what: it is, for messages.
    :param ours: an example; None or something empty stands for any plain value.
    :param theirs: out of a file.
    :param strictly: whether lengths, keys and shapes are the same at all times, too.
    """
    for kind in (bool, (int, float), str, Tensor, list, tuple, dict):
        if isinstance(ours, kind):
            same = isinstance(theirs, kind) and isinstance(ours, bool) == isinstance(theirs, bool)
            _expect(same, f"{what} is {theirs!r} in it and {ours!r} here")
            break
    if isinstance(ours, Tensor):
        same = not strictly or _form(ours) == _form(theirs)
        _expect(same, f"{what} is {_form(theirs)}, not {_form(ours)}")
    if isinstance(ours, (list, tuple)) and ours:
        same = not strictly or len(ours) == len(theirs)
        _expect(same, f"{what} has {len(theirs)} entries, not {len(ours)}")
        for place, (example, value) in enumerate(zip(ours, theirs)):
            _check_like(f"{what}[{place}]", example, value, strictly=strictly)
    if isinstance(ours, dict) and ours:
        same = not strictly or ours.keys() == theirs.keys()
        _expect(same, f"{what} has {list(theirs)}, not {list(ours)}")
        for name in ours.keys() & theirs.keys():
            _check_like(f"{what}[{name!r}]", ours[name], theirs[name], strictly=strictly)


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _check_attributes(strategy: TrainingLoop, kept: Any) -> None:
    ours = attributes(strategy)
    reason = misfit(strategy, ours, kept)
    _expect(not reason, reason)
    for place, values in kept.items():
        for name, value in values.items():
            if name in ours[place]:
                now = plain_state(ours[place][name])
                _check_like(f"{place}.{name}", now, value, strictly=False)


# ---------------------------------------------------------------------------- network


def _follow_heads(strategy: TrainingLoop, state: dict[str, Any]) -> None:
    """Let a strategy that has not trained yet take the layers for heads that were seen to be."""
    extra = state.get("_extra_state")
    names = extra.get("heads") if isinstance(extra, dict) else None
    modules = dict(network_of(strategy).backbone.named_modules())
    if isinstance(names, list) and names and all(name in modules for name in names):
        strategy.follow_heads(lambda network: network.set_heads(names))


def _check_network(network: TaskNetwork, state: dict[str, Any]) -> None:
    """Refuse tensors of another model, and a head that would take memory that is not there."""
    expected, found = _layout(network, network.state_dict()), _layout(network, state)
    for name in {**expected, **found}:
        _expect(
            expected.get(name) == found.get(name),
            f"it is the state of another model: {name} is {found.get(name)} in it and "
            f"{expected.get(name)} here",
        )
    for name in network.head_names:
        rows = state[f"backbone.{name}.weight"].shape[0]
        _expect(state["_extra_state"]["head_rows"] == rows, f"its head has {rows} rows")
    marks, static = state["_extra_state"]["static_marks"], network.static_tensors()
    _expect(marks.keys() == static.keys(), f"all its tasks share {list(marks)}")
    tasks = state["_extra_state"]["classes"]
    for task, kept in state["_extra_state"]["statistics"].items():
        tensors = isinstance(kept, dict) and all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in kept.items()
        )
        _expect(tensors and task in tasks, f"its statistics of task {task!r} are none")


def _layout(network: TaskNetwork, state: dict[str, Any]) -> dict[str, str]:
    """Type and shape of each tensor, as far as these are the same at all times."""
    varying = {name for name, _ in network.named_parameters() if name.startswith("stores.")}
    heads = tuple(f"backbone.{name}." for name in network.head_names)
    layout = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            layout[name] = type(value).__name__
        elif name in varying:
            layout[name] = f"{value.dtype}"
        else:
            layout[name] = f"{value.dtype} {list(value.shape[name.startswith(heads) :])}"
    return layout


def _check_open(ours: TaskNetwork, theirs: TaskNetwork) -> None:
    """Refuse what stores say of the open task, if it is of other kinds or shapes than here.

    :param ours: the strategy's network.
    :param theirs: a copy that has taken the state over.
    """
    for before, after in zip(ours.weight_stores, theirs.weight_stores):
        states: list[Any] = [store.get_extra_state() for store in (before, after)]
        example, saved = (state.get("open") for state in states)
        _check_like(f"the open task of {after.name}", example, saved, strictly=False)
        parameters = (parameter.shape for parameter in after.parameters())
        shapes = [after.shape, after.shape[:1], torch.Size((0,)), *parameters]
        for name, value in (saved or {}).items():
            fits = not isinstance(value, Tensor) or value.shape in shapes
            _expect(fits, f"{name} of {after.name} is of another shape")
            finite = not isinstance(value, float) or math.isfinite(value)
            _expect(finite, f"{name} of {after.name} is {value!r}")


def _check_progress(strategy: Strategy, network: TaskNetwork, state: State) -> None:
    """Refuse a position, a clock or classes that contradict each other.

    :param strategy: that the state is for.
    :param network: that has taken the state's over.
    :param state: the whole.
    """
    finished = [(task, list(classes)) for task, classes in network.classes.items()]
    for task, classes in finished:
        _expect(_are_classes(classes), f"task {task} has the classes {classes}")
    highest = max((classes[-1] for _, classes in finished), default=-1)
    width = network.max_class_label
    _expect(_is_count(width) and highest < width, f"its largest class number is {width}")
    experience, epochs = state["position"]
    _expect(
        _is_count(experience) and _is_count(epochs) and experience <= len(finished),
        f"it has {len(finished)} finished tasks and goes on at {experience!r}, {epochs!r}",
    )
    counters = state["plugins"][kept_plugins(strategy).index(strategy.clock)]
    for name, value in counters.items():
        _expect(_is_count(value), f"the clock's {name} is {value!r}")
    _expect(counters["train_exp_counter"] == experience, "its clock is of another experience")
    task = state["task"]
    if task is None:
        _expect(network.open_task is None and epochs == 0, "its open task is not described")
        return
    _expect(_is_count(task["label"]) and _is_count(network.open_task), "its task has no number")
    described = (task["label"], tuple(task["classes"]))
    _expect(described == (network.open_task, network.classes_of(task["label"])), "its task differs")
    _expect(_are_classes(task["classes"]) and task["classes"][-1] < width, "its classes differ")
    _expect(task["label"] not in network.classes, f"task {task['label']} is open and finished")
    _expect(_is_count(task["samples"]), f"its task has {task['samples']!r} samples")
    _expect(counters["train_exp_epochs"] == epochs, "its clock is of another epoch")
    _expect(
        epochs <= strategy.train_epochs,
        f"{epochs} epochs of its task are done and train_epochs={strategy.train_epochs}",
    )


def _are_classes(classes: Any) -> bool:
    counts = all(_is_count(number) for number in classes)
    return bool(classes) and counts and list(classes) == sorted(set(classes))


def _try_weights(network: TaskNetwork) -> None:
    """Refuse parts of weights that do not make one of the model's shapes, or no section."""
    for store in network.weight_stores:
        for weight in (store.weight(), store.substitute()):
            _expect(weight.shape == store.shape, f"the parts of {store.name} do not fit together")
        store.kept_gradients()
        with suppress(CompressError):  # a task that is not shaped yet need not fit its bits
            store.check_commit()
            store.encode()


# ---------------------------------------------------------------------------- optimiser


def _check_optimizer(optimizer: Optimizer, network: TaskNetwork, state: State) -> None:
    """Refuse groups and moments that are not those of the network; the copies take them over."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    grouped = [name for group in state["groups"] for name in group["params"]]
    known = state["known"]
    _expect(len(set(grouped)) == len(grouped) and set(grouped) <= shapes.keys(), "it groups others")
    _expect(known is None or set(known) <= shapes.keys(), "its optimiser knows others")
    _expect(len(state["groups"]) == len(optimizer.param_groups), "it has other groups")
    for ours, theirs in zip(optimizer.param_groups, state["groups"]):
        options = {name: value for name, value in ours.items() if name != "params"}
        saved = {name: value for name, value in theirs.items() if name != "params"}
        _expect(options.keys() <= saved.keys(), f"a group has {list(saved)}, not {list(options)}")
        for name, value in options.items():
            _check_like(f"{name} of the optimiser", value, saved[name])
        _check_options(type(optimizer), options, saved)
    for name, moments in state["moments"].items():
        _expect(name in grouped, f"it has moments of {name}, which its optimiser does not train")
        _check_moments(name, shapes[name], moments)
    restore_optimizer(optimizer, network, state)


def _check_options(kind: type, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuse what the optimiser's constructor refuses, such as a negative learning rate."""
    make: Any = kind
    known = inspect.signature(make).parameters
    for options in (ours, theirs):
        given = {name: value for name, value in options.items() if name in known}
        try:
            make([nn.Parameter(torch.zeros(1))], **given)
        except Exception as error:
            if options is ours:  # it is made in another way, about which nothing is known
                return
            raise TrainingStateError(f"an option of its optimiser does not fit: {error}") from error
    _expect(all(map(math.isfinite, _numbers(theirs))), "an option of its optimiser is not finite")


def _numbers(options: dict[str, Any]) -> list[float]:
    flat = [v if isinstance(v, (list, tuple)) else (v,) for v in options.values()]
    return [value for values in flat for value in values if isinstance(value, (int, float))]


def _check_moments(name: str, shape: torch.Size, moments: dict[str, Any]) -> None:
    for what, value in moments.items():
        if isinstance(value, Tensor) and value.dim():
            _expect(value.shape == shape, f"{what} of {name} is of shape {list(value.shape)}")
        elif what == "step":
            _expect(0 <= float(value) < 1 << 62, f"{what} of {name} is {float(value)}")


def _try_step(optimizer: Optimizer) -> None:
    """Let the copy make a step, with gradients of 0: it reads all moments and options."""
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type,return-value]


# ---------------------------------------------------------------------------- plugins


def _check_plugins(strategy: Strategy, network: TaskNetwork, states: Sequence[Any]) -> None:
    plugins = kept_plugins(strategy)
    _expect(len(states) == len(plugins), f"it has {len(states)} plugins, not {len(plugins)}")
    for plugin, state in zip(plugins, states):
        what, names = type(plugin).__name__, attributes_of(plugin, strategy)
        if names is None:
            _check_like(what, value_state(plugin), state, strictly=False)
            continue
        _expect(isinstance(state, dict) and state.keys() == set(names), f"it has no {what}")
        examples = _examples(plugin, network)
        for name in names:
            _check_attribute(
                f"{what}.{name}", getattr(plugin, name), state[name], examples.get(name)
            )


def _examples(plugin: Any, network: TaskNetwork) -> dict[str, Any]:
    """By attribute, what it may hold where it is None just now."""
    if isinstance(plugin, EarlyStoppingPlugin):
        return {"best_val": 0.0, "best_step": 0, "best_state": network.state_dict()}
    describe = getattr(plugin, "state_examples", None)
    return {} if describe is None else dict(describe(network))


def _check_attribute(what: str, ours: Any, theirs: Any, example: Any) -> None:
    """Refuse what an attribute of a plugin cannot hold.

    :param what: it is, for messages.
    :param ours: what the strategy has.
    :param theirs: out of a file.
    :param example: what it may hold where ``ours`` is None.
    """
    if isinstance(ours, (LRScheduler, ReduceLROnPlateau)):
        _check_like(what, ours.state_dict(), theirs)
        _try_scheduler(ours, theirs)
    elif isinstance(ours, random.Random):
        _expect(is_python_generator(theirs), f"{what} is no state of a random generator")
    elif ours is not None:
        _check_like(what, value_state(ours), theirs, strictly=False)
    elif theirs is not None:
        _check_like(what, example, theirs)


def _try_scheduler(scheduler: Any, state: dict[str, Any]) -> None:
    trial = copy.deepcopy(scheduler)
    trial.load_state_dict(copy.deepcopy(state))
    arguments = (0.0,) if isinstance(trial, ReduceLROnPlateau) else ()
    trial.step(*arguments)
