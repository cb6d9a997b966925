"""Cutting a data set into tasks, held in memory as bytes and normalised on access."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark
from torch.utils.data import Dataset

from avalanche_compress import ByteValues, TensorSamples
from benchmarks.data.images import Images, Labels, Pixels


@dataclass(frozen=True)
class StreamRequest:
    """Which stream is wanted: the one argument of whatever builds a stream.

    :param stream: its name in the registry.
    :param data_dir: folder of the data sets; those that can be downloaded are, when absent.
    :param seed: of whatever is drawn, such as held-out examples and permutations.
    :param held_out: fraction of each task's training set that is left out.
    :param tasks: number of tasks; 0: as many as the registry says.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    :param scenario: ``"task"`` or ``"class"``, see :class:`Stream`.
    :param first: how many experiences the benchmark has, the first in the order; None: all.
    :param tuning: fraction of each task's training set that takes the test set's place, at which
        nobody looks then.
    """

    stream: str
    data_dir: Path
    seed: int = 0
    held_out: float = 0.0
    tasks: int = 0
    order: Sequence[int] | None = None
    scenario: str = "task"
    first: int | None = None
    tuning: float = 0.0

    def task_order(self) -> list[int]:
        """The task that each experience holds.

        :raises ValueError: if the order is no permutation of the tasks.

        >>> StreamRequest("split_digits", Path("data"), tasks=3).task_order()
        [0, 1, 2]
        """
        numbered = list(range(self.tasks))
        if self.order is None:
            return numbered
        if sorted(self.order) != numbered:
            raise ValueError(
                f"order={list(self.order)} is no permutation of {self.tasks} tasks: give each "
                f"number from 0 to {self.tasks - 1} once."
            )
        return [int(task) for task in self.order]


@dataclass(frozen=True)
class Stream:
    """A benchmark and what the comparison has to know of it.

    :param name: its name in the registry.
    :param benchmark: an Avalanche benchmark with a train and a test stream.
    :param tasks: the original class ids of each experience.
    :param input_shape: ``(channels, height, width)``.
    :param order: the canonical task that each experience holds; task labels count experiences.
    :param scenario: ``"task"``: labels count from 0 within a task, and each task has its label;
        ``"class"``: labels count through all tasks, and the task label is always 0.
    """

    name: str
    benchmark: Any
    tasks: list[list[int]]
    input_shape: tuple[int, int, int]
    order: list[int]
    scenario: str = "task"

    @property
    def max_classes(self) -> int:
        """The width of a single shared head: classes of the largest task, or of all tasks."""
        if self.scenario == "class":
            return len({number for classes in self.tasks for number in classes})
        return max(len(classes) for classes in self.tasks)


class PixelDataset(Dataset[Any]):
    """Images of one task: shared bytes, a lookup table for the values, maybe a permutation.

    The bytes are kept once for all tasks; an image becomes ``float32 [channels, height, width]``
    when it is asked for, alone or with others. Ten permuted copies of MNIST would be 1.9 GB.

    :param pixels: ``uint8 [examples, numbers]``.
    :param rows: the examples of this task.
    :param targets: their labels, from 0.
    :param task: the task label of all of them.
    :param values: ``float32 [256]``, the normalised value of each byte, or ``[channels, 256]``.
    :param shape: ``(channels, height, width)``.
    :param permutation: for each number of the image the byte that it comes from, which may be one
        of several numbers' (grey images in three channels); None: the bytes in their order.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: np.ndarray,
        targets: np.ndarray,
        task: int,
        values: np.ndarray,
        shape: tuple[int, int, int],
        permutation: np.ndarray | None = None,
    ) -> None:
        self.pixels = pixels
        self.rows = rows
        self.targets: list[int] = targets.tolist()
        self.targets_task_labels: list[int] = [task] * len(self.targets)
        self.values = values
        self.shape = shape
        self.permutation = permutation
        # Byte b of channel c is entry 256 c + b of the tables, one after another.
        self.offsets = None if values.ndim == 1 else _channel_offsets(shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.pixels[self.rows[index]]
        if self.permutation is not None:
            image = image.take(self.permutation)
        if self.offsets is not None:
            image = self.offsets + image
        return torch.from_numpy(self.values.take(image)).view(self.shape), self.targets[index]

    def subset(self, indices: np.ndarray) -> PixelDataset:
        """Some of the examples, in that order; nothing is copied.

        :param indices: of them, from 0.
        """
        chosen = copy.copy(self)
        chosen.rows = self.rows[indices]
        chosen.targets = [self.targets[index] for index in indices]
        chosen.targets_task_labels = [self.targets_task_labels[index] for index in indices]
        return chosen

    def tensor_samples(self) -> TensorSamples:
        """All images, so that training need not build them one by one; nothing is copied."""
        order = None if self.permutation is None else torch.from_numpy(self.permutation)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a mapped file cannot be written, and nobody does
            pixels = torch.from_numpy(self.pixels)
        return TensorSamples(
            pixels,
            torch.tensor(self.targets),
            ByteValues(torch.from_numpy(self.values), self.shape, order),
            torch.from_numpy(self.rows),
        )


def kept_rows(examples: int, held_out: float, seed: int) -> np.ndarray:
    """Sorted indices of the examples to train on when a fraction is held out.

    These are the examples that ``avalanche_compress.ValidationPlugin`` leaves for training when
    it has the same fraction and seed, so all strategies see the same ones.

    :param examples: number of examples.
    :param held_out: fraction to leave out, rounded to whole examples.
    :param seed: of the drawing.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(examples, generator=generator).numpy()
    return np.sort(drawn[round(examples * held_out) :])


def equal_groups(images: Images, tasks: int) -> list[list[int]]:
    """The classes of a data set, in ascending order, equally many for each task.

    :param images: the data set.
    :param tasks: number of tasks.
    :raises ValueError: if the classes cannot be divided so.
    """
    classes = sorted(np.unique(images.train[1]).tolist())
    if not 0 < tasks <= len(classes) or len(classes) % tasks:
        raise ValueError(
            f"{len(classes)} classes do not make {tasks} equal tasks: give a divisor of "
            f"{len(classes)}."
        )
    per_task = len(classes) // tasks
    return [classes[i : i + per_task] for i in range(0, len(classes), per_task)]


def split_classes(
    request: StreamRequest, images: Images, groups: Sequence[Sequence[int]]
) -> Stream:
    """A stream whose tasks are different classes of one data set.

    :param request: which stream it is.
    :param images: the data set.
    :param groups: the classes of each task, in ascending order.
    :raises ValueError: if the request is for other numbers of tasks.
    """
    classes = sorted(number for group in groups for number in group)
    order = _checked(request, len(groups)).task_order()
    tasks = [list(groups[task]) for task in order]
    parts = []
    for position, chosen in enumerate(tasks[: request.first]):
        label, numbered = (0, classes) if request.scenario == "class" else (position, chosen)
        part = partial(cut, images, classes=chosen, label=label, numbered=numbered)
        parts.append(_train_and_test(request, images, position, part))
    benchmark = dataset_benchmark(*map(list, zip(*parts)))
    return Stream(request.stream, benchmark, tasks, images.shape, order, request.scenario)


def same_classes(
    request: StreamRequest, variants: Sequence[tuple[Images, np.ndarray | None]]
) -> Stream:
    """A stream whose tasks have ten classes each, with the numbers 0 to 9.

    In the class scenario nobody says which variant a sample is of; one head has the ten classes.

    :param request: which stream it is.
    :param variants: of each task, the data set and the permutation of its bytes, see
        :class:`PixelDataset`.
    :raises ValueError: if the request is for other numbers of tasks.
    """
    order = _checked(request, len(variants)).task_order()
    ten = list(range(10))
    parts = []
    for position, task in enumerate(order[: request.first]):
        images, permutation = variants[task]
        label = 0 if request.scenario == "class" else position
        part = partial(cut, images, classes=ten, label=label, permutation=permutation)
        parts.append(_train_and_test(request, images, position, part))
    benchmark, shape = dataset_benchmark(*map(list, zip(*parts))), variants[0][0].shape
    return Stream(request.stream, benchmark, [ten] * len(order), shape, order, request.scenario)


def _train_and_test(
    request: StreamRequest,
    images: Images,
    position: int,
    part: Callable[[tuple[Pixels, Labels]], PixelDataset],
) -> tuple[PixelDataset, PixelDataset]:
    """What an experience is trained on, and what it is tested on."""
    seed, whole = request.seed + position, part(images.train)
    kept = kept_rows(len(whole), request.tuning, seed)
    asked = np.setdiff1d(np.arange(len(whole)), kept)
    trained = kept[kept_rows(len(kept), request.held_out, seed)]
    return whole.subset(trained), whole.subset(asked) if request.tuning else part(images.test)


def _checked(request: StreamRequest, tasks: int) -> StreamRequest:
    if request.tasks != tasks:
        raise ValueError(f"{request.stream} has {tasks} tasks here, but {request.tasks} are asked.")
    return request


def cut(
    images: Images,
    part: tuple[Pixels, Labels],
    classes: Sequence[int],
    label: int,
    permutation: np.ndarray | None = None,
    numbered: Sequence[int] | None = None,
) -> PixelDataset:
    """The examples of some classes, which are numbered by their place in ``numbered``."""
    pixels, labels = part
    rows = np.flatnonzero(np.isin(labels, classes))
    targets = np.searchsorted(classes if numbered is None else numbered, labels[rows])
    return PixelDataset(pixels, rows, targets, label, images.values, images.shape, permutation)


def _channel_offsets(shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    return np.repeat(256 * np.arange(channels), height * width)
