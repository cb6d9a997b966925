"""What docs/misuse.md says of each mistake is what happens, with every strategy."""

from __future__ import annotations

import copy
import pickle
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, dataset_benchmark, tensors_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import MultiHeadClassifier
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, ReplayPlugin
from streams_for_tests import OURS, conv_net, logits, make_stream, mlp
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from avalanche_compress import (
    CompressError,
    FactorizationPlugin,
    SharingPlugin,
    ValidationPlugin,
    load_archive,
    registered_methods,
    save_archive,
)
from avalanche_compress.codec import CorruptStreamError
from avalanche_compress.methods.cacl.maths import free_rank
from benchmarks.stress import small_training

PAGE = (Path(__file__).parent.parent / "docs" / "misuse.md").read_text()
SAMPLES = 40


# ------------------------------------------------------------------ what the cases have in common


def make(method, model=None, optimizer=None, **arguments):
    """A strategy with its defaults of these tests."""
    model = mlp() if model is None else model
    return OURS[method](
        model=model,
        optimizer=optimizer or torch.optim.Adam(model.parameters(), lr=5e-3),
        train_mb_size=16,
        eval_mb_size=64,
        **{"train_epochs": 3, "evaluator": None, **arguments},
    )


def stream(tasks=2, **arguments):
    return make_stream(tasks, samples=SAMPLES, **arguments)


def experiences(*data, labels=None):
    """One experience for each ``(inputs, targets)``."""
    data = [(x, torch.as_tensor(y)) for x, y in data]
    labels = list(range(len(data))) if labels is None else labels
    return tensors_benchmark(data, data, task_labels=labels).train_stream


def samples(count=SAMPLES, classes=(0, 1), seed=0):
    """Inputs around a mean for each class, and targets."""
    x, positions = small_training.samples(count, len(classes), seed, shape=(1, 8, 8))
    return x, torch.tensor(classes)[positions]


def flat(tree, name=""):
    """The leaves of nested dictionaries and sequences, by path."""
    if isinstance(tree, dict):
        parts = tree.items()
    elif isinstance(tree, (list, tuple)):
        parts = enumerate(tree)
    else:
        return {name: tree.detach().clone() if isinstance(tree, Tensor) else tree}
    return {k: v for key, part in parts for k, v in flat(part, f"{name}/{key}").items()}


def everything(strategy):
    """Every tensor and number of the network, its stores and the optimiser."""
    network, optimizer = strategy.network, strategy.optimizer
    groups = [{**g, "params": [id(p) for p in g["params"]]} for g in optimizer.param_groups]
    return flat(
        {
            "network": dict(network.state_dict()),
            "sections": [dict(s.sections) for s in (network.private, *network.weight_stores)],
            "moments": list(optimizer.state.values()),
            "groups": groups,
        }
    )


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        other = after[name]
        if isinstance(value, Tensor):
            same = value.shape == other.shape
            same = same and torch.allclose(value, other, rtol=0, atol=0, equal_nan=True)
        else:
            same = value == other
        assert same, f"{name} changed"


class Errors:
    """The errors of a case, as the page quotes them.

    :param strategy: nothing of it may change, if given.
    """

    def __init__(self):
        self.raised = []

    def __call__(self, attempt, strategy=None):
        before = None if strategy is None else everything(strategy)
        with pytest.raises(CompressError) as caught:
            attempt()
        self.raised.append(f"{caught.type.__name__}: {caught.value}")
        if strategy is not None:
            assert_same(before, everything(strategy))


def old_logits(strategy, data=None):
    """Logits of task 0."""
    x = samples()[0] if data is None else data
    strategy.network.eval()
    with torch.no_grad():
        return strategy.network(x, 0)


def learn_on(strategy, experience, expected):
    """Train on an experience: finished tasks keep their logits, and the new one joins them."""
    old = old_logits(strategy)
    strategy.train(experience)
    assert strategy.network.tasks == expected
    assert strategy.network.open_task is None
    assert torch.equal(old, old_logits(strategy))
    for parameter in strategy.network.parameters():
        assert bool(parameter.isfinite().all())


class Case(NamedTuple):
    check: object
    methods: list


CASES = {}


