"""A run that is stopped at any epoch ends as if it never was; what is of no use is named."""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.training import Naive
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    LRSchedulerPlugin,
    ReplayPlugin,
)
from disk_for_tests import largest_file
from hypothesis import given, settings
from hypothesis import strategies as st
from streams_for_tests import Stop, conv_net, make_stream, mlp
from torch import nn

from avalanche_compress import (
    CACL,
    HALRP,
    WSN,
    AdaQPackNet,
    DensityRange,
    LoRA,
    PackNet,
    QuantizationPlugin,
    TaskInference,
    TinySubNets,
    TrainingStateError,
    TrainingStatePlugin,
    ValidationPlugin,
    compression_metrics,
    load_training_state,
    registered_methods,
    save_training_state,
)
from avalanche_compress.archive import archive_bytes
from avalanche_compress.training.state.folder import states_in
from avalanche_compress.training.state.strategy_parts import capture
from avalanche_compress.training.state.tree import pack, unpack

EPOCHS = 4
STREAM = make_stream(tasks=2, samples=32)
CUTS = [(task, epochs) for task in range(2) for epochs in range(EPOCHS + 1)]


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)


def two_groups(model):
    """Weights and biases apart, with momentum and rates of their own."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "lr": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-3)


class Draw(SupervisedPlugin):
    """Changes inputs by numbers of Python's and NumPy's generators."""

    state_attributes = ()

    def before_forward(self, strategy, **kwargs):
        strategy.mbatch[0] = strategy.mbatch[0] + 0.01 * random.random() * np.random.rand()


class Average(SupervisedPlugin):
    """Keeps a running mean of the loss, and says so as modules of torch do."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(())

    def after_training_iteration(self, strategy, **kwargs):
        self.mean = 0.9 * self.mean + 0.1 * strategy.loss.detach().sum()

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


def build(
    kind,
    *plugins,
    model=conv_net,
    optimizer=adam,
    seed=0,
    scheduler=None,
    metrics=(),
    extra=(),
    **arguments,
):
    """A strategy with its model and optimiser, all from one seed."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    network = model()
    of_network = optimizer(network)
    extra = [make() for make in extra]
    if scheduler is not None:
        extra.append(scheduler(of_network))
    return kind(
        model=network,
        optimizer=of_network,
        train_mb_size=8,
        eval_mb_size=16,
        train_epochs=EPOCHS,
        plugins=[*extra, *plugins],
        evaluator=EvaluationPlugin(*(make() for make in metrics), loggers=[]),
        **arguments,
    )


def step_lr(optimizer):
    return LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))


def plateau(optimizer):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
    return LRSchedulerPlugin(scheduler, metric="val_loss", reset_lr=False, reset_scheduler=False)


best_epoch = partial(ValidationPlugin, 0.25, keep_best=True)

CASES = {
    # with their small settings, and below with others
    **{
        method.name: partial(build, method.build, extra=[best_epoch, Draw, Average])
        for method in registered_methods()
    },
    "packnet": partial(build, PackNet, post_prune_epochs=2, extra=[best_epoch, Draw, Average]),
    "packnet_two_groups": partial(build, PackNet, optimizer=two_groups, model=mlp),
    "packnet_step_lr_metrics": partial(
        build,
        PackNet,
        post_prune_epochs=1,
        scheduler=step_lr,
        eval_every=1,
        metrics=[
            partial(accuracy_metrics, epoch=True, experience=True, stream=True),
            partial(loss_metrics, epoch_running=True, experience=True),
            partial(forgetting_metrics, experience=True, stream=True),
            compression_metrics,
        ],
    ),
    "wsn_plateau": partial(build, WSN, post_prune_epochs=1, scheduler=plateau, eval_every=1),
    "wsn_prototypes": partial(build, WSN, task_inference=TaskInference("prototype")),
    "tinysubnets": partial(
        build, TinySubNets, density=0.4, sharing="similar", prune_rounds=4, validation_fraction=0.25
    ),
    "ada_qpacknet": partial(
        build,
        AdaQPackNet,
        density=DensityRange(0.2, 0.6),
        validation_fraction=0.25,
        post_prune_epochs=2,
    ),
    "ada_qpacknet_reference": partial(
        build, AdaQPackNet, reference_compat=True, validation_fraction=0.25
    ),
    "cacl": partial(build, CACL, extra=[best_epoch, partial(QuantizationPlugin, 4)]),
    "cacl_orthogonal": partial(
        build, CACL, init="orthogonal", grow="r0", optimizer=two_groups, model=mlp, residual=0.5
    ),
    "halrp": partial(
        build,
        HALRP,
        post_prune_epochs=1,
        growth_bound=0.9,
        extra=[best_epoch, partial(QuantizationPlugin, 6)],
    ),
    "halrp_given": partial(build, HALRP, base="given", conv_mode="auto", optimizer=two_groups),
}


class StateOfEveryEpoch(TrainingStatePlugin):
    """Keeps a folder for each epoch, as a run that is killed there would leave it."""

    def epoch_boundary(self, strategy):
        done = (strategy.clock.train_exp_counter, strategy.clock.train_exp_epochs)
        assert save_training_state(strategy, folder_of(self.folder, done)) == done


def folder_of(folder, cut) -> Path:
    return Path(folder) / "{}-{}".format(*cut)


def finish(strategy, first=0):
    """Train and evaluate on what is left of the stream."""
    for experience in STREAM.train_stream[first:]:
        strategy.train(experience)
        strategy.eval(STREAM.test_stream)
    return strategy


def resume(case, folder, seed=9):
    """A strategy of a new process, from a state."""
    strategy = CASES[case](TrainingStatePlugin(folder), seed=seed)
    return strategy, load_training_state(strategy, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By case: what a run would have left at each epoch that was never stopped, and its outcome."""
    runs = {}

    def run(case):
        if case not in runs:
            folder = tmp_path_factory.mktemp(case)
            strategy = finish(CASES[case](StateOfEveryEpoch(folder)))
            runs[case] = folder, copy.deepcopy(outcome(strategy))
        return runs[case]

    return run


