"""Answers without task labels: the scores, the choice, and what must stay bit-identical."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    class_incremental_benchmark,
    task_incremental_benchmark,
    tensors_benchmark,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from streams_for_tests import conv_net, inputs_of, mlp
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_compress import (
    WSN,
    PackNet,
    RidgeRule,
    TaskAlreadyLearnedError,
    TaskInference,
    TaskInferenceError,
    TaskLabelError,
    TaskNetwork,
    TinySubNets,
    ValidationPlugin,
    infer,
    load_archive,
    save_archive,
)
from avalanche_compress.metrics import stored_bytes
from benchmarks.stress.examples import build_model, inputs

ARCHIVES = Path(__file__).parent.parent / "archives"
RULES = ["entropy", "energy", "prototype", "gaussian", "triangular", "ridge", "triangular@first"]
OF_SUBNETWORKS = [rule for rule in RULES if rule != "ridge"]
TASKS, PER_TASK = 3, 2


def numbered_data(samples=60, seed=0):
    """Inputs and targets 0..5 of three tasks, far apart: (train, test) of each."""
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for task in range(TASKS):
        means = 1.5 * torch.randn(PER_TASK, 1, 8, 8, generator=generator)
        parts = []
        for count in (samples, samples // 2):
            y = torch.arange(count) % PER_TASK
            x = means[y] + 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
            parts.append((x, y + PER_TASK * task))
        tasks.append(parts)
    return tasks


def old_style(labels=(0, 0, 0)):
    """As ``return_task_id=False`` makes them: global classes, all labelled 0."""
    train, test = zip(*numbered_data())
    return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=list(labels))


def new_style():
    """Without task labels: mini-batches of two elements."""
    parts = []
    for part in zip(*numbered_data()):
        x, y = torch.cat([x for x, _ in part]), torch.cat([y for _, y in part])
        data = TensorDataset(x, y)
        data.targets = y.tolist()
        parts.append(as_classification_dataset(data))
    train, test = parts
    return class_incremental_benchmark(
        {"train": train, "test": test}, num_experiences=TASKS, class_order=list(range(6))
    )


def make(strategy=WSN, model=None, **arguments):
    torch.manual_seed(0)
    model = mlp() if model is None else model
    return strategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        train_mb_size=10,
        eval_mb_size=15,
        **{"train_epochs": 4, "evaluator": None, **arguments},
    )


def learned(stream, rule, **arguments):
    strategy = make(task_inference=rule, **arguments)
    for experience in stream.train_stream:
        strategy.train(experience)
    return strategy


# ------------------------------------------------------------------ networks


@pytest.mark.parametrize("rule", [*OF_SUBNETWORKS, "entropy_batch"])
@pytest.mark.parametrize("strategy", [WSN, PackNet, TinySubNets])
def test_separable_tasks_are_told_apart_and_answer_as_with_their_label(rule, strategy):
    stream = old_style()
    arguments = {}
    if strategy is TinySubNets:  # six held-out samples cannot judge more rounds of pruning
        arguments = {"plugins": [ValidationPlugin(0.1)], "prune_rounds": 3}
    trained = learned(stream, rule, strategy=strategy, **arguments)
    network, right = trained.network.eval(), 0
    for task, experience in enumerate(stream.test_stream):
        x = inputs_of(experience)
        logits, tasks = infer(network, x, rule)
        hit = tasks == task
        right += int(hit.sum())
        oracle = network(x, task)[hit]
        columns = list(network.classes_of(task))
        assert torch.equal(logits[hit][:, columns], oracle[:, columns])
        others = [c for c in range(logits.shape[1]) if c not in columns]
        assert bool((logits[hit][:, others] == -1000).all())
    assert right / 90 > 0.6


@pytest.mark.parametrize("rule", RULES)
def test_stacked_sub_networks_choose_as_the_loop_does(rule):
    network = learned(old_style(), rule, model=conv_net()).network
    for x in map(inputs_of, old_style().test_stream):
        loop, stacked = (
            TaskInference(rule)(network, x),
            TaskInference(rule, stacked=True)(network, x),
        )
        assert torch.equal(loop.tasks, stacked.tasks)
        torch.testing.assert_close(loop.logits, stacked.logits, rtol=1e-4, atol=1e-4)


def test_the_default_is_the_rule_that_the_readme_names():
    stream = old_style()
    trained = learned(stream, "triangular@first")
    for x in map(inputs_of, stream.test_stream):
        default, named = infer(trained.network, x), infer(trained.network, x, "triangular@first")
        assert torch.equal(default.logits, named.logits)
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert f'Take `task_inference="{TaskInference()}"`' in text


def test_a_model_that_shares_nothing_has_no_first_layer():
    network = TaskNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(TaskInferenceError, match=r"no 'first' module.*'head'"):
        TaskInference().candidates(network)


def test_little_memory_changes_nothing():
    stream = old_style()
    network = learned(stream, "entropy").network.eval()
    x = inputs_of(stream.test_stream[1])
    roomy, tight = (TaskInference("entropy", memory=m)(network, x) for m in (2**30, 0))
    assert torch.equal(roomy.logits, tight.logits)
    network.activate(2)
    assert torch.equal(network(x, 0), network(x, 0))


def test_training_goes_on_after_an_inference_and_leaves_old_tasks_alone():
    stream = old_style()
    strategy = make(task_inference="entropy")
    strategy.train(stream.train_stream[0])
    x = inputs_of(stream.test_stream[0])
    before = strategy.network.eval()(x, 0)
    strategy.eval(stream.test_stream[:1])
    strategy.train(stream.train_stream[1])
    assert torch.equal(strategy.network.eval()(x, 0), before)
    assert strategy.network.tasks == [0, 1]


def test_an_archive_carries_prototypes_and_counts_their_bytes(tmp_path):
    stream = old_style()
    with_them = learned(stream, "prototype").network.eval()
    without = learned(stream, "entropy").network.eval()
    width, numbers = 24, TASKS * (PER_TASK + 1) * 24
    assert with_them.head.in_features == width
    extra = stored_bytes(with_them) - stored_bytes(without)
    assert 4 * numbers <= extra <= 4 * numbers + 200
    save_archive(with_them, tmp_path / "archive")
    loaded = load_archive(tmp_path / "archive", mlp)
    for x in map(inputs_of, stream.test_stream):
        ours, theirs = infer(with_them, x, "prototype"), infer(loaded, x, "prototype")
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(ours.tasks, theirs.tasks)


def test_an_archive_of_version_1_chooses_as_it_did():
    """By the first release: 0, 1 or 2 for 40 samples."""
    build = partial(build_model, "wsn_prototype")
    network = load_archive(ARCHIVES / "wsn_prototype.v1", build)
    x = torch.randn(40, *inputs().shape[1:], generator=torch.Generator().manual_seed(5))
    found = infer(network, x, "prototype").tasks.tolist()
    assert "".join(map(str, found)) == "1101121120022112002111021212012102210010"


def test_similarity_and_prototypes_are_kept_side_by_side():
    strategy = learned(
        old_style(),
        "prototype",
        strategy=TinySubNets,
        plugins=[ValidationPlugin(0.1)],
        sharing="similar",
    )
    for task in strategy.network.tasks:
        assert set(strategy.network.statistics[task]) == {
            "similarity",
            "prototype_means",
            "prototype_variance",
        }


# ------------------------------------------------------------------ streams and metrics


@pytest.mark.parametrize("stream", [old_style, new_style])
@pytest.mark.parametrize("rule", RULES)
def test_streams_without_task_labels_are_learned(stream, rule):
    benchmark = stream()
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loggers=[])
    strategy = learned(
        benchmark,
        rule,
        evaluator=evaluator,
        eval_every=1,
        plugins=[ValidationPlugin(0.1, keep_best=True)],
    )
    assert strategy.network.classes == {0: (0, 1), 1: (2, 3), 2: (4, 5)}
    metrics = {n: v for n, v in strategy.eval(benchmark.test_stream).items() if "test_stream" in n}
    found = {name: value for name, value in metrics.items() if name.startswith("TaskId_Acc")}
    assert sum("TaskId_Acc_Exp" in name for name in found) == TASKS
    assert sum("TaskId_Acc_Stream" in name for name in found) == 1
    assert all(type(value) is float and 0 <= value <= 1 for value in found.values())
    task_id = next(value for name, value in found.items() if "Stream" in name)
    accuracy = next(value for name, value in metrics.items() if "Top1_Acc_Stream" in name)
    assert 1.5 / (TASKS * PER_TASK) < accuracy <= task_id + 1e-6


def test_refused_samples_are_reported_of_learned_tasks_and_of_others():
    benchmark = old_style()
    inference = TaskInference("triangular@first", unknown=0.05)
    strategy = make(task_inference=inference, plugins=[ValidationPlugin(0.3)])
    strategy.train(benchmark.train_stream[0])
    results = strategy.eval(benchmark.test_stream)
    refused = [
        next(value for name, value in results.items() if "Refused_Exp" in name and part in name)
        for part in ("Exp000", "Exp001", "Exp002")
    ]
    assert refused[0] < 0.4
    assert min(refused[1:]) > 0.6
    assert not any("Refused" in name for name in make().eval(old_style((0, 1, 2)).test_stream))


def test_labels_play_no_role_where_tasks_are_inferred():
    strategy = learned(old_style(labels=(7, 5, 6)), "entropy", train_epochs=1)
    assert strategy.network.tasks == [0, 1, 2]


def test_without_inference_such_streams_are_refused_with_advice():
    strategy = make(train_epochs=1)
    strategy.train(old_style().train_stream[0])
    with pytest.raises(TaskAlreadyLearnedError, match="task_inference="):
        strategy.train(old_style().train_stream[1])
    with pytest.raises(TaskLabelError, match="task_inference="):
        make().train(new_style().train_stream[0])


def test_nothing_is_reported_before_there_is_a_choice_or_with_labels():
    stream = old_style(labels=(0, 1, 2))
    strategy = make(task_inference="prototype")
    assert not any("TaskId" in name for name in strategy.eval(stream.test_stream))
    evaluator = strategy.evaluator
    labelled = make(evaluator=evaluator, train_epochs=1)
    labelled.train(stream.train_stream[0])
    assert not any("TaskId" in name for name in labelled.eval(stream.test_stream))


# ------------------------------------------------------------------ errors


def two_layers():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(TaskInferenceError, match="did you mean 'entropy'"):
        make(task_inference="entrpy")


def test_replay_is_refused_before_anything_has_changed():
    model = mlp()
    with pytest.raises(TaskInferenceError, match="ReplayPlugin replays samples of earlier tasks"):
        make(model=model, task_inference="entropy", plugins=[ReplayPlugin()])
    strategy = make(model=model, task_inference="entropy", train_epochs=1)  # still a plain model
    strategy.plugins.insert(0, ReplayPlugin())
    with pytest.raises(TaskInferenceError, match="ReplayPlugin replays samples of earlier tasks"):
        strategy.train(old_style().train_stream[0])
    assert strategy.network.tasks == []
    assert strategy.network.open_task is None
    make(plugins=[ReplayPlugin()])


@pytest.mark.parametrize("rule", RULES)
def test_nothing_can_be_inferred_before_a_task_is_learned(rule):
    with pytest.raises(TaskInferenceError, match="no task is learned yet"):
        infer(TaskNetwork(two_layers()), torch.zeros(2, 4), rule)


def test_prototypes_that_were_not_kept_are_missed_by_name(tmp_path):
    network = TaskNetwork(two_layers())
    network.open(4, [0, 1])
    network.commit()
    save_archive(network, tmp_path / "archive")
    loaded = load_archive(tmp_path / "archive", two_layers)
    with pytest.raises(TaskInferenceError, match=r"the tasks \[4\] have none"):
        infer(loaded, torch.zeros(2, 4), "prototype")
    with pytest.raises(TaskInferenceError, match="feature statistics"):
        PackNet(
            model=loaded,
            optimizer=torch.optim.SGD(loaded.parameters(), lr=0.1),
            task_inference="prototype",
            evaluator=None,
        )


def test_the_entropy_of_one_class_is_refused():
    network = TaskNetwork(two_layers())
    network.open(0, [3])
    network.commit()
    with pytest.raises(TaskInferenceError, match="one class"):
        infer(network, torch.zeros(2, 4), "entropy")
    assert infer(network, torch.zeros(2, 4), "energy").tasks.tolist() == [0, 0]


def of_any_size():
    layers = [nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "rule", ["ridge", "gaussian", "triangular", "prototype", RidgeRule(random_features=50)]
)
def test_inputs_of_another_size_are_refused_before_training_and_before_they_are_summed(rule):
    sizes = [8, 10]
    tensors = [(torch.randn(6, 1, size, size), torch.arange(6) % 2) for size in sizes]
    stream = tensors_benchmark(tensors, tensors, task_labels=[0, 1])
    strategy = make(model=of_any_size(), task_inference=TaskInference(rule, features="first"))
    first, second = stream.train_stream
    strategy.train(first)
    before = [parameter.clone() for parameter in strategy.model.parameters()]
    with pytest.raises(TaskInferenceError, match=r"128 features .* have 72: give all tasks"):
        strategy.train(second)
    network = strategy.network
    assert network.open_task is None
    assert all(map(torch.equal, before, strategy.model.parameters()))

    network.open(1, [0, 1])
    network.commit()
    with pytest.raises(TaskInferenceError, match=r"128 features .* have 72: give all tasks"):
        strategy.task_inference.collect(network, 1, [tensors[1]])
    at_head = make(model=of_any_size(), task_inference="triangular")
    at_head.train([first, second])
    assert at_head.network.tasks == [0, 1]


@pytest.mark.parametrize("targets", [torch.eye(2)[torch.arange(6) % 2], (torch.arange(6) % 2,)])
def test_targets_that_are_no_class_numbers_are_named(targets):
    network = TaskNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    network.open(0, [0, 1])
    network.commit()
    with pytest.raises(TaskInferenceError, match="no class numbers"):
        TaskInference("prototype").collect(network, 0, [(torch.randn(6, 1, 8, 8), targets)])

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.ones(1, 8, 8), torch.utils._pytree.tree_map(lambda y: y[index], targets)

    data = Samples()
    data.targets = [0, 1] * 3
    benchmark = benchmark_from_datasets(train=[as_classification_dataset(data)])
    (experience,) = task_incremental_benchmark(benchmark).train_stream
    strategy = make(task_inference="prototype", criterion=lambda *_: 1 / 0)
    with pytest.raises(TaskInferenceError, match="no class numbers"):  # before any step
        strategy.train(experience)
    assert strategy.network.open_task is None


@pytest.mark.parametrize("name", ["prototype_means", "prototype_variance"])
def test_statistics_of_another_size_are_named(name):
    """As a file may hold them that somebody has changed."""
    network = TaskNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    network.open(4, [0, 1])
    network.commit()
    inference = TaskInference("prototype")
    x = torch.randn(6, 1, 8, 8)
    inference.collect(network, 4, [(x, torch.arange(6) % 2)])
    assert inference(network, x).tasks.tolist() == [4] * 6
    network.statistics[4][name] = torch.ones(7)
    with pytest.raises(TaskInferenceError, match="64 features"):
        inference(network, x)
    del network.statistics[4][name]
    with pytest.raises(TaskInferenceError, match=r"the tasks \[4\] have none"):
        inference(network, x)
