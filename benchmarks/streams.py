"""Streams of tasks, held in memory as bytes and normalised on access."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark
from torch.utils.data import Dataset

Pixels = np.ndarray  # uint8 [examples, height * width]
Labels = np.ndarray  # int64 [examples]

SCENARIOS = ("task", "class")

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


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
    :param tasks: the original class ids of each task.
    :param input_shape: ``(channels, height, width)``.
    :param order: the task index that each experience holds.
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
        training set that is left out. With several scenarios it takes ``scenario=`` as well.
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

    :param pixels: ``uint8 [examples, height * width]``.
    :param rows: the examples of this task.
    :param targets: their labels, from 0.
    :param task: the task label of all of them.
    :param values: ``float32 [256]``, the normalised value of each byte.
    :param shape: ``(channels, height, width)``.
    :param permutation: order of the pixels, or None.
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

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.pixels[self.rows[index]]
        if self.permutation is not None:
            image = image.take(self.permutation)
        return torch.from_numpy(self.values.take(image)).view(self.shape), self.targets[index]


@dataclass(frozen=True)
class _Images:
    """Train and test images of a data set, before it is cut into tasks."""

    train: tuple[Pixels, Labels]
    test: tuple[Pixels, Labels]
    values: np.ndarray
    shape: tuple[int, int, int]


def split_digits(
    data_dir: Path, seed: int, held_out: float = 0.0, scenario: str = "task"
) -> Stream:
    """scikit-learn's 1,797 handwritten digits (8 x 8), five tasks of two classes, no download.

    70 % of each digit are for training. Values are divided by 16, then standardised by the mean
    and deviation of the training pixels.

    :param data_dir: not used.
    :param seed: of the split into train, test and held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`Stream`.
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
    values = _value_table(16, scaled.mean(), scaled.std())
    images = _Images((train_x, train_y), (test_x, test_y), values, (1, 8, 8))
    return _split_classes("split_digits", images, 2, seed, held_out, scenario)


def split_mnist(data_dir: Path, seed: int, held_out: float = 0.0, scenario: str = "task") -> Stream:
    """MNIST, five tasks of two digits.

    :param data_dir: folder that holds ``MNIST/raw``; downloaded to it when absent.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`Stream`.
    """
    return _split_classes("split_mnist", _load_mnist(data_dir), 2, seed, held_out, scenario)


def permuted_mnist(data_dir: Path, seed: int, held_out: float = 0.0, tasks: int = 10) -> Stream:
    """MNIST under ten fixed permutations of the pixels, ten classes each, with task labels.

    Every task is permuted, the first too, by the seeds of the public WSN code.

    :param data_dir: folder that holds ``MNIST/raw``; downloaded to it when absent.
    :param seed: of the permutations and of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param tasks: number of permutations.
    """
    images = _load_mnist(data_dir)
    every_class = list(range(10))
    train, test = [], []
    for task, permutation in enumerate(wsn_permutations(seed, tasks, 784)):
        train.append(
            _cut(images, images.train, every_class, task, held_out, seed + task, permutation)
        )
        test.append(_cut(images, images.test, every_class, task, permutation=permutation))
    return _stream("permuted_mnist", train, test, [every_class] * tasks, images.shape)


STREAMS: dict[str, StreamEntry] = {
    "split_digits": StreamEntry(split_digits, "mlp", Budget(20, 16, 1e-3), SCENARIOS),
    "split_mnist": StreamEntry(split_mnist, "mlp", Budget(3, 64, 1e-3), SCENARIOS),
    "permuted_mnist": StreamEntry(permuted_mnist, "mlp", Budget(5, 10, 1e-3)),
}
"""Streams by name; budgets of MNIST's permutations are those of the public WSN code."""


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


def _value_table(largest: int, mean: float, std: float) -> np.ndarray:
    return ((np.arange(256) / largest - mean) / std).astype(np.float32)


def _load_mnist(data_dir: Path) -> _Images:
    from torchvision.datasets import MNIST

    def load(train: bool) -> tuple[Pixels, Labels]:
        part = MNIST(str(data_dir), train=train, download=not _has_mnist(data_dir))
        return part.data.view(len(part.data), -1).numpy(), part.targets.numpy()

    try:
        train, test = load(True), load(False)
    except Exception as reason:
        files = ", ".join(MNIST_FILES)
        raise FileNotFoundError(
            f"MNIST is not in {data_dir} and could not be downloaded. Put {files} (unpacked) "
            f"into {Path(data_dir) / 'MNIST' / 'raw'}. The download said: {reason}"
        ) from reason
    return _Images(train, test, _value_table(255, 0.1307, 0.3081), (1, 28, 28))


def _has_mnist(data_dir: Path) -> bool:
    return all((Path(data_dir) / "MNIST" / "raw" / name).is_file() for name in MNIST_FILES)


def _split_classes(
    name: str, images: _Images, per_task: int, seed: int, held_out: float, scenario: str
) -> Stream:
    classes = sorted(np.unique(images.train[1]).tolist())
    tasks = [classes[i : i + per_task] for i in range(0, len(classes), per_task)]
    train, test = [], []
    for task, chosen in enumerate(tasks):
        label, numbered = (0, classes) if scenario == "class" else (task, chosen)
        names = {"label": label, "numbered": numbered}
        train.append(
            _cut(images, images.train, chosen, **names, held_out=held_out, seed=seed + task)
        )
        test.append(_cut(images, images.test, chosen, **names))
    return _stream(name, train, test, tasks, images.shape, scenario)


def _cut(
    images: _Images,
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


def _stream(
    name: str,
    train: list[PixelDataset],
    test: list[PixelDataset],
    tasks: list[list[int]],
    shape: tuple[int, int, int],
    scenario: str = "task",
) -> Stream:
    benchmark = dataset_benchmark(train, test)
    return Stream(name, benchmark, tasks, shape, list(range(len(tasks))), scenario)