def case(name, methods=tuple(OURS)):
    """The section of the page that a function checks, ``check(method, errors)``."""

    def add(check):
        CASES[name] = Case(check, list(methods))
        return check

    return add


# ------------------------------------------------------------------ tasks and classes


@case("wrong-task-labels")
def wrong_task_labels(method, errors):
    strategy = make(method)
    strategy.train(stream().train_stream[0])
    data = TensorDataset(*samples())
    data.targets = data.tensors[1].tolist()
    unlabelled = benchmark_from_datasets(train=[as_classification_dataset(data)])
    errors(lambda: strategy.train(unlabelled.train_stream[0]), strategy)
    errors(lambda: strategy.eval(unlabelled.train_stream))
    data.targets_task_labels = [1] * 20 + [2] * 20
    several = dataset_benchmark([data], [data])
    errors(lambda: strategy.train(several.train_stream[0]), strategy)
    learn_on(strategy, stream().train_stream[1], [0, 1])


@case("a-task-label-that-is-used-twice")
def same_label_twice(method, errors):
    strategy = make(method)
    strategy.train(stream().train_stream[0])
    twice = stream(labels=[0, 0])
    errors(lambda: strategy.train(twice.train_stream[1]), strategy)
    learn_on(strategy, stream().train_stream[1], [0, 1])


@case("classes-that-several-tasks-have")
def overlapping_classes(method, errors):
    class SharedHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.ReLU())
            self.classifier = MultiHeadClassifier(16, 3)

        def forward(self, x, task_labels):
            return self.classifier(self.body(x), task_labels)

    tasks = experiences(samples(classes=(0, 1)), samples(classes=(1, 2), seed=1))
    for model in (mlp(), nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Linear(9, 3))):
        strategy = make(method, model, train_epochs=2)
        strategy.train(tasks[0])
        learn_on(strategy, tasks[1], [0, 1])
        network = strategy.network
        assert [network.classes_of(task) for task in (0, 1)] == [(0, 1), (1, 2)]
        first, second = (network.materialise(task)(samples()[0]) for task in (0, 1))
        assert first.shape[1] == second.shape[1] == 2
        assert not torch.equal(first[:, 1], second[:, 0])  # class 1, by each task's own head


@case("class-numbers-that-are-very-large")
def large_class_number(method, errors):
    strategy = make(method)
    x, y = samples()
    large = tensors_benchmark([(x, y * 69_999 + 1)], [(x, y * 69_999 + 1)], task_labels=[0])
    errors(lambda: strategy.train(large.train_stream[0]), strategy)
    strategy.train(stream().train_stream[0])
    assert strategy.network.tasks == [0]


@case("a-target-that-is-none-of-the-classes")
def foreign_targets(method, errors):
    strategy = make(method)
    strategy.train(stream().train_stream[0])
    x, y = samples()
    data = TensorDataset(x, y + 2)
    data.targets, data.targets_task_labels = y.tolist(), [1] * len(y)
    wrong = dataset_benchmark([data], [data]).train_stream[0]
    steps = Snapshots()
    strategy.plugins.insert(0, steps)
    errors(lambda: strategy.train(wrong))
    assert_same(steps.last, everything(strategy))
    learn_on(strategy, stream().train_stream[1], [0, 1])


