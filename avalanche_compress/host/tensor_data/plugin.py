"""Mini-batches cut from tensors instead of built sample by sample."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from avalanche_compress.host.strategy import Strategy
from avalanche_compress.host.tensor_data import NoTensorsError, Samples, read_samples
from avalanche_compress.host.tensor_data.datasets import changes_of, mark_of


class TensorDataPlugin(SupervisedPlugin):
    """Gives any Avalanche strategy its mini-batches from tensors, several times faster.

    The batches are those of Avalanche's own loaders, bit for bit and in the same order, and as many
    random numbers are drawn: a run ends with the same weights. Samples are held on the training
    device, decoded once for all epochs of an experience.

    Known are data sets with a method ``tensor_samples`` (see
    :class:`~avalanche_compress.TensorSamples`), torch's ``TensorDataset``, torchvision's MNIST,
    CIFAR and SVHN with ``ToTensor`` and ``Normalize``, and Avalanche's wrappers of them. Other data
    (random transforms, images in files, collate functions) and loaders that are not Avalanche's
    stay as they are; a warning says so, once. Labels, and inputs that are tensors, may be changed
    in place or replaced between two epochs.

    :param memory: bytes up to which an experience's decoded inputs are held; larger ones are
        decoded batch by batch, from where they lie.

    >>> from avalanche.training import Naive
    >>> model = torch.nn.Linear(2, 2)
    >>> strategy = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    ...                  evaluator=None, plugins=[TensorDataPlugin()])
    """

    state_attributes = ()

    def __init__(self, memory: int = 2 * 2**30):
        super().__init__()
        self.memory = memory
        self._told: set[str] = set()

    def before_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        # not before_training_exp, where plugins after this one may still set a loader
        self._replace_loader(strategy, self.memory)

    def before_eval_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self._replace_loader(strategy, 0)  # each sample is needed once

    def _replace_loader(self, strategy: Strategy, memory: int) -> None:
        loader = strategy.dataloader
        if isinstance(loader, TensorLoader):
            if loader.is_up_to_date():
                return
            loader = loader.loader
        try:
            strategy.dataloader = TensorLoader(loader, strategy.device, memory)
        except NoTensorsError as reason:
            if str(reason) not in self._told:
                self._told.add(str(reason))
                warnings.warn(
                    f"mini-batches are built sample by sample, which is slow: {reason}. Give the "
                    "data set a method tensor_samples() (see avalanche_compress.TensorSamples), or "
                    "leave this plugin out (tensor_data=False) if it has to be so.",
                    stacklevel=2,
                )


class TensorLoader:
    """The mini-batches that a loader would give, bit for bit, cut from tensors.

    Random numbers are drawn by the loader's own samplers, and by a loader of torch's, as before.

    :param loader: one of Avalanche's, or torch's over one of Avalanche's data sets.
    :param device: where the mini-batches are wanted.
    :param memory: bytes up to which decoded inputs are held there.
    :raises NoTensorsError: if the samples cannot be taken as tensors, or the loader does more than
        to collate them.
    """

    def __init__(self, loader: Any, device: torch.device, memory: int):
        inner = _torch_loader(loader)
        datasets = (
            loader.datasets if isinstance(loader, MultiDatasetDataLoader) else [inner.dataset]
        )
        _check_only_collates(inner, len(datasets))
        self.loader = loader
        samples = read_samples(datasets)
        self._sources = samples.sources
        self._marks = [mark_of(source) for source in self._sources]
        self._batches = _Batches(samples.held(device, memory), device)
        labelled = all(_ends_with_task_labels(dataset) for dataset in datasets)
        labels = samples.columns[-1].unique().tolist() if labelled else []
        self._task: int | None = labels[0] if len(labels) == 1 else None
        targets = samples.columns[0]
        is_class = targets.dim() == 1 and targets.dtype == torch.int64
        self._classes = frozenset(targets.unique().tolist()) if is_class else None

    def is_up_to_date(self) -> bool:
        """Whether the data sets are as they were; their labels may have been corrected in place."""
        return self._marks == [mark_of(source) for source in self._sources]

    def task_of(self, labels: Tensor) -> int | None:
        """The one task of a mini-batch, known without a look at its labels.

        :param labels: the mini-batch's last tensor.
        :return: None if the data sets have several tasks or none, or it is not as this loader gave
            it.
        """
        return self._task if labels is self._batches.last_column else None

    def classes_of(self, targets: Tensor) -> frozenset[int] | None:
        """Of which classes all samples are, known without a look at a mini-batch's targets.

        :param targets: the mini-batch's second tensor.
        :return: None if targets are no class numbers, or not as this loader gave them.
        """
        return self._classes if self._batches.gave_targets(targets) else None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        inner = _torch_loader(self.loader)
        iter(DataLoader([0], generator=inner.generator))  # type: ignore[arg-type]  # draws a number
        return self._batches.cut(inner.batch_sampler)


CHUNK_BYTES = 1 << 20
"""Inputs that are taken at once, for as many mini-batches as that is."""
ALIGNMENT = 64
"""Bytes that a mini-batch's inputs begin at a multiple of, as tensors of their own do.

