"""A benchmark of what a frozen module gives, which is computed once for all epochs."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks import (
    CLScenario,
    benchmark_from_datasets,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.classification_dataset import (
    ClassificationDataset,
    TaskAwareClassificationDataset,
)
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from avalanche_compress.core.batches import Caller, moved_to, size_of
from avalanche_compress.core.substitution import evaluating
from avalanche_compress.errors import UnsupportedModuleError
from avalanche_compress.shaping.validation import iterate_batches


def precompute_features(
    benchmark: CLScenario, module: nn.Module, batch_size: int = 256
) -> CLScenario:
    """A benchmark whose inputs are a module's outputs, for a backbone that is not to be trained.

    Its streams have the same experiences: the same samples in the same order, classes and task
    labels. The rest of the model is trained on it, and no epoch runs the backbone. The module
    answers in evaluation mode and without gradients, whatever its mode and whether or not its
    parameters require gradients, and stays as it was. Inputs are transformed as for evaluation:
    random augmentation would be the same in every epoch. All features are held in memory.

    :param benchmark: any of Avalanche's whose streams hold classification data.
    :param module: gives a tensor ``(N, ...)``; inputs are moved to where its parameters are.
    :param batch_size: samples that it answers at a time.
    :raises UnsupportedModuleError: if it gives something else.

    >>> from avalanche.benchmarks import tensors_benchmark
    >>> tasks = [(torch.rand(6, 4), torch.tensor([0, 1] * 3))]
    >>> benchmark = tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0])
    >>> features = precompute_features(benchmark, torch.nn.Linear(4, 3))
    >>> x, y, task = features.train_stream[0].dataset[1]
    >>> x.shape, int(y), int(task)
    (torch.Size([3]), 1, 0)
    """
    experiences = {name: list(stream) for name, stream in benchmark.streams.items()}
    streams = {
        name: [_features_of(experience.dataset, module, batch_size) for experience in stream]
        for name, stream in experiences.items()
    }
    computed = with_classes_timeline(benchmark_from_datasets(**streams))
    labelled = all(hasattr(e, "task_labels") for stream in experiences.values() for e in stream)
    return with_task_labels(computed) if labelled else computed


def _features_of(dataset: Any, module: nn.Module, batch_size: int) -> AvalancheDataset:
    """A data set with a module's outputs in the place of its inputs."""
    outputs = _outputs(dataset.eval(), module, batch_size)
    features = TensorDataset(outputs, torch.as_tensor(list(dataset.targets)))
    if not hasattr(dataset, "targets_task_labels"):
        return ClassificationDataset([features], data_attributes=[dataset.targets])
    attributes = [dataset.targets, dataset.targets_task_labels]
    return TaskAwareClassificationDataset([features], data_attributes=attributes)


@torch.no_grad()
def _outputs(dataset: Any, module: nn.Module, batch_size: int) -> Tensor:
    """What a module gives for all samples, on the CPU."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    call, outputs = Caller(module), []
    with evaluating(module):
        for x, _ in iterate_batches(dataset, batch_size):
            output = call(module, moved_to(x, device))
            if not isinstance(output, Tensor) or output.shape[:1] != (size_of(x),):
                shape = f" {tuple(output.shape)}" if isinstance(output, Tensor) else ""
                raise UnsupportedModuleError(
                    f"{type(module).__name__} gives a {type(output).__name__}{shape} for "
                    f"{size_of(x)} samples, and a tensor with a row for each was expected: wrap it "
                    "in a module that returns that."
                )
            outputs.append(output.cpu())
    return torch.cat(outputs)