def outcome(strategy):
    """Everything that a run ends with: all tensors and numbers, and the archive's bytes."""
    moments = [list(kept.values()) for kept in strategy.optimizer.state.values()]
    return {"state": capture(strategy), "moments": moments}, archive_bytes(strategy.model)


def check_same(expected, found):
    """Compare two trees, tensors by torch.equal."""
    assert isinstance(expected, dict) or type(expected) is type(found)
    if isinstance(expected, torch.Tensor):
        assert expected.dtype == found.dtype
        assert torch.equal(expected, found)
    elif isinstance(expected, dict):
        assert list(expected) == list(found)
        for name in expected:
            check_same(expected[name], found[name])
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(found)
        for left, right in zip(expected, found):
            check_same(left, right)
    else:
        assert expected == found or expected != expected


def check_same_outcome(expected, found):
    check_same(expected[0], found[0])
    assert expected[1] == found[1]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: "task{}-epoch{}".format(*cut))
@pytest.mark.parametrize("case", CASES)
def test_a_run_stopped_at_any_epoch_ends_bit_identical(case, cut, whole, tmp_path):
    folder, expected = whole(case)
    shutil.copytree(folder_of(folder, cut), tmp_path, dirs_exist_ok=True)
    strategy, position = resume(case, tmp_path)
    assert position == cut
    finish(strategy, position.experience)
    check_same_outcome(expected, outcome(strategy))


def test_a_run_ended_by_an_error_goes_on_from_its_last_epoch(whole, tmp_path):
    _, expected = whole("packnet_two_groups")
    make = CASES["packnet_two_groups"]
    in_second_epoch_of_second_task = 4 * (EPOCHS + 1) + 2
    with pytest.raises(KeyboardInterrupt):
        finish(make(TrainingStatePlugin(tmp_path), Stop(in_second_epoch_of_second_task)))
    strategy = make(TrainingStatePlugin(tmp_path), Stop(-1), seed=5)
    assert load_training_state(strategy, tmp_path) == (1, 1)
    assert archive_bytes(finish(strategy, 1).model) == expected[1]