@case("a-criterion-that-reads-the-streams-classes")
def streams_criterion(method, errors):
    weights = torch.ones(8)

    def weighted(logits, targets):
        return nn.functional.cross_entropy(logits, targets, weight=weights)

    def one_hot(logits, targets):
        return nn.functional.mse_loss(logits, nn.functional.one_hot(targets, 8).float())

    class Shortens(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.register_buffer("counts", torch.zeros(4))

        def forward(self, logits, targets):
            self.counts = self.counts[:1]
            return super().forward(logits, targets)

    tasks = experiences(samples(classes=(2, 3)), samples(classes=(0, 1), seed=1))
    strategy = make(method, criterion=weighted)
    steps = Snapshots()
    errors(lambda: strategy.train(tasks[0]))
    strategy = make(method, criterion=one_hot, plugins=[steps])
    errors(lambda: strategy.train(tasks[0]))
    assert_same(steps.last, everything(strategy))
    strategy = make(method, criterion=Shortens(), plugins=[steps])
    errors(lambda: strategy.train(tasks[0]))
    assert_same(steps.last, everything(strategy))
    for criterion in (
        nn.CrossEntropyLoss(weights),
        partial(nn.functional.cross_entropy, weight=weights),
    ):
        strategy = make(method, criterion=criterion)
        strategy.train(tasks[0])
        learn_on(strategy, tasks[1], [0, 1])


@case("a-criterion-that-gives-no-loss")
def no_loss(method, errors):
    def cut_off(logits, targets):
        return nn.functional.cross_entropy(logits, targets).detach()

    for criterion in (nn.CrossEntropyLoss(reduction="none"), cut_off):
        steps = Snapshots()
        strategy = make(method, criterion=criterion, plugins=[steps])
        errors(partial(strategy.train, stream().train_stream[0]))
        assert_same(steps.last, everything(strategy))


class Snapshots(SupervisedPlugin):
    """Everything as it was before the last step."""

    def before_training_iteration(self, strategy, **kwargs):
        self.last = everything(strategy)


# ------------------------------------------------------------------ the model


@case("a-model-without-a-head")
def no_head(method, errors):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = flat({"model": model.state_dict(), "groups": optimizer.state_dict()})
    errors(lambda: make(method, model, optimizer))
    errors(lambda: make(method, model, optimizer, head="1"))
    assert_same(before, flat({"model": model.state_dict(), "groups": optimizer.state_dict()}))


class HeadFirst(nn.Module):
    """Its last registered layer does not give the logits."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(16, 2), nn.Linear(64, 16)

    def forward(self, x):
        return self.head(torch.relu(self.body(x.flatten(1))))


@case("a-head-that-is-not-the-last-layer")
def wrong_head(method, errors):
    strategy = make(method, HeadFirst(), head="body")
    errors(lambda: strategy.train(stream().train_stream[0]))
    assert strategy.network.tasks == []
    make(method, HeadFirst(), head="head").train(stream().train_stream[0])


@case("a-head-that-is-frozen")
def frozen_head(method, errors):
    model = mlp()
    model[5].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    strategy = make(method, model, optimizer)
    errors(lambda: strategy.train(stream().train_stream[0]))
    assert not strategy.network.tasks


class Largest(nn.Module):
    """Divides by the largest input that it has seen in evaluation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.ones(()))

    def forward(self, x):
        if not self.training:
            self.largest.copy_(torch.maximum(self.largest, x.abs().max()))
        return x / self.largest


@case("an-evaluation-that-changes-the-model")
def changing_evaluation(method, errors):
    model = nn.Sequential(Largest(), mlp())
    strategy = make(method, model, torch.optim.SGD(model.parameters(), lr=0.1))
    errors(lambda: strategy.train(stream().train_stream[0]))


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = 1.0

    def forward(self, x):
        return x / self.temperature


@case("what-changes-between-epochs")
def annealed(method, errors):
    class Anneal(SupervisedPlugin):
        back = False

        def after_training_epoch(self, strategy, **kwargs):
            first = strategy.clock.train_exp_epochs == 0
            strategy.network.backbone[0].temperature = 2.0 if first or not self.back else 1.0

    tasks, anneal = stream(), Anneal()
    model = nn.Sequential(Tempered(), *mlp())
    strategy = make(method, model, plugins=[anneal])
    with pytest.warns(UserWarning, match=r"depend on '0.temperature'"):
        errors(lambda: strategy.train(tasks.train_stream[0]))
    assert strategy.network.open_task == 0
    model[0].temperature, anneal.back = 1.0, True
    with pytest.warns(UserWarning, match="unless it is as before by then"):
        strategy.train(tasks.train_stream[0])
    assert strategy.network.tasks == [0]


