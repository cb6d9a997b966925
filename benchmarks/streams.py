"""Streams of tasks, held in memory as bytes and normalised on access."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, Sequence

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark
from torch.utils.data import Dataset

from benchmarks.images import (
    Images,
    Labels,
    Pixels,
    load_mnist,
    load_tiny_imagenet,
    value_table,
)

SCENARIOS = ("task", "class")

Order = Optional[Sequence[int]]

PUBLISHED_ORDERS = {
    10: (
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        (1, 7, 4, 5, 2, 0, 8, 6, 9, 3),
        (7, 0, 5, 1, 8, 4, 3, 6, 2, 9),
        (5, 8, 2, 9, 0, 4, 3, 7, 6, 1),
        (2, 9, 5, 4, 8, 0, 6, 1, 3, 7),
    ),
    20: (
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19),
        (15, 12, 5, 9, 7, 16, 18, 17, 1, 0, 3, 8, 11, 14, 10, 6, 2, 4, 13, 19),
        (17, 1, 19, 18, 12, 7, 6, 0, 11, 15, 10, 5, 13, 3, 9, 16, 4, 14, 2, 8),
        (11, 9, 6, 5, 12, 4, 0, 10, 13, 7, 14, 3, 15, 16, 8, 1, 2, 19, 18, 17),
        (6, 14, 0, 11, 12, 17, 13, 4, 9, 1, 7, 19, 8, 10, 3, 15, 18, 5, 2, 16),
    ),
}
"""Orders A to E of 10 and of 20 tasks in the public code of APD and of HALRP (CIFAR-100)."""


@dataclass(frozen=True)
class Budget:
    """What every strategy may spend on one task of a stream.

    :param epochs: epochs per task.
    :param train_mb_size: examples per training batch.
    :param lr: learning rate of Adam.
    :param validation_fraction: part of each task's training set that no strategy trains on.
    :param eval_mb_size: examples per batch in evaluation.
    """

    epochs: int
    train_mb_size: int
    lr: float
    validation_fraction: float = 0.1
    eval_mb_size: int = 500


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


@dataclass(frozen=True)
class StreamEntry:
    """How to build a registered stream, and what is spent on it by default.

    :param build: ``(data_dir, seed, held_out) -> Stream``; ``held_out`` is the fraction of each
        training set that is left out. It takes ``order=`` as well, a permutation of its tasks, and
        with several scenarios ``scenario=``.
    :param backbone: name of its default backbone.
    :param budget: its default budget.
    :param scenarios: those that it makes sense in.
    """

    build: Callable[..., Stream]
    backbone: str
    budget: Budget
    scenarios: tuple[str, ...] = ("task",)


class PixelDataset(Dataset):
    """Images of one task: shared bytes, a lookup table for the values, maybe a permutation.

    The bytes are kept once for all tasks; an image becomes ``float32 [channels, height, width]``
    when it is asked for, in some 5 microseconds. Ten permuted copies of MNIST would be 1.9 GB.

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


def split_digits(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    scenario: str = "task",
    *,
    order: Order = None,
) -> Stream:
    """scikit-learn's 1,797 handwritten digits (8 x 8), five tasks of two classes, no download.

    70 % of each digit are for training. Values are divided by 16, then standardised by the mean
    and deviation of the training pixels.

    :param data_dir: not used.
    :param seed: of the split into train, test and held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`Stream`.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        digits.data.astype(np.uint8),
        digits.target.astype(np.int64),
        test_size=0.3,
        stratify=digits.target,
        random_state=seed,
    )
    scaled = train_x / 16
    values = value_table(16, scaled.mean(), scaled.std())
    images = Images((train_x, train_y), (test_x, test_y), values, (1, 8, 8))
    return _split_classes("split_digits", images, 2, seed, held_out, order, scenario)


def split_mnist(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    scenario: str = "task",
    *,
    order: Order = None,
) -> Stream:
    """MNIST, five tasks of two digits.

    :param data_dir: folder that holds ``MNIST/raw``; downloaded to it when absent.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`Stream`.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    images = load_mnist(data_dir)
    return _split_classes("split_mnist", images, 2, seed, held_out, order, scenario)


def split_tiny_imagenet(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    tasks: int = 20,
    per_task: int = 5,
    size: int = 32,
    *,
    order: Order = None,
) -> Stream:
    """The first 100 classes of TinyImageNet (the order of ``wnids.txt``) as 20 tasks of five.

    500 training and 50 test images a class, from 64 x 64 pixels down to the mean of each 2 x 2,
    without augmentation. See :func:`benchmarks.images.load_tiny_imagenet`.

    :param data_dir: holds ``tiny-imagenet-200`` or ``tiny-imagenet-200.tar.gz``.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param tasks: number of tasks.
    :param per_task: classes of each.
    :param size: height and width of the images.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    images = load_tiny_imagenet(data_dir, tasks * per_task, size)
    return _split_classes("split_tiny_imagenet", images, per_task, seed, held_out, order)


def permuted_mnist(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    tasks: int = 10,
    *,
    order: Order = None,
) -> Stream:
    """MNIST under ten fixed permutations of the pixels, ten classes each, with task labels.

    Every task is permuted, the first too, by the seeds of the public WSN code.

    :param data_dir: folder that holds ``MNIST/raw``; downloaded to it when absent.
    :param seed: of the permutations and of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param tasks: number of permutations.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    images = load_mnist(data_dir)
    permutations = wsn_permutations(seed, tasks, 784)
    return _permuted("permuted_mnist", images, permutations, seed, held_out, order)