@pytest.mark.parametrize("case", ["packnet", "tinysubnets", "cacl", "halrp_given"])
def test_a_state_between_two_tasks_can_be_saved_by_hand(case, whole, tmp_path):
    _, expected = whole(case)
    strategy = CASES[case]()
    strategy.train(STREAM.train_stream[0])
    strategy.eval(STREAM.test_stream)
    assert save_training_state(strategy, tmp_path) == (1, 0)
    strategy = CASES[case](seed=4)
    assert load_training_state(strategy, tmp_path) == (1, 0)
    assert strategy.model.tasks == [0]
    check_same_outcome(expected, outcome(finish(strategy, 1)))


def test_the_end_of_a_run_can_be_saved_by_hand(whole, tmp_path):
    strategy = finish(CASES["wsn_prototypes"]())
    assert save_training_state(strategy, tmp_path) == (2, 0)
    strategy = CASES["wsn_prototypes"](seed=4)
    assert load_training_state(strategy, tmp_path) == (2, 0)
    assert archive_bytes(strategy.model) == whole("wsn_prototypes")[1][1]


def test_a_list_of_experiences_goes_on_in_its_middle(tmp_path):
    def train(strategy, first):
        strategy.train(list(STREAM.train_stream[first:]))
        return archive_bytes(strategy.model)

    expected = train(CASES["packnet"](StateOfEveryEpoch(tmp_path)), 0)
    for cut in [(0, 2), (1, 0), (1, 3)]:
        strategy, position = resume("packnet", folder_of(tmp_path, cut))
        assert train(strategy, position.experience) == expected


def test_a_run_that_stops_early_stops_again(tmp_path):
    def early():
        return EarlyStoppingPlugin(1, "train_stream", metric_name="Loss_Stream", mode="max")

    def make(*plugins, seed=0):
        metrics = [partial(loss_metrics, stream=True)]
        return build(WSN, *plugins, seed=seed, extra=[early], metrics=metrics, eval_every=1)

    expected = finish(make(StateOfEveryEpoch(tmp_path)))
    assert 0 < expected.clock.train_exp_epochs < EPOCHS
    expected = copy.deepcopy(outcome(expected))
    for cut in [(0, 1), (1, 0), (1, 1)]:
        strategy = make(seed=3)
        assert load_training_state(strategy, folder_of(tmp_path, cut)) == cut
        check_same_outcome(expected, outcome(finish(strategy, cut[0])))


def test_states_are_saved_after_so_many_epochs_and_the_last(tmp_path):
    class Positions(TrainingStatePlugin):
        def epoch_boundary(self, strategy):
            super().epoch_boundary(strategy)
            _, state = unpack_newest(tmp_path)
            seen.append(tuple(state["position"]))

    seen = []
    strategy = CASES["packnet"](Positions(tmp_path, every_epochs=3))
    strategy.train(STREAM.train_stream[0])
    assert seen == [(0, 0), (0, 0), (0, 0), (0, 3), (0, 4)]
    assert [path.name for path in states_in(tmp_path)] == ["00000002.state", "00000001.state"]


def test_states_are_not_saved_more_often_than_every_so_many_seconds(tmp_path, monkeypatch):
    class Positions(TrainingStatePlugin):
        def epoch_boundary(self, strategy):
            super().epoch_boundary(strategy)
            clock.append(clock[-1] + 2.0)

    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[-1])
    strategy = CASES["packnet"](Positions(tmp_path, every_seconds=4))
    strategy.train(STREAM.train_stream[0])
    read = [unpack(path.read_bytes(), path)["position"] for path in states_in(tmp_path)]
    assert read == [(0, 4), (0, 2)]


def test_a_task_that_is_opened_is_saved_whatever_the_time(tmp_path):
    strategy = CASES["packnet"](TrainingStatePlugin(tmp_path, every_seconds=1e6))
    for experience in STREAM.train_stream[:2]:
        strategy.train(experience)
    read = [unpack(path.read_bytes(), path)["position"] for path in states_in(tmp_path)]
    assert read == [(1, 0), (0, 0)]