@case("a-model-that-is-trained-by-two-strategies")
def two_strategies(method, errors):
    tasks, model = make_stream(3, samples=SAMPLES), mlp()
    first = make(method, model)
    first.train(tasks.train_stream[0])
    learned = old_logits(first)

    # the notebook's cell is run again: over the network, over the plain model, over some layers
    second = make(method, first.network, first.optimizer)
    errors(lambda: first.train(tasks.train_stream[1]), first)
    learn_on(second, tasks.train_stream[1], [0, 1])
    for again in (model, nn.Sequential(model[:4], nn.Linear(24, 2))):
        third = make(method, again, torch.optim.Adam(again.parameters()))
        errors(lambda: second.train(tasks.train_stream[2]), second)
        third.train(tasks.train_stream[2])
        assert third.network.tasks == [2]
        assert torch.equal(learned, old_logits(first))
        assert torch.equal(learned, old_logits(second))

    # a copy is a model of its own, and whoever is given another's network has not built over it
    copied = make(method, copy.deepcopy(first.network))
    learn_on(copied, tasks.train_stream[2], [0, 1, 2])
    other = make(method)
    other.model = copied.network
    errors(lambda: other.train(tasks.train_stream[1]), copied)

    # the newest is deleted
    del third, again
    learn_on(second, tasks.train_stream[2], [0, 1, 2])


@case("groups-of-the-optimiser-and-parameters-left-out")
def groups(method, errors):
    def train(split):
        model = conv_net()
        optimizer = torch.optim.SGD(split(model, list(model.parameters())), lr=0.05)
        strategy = make(method, model, optimizer)
        groups = [len(group["params"]) for group in optimizer.param_groups]
        assert sum(groups) >= len(list(model.parameters()))
        strategy.train(stream().train_stream[0])
        learn_on(strategy, stream().train_stream[1], [0, 1])
        for group in optimizer.param_groups:
            assert len({id(p) for p in group["params"]}) == len(group["params"])
        in_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in model.parameters()} <= in_optimizer

    matrices = [i for i, p in enumerate(conv_net().parameters()) if p.dim() > 1]
    train(lambda _, ps: ps[2:])  # the only group takes what was left out
    train(
        lambda _, ps: [
            {"params": [ps[i] for i in matrices], "weight_decay": 0.1},
            {"params": [p for i, p in enumerate(ps) if i not in matrices], "lr": 0.01},
        ]
    )
    model = conv_net()
    split = [{"params": model[0].parameters()}, {"params": model[9].parameters()}]
    optimizer = torch.optim.SGD(split, lr=0.1)
    before = flat(optimizer.state_dict())
    errors(lambda: make(method, model, optimizer))
    assert_same(before, flat(optimizer.state_dict()))
    for layer in (model[1], model[4], model[5]):
        layer.requires_grad_(False)
    make(method, model, optimizer).train(stream().train_stream[0])


# ------------------------------------------------------------------ the data


@case("an-experience-without-samples")
def empty_experience(method, errors):
    strategy = make(method)
    strategy.train(stream().train_stream[0])
    nothing = torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)
    empty = experiences(samples(), nothing)
    errors(lambda: strategy.train(empty[1]), strategy)
    before = everything(strategy)
    strategy.eval(empty)
    assert_same(before, everything(strategy))
    learn_on(strategy, stream().train_stream[1], [0, 1])


