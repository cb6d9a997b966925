"""HALRP as an Avalanche strategy."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from streams_for_tests import check_old_logits_stay, conv_net, inputs_of, logits, make_stream, mlp

from avalanche_compress import (
    HALRP,
    PerturbedStore,
    QuantizationPlugin,
    TaskAlreadyLearnedError,
    TaskNetwork,
    TaskStateError,
    ValidationPlugin,
    growth,
    layer_ranks,
    load_archive,
    load_checkpoint,
    save_archive,
    save_checkpoint,
)
from benchmarks.runs.backbones import resnet18

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": partial(torch.optim.Adam, lr=5e-3),
    "adamw": partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.1),
}
VARIANTS = {
    "plain": {},
    "given": {"base": "given"},
    "bounded": {"growth_bound": 1.0, "tasks": 3, "post_prune_epochs": 1},
    "8 bits": {"bits": 8, "conv_mode": "auto"},
    "reference": {"reference_compat": True, "growth_bound": 0.3},
}


def build(model=None, optimizer="adam", epochs=3, bits=None, plugins=(), **arguments):
    model = mlp() if model is None else model
    quantisation = [] if bits is None else [QuantizationPlugin(bits)]
    return HALRP(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=64,
        plugins=[*plugins, *quantisation],
        **{"evaluator": None, **arguments},
    )


def accuracies(strategy, stream, tasks):
    outputs = logits(strategy.model, stream.test_stream, range(tasks))
    targets = [
        torch.tensor([int(y) for _, y, *_ in experience.dataset])
        for experience in stream.test_stream[:tasks]
    ]
    return [float((out.argmax(1) == y).float().mean()) for out, y in zip(outputs, targets)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model", [mlp, conv_net])
def test_old_logits_stay_bit_identical(variant, optimizer, model, tmp_path):
    torch.manual_seed(0)
    stream = make_stream(tasks=3)
    make = partial(build, optimizer=optimizer, **VARIANTS[variant])
    check_old_logits_stay(lambda: make(model()), stream, model, tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_task_is_learned(variant):
    torch.manual_seed(0)
    stream = make_stream(tasks=3)
    strategy = build(epochs=8, **VARIANTS[variant])
    for experience in stream.train_stream:
        strategy.train(experience)
    assert min(accuracies(strategy, stream, 3)) > 0.85


def test_a_residual_network_forgets_nothing(tmp_path):
    torch.manual_seed(0)
    shape = (3, 16, 16)
    model = partial(resnet18, shape, 2)
    stream = make_stream(tasks=3, samples=24, shape=shape)
    check_old_logits_stay(lambda: build(model(), epochs=2), stream, model, tmp_path)


def test_the_base_is_bit_identical_after_every_task():
    stream, strategy = make_stream(3), build(conv_net(), "adamw")
    strategy.train(stream.train_stream[0])
    stores = strategy.network.weight_stores
    base = [store.base.clone() for store in stores]
    for experience in stream.train_stream[1:]:
        strategy.train(experience)
        assert all(torch.equal(store.base, before) for store, before in zip(stores, base))
        assert all(store.base.grad is None for store in stores)
    for name in ("0.weight", "4.weight"):
        assert torch.equal(strategy.network.weight_of(name, 0), base[name == "4.weight"])


def test_a_plain_script_changes_in_one_line_and_reports_metrics():
    stream = make_stream()
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True), forgetting_metrics(experience=True)
    )
    strategy = build(evaluator=evaluator)
    for experience in stream.train_stream:
        strategy.train(experience)
        results = strategy.eval(stream.test_stream)
    forgetting = [v for k, v in results.items() if k.startswith("ExperienceForgetting")]
    assert forgetting == [0.0, 0.0]


def test_a_finished_task_runs_as_a_plain_model():
    stream, strategy = make_stream(2), build(conv_net())
    for experience in stream.train_stream:
        strategy.train(experience)
    x = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    for task in range(2):
        plain = strategy.network.materialise(task)
        assert torch.equal(plain(x), strategy.network.eval()(x, task))
    assert not any("avalanche_compress" in type(m).__module__ for m in plain.modules())


def test_ranks_are_remembered_task_by_task():
    strategy = build(max_rank=5)
    for experience in make_stream(3).train_stream:
        strategy.train(experience)
    ranks = layer_ranks(strategy.network)
    assert list(ranks) == ["1.weight", "3.weight"]
    for of_tasks in ranks.values():
        assert of_tasks[0] == 0
        assert all(1 <= rank <= 5 for rank in of_tasks[1:])


def test_few_bits_make_a_small_file():
    sizes = []
    for bits in (None, 4):
        torch.manual_seed(0)
        strategy = build(bits=bits, max_rank=4)
        for experience in make_stream(3).train_stream:
            strategy.train(experience)
        sections = [store.sections for store in strategy.network.weight_stores]
        sizes.append(sum(len(section[2]) for section in sections))
    assert sizes[1] < 0.4 * sizes[0]


def numbered_stream(tasks=3, samples=120):
    """Classes 0..5, without task labels."""
    stream, parts = make_stream(tasks, samples), ([], [])
    for part, collected in zip((stream.train_stream, stream.test_stream), parts):
        for task, experience in enumerate(part):
            y = torch.tensor([int(y) for _, y, *_ in experience.dataset])
            collected.append((inputs_of(experience), y + 2 * task))
    return tensors_benchmark(train_tensors=parts[0], test_tensors=parts[1], task_labels=[0] * tasks)


@pytest.mark.parametrize("rule", ["entropy", "prototype"])
def test_tasks_are_inferred_without_labels(rule, tmp_path):
    torch.manual_seed(0)
    stream, known = numbered_stream(), []
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True))
    strategy = build(epochs=6, task_inference=rule, evaluator=evaluator)

    def own_logits(network):
        network.eval()
        inputs = [inputs_of(experience) for experience in stream.test_stream]
        return [network.own_logits(inputs[task], task).detach() for task in network.tasks]

    for experience in stream.train_stream:
        strategy.train(experience)
        now = own_logits(strategy.network)
        assert all(torch.equal(a, b) for a, b in zip(known, now))
        known = now
    results = strategy.eval(stream.test_stream)
    assert all(v > 0.5 for k, v in results.items() if k.startswith("Top1_Acc_Exp"))
    save_archive(strategy.network, tmp_path / "archive")
    again = own_logits(load_archive(tmp_path / "archive", mlp))
    assert all(torch.equal(a, b) for a, b in zip(known, again))


def test_a_loaded_archive_learns_on(tmp_path):
    stream = make_stream(4)
    strategy = build()
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    save_archive(strategy.network, tmp_path / "archive")
    network = load_archive(tmp_path / "archive", mlp)
    further = build(network, epochs=8)
    before = logits(network, stream.test_stream, range(2))
    for experience in stream.train_stream[2:]:
        further.train(experience)
    after = logits(network, stream.test_stream, range(2))
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert min(accuracies(further, stream, 4)[2:]) > 0.85
    assert growth(network)["reference"] > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copied_strategy_learns_the_same(copied):
    stream, strategy = make_stream(2), build(conv_net())
    strategy.train(stream.train_stream[0])
    other = copied(strategy)
    for one in (strategy, other):
        torch.manual_seed(5)
        one.train(stream.train_stream[1])
    ours, theirs = (logits(s.model, stream.test_stream, range(2)) for s in (strategy, other))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("variant", ["plain", "given"])
def test_a_resumed_run_gives_the_numbers_of_one_that_went_on(variant, tmp_path):
    stream, final = make_stream(3), []
    for resumed in (False, True):
        torch.manual_seed(0)
        strategy = build(conv_net(), **VARIANTS[variant])
        for task, experience in enumerate(stream.train_stream):
            strategy.train(experience)
            if resumed and task == 1:
                save_checkpoint(strategy, tmp_path / "checkpoint")
                fresh = build(conv_net(), **VARIANTS[variant])
                strategy, _ = load_checkpoint(fresh, tmp_path / "checkpoint", trusted=True)
        final.append(logits(strategy.model, stream.test_stream, range(3)))
    assert all(torch.equal(a, b) for a, b in zip(*final))


def test_replay_of_finished_tasks_leaves_them_as_they_are():
    stream = make_stream()
    strategy = build(conv_net(), plugins=[ReplayPlugin(mem_size=30)])
    strategy.train(stream.train_stream[0])
    (before,) = logits(strategy.model, stream.test_stream, [0])
    for experience in stream.train_stream[1:]:
        strategy.train(experience)
    (after,) = logits(strategy.model, stream.test_stream, [0])
    assert torch.equal(before, after)


def test_a_finished_task_is_not_trained_again():
    stream, strategy = make_stream(2), build()
    strategy.train(stream.train_stream[0])
    with pytest.raises(TaskAlreadyLearnedError):
        strategy.train(stream.train_stream[0])
    strategy.train(stream.train_stream[1])
    assert strategy.network.tasks == [0, 1]


def test_validation_data_may_decide_everything():
    torch.manual_seed(0)
    stream = make_stream(2, samples=120)
    plugins = [ValidationPlugin(0.2, keep_best=True)]
    strategy = build(epochs=6, importance_data="validation", bits="auto", plugins=plugins)
    for experience in stream.train_stream:
        strategy.train(experience)
    assert min(accuracies(strategy, stream, 2)) > 0.85


@pytest.mark.parametrize("importance", ["mean_sq", "sum", "fisher_diag", "uniform"])
@pytest.mark.parametrize("conv_mode", ["spatial_mean", "flatten", "auto"])
def test_every_choice_trains(importance, conv_mode):
    strategy = build(conv_net(), importance=importance, conv_mode=conv_mode, als_iters=2)
    for experience in make_stream(2, samples=30).train_stream:
        strategy.train(experience)
    assert strategy.network.tasks == [0, 1]


def test_a_network_of_the_same_store_is_taken_as_it_is_and_others_are_refused():
    network = TaskNetwork(mlp(), partial(PerturbedStore, base="given"))
    assert build(network, base="given").network is network
    with pytest.raises(TaskStateError, match="PerturbedStore"):
        build(network)


def test_growth_does_not_slow_training():
    """Whatever earlier tasks have stored, a step reads the base and the task's own numbers."""
    strategy = build()
    stream = make_stream(5, samples=20)
    for experience in stream.train_stream[:4]:
        strategy.train(experience)
    read = []
    for store in strategy.network.weight_stores:
        store._read_block = lambda *arguments, **options: read.append(1)
    network = strategy.network
    network.open(4, [0, 1])
    for store in network.weight_stores:
        store.perturb(
            *store.scalings(), torch.ones(1, store.rows, 1), torch.ones(1, 1, store.columns)
        )
    network.train()(torch.zeros(2, 1, 8, 8), 4).sum().backward()
    assert not read
