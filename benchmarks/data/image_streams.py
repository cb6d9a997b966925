"""Streams of coloured images and of Omniglot, from files that are too large to come along."""

from __future__ import annotations

from benchmarks.data.five_datasets import channel_copies, load_five_datasets
from benchmarks.data.images import load_tiny_imagenet, shared
from benchmarks.data.pickled_images import load_cifar100, load_mini_imagenet
from benchmarks.data.png_folders import load_omniglot_rotation
from benchmarks.data.splits import Stream, StreamRequest, equal_groups, same_classes, split_classes

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


def split_cifar100(request: StreamRequest) -> Stream:
    """CIFAR-100 in tasks of equally many classes, as they are numbered, without augmentation.

    In ``cifar-100-python``, which is downloaded when absent; 10 or 20 tasks in the literature.
    """
    images = shared(load_cifar100, request.data_dir)
    return split_classes(request, images, equal_groups(images, request.tasks))


def cifar100_superclasses(request: StreamRequest) -> Stream:
    """CIFAR-100, each of its superclasses a task of five classes, without augmentation.

    In ``cifar-100-python``, which is downloaded when absent.
    """
    groups = list(SUPERCLASSES.values())[: request.tasks]
    return split_classes(request, shared(load_cifar100, request.data_dir), groups)


def split_tiny_imagenet(request: StreamRequest, per_task: int = 5) -> Stream:
    """TinyImageNet's first classes (the order of ``wnids.txt``) at 32 pixels.

    500 training and 50 test images a class, from 64 x 64 pixels down to the mean of each 2 x 2,
    without augmentation. In ``tiny-imagenet-200`` or ``tiny-imagenet-200.tar.gz``, see
    :func:`benchmarks.data.images.load_tiny_imagenet`.

    :param request: which stream it is.
    :param per_task: classes of each task.
    """
    images = shared(load_tiny_imagenet, request.data_dir, per_task * request.tasks, 32)
    return split_classes(request, images, equal_groups(images, request.tasks))


def split_tiny_imagenet_200(request: StreamRequest, size: int = 64) -> Stream:
    """All 200 classes of TinyImageNet (the order of ``wnids.txt``), without augmentation.

    500 training and 50 test images a class, which are 1.4 GB of bytes at 64 pixels, 340 MB at 32;
    10, 20 or 40 tasks in the literature. In ``tiny-imagenet-200`` or ``tiny-imagenet-200.tar.gz``.

    :param request: which stream it is.
    :param size: height and width of the images, 64 or 32.
    """
    images = shared(load_tiny_imagenet, request.data_dir, 200, size)
    return split_classes(request, images, equal_groups(images, request.tasks))


def five_datasets(request: StreamRequest) -> Stream:
    """CIFAR-10, MNIST, SVHN, FashionMNIST and notMNIST, ten classes of 3 x 32 x 32 each.

    Without augmentation. Each is normalised by its own statistics; grey images are padded by 2 and
    repeated in three channels. In the layout of torchvision and in ``notMNIST_small``; all but the
    last are downloaded when absent. See :func:`benchmarks.data.five_datasets.load_five_datasets`.
    """
    sets = shared(load_five_datasets, request.data_dir)[: request.tasks]
    return same_classes(request, [(images, channel_copies(images)) for images in sets])


def omniglot_rotation(request: StreamRequest) -> Stream:
    """The first 1,200 characters of Omniglot in tasks of twelve, drawings turned by four angles.

    60 training and 20 test images of 28 x 28 a character. In ``omniglot-py``, which is downloaded
    when absent. See :func:`benchmarks.data.png_folders.load_omniglot_rotation`, also for what WSN
    does otherwise.
    """
    images = shared(load_omniglot_rotation, request.data_dir, CHARACTERS_PER_TASK * request.tasks)
    return split_classes(request, images, equal_groups(images, request.tasks))


def mini_imagenet(request: StreamRequest) -> Stream:
    """mini-ImageNet's 100 classes of 84 x 84 pixels as 20 tasks of five, without augmentation.

    500 training and 100 test images a class; the bytes are 1.3 GB. In ``mini-imagenet``, which
    cannot be downloaded, see :func:`benchmarks.data.pickled_images.load_mini_imagenet`.
    """
    images = shared(load_mini_imagenet, request.data_dir)
    return split_classes(request, images, equal_groups(images, request.tasks))