@case("a-mini-batch-of-one-with-batchnorm")
def batch_of_one(method, errors):
    def net():
        body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
        return nn.Sequential(body, nn.Linear(72, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    steps = Snapshots()
    strategy = make(method, net(), plugins=[ValidationPlugin(4 / 37), steps])
    first, second = (samples(37, seed=seed) for seed in (0, 1))  # 4 are held out, 33 = 2 * 16 + 1
    tasks = experiences(first, second)
    strategy.train(tasks[0], drop_last=True)
    errors(lambda: strategy.train(tasks[1]))
    assert_same(steps.last, everything(strategy))
    old = old_logits(strategy)
    strategy.train(tasks[1], drop_last=True)
    assert strategy.network.tasks == [0, 1]
    assert torch.equal(old, old_logits(strategy))


@case("fewer-samples-than-a-mini-batch")
def few_samples(method, errors):
    for tensor_data in (True, False):
        strategy = make(method, plugins=[ValidationPlugin(1 / 6)], tensor_data=tensor_data)
        errors(partial(strategy.train, experiences(samples(6))[0], drop_last=True))
        strategy.train(experiences(samples(6))[0])
        assert strategy.network.tasks == [0]


@case("nan-or-infinity-in-the-inputs")
def spoiled_inputs(method, errors):
    steps = Snapshots()
    strategy = make(method, conv_net(), plugins=[steps])
    strategy.train(stream().train_stream[0])
    for value in (float("nan"), float("inf")):
        x, y = samples(seed=1)
        x[::3, 0, 0, 0] = value
        errors(lambda x=x, y=y: strategy.train(experiences(samples(), (x, y))[1]))
        assert_same(steps.last, everything(strategy))
    learn_on(strategy, stream().train_stream[1], [0, 1])


@case("samples-whose-similarity-cannot-be-told", ["tinysubnets"])
def similarity(method, errors):
    strategy = make(method, sharing="similar")
    strategy.train(stream().train_stream[0])
    x, y = samples(seed=1)
    x[:] = float("nan")
    errors(lambda: strategy.train(experiences(samples(), (x, y))[1]), strategy)
    (statistics,) = strategy.network.statistics.values()
    kept = statistics.pop("similarity")
    for hostile in (
        None,
        torch.full_like(kept, float("nan")),
        torch.full_like(kept, float("inf")),
        -kept.abs(),
        kept[:-1],
        torch.zeros(0),
    ):
        if hostile is not None:
            statistics["similarity"] = hostile
        errors(lambda: strategy.train(stream().train_stream[1]), strategy)
    statistics["similarity"] = kept
    sharing = next(p for p in strategy.plugins if isinstance(p, SharingPlugin))
    few = SimpleNamespace(model=strategy.network, adapted_dataset=[samples(1)])
    errors(lambda: sharing.after_train_dataset_adaptation(few), strategy)
    learn_on(strategy, stream().train_stream[1], [0, 1])


@case("replayed-samples-without-task-labels")
def replay(method, errors):
    model = mlp()
    before = flat(model.state_dict())
    errors(lambda: make(method, model, task_inference="entropy", plugins=[ReplayPlugin()]))
    assert_same(before, flat(model.state_dict()))
    strategy = make(method, model, task_inference="entropy")
    strategy.plugins.insert(0, ReplayPlugin())
    errors(lambda: strategy.train(stream().train_stream[0]), strategy)
    del strategy
    strategy = make(method, model, plugins=[ReplayPlugin(mem_size=20)])
    strategy.train(stream().train_stream[0])
    learn_on(strategy, stream().train_stream[1], [0, 1])


# ------------------------------------------------------------------ numbers that are not finite


@case("a-loss-that-is-not-finite")
def spoiled_loss(method, errors):
    factor = [1.0]
    steps = Snapshots()
    strategy = make(
        method,
        conv_net(),
        criterion=lambda out, y: factor[0] * nn.functional.cross_entropy(out, y),
        plugins=[steps],
    )
    strategy.train(stream().train_stream[0])
    for value in (float("nan"), float("inf")):
        factor[0] = value
        errors(lambda: strategy.train(stream().train_stream[1]))
        assert_same(steps.last, everything(strategy))
    factor[0] = 1.0
    learn_on(strategy, stream().train_stream[1], [0, 1])


class Spoil(SupervisedPlugin):
    """Makes a weight NaN after a step, or after the last."""

    when = None

    def after_update(self, strategy, **kwargs):
        if self.when == "step":
            self._spoil(strategy)

    def after_training_epoch(self, strategy, **kwargs):
        if self.when == "end" and strategy.clock.train_exp_epochs == strategy.train_epochs - 1:
            self._spoil(strategy)

    @torch.no_grad()
    def _spoil(self, strategy):
        for parameter in strategy.network.parameters():
            parameter.view(-1)[:1] = float("nan")


@case("weights-that-are-not-finite")
def spoiled_weights(method, errors):
    model = mlp()
    model[1].weight.data[0, 0] = float("inf")
    errors(lambda: make(method, model))
    spoil = Spoil()
    for finished in (False, True):
        strategy = make(method, conv_net(), plugins=[spoil])
        if finished:
            strategy.train(stream().train_stream[0])
        task = int(finished)
        for spoil.when in ("step", "end"):
            sections = [dict(s.sections) for s in strategy.network.weight_stores]
            errors(partial(strategy.train, stream().train_stream[task]))
            assert sections == [dict(s.sections) for s in strategy.network.weight_stores]
            assert strategy.network.tasks == list(range(task))
        spoil.when = None
        old = old_logits(strategy) if finished else None
        with pytest.warns(UserWarning, match="NaN or infinite values, from a training that"):
            strategy.train(stream().train_stream[task])
        assert strategy.network.tasks == list(range(task + 1))
        assert bool(old_logits(strategy).isfinite().all())
        assert old is None or torch.equal(old, old_logits(strategy))


# ------------------------------------------------------------------ in the middle of a stream


@case("another-device-or-number-type")
def moves(method, errors):
    strategy = make(method)
    strategy.network.double().float()  # before the first task all is free
    strategy.train(stream().train_stream[0])
    errors(lambda: strategy.network.to("meta"), strategy)
    errors(lambda: strategy.network.double(), strategy)
    errors(lambda: strategy.network.to("cpu", torch.bfloat16), strategy)
    strategy.network.to("cpu")
    learn_on(strategy, stream().train_stream[1], [0, 1])


@pytest.mark.gpu
@pytest.mark.parametrize("method", OURS)
def test_a_stream_goes_on_on_another_device(method, device):
    torch.manual_seed(0)
    tasks = make_stream(3, samples=SAMPLES)
    strategy = make(method, conv_net())
    strategy.train(tasks.train_stream[0])
    x = samples()[0]
    old = old_logits(strategy)
    for number, place in ((1, device), (2, "cpu")):
        strategy.device = torch.device(place)
        strategy.train(tasks.train_stream[number])
        assert strategy.network.tasks == list(range(number + 1))
        answer = old_logits(strategy, x.to(place)).cpu()
        assert torch.allclose(answer, old, atol=1e-4)
    assert torch.equal(old_logits(strategy), old)  # the same bits where it was learned


@case("train_epochs-changed-between-tasks")
def other_epochs(method, errors):
    tasks = make_stream(4, samples=SAMPLES).train_stream
    strategy = make(method)
    for number, epochs in enumerate((3, 2, 5)):
        strategy.train_epochs = epochs
        strategy.train(tasks[number])
    strategy.train_epochs = 0
    learn_on(strategy, tasks[3], [0, 1, 2, 3])
    if method == "halrp":  # needs more than its warm-up
        strategy = make(method, warmup_epochs=2, train_epochs=2)
        errors(lambda: strategy.train(tasks[0]), strategy)


class StopAt(EarlyStoppingPlugin):
    """Avalanche's, told that accuracy was best after so many epochs; waits for two more."""

    def __init__(self, best):
        super().__init__(patience=2, val_stream_name="test_stream")
        self.best, self.ended = best, []

    def before_training_epoch(self, strategy, **kwargs):
        epoch = strategy.clock.train_exp_epochs
        results = strategy.evaluator.last_metric_results
        if epoch:
            results[f"{self.metric_key}/Task000"] = 1 - abs(epoch - self.best) / 10
        super().before_training_epoch(strategy, **kwargs)
        if strategy._stop_training:
            self.ended.append(epoch)


PHASES = {  # three epochs, a change of phase, four more
    "packnet": {"post_prune_epochs": 4},
    "wsn": {"post_prune_epochs": 4},
    "tinysubnets": {"prune_rounds": 2},
    "ada_qpacknet": {"post_prune_epochs": 4},
    "cacl": {"rank": 2, "grow": "fixed"},
    "halrp": {"warmup_epochs": 3, "max_rank": 2},
}


@case("early-stopping")
def early_stopping(method, errors):
    tasks = stream()
    for best in (1, 2, 4):  # stops before the change, would span it, stops after it
        stop = StopAt(best)
        strategy = make(method, mlp(), plugins=[stop], train_epochs=7, **PHASES.get(method, {}))
        for experience in tasks.train_stream:
            strategy.train(experience)
        assert len(stop.ended) == 2
        assert strategy.network.tasks == [0, 1]
        for store in strategy.network.weight_stores:
            rank, density = store.rank_of(1), store.density_of(0)
            assert rank is None or method not in PHASES or rank <= 2
            assert density is None or density <= 0.51
            if method in ("tinysubnets", "ada_qpacknet"):
                assert len(store.committed(0).unique()) <= 17


@case("averaged-weights-ema-swa")
def averaged_weights(method, errors):
    """The page's own plugin; an average that stands still is in the model at the end."""
    names = {}
    exec(PAGE.split("```python")[1].split("```")[0].replace("0.99", "1.0"), names)

    class Watched(names["EMA"]):
        def after_training_epoch(self, strategy, **kwargs):
            super().after_training_epoch(strategy, **kwargs)
            last = strategy.clock.train_exp_epochs == strategy.train_epochs - 1
            pairs = zip(self.average.module.parameters(), strategy.network.backbone.parameters())
            assert all(torch.equal(*pair) for pair in pairs) == last

    tasks = stream()
    strategy = make(method, mlp(), plugins=[Watched()], train_epochs=7, **PHASES.get(method, {}))
    before = []
    for experience in tasks.train_stream:
        strategy.train(experience)
        before.append(logits(strategy.network, tasks.test_stream, [0])[0])
    assert torch.equal(*before)


@case("periodic-evaluation")
def periodic_evaluation(method, errors):
    tasks = stream()

    class Seed(SupervisedPlugin):
        """The host's evaluation draws random numbers, of which training then gets others."""

        def before_train_dataset_adaptation(self, strategy, **kwargs):
            torch.manual_seed(4)

    final = []
    for arguments in (
        {},
        {"eval_every": 0},
        {"eval_every": 1},
        {"eval_every": 1, "peval_mode": "iteration"},
        {"eval_every": 2, "peval_mode": "iteration"},
    ):
        torch.manual_seed(3)
        model = conv_net()
        model[7].p = 0.0
        strategy = make(method, model, plugins=[Seed()], **arguments)
        for experience in tasks.train_stream:
            strategy.train(experience, eval_streams=[tasks.test_stream], shuffle=False)
        final.append(logits(strategy.network, tasks.test_stream, range(2)))
    for other in final[1:]:
        assert all(torch.equal(*pair) for pair in zip(final[0], other))


@case("evaluation-on-some-unseen-or-mixed-tasks")
def evaluation(method, errors):
    tasks = make_stream(3, samples=SAMPLES)
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loggers=[])
    strategy = make(method, evaluator=evaluator)
    strategy.eval(tasks.test_stream)  # before there is a task
    strategy.train(tasks.train_stream[1])
    (x, y), count = samples(), SAMPLES
    mixed = TensorDataset(torch.cat([x, x]), torch.cat([y, y]))
    mixed.targets, mixed.targets_task_labels = [*y.tolist()] * 2, [0] * count + [1] * count
    before = everything(strategy)
    for chosen in (
        tasks.test_stream[1],
        [tasks.test_stream[2], tasks.test_stream[0]],
        tasks.test_stream,
        dataset_benchmark([mixed], [mixed]).test_stream,
    ):
        results = strategy.eval(chosen)
        assert all(0 <= value <= 1 for value in results.values())
        # only the width of the logits grows with the classes seen
        assert_same(before, {**everything(strategy), **_widths(before)})
    network = strategy.network.eval()
    labels = torch.tensor([1] * count + [7] * count)  # no task has the label 7: the newest answers
    answer = network(torch.cat([x, x]), labels)
    assert torch.equal(answer[:count], answer[count:])
    strategy.train(tasks.train_stream[0])
    assert torch.equal(strategy.network.eval()(x, 1), answer[:count])


def _widths(state):
    return {name: value for name, value in state.items() if name.endswith("max_class_label")}


@case("copies-and-pickles")
def copies(method, errors):
    folder = Path(errors.folder)
    tasks = make_stream(3, samples=SAMPLES)

    def learn_the_same(strategies, number):
        final = []
        for strategy in strategies:
            torch.manual_seed(9)
            strategy.train(tasks.train_stream[number])
            final.append(logits(strategy.network, tasks.test_stream, range(number + 1)))
        for other in final[1:]:
            assert all(torch.equal(*pair) for pair in zip(final[0], other))

    strategy = make(method, train_epochs=2)
    for number in range(2):  # before training, and between tasks
        twins = copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy))
        learn_the_same([strategy, *twins], number)
    save_archive(strategy.network, folder / "archive")
    loaded = load_archive(folder / "archive", mlp)
    twins = copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))
    learn_the_same([make(method, network, train_epochs=2) for network in (loaded, *twins)], 2)