# ---------------------------------------------------------------------------- files


def unpack_newest(folder):
    path = states_in(folder)[0]
    return path, unpack(path.read_bytes(), path)


@pytest.fixture(scope="module")
def saved_files(tmp_path_factory):
    """Names and bytes of the last two states of a run that was stopped in its second task."""
    folder = tmp_path_factory.mktemp("saved")

    class Stop(TrainingStatePlugin):
        def epoch_boundary(self, strategy):
            super().epoch_boundary(strategy)
            if unpack_newest(folder)[1]["position"] == (1, 2):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(CASES["packnet"](Stop(folder)))
    return {path.name: path.read_bytes() for path in states_in(folder)}


@pytest.fixture
def saved(saved_files, tmp_path):
    """The folder of these states, to be damaged."""
    for name, data in saved_files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def rewrite(folder, change):
    """Change what the newest state holds, with a checksum that fits."""
    path, state = unpack_newest(folder)
    change(state)
    path.write_bytes(pack(state))


def refused(folder, strategy, match=None):
    """The strategy refuses the state and stays as it was."""
    before = pack(capture(strategy))
    with pytest.raises(TrainingStateError, match=match):
        load_training_state(strategy, folder)
    assert pack(capture(strategy)) == before


def test_without_a_state_a_run_begins(tmp_path):
    before = pack(capture(strategy := CASES["packnet"]()))
    assert load_training_state(strategy, tmp_path / "none") == (0, 0)
    assert pack(capture(strategy)) == before


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "overlong"])
def test_a_torn_file_is_passed_over_for_the_one_before(damage, saved, whole):
    newest = states_in(saved)[0]
    data = newest.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    damaged = {
        "truncated": data[:-100],
        "emptied": b"",
        "flipped": bytes(flipped),
        "overlong": data + b"\0",
    }
    newest.write_bytes(damaged[damage])
    strategy = CASES["packnet"](TrainingStatePlugin(saved), seed=2)
    with pytest.warns(UserWarning, match=newest.name):
        position = load_training_state(strategy, saved)
    assert position == (1, 1)
    check_same_outcome(whole("packnet")[1], outcome(finish(strategy, 1)))


def test_a_damaged_file_never_displaces_a_whole_one(saved):
    newest, whole_one = states_in(saved)
    newest.write_bytes(newest.read_bytes()[:-1])
    strategy = CASES["packnet"]()
    save_training_state(strategy, saved)
    assert states_in(saved)[1] == whole_one


def test_if_all_files_are_damaged_the_error_names_them(saved):
    for path in states_in(saved):
        path.write_bytes(path.read_bytes()[:-1])
    first, second = (path.name for path in states_in(saved))
    refused(saved, CASES["packnet"](), f"{first}.*{second}")


