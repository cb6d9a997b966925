"""Baselines are given norms that fit evaluation as ours are, on what they have trained on."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from avalanche_compress.shaping.norms import estimate_norms
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream
from benchmarks.runs import backbones
from benchmarks.runs.baselines import der, naive, replay
from benchmarks.runs.references import independent
from benchmarks.runs.settings import RunSettings, trained_on


class Dropping(nn.Module):
    """Dropout before a norm: what it sees in training is not what it sees in evaluation."""

    def __init__(self, shape, classes, bias=True):
        super().__init__()
        layers = [nn.Linear(64, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 30)]
        self.body = nn.Sequential(nn.Flatten(), *layers, nn.BatchNorm1d(30), nn.ReLU())
        self.head = nn.Linear(30, classes)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setitem(backbones.BACKBONES, "dropping", Dropping)
    budget = dataclasses.replace(STREAMS["split_digits"].budget, epochs=3, train_mb_size=32)
    stream = build_stream(StreamRequest("split_digits", tmp_path, tasks=2))
    return RunSettings(stream, "dropping", budget, seed=0)


def learn(build, settings, **arguments):
    torch.manual_seed(0)
    learner = build(settings, **arguments)
    for experience in settings.stream.benchmark.train_stream:
        learner.train(experience)
    return learner.eval.__self__


def misfit(model, batch):
    """How far the running variances are from those of some data, as a mean logarithm."""
    again = copy.deepcopy(model)
    estimate_norms(again, [lambda: again(*batch)])
    norms = [[m for m in net.modules() if isinstance(m, nn.BatchNorm1d)] for net in (model, again)]
    ratios = [(a.running_var / b.running_var).log().abs().mean() for a, b in zip(*norms)]
    return float(torch.stack(ratios).mean())


def batch_of(dataset, labelled):
    x = torch.stack([torch.as_tensor(dataset[i][0]) for i in range(len(dataset))])
    labels = torch.tensor([int(dataset[i][-1]) for i in range(len(dataset))])
    return (x, labels) if labelled else (x,)


@pytest.mark.parametrize("build", [naive, replay, der])
def test_statistics_are_those_of_what_a_baseline_trained_on(build, settings, monkeypatch):
    seen = []

    def watched(strategy):
        seen.append(trained_on(strategy).eval())
        return seen[-1]

    monkeypatch.setattr("benchmarks.runs.settings.trained_on", watched)
    strategy, data = learn(build, settings), seen[-1]
    labels = {int(data[i][-1]) for i in range(len(data))}
    assert labels == ({1} if build is naive else {0, 1})
    assert misfit(strategy.model, batch_of(data, labelled=True)) < 0.02


def test_independent_networks_fit_their_own_task(settings):
    networks = learn(independent, settings)
    for strategy, experience in zip(networks.strategies, settings.stream.benchmark.train_stream):
        assert misfit(strategy.model, batch_of(experience.dataset, labelled=False)) < 0.02