@case("a-damaged-state-dict")
def damaged_state(method, errors):
    tasks = stream()
    strategy, other = make(method, train_epochs=2), make(method, train_epochs=2)
    strategy.train(tasks.train_stream[0])
    for experience in tasks.train_stream:
        other.train(experience)
    good = other.network.state_dict()
    names = [name for name in good if name.endswith("_extra_state") and name.startswith("stores")]
    last = copy.deepcopy(good[names[-1]])
    finished = last.get("finished", last)
    cut = {**finished, "1": finished["1"][:-1]}
    lacking = {"0": finished["0"]}
    for tampered in (cut, lacking):
        changed = {**last, "finished": tampered} if "finished" in last else tampered
        bad = {**good, names[-1]: changed}
        before = everything(strategy)
        with pytest.raises(CorruptStreamError) as caught:
            strategy.network.load_state_dict(bad)
        assert_same(before, everything(strategy))
        errors.raised.append(f"CorruptStreamError: {caught.value}")
    missing = {name: value for name, value in good.items() if name != names[-1]}
    before = everything(strategy)
    with pytest.raises(RuntimeError, match="Missing key"):
        strategy.network.load_state_dict(missing)
    assert_same(before, everything(strategy))
    strategy.network.load_state_dict(good)
    assert strategy.network.tasks == [0, 1]