def permuted_mnist_32(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    tasks: int = 5,
    *,
    order: Order = None,
) -> Stream:
    """The first of ten permutations of MNIST as 3 x 32 x 32, by the seeds of the HALRP code.

    Images are resized to 32 x 32 (bilinear), repeated in three channels and permuted as one vector,
    so channels differ. The public code holds the first images of the training set out; here they
    are drawn.

    :param data_dir: folder that holds ``MNIST/raw``; downloaded to it when absent.
    :param seed: of the permutations and of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param tasks: number of permutations; with more than ten, all are drawn anew.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    grey = load_mnist(data_dir, size=32)
    images = replace(grey, shape=(3, 32, 32))
    # The channels are equal before the permutation: number n is byte n modulo 1024 of the image.
    drawn = wsn_permutations(seed, max(tasks, 10), 3 * 1024)[:tasks]
    permutations = [permutation % 1024 for permutation in drawn]
    return _permuted("permuted_mnist_32", images, permutations, seed, held_out, order)


STREAMS: dict[str, StreamEntry] = {
    "split_digits": StreamEntry(split_digits, "mlp", Budget(20, 16, 1e-3), SCENARIOS),
    "split_mnist": StreamEntry(split_mnist, "mlp", Budget(3, 64, 1e-3), SCENARIOS),
    "split_tiny_imagenet": StreamEntry(
        split_tiny_imagenet, "cacl_net", Budget(10, 64, 1e-3, validation_fraction=0.0)
    ),
    "permuted_mnist": StreamEntry(permuted_mnist, "mlp", Budget(5, 10, 1e-3)),
    "permuted_mnist_32": StreamEntry(
        permuted_mnist_32, "lenet_bn", Budget(12, 128, 1e-3, validation_fraction=0.2)
    ),
}
"""Streams by name; budgets of MNIST's permutations are those of the public WSN and HALRP codes."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like ``name``.

    >>> nearest("split_digit", ["permuted_mnist", "split_digits"])
    'split_digits'
    """
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def wsn_permutations(seed: int, tasks: int, pixels: int) -> list[np.ndarray]:
    """The pixel permutations of the public WSN code (``dataloader/pmnist.py``) for a seed."""
    shuffled = _shuffled(tasks, seed)
    return [_shuffled(pixels, int(drawn) * 100 + task) for task, drawn in enumerate(shuffled)]


def task_orders(tasks: int, count: int, seed: int = 0) -> list[list[int]]:
    """Orders to train tasks in, all different while there are so many.

    First the published ones (:data:`PUBLISHED_ORDERS`), or the tasks as they are numbered, then
    seeded permutations.

    :param tasks: number of tasks.
    :param count: number of orders.
    :param seed: of the permutations that follow.

    >>> task_orders(10, 2)[1]
    [1, 7, 4, 5, 2, 0, 8, 6, 9, 3]
    """
    published = PUBLISHED_ORDERS.get(tasks, (range(tasks),))
    orders = [list(order) for order in published[:count]]
    generator = np.random.RandomState(seed)
    while len(orders) < count:
        drawn = generator.permutation(tasks).tolist()
        if drawn not in orders or len(orders) >= math.factorial(tasks):
            orders.append(drawn)
    return orders


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


def _shuffled(count: int, seed: int) -> np.ndarray:
    indices = np.arange(count)
    np.random.RandomState(seed).shuffle(indices)
    return indices


def _channel_offsets(shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    return np.repeat(256 * np.arange(channels), height * width)


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


def _split_classes(
    name: str,
    images: Images,
    per_task: int,
    seed: int,
    held_out: float,
    order: Order,
    scenario: str = "task",
) -> Stream:
    classes = sorted(np.unique(images.train[1]).tolist())
    groups = [classes[i : i + per_task] for i in range(0, len(classes), per_task)]
    order = _ordered(order, len(groups))
    tasks = [groups[task] for task in order]
    train, test = [], []
    for position, chosen in enumerate(tasks):
        label, numbered = (0, classes) if scenario == "class" else (position, chosen)
        names = {"label": label, "numbered": numbered}
        train.append(
            _cut(images, images.train, chosen, **names, held_out=held_out, seed=seed + position)
        )
        test.append(_cut(images, images.test, chosen, **names))
    return Stream(name, dataset_benchmark(train, test), tasks, images.shape, order, scenario)


def _permuted(
    name: str,
    images: Images,
    permutations: Sequence[np.ndarray],
    seed: int,
    held_out: float,
    order: Order,
) -> Stream:
    order = _ordered(order, len(permutations))
    every_class = list(range(10))
    train, test = [], []
    for label, task in enumerate(order):
        pixels = {"permutation": permutations[task]}
        train.append(
            _cut(images, images.train, every_class, label, held_out, seed + label, **pixels)
        )
        test.append(_cut(images, images.test, every_class, label, **pixels))
    tasks = [every_class] * len(order)
    return Stream(name, dataset_benchmark(train, test), tasks, images.shape, order)


def _cut(
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