A matrix product may take other roads, which round otherwise, at other addresses.
"""


class _Batches:
    """Cuts mini-batches from samples.

    :param samples: of all mini-batches.
    :param device: where they are wanted.
    """

    def __init__(self, samples: Samples, device: torch.device):
        self._samples = samples
        self._columns = [column.to(device) for column in samples.columns]
        self._device = device
        first = samples.inputs(torch.zeros(min(1, len(samples)), dtype=torch.int64))
        self._sample_bytes = first.numel() * first.element_size()
        self.last_column: Tensor | None = None
        self._targets: tuple[Tensor | None, int | None] = None, None

    def gave_targets(self, targets: Tensor) -> bool:
        """Whether these are the last mini-batch's, as they were.

        :param targets: its second tensor, or another.
        """
        given, version = self._targets
        return targets is given and version is not None and changes_of(targets) == version

    def cut(self, sampler: Any) -> Iterator[list[Tensor]]:
        """The mini-batches of a sampler.

        :param sampler: gives a list of indices for each.
        """
        for index, size in self._chunks(sampler):
            inputs = self._samples.inputs(index).to(self._device)
            index = index.to(self._device)
            parts = [inputs, *(column.index_select(0, index) for column in self._columns)]
            # tensors of their own: what changes one in place is nothing to the others
            for batch in zip(*(part.unsafe_split(size) for part in parts)):
                self.last_column, self._targets = batch[-1], (batch[1], changes_of(batch[1]))
                yield list(batch)

    def _chunks(self, sampler: Any) -> Iterator[tuple[Tensor, int]]:
        """Indices of one mini-batch or several, and how many of them a mini-batch has."""
        if not _draws_at_once(sampler):
            yield from ((torch.tensor(batch), len(batch)) for batch in sampler)
            return
        size, order = sampler.batch_size, torch.tensor(list(sampler.sampler))
        if sampler.drop_last:
            order = order[: len(order) - len(order) % size]
        if not len(order):  # which would be split into one that is empty
            return
        batch_bytes = max(1, size * self._sample_bytes)
        batches = 1 if batch_bytes % ALIGNMENT else max(1, CHUNK_BYTES // batch_bytes)
        for index in order.split(size * batches):
            yield index, size


def _draws_at_once(sampler: Any) -> bool:
    """Whether all random numbers of an epoch are drawn when its first mini-batch is asked for."""
    if type(sampler) is not BatchSampler or type(sampler.batch_size) is not int:
        return False
    samples: Any = sampler.sampler
    if type(samples) is RandomSampler:
        return samples.generator is None
    return type(samples) is SequentialSampler


def _ends_with_task_labels(dataset: Any) -> bool:
    """Whether the last value of a sample is its task label."""
    attributes = getattr(dataset, "_data_attributes", {}).values()
    names = [attribute.name for attribute in attributes if attribute.use_in_getitem]
    return names[-1:] == ["targets_task_labels"]


def _torch_loader(loader: Any) -> Any:
    """The torch loader that does an epoch of an Avalanche loader; a new one, with new samplers."""
    kind = type(loader)
    if kind is DataLoader:
        return loader
    if not (
        isinstance(loader, MultiDatasetDataLoader)
        and kind.__iter__ is MultiDatasetDataLoader.__iter__
        and kind._get_loader is MultiDatasetDataLoader._get_loader
    ):
        raise NoTensorsError(f"the loader is a {kind.__name__}, not one of Avalanche's")
    # what _get_loader does, without the search of all data sets for a reader of files (FFCV), which
    # takes as long as an epoch
    sampler, *others = samplers = loader._create_samplers(
        loader.datasets, loader.batch_sizes, loader.distributed_sampling, loader.loader_kwargs
    )
    if others or loader.never_ending:
        sampler = MultiDatasetSampler(
            loader.datasets,
            samplers,
            termination_dataset_idx=loader.termination_dataset,
            oversample_small_datasets=loader.oversample_small_datasets,
            never_ending=loader.never_ending,
        )
    return loader._make_pytorch_loader(loader.datasets, sampler)


def _check_only_collates(loader: Any, groups: int) -> None:
    """Refuse a loader that does more than to collate samples."""
    if type(loader) is not DataLoader or loader.batch_sampler is None:
        raise NoTensorsError(f"a {type(loader).__name__} makes its batches")
    if loader.collate_fn is not default_collate:
        raise NoTensorsError("it has a collate function of its own")
    if loader.worker_init_fn is not None or loader.persistent_workers:
        raise NoTensorsError("its worker processes persist or have an initialisation of their own")
    if loader.num_workers and groups > 1:
        # they run ahead, so that numbers for the small groups' next rounds are drawn earlier
        raise NoTensorsError("worker processes draw the samples of several groups")