# ------------------------------------------------------------------ the page


def sections(page):
    """Text below each third-level heading, by the heading's anchor."""
    parts = re.split(r"^### (.+)$", page, flags=re.MULTILINE)[1:]
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-"): text
        for title, text in zip(parts[::2], parts[1::2])
    }


def quotes(text, method):
    """The beginnings of messages that a section quotes for a strategy."""
    lines = re.findall(r"^    (?:\((\w+)\) )?(\w+Error: .+)$", text, flags=re.MULTILINE)
    return {quote for only, quote in lines if only in ("", method)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name, it in CASES.items() for method in it.methods]
)
def test_the_page_says_what_happens(name, method, tmp_path):
    torch.manual_seed(0)
    errors = Errors()
    errors.folder = tmp_path
    CASES[name].check(method, errors)
    quoted = quotes(sections(PAGE)[name], method)
    for message in errors.raised:
        assert any(message.startswith(quote) for quote in quoted), message
    for quote in quoted:
        assert any(message.startswith(quote) for message in errors.raised), quote


def test_the_page_names_every_method():
    titles = ", ".join(method.strategy.__name__ for method in registered_methods())
    assert f"every registered method: {titles}." in " ".join(PAGE.split())


def test_every_section_has_a_case_and_every_case_a_section():
    assert list(sections(PAGE)) == list(CASES)


