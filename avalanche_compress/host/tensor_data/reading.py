"""Samples as tensors, through Avalanche's and torch's wrappers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from avalanche.benchmarks.utils.data import AvalancheDataset, _FlatDataWithTransform
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, default_collate

from avalanche_compress.host.tensor_data.datasets import flat, known_samples, renumbered
from avalanche_compress.host.tensor_data.samples import NoTensorsError, Part, Samples


def read_samples(datasets: Sequence[Any]) -> Samples:
    """The samples of Avalanche's data sets as tensors, one data set after another.

    Known are data sets with a method ``tensor_samples`` (see :class:`TensorSamples`), torch's
    ``TensorDataset``, and torchvision's MNIST, CIFAR and SVHN; subsets and concatenations of them;
    ``ToTensor``, ``Normalize`` and Avalanche's fixed permutation of pixels; and classes that
    Avalanche has renumbered.

    :param datasets: Avalanche's, or such as are known without it.
    :raises NoTensorsError: if a sample has to be built by the data set itself.

    >>> from torch.utils.data import TensorDataset
    >>> x, y = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
    >>> samples = read_samples([Subset(TensorDataset(x, y), [3, 1])])
    >>> torch.equal(samples.inputs(torch.tensor([0])), x[3:4]), samples.columns[0].tolist()
    (True, [1, 1])
    """
    if any(not hasattr(dataset, "__len__") for dataset in datasets):
        raise NoTensorsError("the number of samples is not known")
    read = [_read(dataset) for dataset in datasets if len(dataset)]
    if not read:
        raise NoTensorsError("there are no samples")
    if len({tuple(column.dtype for column in columns) for _, columns, _ in read}) > 1:
        raise NoTensorsError("its data sets add different values to a sample")
    columns = [torch.cat(parts) for parts in zip(*(columns for _, columns, _ in read))]
    sources = [source for *_, inner in read for source in inner]
    rows, part_of = torch.empty(2, len(columns[0]), dtype=torch.int64)
    parts: list[Part] = []
    offset = 0
    for runs, own_columns, _ in read:
        for run in runs:
            rows[offset + run.places] = run.rows
            part_of[offset + run.places] = len(parts)
            parts.append(run.part)
        offset += len(own_columns[0])
    first = [part.take(rows[part_of == number][:1]) for number, part in enumerate(parts)]
    if len({(samples.shape, samples.dtype, samples.device) for samples in first}) > 1:
        raise NoTensorsError("its samples have different shapes or types")
    if len(parts) > 1:
        return Samples(parts, rows, part_of, columns, sources)
    in_order = torch.equal(rows, torch.arange(len(parts[0].inputs)))
    return Samples(parts, None if in_order else rows, None, columns, sources)


class _Source(NamedTuple):
    """Samples of a wrapper that come from one data set inside.

    :param dataset: the innermost data set.
    :param rows: ``(n,)``, which samples of it.
    :param places: ``(n,)``, where in the wrapper they are.
    :param on_inputs: transforms that the wrappers apply, in order.
    :param on_targets: likewise to the target.
    """

    dataset: Any
    rows: np.ndarray
    places: np.ndarray
    on_inputs: list[Any]
    on_targets: list[Any]


class _Run(NamedTuple):
    part: Part
    rows: Tensor
    places: Tensor


def _read(dataset: Any) -> tuple[list[_Run], list[Tensor], list[Any]]:
    """Its samples, columns (targets, and attributes of each sample) and the data sets inside."""
    everything, group = np.arange(len(dataset)), ""
    attributes: list[Tensor] = []
    inner = dataset
    if isinstance(dataset, AvalancheDataset):
        if type(dataset).__getitem__ is not AvalancheDataset.__getitem__:
            raise NoTensorsError(f"{type(dataset).__name__} has a __getitem__ of its own")
        if dataset.collate_fn is not default_collate:
            raise NoTensorsError("it has a collate function of its own")
        inner = dataset._flat_data
        group = inner._transform_groups.current_group
        attributes = [
            _column(attribute.data, everything, attribute.name)
            for attribute in dataset._data_attributes.values()
            if attribute.use_in_getitem
        ]
    runs, targets, sources = [], [], []
    for source in _sources(inner, everything, group):
        samples = known_samples(source.dataset, source.on_inputs)
        rows, places = torch.from_numpy(source.rows), torch.from_numpy(source.places)
        targets.append(renumbered(samples.targets[rows], source.on_targets))
        own_rows = rows if samples.rows is None else samples.rows[rows]
        sources.append(source.dataset)
        runs.append(_Run(Part(samples.inputs, samples.decode), own_rows, places))
    if len({values.dtype for values in targets}) > 1:
        raise NoTensorsError("its targets have different types")
    column = torch.empty(len(everything), dtype=targets[0].dtype)
    for run, values in zip(runs, targets):
        column[run.places] = values
    return runs, [column, *attributes], sources


def _sources(node: Any, wanted: np.ndarray, group: str) -> Iterator[_Source]:
    """Where samples come from, through subsets, concatenations and transform groups.

    :param node: a data set, or a wrapper of some.
    :param wanted: which samples of it.
    :param group: name of the current transform group.
    """
    if isinstance(node, _FlatDataWithTransform):
        groups = [node._frozen_transform_groups, node._transform_groups]
        on_inputs, on_targets = (
            [transform for entry in groups for transform in _transforms(entry, group, position)]
            for position in (0, 1)
        )
        children = _children(node._datasets, node._indices, wanted)
    elif type(node) in (Subset, ConcatDataset):
        on_inputs, on_targets = [], []
        subset = type(node) is Subset
        children = _children(
            [node.dataset] if subset else node.datasets, node.indices if subset else None, wanted
        )
    else:
        yield _Source(node, wanted, np.arange(len(wanted)), [], [])
        return
    for child, rows, places in children:
        for source in _sources(child, rows, group):
            yield source._replace(
                places=places[source.places],
                on_inputs=source.on_inputs + on_inputs,
                on_targets=source.on_targets + on_targets,
            )


def _children(
    datasets: Sequence[Any], indices: Any, wanted: np.ndarray
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Each data set of a concatenation: which of its samples are wanted, and at which places."""
    if indices is not None:
        wanted = np.fromiter(indices, np.int64, len(indices))[wanted]
    total = sum(len(dataset) for dataset in datasets)
    wanted = np.where(wanted < 0, wanted + total, wanted)  # counted from the end
    if len(datasets) == 1:
        yield datasets[0], wanted, np.arange(len(wanted))
        return
    ends = np.cumsum([len(dataset) for dataset in datasets])
    numbers = np.searchsorted(ends, wanted, side="right")
    for number, dataset in enumerate(datasets):
        places = np.flatnonzero(numbers == number)
        if len(places):
            yield dataset, wanted[places] - (ends[number] - len(dataset)), places


def _transforms(groups: Any, group: str, position: int) -> list[Any]:
    """What a transform group applies to the inputs (position 0) or the targets (position 1)."""
    transform = groups.transform_groups[group]
    return [] if transform is None else flat(transform.flat_transforms(position))


def _column(data: Any, wanted: np.ndarray, name: str) -> Tensor:
    """The values of an attribute, ``(n,)`` int64 as a mini-batch holds them."""
    if isinstance(data, ConstantSequence):
        values = np.full(len(wanted), data[0])
    elif isinstance(data, FlatData):
        parts = [
            (places, _column(child, rows, name))
            for child, rows, places in _children(data._datasets, data._indices, wanted)
        ]
        column = torch.empty(len(wanted), dtype=torch.int64)
        for places, part in parts:
            column[torch.from_numpy(places)] = part
        return column
    else:
        values = np.asarray(data)[wanted]
    if values.dtype.kind != "i":
        raise NoTensorsError(f"its {name} are no integers")
    return torch.from_numpy(values.astype(np.int64))
