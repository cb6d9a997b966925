"""What each rule keeps and how it scores, by brute force over the features."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from streams_for_tests import conv_net, mlp
from torch import nn

from avalanche_compress import (
    FactoredStore,
    GaussianRule,
    RidgeRule,
    TaskInference,
    TaskInferenceError,
    TaskNetwork,
    TriangularRule,
    load_archive,
    save_archive,
    select_inference,
)
from avalanche_compress.codec import ByteWriter
from avalanche_compress.core.statistics import write_statistics
from avalanche_compress.core.views import run_with_features
from avalanche_compress.inference.features import Features, fold
from avalanche_compress.inference.low_rank import StoredGaussians, load, log_density
from avalanche_compress.inference.ridge import random_features

KEEPING = ["prototype", "gaussian", "triangular", "ridge"]


def samples_of(classes, count=60, seed=0):
    """Samples of classes that are clouds of their own, however they are put into tasks."""
    x, y = [], []
    for number in classes:
        generator = torch.Generator().manual_seed(100 + number)
        middle = torch.randn(1, 8, 8, generator=generator)
        generator.manual_seed(1000 * seed + number)
        x.append(middle + 0.25 * torch.randn(count, 1, 8, 8, generator=generator))
        y.append(torch.full((count,), number))
    order = torch.randperm(count * len(classes), generator=torch.Generator().manual_seed(seed))
    return torch.cat(x)[order], torch.cat(y)[order]


def network_of(tasks, model=mlp):
    """Sub-networks of weights that were drawn: rules compare features all the same."""
    torch.manual_seed(0)
    network = TaskNetwork(model(), FactoredStore)
    for task, classes in enumerate(tasks):
        network.open(task, classes)
        for store in network.weight_stores:
            for parameter in store.parameters():
                nn.init.normal_(parameter, std=0.3)
        network.commit()
    return network.eval()


def collected(rule, tasks, model=mlp, **arguments):
    network = network_of(tasks, model)
    inference = TaskInference(rule, **arguments)
    for task, classes in enumerate(tasks):
        inference.collect(network, task, batches_of(classes))
    return network, inference


def batches_of(classes, count=60, size=17, seed=0):
    x, y = samples_of(classes, count, seed)
    return zip(x.split(size), y.split(size))


def head_inputs(network, x, task):
    with torch.no_grad():
        return run_with_features(network, x, task)[1]


def kept_density(network, rule, task, reference, features):
    """Of the likeliest class of a task, from what the network keeps."""
    kept = network.statistics[task]
    stored = kept[f"{rule}.vectors"][reference], kept[f"{rule}.numbers"][reference]
    return log_density(features, load(StoredGaussians(*stored))).amax(dim=1)


TASKS = [[0, 1], [2, 3, 4], [5, 6], [7, 8]]

# ---------------------------------------------------------------------------- scores


def test_gaussian_takes_the_task_that_is_likeliest_on_its_own_scale():
    network, inference = collected("gaussian", TASKS)
    x, _ = samples_of(range(9), 20, seed=1)
    scores = []
    for task in network.tasks:
        mean, deviation = network.statistics[task]["gaussian.scale"][0]
        density = kept_density(network, "gaussian", task, 0, head_inputs(network, x, task))
        scores.append((mean - density) / deviation)
    assert torch.equal(inference(network, x).tasks, torch.stack(scores).argmin(dim=0))


@pytest.mark.parametrize("references", [1, 2, None])
def test_triangular_compares_pairs_in_the_features_that_both_were_gathered_in(references):
    network, inference = collected(TriangularRule(references=references), TASKS)
    x, _ = samples_of(range(9), 20, seed=1)
    most = references or len(TASKS)
    advantage = np.full((len(x), 4, 4), np.inf)
    for i in range(4):
        for j in range(i + 1, 4):
            total = 0
            for t in range(min(i + 1, most)):
                features = head_inputs(network, x, t)
                ours = kept_density(network, "triangular", i, t, features)
                theirs = kept_density(network, "triangular", j, t, features)
                total += (ours - theirs) / network.statistics[t]["triangular.scale"][t][1]
            advantage[:, i, j], advantage[:, j, i] = total, -total
    expected = advantage.min(axis=2).argmax(axis=1)
    assert inference(network, x).tasks.tolist() == expected.tolist()
    for task in network.tasks:
        assert len(network.statistics[task]["triangular.vectors"]) == min(task + 1, most)


@pytest.mark.parametrize("random", [0, 40])
def test_ridge_is_the_regression_on_all_samples_together(random):
    rule = RidgeRule(strength=0.01, random_features=random, dtype="float32")
    network = network_of(TASKS)
    inference = TaskInference(rule)
    gathered, targets = [], []
    for task, classes in enumerate(TASKS):
        x, y = samples_of(classes)
        # held-out samples are given, so that none is left out
        inference.collect(network, task, [(x, y)], [(x[:5], y[:5])])
        features = head_inputs(network, x, 0)
        gathered.append(random_features(features, random) if random else features)
        targets.append(y)
    features, y = torch.cat(gathered).double().numpy(), torch.cat(targets)
    variance = np.trace(np.cov(features.T, bias=True)) / features.shape[1]
    ridge = Ridge(alpha=0.01 * variance * len(features)).fit(features, np.eye(9)[y])
    x, _ = samples_of(range(9), 20, seed=1)
    asked = head_inputs(network, x, 0)
    asked = random_features(asked, random) if random else asked
    expected = ridge.predict(asked.double().numpy())
    logits, tasks = inference(network, x)
    np.testing.assert_allclose(logits.amax(1), expected.max(1), atol=2e-3)
    task_of = np.repeat(range(4), [2, 3, 2, 2])
    assert tasks.tolist() == task_of[expected.argmax(1)].tolist()


def test_ridge_keeps_the_scatter_of_all_tasks_once():
    network, _ = collected("ridge", TASKS)
    holders = [task for task in network.tasks if "ridge.scatter" in network.statistics[task]]
    assert holders == [3]
    with pytest.raises(TaskInferenceError, match="collected once"):
        TaskInference("ridge").collect(network, 3, batches_of(TASKS[3]))


# ---------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("rule", ["gaussian", "triangular", "ridge", "triangular@first"])
@pytest.mark.parametrize("tasks", [TASKS, [[c] for c in range(6)]], ids=["classes", "one class"])
def test_clouds_are_told_apart_even_where_a_task_is_one_class(rule, tasks):
    network, inference = collected(rule, tasks)
    for task, classes in enumerate(tasks):
        x, _ = samples_of(classes, 20, seed=2)
        assert (inference(network, x).tasks == task).float().mean() > 0.9


@pytest.mark.parametrize("rule", ["gaussian", "triangular", "ridge"])
def test_a_class_of_two_tasks_is_answered_by_either(rule):
    """As in blurry streams."""
    tasks = [[0, 1], [1, 2], [3, 4]]
    network, inference = collected(rule, tasks)
    x, _ = samples_of([1], 40, seed=2)
    found = inference(network, x).tasks
    assert bool((found < 2).float().mean() > 0.9)
    if rule == "ridge":
        logits = inference(network, x).logits
        assert bool((logits.argmax(1) == 1).float().mean() > 0.9)


# ---------------------------------------------------------------------------- archives


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize("rule", [GaussianRule, TriangularRule])
def test_a_loaded_network_chooses_as_the_living_one(rule, dtype, tmp_path):
    network, inference = collected(rule(dtype=dtype), TASKS)
    check_loaded(network, inference, tmp_path / "archive")


@pytest.mark.parametrize("rule", ["prototype@first", "ridge", "ridge@first"])
def test_a_loaded_network_chooses_as_the_living_one_by_other_rules(rule, tmp_path):
    unknown = None if rule.startswith("ridge") else 0.1
    network, inference = collected(rule, TASKS, unknown=unknown)
    check_loaded(network, inference, tmp_path / "archive")


def check_loaded(network, inference, path):
    x, _ = samples_of(range(9), 20, seed=1)
    before = inference(network, x)
    save_archive(network, path)
    loaded = load_archive(path, mlp)
    after = inference(loaded, x)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.tasks, after.tasks)
    for task in network.tasks:
        for name, tensor in network.statistics[task].items():
            assert torch.equal(tensor, loaded.statistics[task][name])
            assert tensor.dtype == loaded.statistics[task][name].dtype


def test_statistics_of_a_hundred_tasks_are_linear_in_tasks_and_small():
    tasks = [[10 * task + c for c in range(10)] for task in range(100)]

    def wide():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))

    network = network_of(tasks[:1], wide)
    inference = TaskInference("triangular")
    inference.collect(network, 0, batches_of(tasks[0], 210))

    def size():
        writer = ByteWriter()
        write_statistics(writer, network.statistics[task])
        return len(writer.getvalue())

    task = 0
    first = size()
    for task in (1, 2):
        network.open(task, tasks[task])
        network.commit()
        inference.collect(network, task, batches_of(tasks[task], 210))
        assert size() == first
    assert 99 * 100 < first / 10 * 100 <= 2500 * 100  # 100 classes' worth a class
    assert list(TriangularRule().references(99)) == [0]


@pytest.mark.parametrize("rule", KEEPING)
def test_statistics_that_do_not_fit_are_refused_by_name(rule):
    """As a file may hold them that somebody has changed."""
    network, inference = collected(rule, TASKS)
    x, _ = samples_of(range(9), 5, seed=1)
    for task in (0, 3):
        for name, tensor in list(network.statistics[task].items()):
            for wrong in (tensor[:0], torch.cat([tensor, tensor[:1]]), torch.full((7,), 1.0)):
                network.statistics[task][name] = wrong
                with pytest.raises(TaskInferenceError, match=r"collect|statistics"):
                    inference(network, x)
            network.statistics[task][name] = tensor
    inference(network, x)


# ---------------------------------------------------------------------------- gathering


@pytest.mark.parametrize("rule", KEEPING)
def test_samples_are_read_once_and_in_batches_of_any_size(rule):
    network, inference = collected(rule, TASKS[:2])
    other = network_of(TASKS[:2])
    for task in (0, 1):
        inference.collect(other, task, batches_of(TASKS[task], size=60))
    x, _ = samples_of(range(5), 20, seed=1)
    ours, theirs = inference.novelty(network, x), inference.novelty(other, x)
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_gathering_draws_no_random_number_and_leaves_the_modes_alone():
    network = network_of(TASKS[:1])
    network.train()
    state = torch.get_rng_state()
    TaskInference("triangular").collect(network, 0, batches_of(TASKS[0]))
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert network.backbone.training


def test_tasks_are_collected_one_after_another():
    network = network_of(TASKS)
    with pytest.raises(TaskInferenceError, match=r"tasks \[0\] have none"):
        TaskInference("triangular").collect(network, 1, batches_of(TASKS[1]))


def test_samples_of_other_classes_and_none_at_all_are_refused():
    network = network_of(TASKS)
    with pytest.raises(TaskInferenceError, match=r"classes \[2, 3, 4\]"):
        TaskInference("gaussian").collect(network, 0, batches_of(TASKS[1]))
    with pytest.raises(TaskInferenceError, match="no samples of task 0"):
        TaskInference("gaussian").collect(network, 0, [])
    assert not network.statistics.get(0)


@pytest.mark.parametrize("rule", ["entropy", *KEEPING])
def test_threads_infer_as_one_does(rule):
    network, inference = collected(rule, TASKS)
    parts = [samples_of([c], 30, seed=3)[0] for c in range(9)]
    expected = [inference(network, x) for x in parts]
    wrong = []

    def ask(number):
        for _ in range(20):
            found = inference(network, parts[number])
            if not torch.equal(found.logits, expected[number].logits):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---------------------------------------------------------------------------- features


def test_layers_are_named_and_checked():
    network = network_of(TASKS)
    with pytest.raises(TaskInferenceError, match=r"no module 'body.9'"):
        TaskInference("triangular@body.9").candidates(network)


def test_convolutions_are_read_as_mean_and_deviation_of_each_channel():
    network = network_of(TASKS, conv_net)
    name, layer = next(
        (name, m) for name, m in network.backbone.named_modules() if isinstance(m, nn.Conv2d)
    )
    x, _ = samples_of([0], 5)
    seen = []
    hook = layer.register_forward_hook(lambda *call: seen.append(call[2]))
    _, features = Features(name)(network, x, 1)
    hook.remove()
    maps = seen[0].detach().numpy()
    expected = np.concatenate([maps.mean((2, 3)), maps.std((2, 3))], axis=1)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    _, both = Features(f"{name}+head")(network, x, 1)
    torch.testing.assert_close(both, torch.cat([features, head_inputs(network, x, 1)], dim=1))


def test_of_a_first_convolution_whole_maps_are_read():
    network = network_of(TASKS, conv_net)
    layer = network.weight_stores[0].place.module
    assert isinstance(layer, nn.Conv2d)
    x, _ = samples_of([0], 5)
    seen = []
    hook = layer.register_forward_hook(lambda *call: seen.append(call[2]))
    _, features = Features("first")(network, x, 1)
    hook.remove()
    torch.testing.assert_close(features, fold(seen[0].flatten(1)))
    # where in the image something is counts
    moved = Features("first")(network, x.roll(3, dims=3), 1)[1]
    assert (moved - features).abs().max() > 0.1 * features.std()


def test_wide_features_are_folded_so_that_inner_products_stay_about():
    torch.manual_seed(0)
    a, b = torch.randn(2, 30, 3000)
    folded = fold(a), fold(b)
    assert folded[0].shape == (30, 512)
    np.testing.assert_allclose(folded[0].norm(dim=1), a.norm(dim=1), rtol=0.15)
    products = (folded[0] * folded[1]).sum(1)
    np.testing.assert_allclose(products, (a * b).sum(1), atol=5 * 3000 / 512**0.5)


# ---------------------------------------------------------------------------- unknown samples


@pytest.mark.parametrize("rule", ["entropy", "prototype", "gaussian", "triangular"])
def test_known_samples_are_refused_at_about_the_rate_that_was_asked_for(rule):
    tasks = TASKS[:2]
    network = network_of(tasks)
    inference = TaskInference(rule, unknown=0.1)
    for task, classes in enumerate(tasks):
        held_out = batches_of(classes, 100, seed=7)
        inference.collect(network, task, batches_of(classes, 100), held_out)
    x, _ = samples_of([0, 1, 2, 3, 4], 100, seed=8)
    assert (inference(network, x).tasks == -1).float().mean() == pytest.approx(0.1, abs=0.07)


@pytest.mark.parametrize("rule", ["prototype", "gaussian", "triangular"])
def test_samples_of_no_known_task_are_refused(rule):
    network, inference = collected(rule, TASKS, unknown=0.05)
    strange, _ = samples_of([20, 21, 22], 40, seed=1)
    known, _ = samples_of(range(9), 40, seed=1)
    assert (inference(network, strange).tasks == -1).float().mean() > 0.8
    assert (inference(network, known).tasks == -1).float().mean() < 0.3
    assert inference.novelty(network, strange).mean() > inference.novelty(network, known).mean()
    never = TaskInference(rule)(network, strange).tasks
    assert bool((never >= 0).all())


def test_refusal_needs_a_rate_in_range_and_thresholds():
    with pytest.raises(TaskInferenceError, match=r"unknown=0.9"):
        TaskInference("triangular", unknown=0.9)
    network, _ = collected("triangular", TASKS)
    x, _ = samples_of([0], 5)
    with pytest.raises(TaskInferenceError, match="feature statistics"):
        TaskInference("triangular", unknown=0.05)(network, x)


@pytest.mark.parametrize(
    "build",
    [
        lambda: GaussianRule(rank=-1),
        lambda: GaussianRule(dtype="int4"),
        lambda: TriangularRule(references=0),
        lambda: RidgeRule(strength=0),
        lambda: RidgeRule(dtype="int8"),
        lambda: TaskInference("ridge", unknown=0.05),
    ],
)
def test_options_out_of_range_are_refused(build):
    with pytest.raises(TaskInferenceError):
        build()


# ---------------------------------------------------------------------------- selection


def test_the_best_on_held_out_samples_is_chosen_and_nothing_is_left_behind():
    network = network_of(TASKS)
    training = [list(batches_of(classes, seed=0)) for classes in TASKS]
    held_out = [list(batches_of(classes, 40, seed=5)) for classes in TASKS]
    candidates = [
        TaskInference(TriangularRule(rank=rank), features=layer)
        for rank in (20, 4)
        for layer in ("head", "first")
    ]
    candidates.append(TaskInference("energy"))
    trials = select_inference(network, training, held_out, candidates)
    assert not any(network.statistics.values())
    assert {id(trial.inference) for trial in trials} == {id(rule) for rule in candidates}
    assert trials[0].accuracy > trials[-1].accuracy
    assert trials[-1].inference is candidates[-1]
    best = max(trial.accuracy for trial in trials)
    assert trials[0].bytes <= min(trial.bytes for trial in trials if trial.accuracy == best)
    few = select_inference(network, training, held_out, candidates, most_bytes=100)
    assert [trial.inference for trial in few] == [candidates[-1]]
    assert few[0].bytes <= 100


def test_selection_needs_samples_of_every_task():
    network = network_of(TASKS)
    batches = [list(batches_of(classes)) for classes in TASKS]
    with pytest.raises(TaskInferenceError, match="of each of two tasks"):
        select_inference(network, batches[:3], batches, [TaskInference("gaussian")])
    with pytest.raises(TaskInferenceError, match="allow more"):
        select_inference(network, batches, batches, [TaskInference("gaussian")], most_bytes=3)
