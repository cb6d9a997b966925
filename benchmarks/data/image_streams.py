"""Streams of coloured images and of Omniglot, from files that are too large to come along."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data.five_datasets import channel_copies, load_five_datasets
from benchmarks.data.images import load_tiny_imagenet
from benchmarks.data.pickled_images import load_cifar100, load_mini_imagenet
from benchmarks.data.png_folders import load_omniglot_rotation
from benchmarks.data.splits import Order, Stream, equal_groups, same_classes, split_classes

SUPERCLASSES = {
    "aquatic mammals": (4, 30, 55, 72, 95),
    "fish": (1, 32, 67, 73, 91),
    "flowers": (54, 62, 70, 82, 92),
    "food containers": (9, 10, 16, 28, 61),
    "fruit and vegetables": (0, 51, 53, 57, 83),
    "household electrical devices": (22, 39, 40, 86, 87),
    "household furniture": (5, 20, 25, 84, 94),
    "insects": (6, 7, 14, 18, 24),
    "large carnivores": (3, 42, 43, 88, 97),
    "large man-made outdoor things": (12, 17, 37, 68, 76),
    "large natural outdoor scenes": (23, 33, 49, 60, 71),
    "large omnivores and herbivores": (15, 19, 21, 31, 38),
    "medium-sized mammals": (34, 63, 64, 66, 75),
    "non-insect invertebrates": (26, 45, 77, 79, 99),
    "people": (2, 11, 35, 46, 98),
    "reptiles": (27, 29, 44, 78, 93),
    "small mammals": (36, 50, 65, 74, 80),
    "trees": (47, 52, 56, 59, 96),
    "vehicles 1": (8, 13, 48, 58, 90),
    "vehicles 2": (41, 69, 81, 85, 89),
}
"""The fine labels of CIFAR-100's superclasses, in the order of APD, WSN and HALRP."""

CHARACTERS_PER_TASK = 12


def split_cifar100(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    scenario: str = "task",
    tasks: int = 10,
    *,
    order: Order = None,
) -> Stream:
    """CIFAR-100 in tasks of equally many classes, as they are numbered, without augmentation.

    :param data_dir: folder that holds ``cifar-100-python``; downloaded to it when absent.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`~benchmarks.data.splits.Stream`.
    :param tasks: number of tasks, 10 or 20 in the literature.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    images = load_cifar100(data_dir)
    groups = equal_groups(images, tasks)
    name = f"split_cifar100_{tasks}"
    return split_classes(name, images, groups, seed, held_out, order, scenario)


def cifar100_superclasses(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    scenario: str = "task",
    *,
    order: Order = None,
) -> Stream:
    """CIFAR-100, each of its 20 superclasses a task of five classes, without augmentation.

    :param data_dir: folder that holds ``cifar-100-python``; downloaded to it when absent.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`~benchmarks.data.splits.Stream`.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    images, groups = load_cifar100(data_dir), list(SUPERCLASSES.values())
    return split_classes("cifar100_superclasses", images, groups, seed, held_out, order, scenario)


def split_tiny_imagenet(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    scenario: str = "task",
    tasks: int = 20,
    per_task: int = 5,
    size: int = 32,
    *,
    order: Order = None,
) -> Stream:
    """The first 100 classes of TinyImageNet (the order of ``wnids.txt``) as 20 tasks of five.

    500 training and 50 test images a class, from 64 x 64 pixels down to the mean of each 2 x 2,
    without augmentation. See :func:`benchmarks.data.images.load_tiny_imagenet`.

    :param data_dir: holds ``tiny-imagenet-200`` or ``tiny-imagenet-200.tar.gz``.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`~benchmarks.data.splits.Stream`.
    :param tasks: number of tasks.
    :param per_task: classes of each.
    :param size: height and width of the images.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    images = load_tiny_imagenet(data_dir, tasks * per_task, size)
    groups = equal_groups(images, tasks)
    return split_classes("split_tiny_imagenet", images, groups, seed, held_out, order, scenario)


def split_tiny_imagenet_200(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    scenario: str = "task",
    tasks: int = 40,
    size: int = 64,
    *,
    order: Order = None,
) -> Stream:
    """All 200 classes of TinyImageNet (the order of ``wnids.txt``), without augmentation.

    500 training and 50 test images a class. The bytes are 1.4 GB at 64 pixels, 340 MB at 32.

    :param data_dir: holds ``tiny-imagenet-200`` or ``tiny-imagenet-200.tar.gz``.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`~benchmarks.data.splits.Stream`.
    :param tasks: number of tasks, 10, 20 or 40 in the literature.
    :param size: height and width of the images, 64 or 32.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    images = load_tiny_imagenet(data_dir, 200, size)
    groups = equal_groups(images, tasks)
    name = f"split_tiny_imagenet_{tasks}"
    return split_classes(name, images, groups, seed, held_out, order, scenario)


def five_datasets(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    *,
    order: Order = None,
) -> Stream:
    """CIFAR-10, MNIST, SVHN, FashionMNIST and notMNIST, ten classes of 3 x 32 x 32 each.

    Without augmentation. Each is normalised by its own statistics; grey images are padded by 2 and
    repeated in three channels. See :func:`benchmarks.data.five_datasets.load_five_datasets`.

    :param data_dir: holds the five in the layout of torchvision and ``notMNIST_small``; all but the
        last are downloaded to it when absent.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    guises = [(images, channel_copies(images)) for images in load_five_datasets(data_dir)]
    return same_classes("five_datasets", guises, seed, held_out, order)


def omniglot_rotation(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    scenario: str = "task",
    tasks: int = 100,
    *,
    order: Order = None,
) -> Stream:
    """The first 1,200 characters of Omniglot in tasks of twelve, drawings turned by four angles.

    60 training and 20 test images of 28 x 28 a character. See
    :func:`benchmarks.data.png_folders.load_omniglot_rotation`, also for what WSN does otherwise.

    :param data_dir: folder that holds ``omniglot-py``; downloaded to it when absent.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`~benchmarks.data.splits.Stream`.
    :param tasks: number of tasks.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    images = load_omniglot_rotation(data_dir, CHARACTERS_PER_TASK * tasks)
    groups = equal_groups(images, tasks)
    return split_classes("omniglot_rotation", images, groups, seed, held_out, order, scenario)


def mini_imagenet(
    data_dir: Path,
    seed: int,
    held_out: float = 0.0,
    scenario: str = "task",
    tasks: int = 20,
    *,
    order: Order = None,
) -> Stream:
    """mini-ImageNet's 100 classes of 84 x 84 pixels as 20 tasks of five, without augmentation.

    500 training and 100 test images a class; the bytes are 1.3 GB. See
    :func:`benchmarks.data.pickled_images.load_mini_imagenet`.

    :param data_dir: holds the folder ``mini-imagenet``, which cannot be downloaded.
    :param seed: of the held-out examples.
    :param held_out: fraction of each task's training set to leave out.
    :param scenario: ``"task"`` or ``"class"``, see :class:`~benchmarks.data.splits.Stream`.
    :param tasks: number of tasks.
    :param order: the task that each experience holds, a permutation; None: as they are numbered.
    """
    images = load_mini_imagenet(data_dir)
    groups = equal_groups(images, tasks)
    return split_classes("mini_imagenet", images, groups, seed, held_out, order, scenario)
