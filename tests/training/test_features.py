"""Precomputed features are what the module would give, of the same tasks."""

from __future__ import annotations

import copy

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, dataset_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.benchmarks.utils.classification_dataset import (
    _make_taskaware_classification_dataset,
)
from streams_for_tests import inputs_of, logits, make_stream
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_compress import LoRA, UnsupportedModuleError, precompute_features


def body():
    """In training mode, in which its statistics move and dropout draws."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
    )


@pytest.fixture
def stream():
    return make_stream(2, samples=30, labels=(3, 7), seed=1)


def test_inputs_are_what_the_module_gives_in_evaluation_mode(stream):
    module = body()
    before = copy.deepcopy(module.state_dict())
    features = precompute_features(stream, module, batch_size=7)
    assert module.training
    assert module[3].training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    module.eval()
    for computed, given in zip(
        (*features.train_stream, *features.test_stream), (*stream.train_stream, *stream.test_stream)
    ):
        inputs = inputs_of(computed)
        assert not inputs.requires_grad
        parts = [module(part) for part in inputs_of(given).split(7)]
        assert torch.equal(inputs, torch.cat(parts))
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_tasks_are_those_of_the_benchmark(stream):
    features = precompute_features(stream, body())
    assert list(features.streams) == list(stream.streams)
    for name, experiences in stream.streams.items():
        assert len(features.streams[name]) == len(experiences)
        for computed, given in zip(features.streams[name], experiences):
            assert computed.current_experience == given.current_experience
            assert computed.task_label == given.task_label
            assert list(computed.task_labels) == list(given.task_labels)
            assert list(computed.dataset.targets) == list(given.dataset.targets)
            found = sorted(computed.classes_in_this_experience)
            assert found == sorted(given.classes_in_this_experience)
            *_, target, task = computed.dataset[5]
            assert (int(target), int(task)) == (given.dataset[5][1], given.task_label)


def test_a_head_learns_on_them_what_it_learns_behind_the_frozen_module(stream):
    module = body()[0:1].append(nn.Flatten()).requires_grad_(False)
    head = nn.Linear(144, 2)
    answers, tasks = [], (3, 7)
    for benchmark, model in (
        (stream, nn.Sequential(module, copy.deepcopy(head))),
        (precompute_features(stream, module), nn.Sequential(copy.deepcopy(head))),
    ):
        torch.manual_seed(0)
        strategy = LoRA(
            model=model,
            optimizer=torch.optim.Adam(model[-1].parameters(), 0.01),
            train_mb_size=16,
            train_epochs=2,
            evaluator=None,
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
        test = {experience.task_label: experience for experience in benchmark.test_stream}
        answers.append(logits(strategy.network, test, tasks))
    for behind, on_features in zip(*answers):
        torch.testing.assert_close(on_features, behind, rtol=1e-4, atol=1e-5)


class Noise:
    """A transform that draws."""

    def __call__(self, x):
        return x + torch.rand_like(x)


def test_augmentation_of_training_is_not_drawn():
    x, y = torch.rand(8, 3), torch.arange(8) % 2
    data = _make_taskaware_classification_dataset(
        TensorDataset(x, y), targets=y.tolist(), task_labels=0,
        transform_groups={"train": (Noise(), None), "eval": (None, None)},
    )  # fmt: skip
    benchmark = dataset_benchmark([data], [data])
    features = precompute_features(benchmark, nn.Identity())
    assert torch.equal(inputs_of(features.train_stream[0]), x)


def test_a_stream_without_task_labels_has_none_afterwards():
    parts = []
    for classes in ([0, 1], [2, 3]):
        part = TensorDataset(torch.rand(6, 3), torch.tensor(classes * 3))
        part.targets = part.tensors[1].tolist()
        parts.append(as_classification_dataset(part))
    benchmark = benchmark_from_datasets(train=parts, test=parts)
    features = precompute_features(benchmark, nn.Linear(3, 5))
    second = features.train_stream[1]
    assert not hasattr(second, "task_labels")
    assert len(second.dataset[0]) == 2
    assert sorted(second.classes_in_this_experience) == [2, 3]


@pytest.mark.parametrize("gives", [lambda x: (x, x), lambda x: x.sum(0)])
def test_what_is_no_row_a_sample_is_refused(stream, gives):
    class Wrong(nn.Module):
        def forward(self, x):
            return gives(x)

    with pytest.raises(UnsupportedModuleError, match="a row for each"):
        precompute_features(stream, Wrong())