def test_a_full_disk_leaves_the_states_as_they_were(saved, saved_files):
    strategy = CASES["packnet"]()
    with largest_file(1000), pytest.raises(TrainingStateError, match=str(saved)):
        save_training_state(strategy, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == saved_files


def test_other_strategies_models_and_plugins_are_refused(saved):
    best, draw, average = best_epoch, Draw, Average
    make = partial(build, PackNet, post_prune_epochs=2, extra=[best, draw, average])
    refused(saved, build(WSN, extra=[best, draw, average]), "strategy is PackNet.*WSN")
    refused(saved, make(QuantizationPlugin(4)), "list of plugins")
    refused(saved, make(optimizer=two_groups), "optimizer is Adam of 1 groups.*SGD of 2")
    refused(saved, make(metrics=[compression_metrics]), "list of metrics")
    refused(saved, make(model=mlp), "another model: .*backbone")
    refused(saved, make(model=lambda: conv_net().double()), "float32.*float64")
    refused(saved, make(exclude=["0"]), "another model")


def test_another_experience_is_refused(saved):
    strategy = CASES["packnet"]()
    load_training_state(strategy, saved)
    other = make_stream(tasks=2, samples=40).train_stream[1]
    with pytest.raises(TrainingStateError, match=r"task 1, .*24 samples.*task 1, .*30 samples"):
        strategy.train(other)


def test_a_plugin_that_is_added_after_loading_is_refused(saved):
    strategy = CASES["packnet"]()
    load_training_state(strategy, saved)
    strategy.plugins.insert(0, Draw())
    with pytest.raises(TrainingStateError, match="list of plugins"):
        strategy.train(STREAM.train_stream[1])


def test_another_version_is_refused(saved):
    path = states_in(saved)[0]
    data = bytearray(path.read_bytes())
    data[8] = 99
    path.write_bytes(data)
    refused(saved, CASES["packnet"](), "version 99 .*reads version 1")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_does_not_execute(saved, monkeypatch):
    monkeypatch.chdir(saved)
    path = states_in(saved)[0]
    data = path.read_bytes()
    torch.save({"state": Payload()}, path)
    refused(saved, CASES["packnet"](), "no training state")
    path.write_bytes(data[:60] + pickle.dumps(Payload()) + data[60:])
    for other in states_in(saved)[1:]:
        other.unlink()
    refused(saved, CASES["packnet"](), "truncated or overlong")
    assert not (saved / "executed").exists()


def set_in(state, *way_and_value):
    """Replace an entry of a nested state, or delete it if the value is None."""
    *way, last, value = way_and_value
    if way:
        inner = state[way[0]]
        changed = list(inner) if isinstance(inner, tuple) else inner
        set_in(changed, *way[1:], last, value)
        state[way[0]] = type(inner)(changed) if isinstance(inner, tuple) else changed
    elif value is None:
        del state[last]
    else:
        state[last] = value


@pytest.mark.parametrize(
    "change",
    [
        ("position", None),
        ("built", None),
        ("plugins", None),
        ("plugins", 0, "_pruned", None),
        ("plugins", 0, "_pruned", "yes"),
        ("plugins", -1, "train_exp_counter", [1]),
        ("stop", 3),
        ("optimizer", "groups", 0, "lr", None),
        ("optimizer", "groups", 0, "lr", "fast"),
        ("network", "backbone.0.weight", torch.zeros(6, 1, 3, 4)),
        ("network", "backbone.0.weight", torch.zeros(6, 1, 3, 3, dtype=torch.int64)),
        ("network", "stores.0/weight.free", None),
        ("network", "stores.0/weight._extra_state", "finished", "0", torch.ones(9).byte()),
        ("network", "stores.0/weight._extra_state", "open", None),
        ("network", "_extra_state", "head_rows", 1 << 60),
        ("optimizer", "groups", 0, "params", ["backbone.0.nothing"]),
        ("generators", "torch", torch.zeros(3).byte()),
        ("generators", "python", (3, (1, 2), None)),
        ("evaluator", "metrics", 7),
        ("generators", "numpy", 2, 700),
        ("generators", "numpy", 2, -5),
        ("generators", "numpy", 1, torch.zeros(624, dtype=torch.int64)),
        ("generators", "numpy", 1, torch.ones(623, dtype=torch.int64)),
        ("generators", "numpy", 4, math.inf),
        ("generators", "python", 1, 624, 2**40),
        ("generators", "cuda", [torch.zeros(3).byte()]),
        ("plugins", 0, "_random", 1, 624, -1),
        ("plugins", 1, "_best", (0.5, [torch.zeros(3)])),
        ("position", 0, 10**6),
        ("position", 1, -1),
        ("position", 1, EPOCHS + 1),
        ("position", 1, torch.tensor([2])),
        ("plugins", -1, "train_exp_epochs", -(2**31)),
        ("plugins", -1, "train_exp_epochs", 2**40),
        ("plugins", -1, "train_exp_counter", 0),
        ("plugins", -1, "train_iterations", 1.5),
        ("plugins", -1, "nothing", 1),
        ("task", "label", 0),
        ("task", "label", None),
        ("task", "classes", [1, 0]),
        ("task", "classes", []),
        ("task", "samples", "many"),
        ("network", "_extra_state", "max_class_label", -1),
        ("network", "_extra_state", "max_class_label", "5"),
        ("network", "_extra_state", "open_task", "1"),
        ("network", "_extra_state", "open_task", torch.tensor(1.0)),
        ("network", "_extra_state", "static_marks", {"nothing": 1}),
        ("network", "_extra_state", "statistics", {"0": 1}),
        ("network", "_extra_state", "statistics", {"0": {"gaussian.scale": "x"}}),
        ("network", "_extra_state", "statistics", {"7": {}}),
        ("network", "_extra_state", "classes", "0", [2**70]),
        ("network", "stores.0/weight._extra_state", "open", "mask", torch.zeros(3).bool()),
        ("network", "stores.0/weight._extra_state", "open", "density", "all"),
        ("network", "stores.0/weight._extra_state", "open", "density", math.nan),
        ("network", "stores.0/weight._extra_state", "open", "density", 7.0),
        ("optimizer", "groups", 0, "lr", -1.0),
        ("optimizer", "groups", 0, "lr", math.nan),
        ("optimizer", "groups", 0, "betas", (0.9, 1.0)),
        ("optimizer", "groups", 0, "betas", (0.9,)),
        ("optimizer", "groups", 0, "params", ["backbone.0.weight"] * 2),
        ("optimizer", "moments", "backbone.0.weight", "exp_avg", torch.zeros(2)),
        ("optimizer", "moments", "backbone.0.weight", "exp_avg", None),
        ("optimizer", "moments", "backbone.0.weight", "step", torch.tensor(-1.0)),
        ("optimizer", "moments", "backbone.0.weight", "step", torch.tensor(math.nan)),
        ("optimizer", "moments", "backbone.0.nothing", {}),
        ("evaluator", "all_metric_results", {"Loss": 3}),
    ],
    ids=lambda change: "/".join(str(key) for key in change[:-1]),
)
def test_what_does_not_fit_is_refused_though_its_checksum_fits(change, saved):
    newest, older = states_in(saved)
    rewrite(saved, lambda state: set_in(state, *change))
    with pytest.warns(UserWarning, match=newest.name):
        assert load_training_state(CASES["packnet"](), saved) == (1, 1)
    older.unlink()
    refused(saved, CASES["packnet"](), newest.name)


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def make_huge(path):
    """Of 4 TB, which take no room on the disk."""
    os.truncate(path, 1 << 42)


@pytest.mark.parametrize("damage", [make_pipe, make_huge])
def test_neither_a_pipe_is_waited_for_nor_are_endless_bytes_read(damage, saved):
    newest, older = states_in(saved)
    damage(newest)
    with pytest.warns(UserWarning, match=newest.name):
        assert load_training_state(CASES["packnet"](), saved) == (1, 1)
    older.unlink()
    refused(saved, CASES["packnet"](), newest.name)


@pytest.mark.parametrize("tree", [None, [], 3, "state", {}])
def test_a_file_that_holds_no_state_is_no_start(tree, saved):
    newest, older = states_in(saved)
    newest.write_bytes(pack(tree))
    with pytest.warns(UserWarning, match="no training state"):
        assert load_training_state(CASES["packnet"](), saved) == (1, 1)
    older.unlink()
    refused(saved, CASES["packnet"](), "no training state")


CASE_OF_PART = [
    ("packnet_two_groups", ("optimizer", "moments", "backbone.1.weight", "momentum_buffer")),
    ("packnet_step_lr_metrics", ("plugins", 1, "scheduler", "step_size")),
    ("packnet_step_lr_metrics", ("evaluator", "metrics", 1, 1, "_mean_accuracy")),
    ("ada_qpacknet", ("network", "stores.0/weight._extra_state", "open", "source")),
    ("ada_qpacknet", ("network", "stores.0/weight._extra_state", "open", "available")),
    ("cacl", ("network", "stores.0/weight._extra_state", "open", "reusable")),
    ("halrp", ("network", "stores.0/weight._extra_state", "open", "base")),
]


@pytest.mark.parametrize("value", [torch.zeros(1, 2, 3), "text", [-7], 0], ids=repr)
@pytest.mark.parametrize(("case", "way"), CASE_OF_PART, ids=lambda entry: "/".join(map(str, entry)))
def test_parts_of_other_strategies_are_checked_too(case, way, value, whole, tmp_path):
    folder, _ = whole(case)
    _, state = unpack_newest(folder_of(folder, (0, 2)))
    set_in(state, *way, value)
    (tmp_path / "00000000.state").write_bytes(pack(state))
    refused(tmp_path, CASES[case]())


@pytest.mark.parametrize("method", [HALRP, LoRA])
def test_what_a_given_base_came_with_has_the_models_shapes(method, tmp_path):
    make = partial(build, method, base="given")
    strategy = make()
    strategy.train(STREAM.train_stream[0])
    save_training_state(strategy, tmp_path)
    path, state = unpack_newest(tmp_path)
    (given,) = [part["_given"] for part in state["plugins"] if "_given" in part]
    given[0] = torch.zeros(0)
    path.write_bytes(pack(state))
    refused(tmp_path, make(), "_given")


@pytest.mark.parametrize("name", ["residual", "rank"])
def test_no_number_of_an_open_task_is_infinite(name, whole, tmp_path):
    folder, _ = whole("cacl")
    _, state = unpack_newest(folder_of(folder, (0, 2)))
    set_in(state, "network", "stores.0/weight._extra_state", "open", name, math.inf)
    (tmp_path / "00000000.state").write_bytes(pack(state))
    refused(tmp_path, CASES["cacl"](), name)


def test_loading_draws_no_number_and_changes_no_file(saved, saved_files):
    strategy = CASES["packnet"]()
    load_training_state(strategy, saved)
    first = random.random(), np.random.rand(), torch.rand(1)
    load_training_state(CASES["packnet"](seed=5), saved)
    assert (random.random(), np.random.rand(), torch.rand(1)) == first
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == saved_files


# ---------------------------------------------------------------------------- what is refused


def test_a_plugin_of_unknown_state_is_refused_before_training(tmp_path):
    strategy = build(PackNet, ReplayPlugin(mem_size=4), TrainingStatePlugin(tmp_path))
    with pytest.raises(TrainingStateError, match=r"ReplayPlugin.*state_attributes"):
        strategy.train(STREAM.train_stream[0])
    assert not states_in(tmp_path)
    assert strategy.model.open_task is None


def test_what_a_plugin_declares_has_to_be_plain(tmp_path):
    class Odd(SupervisedPlugin):
        state_attributes = ("odd",)
        odd = object()

    with pytest.raises(TrainingStateError, match=r"Odd\.odd"):
        save_training_state(build(PackNet, Odd()), tmp_path)


def test_strategies_of_others_are_refused(tmp_path):
    model = mlp()
    strategy = Naive(
        model=model,
        optimizer=adam(model),
        plugins=[TrainingStatePlugin(tmp_path)],
        evaluator=EvaluationPlugin(loggers=[]),
    )
    for call in (save_training_state, load_training_state):
        with pytest.raises(TrainingStateError, match=r"Naive.*save_checkpoint"):
            call(strategy, tmp_path)
    with pytest.raises(TrainingStateError, match=r"Naive.*save_checkpoint"):
        strategy.train(STREAM.train_stream[0])


def test_no_state_is_saved_within_an_epoch(tmp_path):
    class TooEager(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            save_training_state(strategy, tmp_path)

    with pytest.raises(TrainingStateError, match="not within an epoch"):
        build(PackNet, TooEager()).train(STREAM.train_stream[0])


def test_no_state_is_saved_before_a_loaded_one_goes_on(saved, tmp_path):
    strategy = CASES["packnet"]()
    load_training_state(strategy, saved)
    with pytest.raises(TrainingStateError, match="before a loaded one goes on"):
        save_training_state(strategy, tmp_path)


def test_epochs_between_states_are_positive():
    with pytest.raises(TrainingStateError, match="every_epochs=0"):
        TrainingStatePlugin("state", every_epochs=0)
    with pytest.raises(TrainingStateError, match=r"every_seconds=-1 .* negative"):
        TrainingStatePlugin("state", every_seconds=-1)


# ---------------------------------------------------------------------------- trees

trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.integers(0, 3).map(lambda n: torch.arange(n, dtype=torch.float64)),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(trees)
def test_trees_come_back_as_they_were(tree):
    check_same(tree, unpack(pack(tree), "here"))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_tensors_of_all_types_and_shapes_come_back(dtype):
    for tensor in (torch.ones((), dtype=dtype), torch.ones(0, 3, dtype=dtype)):
        check_same(tensor, unpack(pack(tensor), "here"))
    whole = torch.arange(12).view(3, 4).to(dtype)
    check_same([whole.t(), whole[1:]], unpack(pack([whole.t(), whole[1:]]), "here"))


def test_values_that_are_not_plain_are_named():
    with pytest.raises(TrainingStateError, match="a/1/b is a object"):
        pack({"a": [0, {"b": object()}]})


# ---------------------------------------------------------------------------- processes

SCRIPT = """
    import os, signal, sys, torch
    sys.path[:0] = {paths}
    torch.set_num_threads(1)
    from tests.training import test_state as tests
    from avalanche_compress import TrainingStatePlugin, load_training_state, save_archive
    folder, archive, last_step = sys.argv[1:]
    class Kill(tests.Draw):
        def before_update(self, strategy, **kwargs):
            if strategy.clock.train_iterations == int(last_step):
                os.kill(os.getpid(), signal.SIGKILL)
    strategy = tests.CASES["halrp"](Kill(), TrainingStatePlugin(folder))
    position = load_training_state(strategy, folder)
    print(*position)
    tests.finish(strategy, position.experience)
    save_archive(strategy.model, archive)
"""


def run_process(folder, last_step):
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    script = textwrap.dedent(SCRIPT).format(paths=paths)
    arguments = [folder / "state", folder / "archive", last_step]
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_process_goes_on_to_the_same_archive(tmp_path):
    steps_of_an_epoch = 3
    killed = run_process(tmp_path, last_step=steps_of_an_epoch * (EPOCHS + 2) + 1)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "archive").exists()
    resumed = run_process(tmp_path, last_step=-1)
    assert resumed.returncode == 0
    assert resumed.stdout.split()[:2] == ["1", "2"]
    strategy = finish(CASES["halrp"](Draw()))
    assert (tmp_path / "archive").read_bytes() == archive_bytes(strategy.model)


class Unregistered(nn.Module):
    """Its layer is in a list, where no module finds it."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers, self.flat = [nn.Linear(64, 64)], nn.Flatten()
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.relu(self.body(self.layers[0](self.flat(x)))))


def of_model(model, **arguments):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return WSN(model=model, optimizer=optimizer, evaluator=None, **arguments)


def test_a_model_with_other_values_that_no_state_holds_is_warned_of(tmp_path, recwarn):
    strategy = of_model(Unregistered(0))
    strategy.train(STREAM.train_stream[0])
    save_training_state(strategy, tmp_path / "state")
    recwarn.clear()
    load_training_state(of_model(Unregistered(0)), tmp_path / "state")
    assert not [w for w in recwarn.list if "other values" in str(w.message)]
    with pytest.warns(UserWarning, match="other values in 'layers'"):
        load_training_state(of_model(Unregistered(1)), tmp_path / "state")


def test_a_weight_that_torch_computed_before_the_step_is_no_hindrance(tmp_path):
    """The old weight_norm leaves one that cannot be copied."""

    def strategy():
        layer = nn.utils.weight_norm(nn.Linear(64, 8))
        return of_model(
            nn.Sequential(nn.Flatten(), layer, nn.Linear(8, 8), nn.Linear(8, 2)), exclude=("1",)
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that there is a newer one
        first, second = strategy(), strategy()
    first.train(STREAM.train_stream[0])
    save_training_state(first, tmp_path / "state")
    load_training_state(second, tmp_path / "state")
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        logits = first.network.eval()(x, 0)
        assert torch.equal(second.network.eval()(x, 0), logits)
        assert torch.equal(copy.deepcopy(first.network)(x, 0), logits)
    second.train(STREAM.train_stream[1])
