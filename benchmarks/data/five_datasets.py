"""CIFAR-10, MNIST, SVHN, FashionMNIST and notMNIST, all as 3 x 32 x 32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.data.images import (
    Images,
    Labels,
    Pixels,
    cached_with_labels,
    channel_tables,
    damaged,
    fetch,
    read_mnist,
    value_table,
)
from benchmarks.data.pickled_images import load_cifar10
from benchmarks.data.png_folders import load_notmnist

SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
SVHN_URL = "http://ufldl.stanford.edu/housenumbers"
SVHN_MEAN = (0.4377, 0.4438, 0.4728)
SVHN_STD = (0.198, 0.201, 0.197)


def load_five_datasets(data_dir: Path) -> list[Images]:
    """The five data sets, each normalised as in the public HAT, WSN and HALRP codes.

    Grey images are padded by 2 pixels of 0 and kept in one channel of 1,024 bytes, although their
    shape says three: see :func:`channel_copies`.

    :param data_dir: holds the folders of the five; all but notMNIST are downloaded when absent.
    :raises MissingDataError: if one is neither there nor can be downloaded.
    :raises DamagedDataError: if one cannot be read.
    """
    return [
        load_cifar10(data_dir),
        _padded_mnist(data_dir, "MNIST", 0.1, 0.2752),
        load_svhn(data_dir),
        _padded_mnist(data_dir, "FashionMNIST", 0.2190, 0.3318),
        _padded_notmnist(data_dir),
    ]


def channel_copies(images: Images) -> np.ndarray | None:
    """For each number of an image the byte that it comes from: equal channels are kept once."""
    numbers, kept = int(np.prod(images.shape)), images.train[0].shape[1]
    return None if numbers == kept else np.arange(numbers) % kept


def load_svhn(data_dir: Path) -> Images:
    """SVHN's cropped digits, without the extra training images.

    :param data_dir: folder that holds ``train_32x32.mat`` and ``test_32x32.mat``; downloaded to it
        when absent.
    :raises MissingDataError: if they are neither there nor can be downloaded.
    :raises DamagedDataError: if they cannot be read.
    """
    train, test = cached_with_labels(data_dir, "svhn", lambda: _read_svhn(Path(data_dir)))
    return Images(train, test, channel_tables(SVHN_MEAN, SVHN_STD), (3, 32, 32))


def _read_svhn(data_dir: Path) -> list[tuple[Pixels, Labels]]:
    paths = [data_dir / name for name in SVHN_FILES]
    fetch("SVHN", paths, lambda: _download_svhn(data_dir), f"MATLAB files of {SVHN_URL}")
    return [_read_matlab(path) for path in paths]


def _download_svhn(data_dir: Path) -> None:
    from torchvision.datasets import SVHN

    for split in ("train", "test"):
        SVHN(str(data_dir), split=split, download=True)


def _read_matlab(path: Path) -> tuple[Pixels, Labels]:
    """``X`` is ``uint8 [32, 32, 3, examples]``; ``y`` says 10 for the digit 0."""
    from scipy.io import loadmat

    try:
        held = loadmat(str(path))
        images, labels = held["X"], held["y"].reshape(-1).astype(np.int64) % 10
        if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
            raise ValueError(f"images of {images.dtype} {images.shape}, {len(labels)} labels")
    except Exception as reason:  # bytes that are no MATLAB file may raise anything
        raise damaged("SVHN", path, reason, SVHN_URL) from reason
    return images.transpose(3, 2, 0, 1).reshape(len(labels), -1), labels


def _padded_mnist(data_dir: Path, name: str, mean: float, std: float) -> Images:
    def read() -> list[tuple[Pixels, Labels]]:
        return [(_padded(images), labels) for images, labels in read_mnist(data_dir, name)]

    train, test = cached_with_labels(data_dir, f"{name.lower()}-padded", read)
    return Images(train, test, value_table(255, mean, std), (3, 32, 32))


def _padded_notmnist(data_dir: Path) -> Images:
    images = load_notmnist(data_dir)
    parts = [(_padded(pixels), labels) for pixels, labels in (images.train, images.test)]
    return replace(images, train=parts[0], test=parts[1], shape=(3, 32, 32))


def _padded(images: np.ndarray) -> Pixels:
    """From 28 x 28 to 32 x 32 pixels."""
    padding = ((0, 0), (2, 2), (2, 2))
    return np.pad(images.reshape(-1, 28, 28), padding).reshape(len(images), -1)
