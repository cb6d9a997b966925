"""Running statistics fit the weights that a task ends with."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training import Naive
from streams_for_tests import make_stream
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_compress import (
    HALRP,
    AdaQPackNet,
    PackNet,
    TrainingStatePlugin,
    load_archive,
    load_training_state,
    save_archive,
)
from avalanche_compress.shaping import norms
from avalanche_compress.shaping.norms import NormPlugin, estimate_norms


def dropping() -> nn.Module:
    """Dropout before max-pooling, and a norm that sees what comes of it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )


def inputs_of(experience):
    dataset = experience.dataset.eval()
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def train(kind, stream, *plugins, epochs=3, **arguments):
    model = dropping()
    torch.manual_seed(1)
    strategy = kind(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=5e-3),
        train_mb_size=20,
        train_epochs=epochs,
        plugins=list(plugins),
        evaluator=None,
        **arguments,
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    return strategy


@torch.no_grad()
def test_statistics_are_the_means_of_the_batches_by_numpy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    batches = [torch.randn(30, 5) for _ in range(3)]
    estimate_norms(model, [lambda x=x: model(x) for x in batches])
    weight, bias = model[0].weight.numpy(), model[0].bias.numpy()
    outputs = [x.numpy() @ weight.T + bias for x in batches]  # without dropout
    mean = np.mean([y.mean(0) for y in outputs], 0)
    variance = np.mean([y.var(0, ddof=1) for y in outputs], 0)
    np.testing.assert_allclose(model[2].running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model[2].running_var.numpy(), variance, rtol=1e-5)
    assert model[2].momentum == 0.1
    assert model.training


@pytest.mark.parametrize(("count", "size"), [(130, 64), (4226, 64), (7, 2), (3, 8), (65, 64)])
def test_batches_are_equally_large_and_of_all_samples_once(count, size):
    labels = torch.zeros(count, dtype=torch.long)
    samples = TensorDataset(torch.arange(count), labels)
    samples.targets = labels.tolist()
    data = as_classification_dataset(samples)
    batches = list(norms._shuffled_batches(data, size))
    sizes = [len(x) for x, _ in batches]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(size, count)
    assert [len(tasks) for _, tasks in batches] == sizes
    assert sorted(torch.cat([x for x, _ in batches]).tolist()) == list(range(count))


@pytest.mark.parametrize("kind", [PackNet, AdaQPackNet, HALRP])
def test_every_task_ends_with_statistics_of_its_own_final_weights(kind):
    stream = make_stream(tasks=2, samples=100)
    network = train(kind, stream).model
    for task, experience in enumerate(stream.train_stream):
        plain = network.materialise(task)
        again = copy.deepcopy(plain)
        estimate_norms(again, [lambda again=again, e=experience: again(inputs_of(e))])
        for name, kept in plain.named_buffers():
            if "running" in name:
                # one batch of all samples stands for some batches: equal up to their scatter
                assert torch.allclose(kept, dict(again.named_buffers())[name], rtol=0.25, atol=0.1)


def test_without_it_dropout_leaves_statistics_that_do_not_fit():
    stream = make_stream(tasks=1, samples=200)
    x = inputs_of(stream.train_stream[0])

    def misfit(strategy):
        plain = strategy.model.materialise(0)
        again = copy.deepcopy(plain)
        estimate_norms(again, [lambda: again(x)])
        last, fitting = plain[7].running_var, again[7].running_var
        return float((last / fitting).log().abs().mean())

    assert misfit(train(PackNet, stream, estimate_norms=False)) > 0.2
    assert misfit(train(PackNet, stream)) < 0.05


def test_a_plain_strategy_of_avalanches_may_have_it():
    stream = make_stream(tasks=1, samples=100)
    strategy = train(Naive, stream, NormPlugin())
    again = copy.deepcopy(strategy.model)
    x = inputs_of(stream.train_stream[0])
    estimate_norms(again, [lambda: again(x)])
    assert torch.allclose(strategy.model[7].running_mean, again[7].running_mean, atol=0.1)
    assert all(module.training == strategy.model.training for module in strategy.model.modules())


def test_the_archive_and_a_resumed_run_have_the_same_statistics(tmp_path):
    stream = make_stream(tasks=2, samples=60)
    whole = train(PackNet, stream)
    stopped = train(PackNet, stream, TrainingStatePlugin(tmp_path / "state"))
    model = dropping()
    resumed = PackNet(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=5e-3),
        train_mb_size=20,
        train_epochs=3,
        plugins=[TrainingStatePlugin(tmp_path / "state")],
        evaluator=None,
    )
    position = load_training_state(resumed, tmp_path / "state")
    for experience in stream.train_stream[position.experience :]:
        resumed.train(experience)
    save_archive(whole.model, tmp_path / "whole")
    save_archive(stopped.model, tmp_path / "stopped")
    save_archive(resumed.model, tmp_path / "resumed")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "stopped").read_bytes()
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()
    loaded = load_archive(tmp_path / "whole", dropping)
    x = inputs_of(stream.test_stream[0])
    with torch.no_grad():
        assert torch.equal(loaded(x, 0), whole.model.eval()(x, 0))


def test_no_random_number_is_drawn_and_no_weight_changes():
    model = dropping()
    weights = [parameter.clone() for parameter in model.parameters()]
    before = torch.get_rng_state()
    estimate_norms(model, [lambda: model(torch.randn(8, 1, 8, 8, generator=torch.Generator()))])
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(old, new) for old, new in zip(weights, model.parameters()))
