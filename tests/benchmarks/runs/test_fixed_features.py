"""Baselines of the class scenario: what they answer and what they keep."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from torch import nn

from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream
from benchmarks.runs import backbones
from benchmarks.runs.accuracies import accuracy_row
from benchmarks.runs.backbones import MLP
from benchmarks.runs.baselines import icarl, naive
from benchmarks.runs.fixed_features import (
    RandomFeatures,
    _Gaussians,
    _Ridge,
    fecam,
    ncm,
    random_gaussians,
    random_ridge,
    slda,
)
from benchmarks.runs.settings import RunSettings

BODY = 4 * (64 * 100 + 100 * 100)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    stream = build_stream(StreamRequest("split_digits", folder, scenario="class"))
    return RunSettings(
        stream, "mlp", dataclasses.replace(STREAMS["split_digits"].budget, epochs=4), 0
    )


def learn(build, settings, **arguments):
    torch.manual_seed(0)
    learner = build(settings, **arguments)
    for experience in settings.stream.benchmark.train_stream:
        learner.train(experience)
    row = accuracy_row(learner.eval(settings.stream.benchmark.test_stream), 5)
    return learner, np.mean(row)


@pytest.mark.parametrize(
    ("build", "least", "memory"),
    [
        (icarl, 0.85, 500 * (64 + 1)),
        (ncm, 0.45, 10 * 4 * 100),
        (slda, 0.9, 10 * 4 * 100 + 4 * 100 * 101 // 2),
        (fecam, 0.75, 10 * 4 * (100 + 100 * 101 // 2)),
        (random_gaussians, 0.95, 10 * (21 * 100 + 4 * 22)),
        (random_ridge, 0.95, 10 * 4 * 500 + 4 * 500 * 501 // 2),
    ],
)
def test_a_baseline_answers_without_labels_and_counts_what_it_keeps(build, least, memory, settings):
    learner, accuracy = learn(build, settings)
    assert accuracy > least > 0.25 > learn(naive, settings)[1]
    assert learner.memory_bytes() == memory
    # iCaRL goes on with its head, and has the mean of each class's examples
    network = {"random_gaussians": 0, "random_ridge": 0, "icarl": BODY + 2 * 4 * 100 * 10}
    assert learner.stored_bytes() == memory + network.get(build.__name__, BODY)


class Normed(MLP):
    """Statistics of a norm are features, too."""

    def __init__(self, shape, classes, bias=False):
        super().__init__(64, classes)
        self.body.insert(2, nn.BatchNorm1d(100))


@pytest.mark.parametrize("build", [ncm, slda, fecam])
def test_features_are_those_of_the_first_task(build, settings, monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "normed", Normed)
    settings = dataclasses.replace(settings, backbone="normed")
    learner = build(settings)
    strategy = learner.train.__self__
    body = strategy.model.feature_extractor
    untrained = {name: value.clone() for name, value in body.state_dict().items()}
    first, second, *_ = settings.stream.benchmark.train_stream
    learner.train(first)
    trained = {name: value.clone() for name, value in body.state_dict().items()}
    assert any(not torch.equal(trained[name], untrained[name]) for name in trained)
    x = torch.stack([first.dataset[i][0] for i in range(len(first.dataset))])
    seen = body.body[1](x.flatten(1))
    torch.testing.assert_close(
        trained["body.2.running_mean"], seen.mean(dim=0), rtol=0.01, atol=1e-3
    )
    learner.train(second)
    assert all(torch.equal(value, trained[name]) for name, value in body.state_dict().items())


@pytest.mark.parametrize("build", [random_gaussians, random_ridge])
def test_nothing_is_learned_but_statistics_where_there_is_no_network(build, settings):
    learner = build(settings)
    strategy = learner.train.__self__
    before = [parameter.clone() for parameter in strategy.model.parameters()]
    learner.train(settings.stream.benchmark.train_stream[0])
    assert strategy.clock.train_iterations == 0
    assert all(map(torch.equal, before, strategy.model.parameters()))


def test_random_features_are_the_seeds(settings):
    x = torch.randn(5, 1, 8, 8)
    same, again = (RandomFeatures(settings, 7, torch.nn.ReLU())(x) for _ in range(2))
    other = RandomFeatures(dataclasses.replace(settings, seed=1), 7, torch.nn.ReLU())(x)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert same.shape == (5, 7)
    assert same.min() >= 0


def test_gaussians_rank_classes_as_probabilistic_pca_does():
    generator = torch.Generator().manual_seed(3)
    x = torch.cat([torch.randn(300, 6, generator=generator) * scale for scale in (1, 2)])
    x[:, 0] *= 3
    y = torch.arange(600) // 300
    classifier = _Gaussians(2, 6, rank=2)
    for batch in torch.randperm(600, generator=generator).split(70):
        classifier.add(x[batch], y[batch])
    found = classifier(x)
    expected = [PCA(2).fit(x[y == c].numpy()).score_samples(x.numpy()) for c in range(2)]
    # the floor of 1 % and rounding to int8 move the difference of two classes a little
    difference = (found[:, 0] - found[:, 1]).numpy()
    assert np.corrcoef(difference, expected[0] - expected[1])[0, 1] > 0.999


def test_ridge_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(200, 5, generator=generator), torch.randint(3, (200,), generator=generator)
    classifier = _Ridge(3, 5, strength=0.1)
    for batch in torch.arange(200).split(64):
        classifier.add(x[batch], y[batch])
    alpha = 0.1 * 200 * x.var(dim=0, unbiased=False).mean().item()
    expected = Ridge(alpha).fit(x.numpy(), np.eye(3)[y]).predict(x.numpy())
    np.testing.assert_allclose(classifier(x).numpy(), expected, atol=1e-5)


def test_icarl_says_that_a_class_in_two_tasks_is_not_for_it(tmp_path):
    stream = build_stream(StreamRequest("permuted_digits", tmp_path, tasks=2, scenario="class"))
    settings = RunSettings(stream, "mlp", STREAMS["permuted_digits"].budget, 0)
    with pytest.raises(ValueError, match="tasks of other classes"):
        icarl(settings)


def test_the_examples_of_icarl_are_shared_by_the_classes(settings):
    learner, _ = learn(icarl, settings, memory=40)
    assert learner.memory_bytes() == 40 * (64 + 1)
    herding = next(p for p in learner.train.__self__.plugins if hasattr(p, "x_memory"))
    assert [len(x) for x in herding.x_memory] == [4] * 10
    assert [targets[0] for targets in herding.y_memory] == list(range(10))
