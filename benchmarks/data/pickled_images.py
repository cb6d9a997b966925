"""Image data sets that are published as pickles: CIFAR and mini-ImageNet, read without risk."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Images,
    Labels,
    MissingDataError,
    Pixels,
    cached_with_labels,
    channel_tables,
    damaged,
    fetch,
)

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR10_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR10_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
CIFAR100_MEAN = (0.507, 0.487, 0.441)
CIFAR100_STD = (0.267, 0.256, 0.276)

MINI_IMAGENET = "mini-imagenet"
MINI_IMAGENET_URL = "https://github.com/renmengye/few-shot-ssl-public"
MINI_IMAGENET_FILES = tuple(f"mini-imagenet-cache-{part}.pkl" for part in ("train", "val", "test"))
ACL_FILES = ("train.pkl", "test.pkl")


# --- Pickles -------------------------------------------------------------------------------------


def load_pickle(path: Path) -> Any:
    """What a pickle of dictionaries, lists, strings, numbers and numeric arrays holds.

    A pickle may ask for any function to be called. This one calls only what makes an array;
    whatever else a file asks for is refused. Strings of Python 2 are read as Latin-1.

    :param path: the file, of any protocol.
    :raises pickle.UnpicklingError: if it asks for something else.
    """
    with open(path, "rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Finds the few names that an array is pickled with, which depend on NumPy's version."""

    def find_class(self, module: str, name: str) -> Any:
        found = _CONSTRUCTORS.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return found


def _number_type(*arguments: Any) -> np.dtype:
    dtype = np.dtype(*arguments)
    if dtype.kind not in "biufSU":
        raise pickle.UnpicklingError(f"it holds an array of {dtype}, not of numbers")
    return dtype


def _bytes_of(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes for Python 2; other encodings run other code."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


_CONSTRUCTORS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _number_type,
    ("_codecs", "encode"): _bytes_of,
}


def _read(
    name: str, path: Path, source: str, take: Callable[[Any], tuple[Any, Any]]
) -> tuple[np.ndarray, Labels]:
    """Images and labels from one pickle, by what ``take`` finds in it."""
    try:
        images, labels = (np.asarray(found) for found in take(load_pickle(path)))
        if images.dtype != np.uint8 or labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise ValueError(f"images of {images.dtype}, labels of {labels.dtype}")
        if len(images) != len(labels) or not len(images):
            raise ValueError(f"{len(images)} images, {len(labels)} labels")
    except Exception as reason:  # bytes that are no pickle may raise anything
        raise damaged(name, path, reason, source) from reason
    return images, labels


# --- CIFAR ---------------------------------------------------------------------------------------


def load_cifar100(data_dir: Path) -> Images:
    """CIFAR-100 with its fine labels, normalised as in the public CACL and HALRP codes.

    :param data_dir: folder that holds ``cifar-100-python``; downloaded to it when absent.
    :raises MissingDataError: if it is neither there nor can be downloaded.
    :raises DamagedDataError: if it cannot be read.
    """
    files = (("train",), ("test",))
    train, test = _load_cifar(data_dir, "CIFAR100", "cifar-100-python", files, "fine_labels")
    return Images(train, test, channel_tables(CIFAR100_MEAN, CIFAR100_STD), (3, 32, 32))


def load_cifar10(data_dir: Path) -> Images:
    """CIFAR-10, normalised as in the public HAT, WSN and HALRP codes.

    :param data_dir: folder that holds ``cifar-10-batches-py``; downloaded to it when absent.
    :raises MissingDataError: if it is neither there nor can be downloaded.
    :raises DamagedDataError: if it cannot be read.
    """
    files = (tuple(f"data_batch_{number}" for number in range(1, 6)), ("test_batch",))
    train, test = _load_cifar(data_dir, "CIFAR10", "cifar-10-batches-py", files, "labels")
    return Images(train, test, channel_tables(CIFAR10_MEAN, CIFAR10_STD), (3, 32, 32))


