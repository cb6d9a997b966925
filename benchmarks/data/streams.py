"""The streams of the comparison by name, and what is spent on each of their tasks."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.choices import SCENARIOS
from benchmarks.data.image_streams import (
    cifar100_superclasses,
    five_datasets,
    mini_imagenet,
    omniglot_rotation,
    split_cifar100,
    split_tiny_imagenet,
    split_tiny_imagenet_200,
)
from benchmarks.data.images import Images, load_mnist, shared, value_table
from benchmarks.data.splits import (
    Stream,
    StreamRequest,
    equal_groups,
    same_classes,
    split_classes,
)

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
    :param lr: learning rate of the first epoch, unless a recipe has its own.
    :param validation_fraction: part of each task's training set that no strategy trains on.
    :param eval_mb_size: examples per batch in evaluation.
    :param lr_decay: what the learning rate is multiplied by over each epoch of a phase, see
        :class:`~benchmarks.runs.settings.LearningRateDecay`.
    :param bf16: whether training computes in bfloat16, with images channels last.
    """

    epochs: int
    train_mb_size: int
    lr: float
    validation_fraction: float = 0.1
    eval_mb_size: int = 500
    lr_decay: float = 1.0
    bf16: bool = False


@dataclass(frozen=True)
class DataSize:
    """How large a stream's data are, for an estimate of memory.

    :param images: for training and test, of all tasks; those that tasks share count once.
    :param task_images: for training, of the largest task.
    :param shape: ``(channels, height, width)``.
    """

    images: int
    task_images: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class StreamEntry:
    """How to build a registered stream, and what is spent on it by default.

    :param build: makes the stream that is requested.
    :param backbone: name of its default backbone.
    :param budget: its default budget.
    :param tasks: how many it has by default.
    :param scenarios: those that it makes sense in.
    :param size: of its data; None: not known.
    """

    build: Callable[[StreamRequest], Stream]
    backbone: str
    budget: Budget
    tasks: int
    scenarios: tuple[str, ...] = ("task",)
    size: DataSize | None = None


def build_stream(request: StreamRequest) -> Stream:
    """Make a registered stream.

    :param request: which one.
    :raises ValueError: if it has no such scenario, order or number of tasks.
    """
    entry = STREAMS[request.stream]
    if request.scenario not in entry.scenarios:
        raise ValueError(
            f"{request.stream} has no {request.scenario} scenario: its tasks are the same classes, "
            "so there are no classes to add."
        )
    return entry.build(replace(request, tasks=request.tasks or entry.tasks))


def load_digits(seed: int) -> Images:
    """scikit-learn's 1,797 handwritten digits (8 x 8), which need no download.

    70 % of each digit are for training. Values are divided by 16, then standardised by the mean
    and deviation of the training pixels.

    :param seed: of the split into training and test images.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        digits.data.astype(np.uint8),
        digits.target.astype(np.int64),
        test_size=0.3,
        stratify=digits.target,
        random_state=seed,
    )
    scaled = train_x / 16
    values = value_table(16, scaled.mean(), scaled.std())
    return Images((train_x, train_y), (test_x, test_y), values, (1, 8, 8))


def split_digits(request: StreamRequest) -> Stream:
    """scikit-learn's digits, five tasks of two classes, see :func:`load_digits`."""
    images = shared(load_digits, request.seed)
    return split_classes(request, images, equal_groups(images, request.tasks))


def permuted_digits(request: StreamRequest) -> Stream:
    """scikit-learn's digits under ten permutations of the pixels, ten classes each.

    Every task is permuted, the first too; see :func:`load_digits`.
    """
    images = shared(load_digits, request.seed)
    drawn = wsn_permutations(request.seed, request.tasks, 64)
    return same_classes(request, [(images, permutation) for permutation in drawn])


