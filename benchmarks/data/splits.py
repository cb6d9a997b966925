"""Cutting a data set into tasks, held in memory as bytes and normalised on access."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional, Sequence

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark
from torch.utils.data import Dataset

from avalanche_compress import ByteValues, TensorSamples
from benchmarks.data.images import Images, Labels, Pixels

SCENARIOS = ("task", "class")

Order = Optional[Sequence[int]]


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


class PixelDataset(Dataset):
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
    name: str,
    images: Images,
    groups: Sequence[Sequence[int]],
    seed: int,
    held_out: float,
    order: Order,
    scenario: str = "task",
) -> Stream:
    """A stream whose tasks are different classes of one data set.

    :param name: of the stream.
    :param images: the data set.
    :param groups: the classes of each task, in ascending order.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    :param scenario: ``"task"`` or ``"class"``, see :class:`Stream`.
    :raises ValueError: if the order is no permutation of the tasks.
    """
    classes = sorted(number for group in groups for number in group)
    order = _ordered(order, len(groups))
    tasks = [list(groups[task]) for task in order]
    train, test = [], []
    for position, chosen in enumerate(tasks):
        label, numbered = (0, classes) if scenario == "class" else (position, chosen)
        own = partial(cut, images, classes=chosen, label=label, numbered=numbered)
        train.append(own(images.train, held_out=held_out, seed=seed + position))
        test.append(own(images.test))
    return Stream(name, dataset_benchmark(train, test), tasks, images.shape, order, scenario)


def same_classes(
    name: str,
    guises: Sequence[tuple[Images, np.ndarray | None]],
    seed: int,
    held_out: float,
    order: Order,
) -> Stream:
    """A stream whose tasks have ten classes each, with the numbers 0 to 9.

    :param name: of the stream.
    :param guises: of each task, the data set and the permutation of its bytes, see
        :class:`PixelDataset`.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    :raises ValueError: if the order is no permutation of the tasks.
    """
    order = _ordered(order, len(guises))
    every_class = list(range(10))
    train, test = [], []
    for label, task in enumerate(order):
        images, permutation = guises[task]
        own = partial(cut, images, classes=every_class, label=label, permutation=permutation)
        train.append(own(images.train, held_out=held_out, seed=seed + label))
        test.append(own(images.test))
    tasks = [every_class] * len(order)
    return Stream(name, dataset_benchmark(train, test), tasks, guises[0][0].shape, order)


def cut(
    images: Images,
    part: tuple[Pixels, Labels],
    classes: Sequence[int],
    label: int,
    held_out: float = 0.0,
    seed: int = 0,
    permutation: np.ndarray | None = None,
    numbered: Sequence[int] | None = None,
) -> PixelDataset:
    """The examples of some classes, which are numbered by their place in ``numbered``."""
    pixels, labels = part
    rows = np.flatnonzero(np.isin(labels, classes))
    rows = rows[kept_rows(len(rows), held_out, seed)]
    targets = np.searchsorted(classes if numbered is None else numbered, labels[rows])
    return PixelDataset(pixels, rows, targets, label, images.values, images.shape, permutation)


def _ordered(order: Order, tasks: int) -> list[int]:
    numbered = list(range(tasks))
    if order is None:
        return numbered
    if sorted(order) != numbered:
        raise ValueError(
            f"order={list(order)} is no permutation of {tasks} tasks: give each number from 0 to "
            f"{tasks - 1} once."
        )
    return [int(task) for task in order]


def _channel_offsets(shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    return np.repeat(256 * np.arange(channels), height * width)