def _load_cifar(
    data_dir: Path, name: str, folder: str, files: Sequence[Sequence[str]], key: str
) -> list[tuple[Pixels, Labels]]:
    place = Path(data_dir) / folder

    def download() -> None:
        from torchvision import datasets

        getattr(datasets, name)(str(data_dir), download=True)

    def read() -> list[tuple[Pixels, Labels]]:
        wanted = [place / file for part in files for file in part]
        fetch(name, wanted, download, f"pickles of the Python version at {CIFAR_URL}")
        return [_joined([batch(file) for file in part]) for part in files]

    def batch(file: str) -> tuple[Pixels, Labels]:
        images, labels = _read(
            name, place / file, CIFAR_URL, lambda held: (held["data"], held[key])
        )
        if images.shape[1:] != (3 * 32 * 32,):
            raise damaged(name, place / file, f"images of shape {images.shape[1:]}", CIFAR_URL)
        return images, labels

    return cached_with_labels(data_dir, folder, read)


def _joined(batches: Sequence[tuple[np.ndarray, Labels]]) -> tuple[np.ndarray, Labels]:
    images, labels = zip(*batches)
    return np.concatenate(images), np.concatenate(labels)


# --- mini-ImageNet -------------------------------------------------------------------------------


def load_mini_imagenet(data_dir: Path) -> Images:
    """mini-ImageNet: 100 classes of 600 images of 84 x 84, normalised by ImageNet's statistics.

    The folder ``mini-imagenet`` holds one of two sets of pickles:

    - ``train.pkl`` and ``test.pkl`` of ACL, which CACL's public code reads: ``images``
      ``uint8 [examples, 84, 84, 3]`` and ``labels`` from 0 to 99, 500 and 100 of each class;
    - ``mini-imagenet-cache-{train,val,test}.pkl`` of the few-shot literature, 64, 16 and 20
      classes: ``image_data`` ``uint8 [examples, 84, 84, 3]`` and ``class_dict``, the examples of
      each class. Classes are numbered as they come; the last sixth of each is tested on.

    :param data_dir: holds ``mini-imagenet``, which cannot be downloaded.
    :raises MissingDataError: if it is not there; says where to put what.
    :raises DamagedDataError: if it cannot be read.
    """
    folder = Path(data_dir) / MINI_IMAGENET
    train, test = cached_with_labels(data_dir, MINI_IMAGENET, lambda: _read_mini_imagenet(folder))
    return Images(train, test, channel_tables(IMAGENET_MEAN, IMAGENET_STD), (3, 84, 84))


def _read_mini_imagenet(folder: Path) -> list[tuple[Pixels, Labels]]:
    if all((folder / name).is_file() for name in ACL_FILES):
        parts = [_read_mini(folder / name, _by_labels) for name in ACL_FILES]
    elif all((folder / name).is_file() for name in MINI_IMAGENET_FILES):
        parts = _cut_few_shot(
            [_read_mini(folder / name, _by_class) for name in MINI_IMAGENET_FILES]
        )
    else:
        raise MissingDataError(
            f"mini-ImageNet is not in {folder} and cannot be downloaded. Put "
            f"{', '.join(MINI_IMAGENET_FILES)} there ({MINI_IMAGENET_URL}; pickles of image_data, "
            "uint8 [examples, 84, 84, 3], and class_dict), or ACL's train.pkl and test.pkl (of "
            "images, likewise, and labels)."
        )
    return parts


def _read_mini(path: Path, take: Callable[[Any], tuple[Any, Any]]) -> tuple[Pixels, Labels]:
    images, labels = _read("mini-ImageNet", path, MINI_IMAGENET_URL, take)
    if images.shape[1:] != (84, 84, 3):
        reason = f"images of shape {images.shape[1:]}"
        raise damaged("mini-ImageNet", path, reason, MINI_IMAGENET_URL)
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1), labels


def _by_labels(held: Any) -> tuple[Any, Any]:
    return held["images"], held["labels"]


def _by_class(held: Any) -> tuple[Any, Any]:
    """The images class by class, labelled from 0 in the order of the file."""
    rows = list(held["class_dict"].values())
    labels = np.repeat(np.arange(len(rows)), [len(group) for group in rows])
    return held["image_data"][np.concatenate(rows)], labels


def _cut_few_shot(files: Sequence[tuple[Pixels, Labels]]) -> list[tuple[Pixels, Labels]]:
    """The classes of all files one after another, the last sixth of each for testing."""
    first = 0
    train, test = [], []
    for images, labels in files:
        counts = np.bincount(labels)
        place = np.concatenate([np.arange(count) for count in counts])
        trained = place < np.repeat(counts * 5 // 6, counts)
        train.append((images[trained], labels[trained] + first))
        test.append((images[~trained], labels[~trained] + first))
        first += len(counts)
    return [_joined(train), _joined(test)]