# ------------------------------------------------------------------ numbers that make no sense


@pytest.mark.parametrize("policy", ["avg", "r0", "mean_task", "fixed", "none"])
@pytest.mark.parametrize("kept", [[], [0], [10**12], [3, 10**18], [4, 0, 9]])
def test_a_task_never_trains_less_than_no_terms_nor_more_than_there_were(policy, kept):
    for grow_from in (0, 1, 99):
        assert 0 <= free_rank(kept, 4, policy, fixed=4, grow_from=grow_from) <= 4


@pytest.mark.parametrize("name", ["rank", "grow_from", "energy", "residual", "lambda_sparse"])
def test_terms_are_not_counted_in_nan(name):
    with pytest.raises(CompressError, match=name):
        FactorizationPlugin(**{name: float("nan")})


def test_an_epoch_whose_loss_is_nan_is_never_the_best():
    plugin = ValidationPlugin(0.2, keep_best=True)
    losses = iter([float("nan"), 2.0, float("nan"), 1.0, float("nan")])
    plugin.loss = lambda strategy: next(losses)
    strategy = make("packnet")
    strategy.network.open(0, [0, 1])
    best = []
    for _ in range(5):
        plugin.after_training_epoch(strategy)
        best.append(None if plugin._best is None else plugin._best[0])
    assert best == [None, 2.0, 2.0, 1.0, 1.0]