def recurring_digits(request: StreamRequest) -> Stream:
    """Permuted digits of which each permutation comes again, with other training images.

    Tasks 0 to 4 are five permutations, tasks 5 to 9 the same ones; the first time with one half of
    the training images, then with the other. See :func:`permuted_digits`.
    """
    images = shared(load_digits, request.seed)
    x, y = images.train
    halves = [replace(images, train=(x[start::2], y[start::2])) for start in range(2)]
    drawn = wsn_permutations(request.seed, request.tasks // 2, 64)
    return same_classes(request, [(half, permuted) for half in halves for permuted in drawn])


def split_mnist(request: StreamRequest) -> Stream:
    """MNIST, five tasks of two digits or ten of one; in ``MNIST/raw``, downloaded when absent."""
    images = shared(load_mnist, request.data_dir, 28)
    return split_classes(request, images, equal_groups(images, request.tasks))


def permuted_mnist(request: StreamRequest) -> Stream:
    """MNIST under ten permutations of the pixels, ten classes each, with task labels.

    Every task is permuted, the first too, by the seeds of the public WSN code. In ``MNIST/raw``,
    downloaded when absent.
    """
    images = shared(load_mnist, request.data_dir, 28)
    drawn = wsn_permutations(request.seed, request.tasks, 784)
    return same_classes(request, [(images, permutation) for permutation in drawn])


def permuted_mnist_32(request: StreamRequest) -> Stream:
    """The first of ten permutations of MNIST as 3 x 32 x 32, by the seeds of the HALRP code.

    Images are resized to 32 x 32 (bilinear), repeated in three channels and permuted as one vector,
    so channels differ. With more than ten tasks, other permutations are drawn. The public code
    holds the first images of the training set out; here they are drawn. In ``MNIST/raw``,
    downloaded when absent.
    """
    grey = shared(load_mnist, request.data_dir, 32)
    images = replace(grey, shape=(3, 32, 32))
    # The channels are equal before the permutation: number n is byte n modulo 1024 of the image.
    drawn = wsn_permutations(request.seed, max(request.tasks, 10), 3 * 1024)[: request.tasks]
    return same_classes(request, [(images, permutation % 1024) for permutation in drawn])


_DIGITS, _MNIST, _CIFAR, _TINY = (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)

STREAMS: dict[str, StreamEntry] = {
    "split_digits": StreamEntry(
        split_digits, "mlp", Budget(20, 16, 1e-3), 5, SCENARIOS, DataSize(1797, 254, _DIGITS)
    ),
    "permuted_digits": StreamEntry(
        permuted_digits, "mlp", Budget(8, 32, 2e-3), 10, SCENARIOS, DataSize(1797, 1257, _DIGITS)
    ),
    "recurring_digits": StreamEntry(
        recurring_digits, "mlp", Budget(8, 16, 2e-3), 10, size=DataSize(1797, 629, _DIGITS)
    ),
    "split_mnist": StreamEntry(
        split_mnist, "mlp", Budget(3, 64, 1e-3), 5, SCENARIOS, DataSize(70000, 12665, _MNIST)
    ),
    "split_mnist_10": StreamEntry(
        split_mnist, "mlp", Budget(3, 64, 1e-3), 10, ("class",), DataSize(70000, 6742, _MNIST)
    ),
    "permuted_mnist": StreamEntry(
        permuted_mnist, "mlp", Budget(5, 10, 1e-3), 10, size=DataSize(70000, 60000, _MNIST)
    ),
    "permuted_mnist_32": StreamEntry(
        permuted_mnist_32,
        "lenet_bn",
        Budget(12, 128, 1e-3, 0.2, lr_decay=0.54),
        5,
        size=DataSize(70000, 60000, _CIFAR),
    ),
    "split_cifar100_10": StreamEntry(
        split_cifar100,
        "alexnet_wsn",
        Budget(200, 64, 1e-3, 0.05),
        10,
        SCENARIOS,
        DataSize(60000, 5000, _CIFAR),
    ),
    "split_cifar100_20": StreamEntry(
        split_cifar100,
        "cacl_net",
        Budget(200, 64, 1e-3, 0.0),
        20,
        SCENARIOS,
        DataSize(60000, 2500, _CIFAR),
    ),
    "cifar100_superclasses": StreamEntry(
        cifar100_superclasses,
        "lenet_bn",
        Budget(20, 128, 1e-3, 0.2),
        20,
        SCENARIOS,
        DataSize(60000, 2500, _CIFAR),
    ),
    "split_tiny_imagenet": StreamEntry(
        split_tiny_imagenet,
        "cacl_net",
        Budget(10, 64, 1e-3, 0.0),
        20,
        SCENARIOS,
        DataSize(55000, 2500, _CIFAR),
    ),
    "split_tiny_imagenet_10": StreamEntry(
        split_tiny_imagenet_200,
        "tinynet",
        Budget(30, 64, 1e-3),
        10,
        SCENARIOS,
        DataSize(110000, 10000, _TINY),
    ),
    "split_tiny_imagenet_20": StreamEntry(
        split_tiny_imagenet_200,
        "alexnet",
        Budget(50, 32, 1e-3),
        20,
        SCENARIOS,
        DataSize(110000, 5000, _TINY),
    ),
    "split_tiny_imagenet_40": StreamEntry(
        split_tiny_imagenet_200,
        "tinynet",
        Budget(10, 10, 1e-3),
        40,
        SCENARIOS,
        DataSize(110000, 2500, _TINY),
    ),
    "five_datasets": StreamEntry(
        five_datasets,
        "alexnet",
        Budget(12, 128, 1e-3, 0.2),
        5,
        size=DataSize(318013, 73257, _CIFAR),
    ),
    "omniglot_rotation": StreamEntry(
        omniglot_rotation,
        "lenet_large",
        Budget(100, 64, 1e-3, 0.05),
        100,
        SCENARIOS,
        DataSize(96000, 720, _MNIST),
    ),
    "mini_imagenet": StreamEntry(
        mini_imagenet,
        "cacl_net",
        Budget(200, 64, 1e-3, 0.0),
        20,
        SCENARIOS,
        DataSize(60000, 2500, (3, 84, 84)),
    ),
}
"""Streams by name; backbones and budgets are those of public codes where there are some:

========================== =================================================
stream                     epochs, batch, learning rate and validation data
========================== =================================================
``permuted_mnist``         WSN
``permuted_mnist_32``      HALRP
``split_cifar100_10``      WSN
``split_cifar100_20``      CACL (all training data)
``cifar100_superclasses``  HALRP
``split_tiny_imagenet``    ours
``split_tiny_imagenet_10`` Avalanche's PackNet baseline (epochs), ours
``split_tiny_imagenet_20`` HALRP
``split_tiny_imagenet_40`` WSN
``five_datasets``          HALRP
``omniglot_rotation``      WSN
``mini_imagenet``          CACL (all training data)
========================== =================================================
"""


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


def _shuffled(count: int, seed: int) -> np.ndarray:
    indices = np.arange(count)
    np.random.RandomState(seed).shuffle(indices)
    return indices
