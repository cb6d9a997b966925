"""The baselines: that they do in the comparison what their papers say."""

from __future__ import annotations

import dataclasses
import pickle
import random

import pytest
import torch

from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream
from benchmarks.runs.baselines import agem, der, er_ace, ewc, mas, naive, replay, si
from benchmarks.runs.settings import RunSettings

TASKS = 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Three permutations of the digits, on which Naive forgets."""
    request = StreamRequest("permuted_digits", tmp_path_factory.getbasetemp(), tasks=TASKS)
    budget = dataclasses.replace(STREAMS["permuted_digits"].budget, epochs=6, train_mb_size=32)
    return RunSettings(build_stream(request), "mlp", budget, seed=0)


def learn(build, settings, **arguments):
    # memories are drawn by Python's generator
    random.seed(0)
    torch.manual_seed(0)
    learner = build(settings, **arguments)
    benchmark = settings.stream.benchmark
    for experience in benchmark.train_stream:
        learner.train(experience)
    found = learner.eval(benchmark.test_stream)
    accuracies = [value for name, value in found.items() if name.startswith("Top1_Acc_Exp")]
    assert len(accuracies) == TASKS
    return learner, accuracies


@pytest.fixture(scope="module")
def forgotten(settings):
    return learn(naive, settings)[1]


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (ewc, {"ewc_lambda": 1e4, "decay_factor": 1.0}),
        (si, {}),
        (mas, {"lambda_reg": 10.0}),
        (replay, {}),
        (der, {}),
        (er_ace, {}),
        (agem, {"memory": 300, "sample_size": 256}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_baseline_forgets_less_than_naive(build, arguments, settings, forgotten):
    _, accuracies = learn(build, settings, **arguments)
    assert sum(accuracies[:-1]) > sum(forgotten[:-1])


def test_the_old_logits_of_der_are_those_of_the_task_that_was_learned(settings):
    learner = der(settings, memory=60)
    strategy = learner.train.__self__
    first, second, _ = settings.stream.benchmark.train_stream
    learner.train(first)
    strategy.model.eval()
    for x, _, task, logits in strategy.storage_policy.buffer:
        assert task == 0
        torch.testing.assert_close(strategy.model(x[None], 0)[0], logits)
    learner.train(second)
    strategy.model.eval()
    examples = [e for e in strategy.storage_policy.buffer if e[2] == 1]
    assert examples
    for x, _, _, logits in examples:
        torch.testing.assert_close(strategy.model(x[None], 1)[0], logits)


def test_a_gem_keeps_nothing_open_between_tasks(settings):
    learner = agem(settings, memory=30)
    strategy = learner.train.__self__
    learner.train(settings.stream.benchmark.train_stream[0])
    plugin = strategy.plugins[-1]
    assert [len(buffer) for buffer in plugin.buffers] == [10]
    assert pickle.loads(pickle.dumps(plugin)).sample_size == 64
