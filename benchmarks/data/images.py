"""Image data sets as bytes in memory: read once, resized once, kept in a memory-mapped file."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, cast

import numpy as np
from PIL import Image

from avalanche_compress.files import write_atomically

Pixels = np.ndarray  # uint8 [examples, channels * height * width]
Labels = np.ndarray  # int64 [examples]
Arguments = TypeVarTuple("Arguments")
T = TypeVar("T")
Wanted = Callable[[str], bool]

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

TINY_IMAGENET = "tiny-imagenet-200"
TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ANNOTATIONS = "val/val_annotations.txt"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class MissingDataError(FileNotFoundError):
    """A data set is not there and could not be had; says which files to put where."""


class DamagedDataError(ValueError):
    """A data set is there, but a part of it is missing or cannot be read."""


@dataclass(frozen=True)
class Images:
    """Train and test images of a data set, before it is cut into tasks.

    :param train: pixels and labels to train on.
    :param test: pixels and labels to test on.
    :param values: the normalised value of each byte, ``float32 [256]``, or ``[channels, 256]``.
    :param shape: ``(channels, height, width)``.
    """

    train: tuple[Pixels, Labels]
    test: tuple[Pixels, Labels]
    values: np.ndarray
    shape: tuple[int, int, int]


def value_table(largest: int, mean: float, std: float) -> np.ndarray:
    """The value of each byte, ``float32 [256]``: divided by ``largest``, then standardised.

    >>> value_table(255, 0.5, 0.5)[[0, 255]].tolist()
    [-1.0, 1.0]
    """
    return ((np.arange(256) / largest - mean) / std).astype(np.float32)


def channel_tables(means: Sequence[float], stds: Sequence[float]) -> np.ndarray:
    """A table like :func:`value_table`'s for each channel, ``float32 [channels, 256]``."""
    return np.stack([value_table(255, mean, std) for mean, std in zip(means, stds)])


def shared(load: Callable[[*Arguments], T], *args: *Arguments) -> T:
    """What a loader reads; the last data set is kept, since the next run often wants the same.

    Whoever gets it shares it with others and must not write into it.

    :param load: reads a data set.
    :param args: its arguments.

    >>> shared(value_table, 255, 0.5, 0.5) is shared(value_table, 255, 0.5, 0.5)
    True
    """
    return cast(T, _last(load, *args))


@lru_cache(maxsize=1)  # no more, since some have gigabytes
def _last(load: Callable[..., Any], *args: Any) -> Any:
    return load(*args)


def fetch(name: str, wanted: Sequence[Path], download: Callable[[], object], form: str) -> None:
    """Download a data set unless its files are there.

    :param name: of the data set.
    :param wanted: its files or folders, all in one folder.
    :param download: puts them there.
    :param form: what they are and where they come from, for the message.
    :raises MissingDataError: if they are not there and the download fails.
    """
    if all(path.exists() for path in wanted):
        return
    try:
        download()
    except Exception as reason:
        files = ", ".join(path.name for path in wanted)
        raise MissingDataError(
            f"{name} is not in {wanted[0].parent} and could not be downloaded. Put {files} there "
            f"({form}). The download said: {reason}"
        ) from reason


def damaged(name: str, place: Path, reason: object, source: str) -> DamagedDataError:
    """The error for a data set that is there, but not as it should be.

    :param name: of the data set.
    :param place: its file or folder.
    :param reason: what is wrong.
    :param source: where to get it again.
    """
    return DamagedDataError(
        f"{name} in {place} is damaged ({reason}): remove it and get it again from {source}."
    )


# --- MNIST ---------------------------------------------------------------------------------------


def load_mnist(data_dir: Path, size: int = 28) -> Images:
    """MNIST, normalised by its mean 0.1307 and deviation 0.3081.

    :param data_dir: folder that holds ``MNIST/raw``; downloaded to it when absent.
    :param size: height and width; other than 28, each image is resized (PIL, bilinear).
    :raises MissingDataError: if it is neither there nor can be downloaded.
    """
    train, test = [(_resized(images, size), labels) for images, labels in read_mnist(data_dir)]
    return Images(train, test, value_table(255, 0.1307, 0.3081), (1, size, size))


def read_mnist(data_dir: Path, name: str = "MNIST") -> list[tuple[np.ndarray, Labels]]:
    """Images ``uint8 [examples, 28, 28]`` and labels, of the train and of the test set.

    :param data_dir: folder that holds ``MNIST/raw``; downloaded to it when absent.
    :param name: torchvision's class and the folder, ``"MNIST"`` or ``"FashionMNIST"``.
    :raises MissingDataError: if it is neither there nor can be downloaded.
    :raises DamagedDataError: if it cannot be read.
    """
    from torchvision import datasets

    build, raw = getattr(datasets, name), Path(data_dir) / name / "raw"
    wanted = [raw / file for file in MNIST_FILES]
    fetch(name, wanted, lambda: build(str(data_dir), download=True), "unpacked IDX files")
    try:
        parts = [build(str(data_dir), train=train) for train in (True, False)]
    except Exception as reason:
        raise damaged(name, raw, reason, build.mirrors[-1]) from reason
    return [(part.data.numpy(), part.targets.numpy()) for part in parts]


def _resized(images: np.ndarray, size: int) -> Pixels:
    if images.shape[1:] != (size, size):
        resized = [
            Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
            for image in images
        ]
        images = np.stack([np.asarray(image) for image in resized])
    return images.reshape(len(images), -1)


# --- TinyImageNet --------------------------------------------------------------------------------


def load_tiny_imagenet(data_dir: Path, classes: int = 200, size: int = 64) -> Images:
    """The first classes of TinyImageNet, numbered in the order of ``wnids.txt``.

    The official validation images are the test set, since the labels of the official test images
    are not public. Images are resized by ``PIL.Image.BOX``: at 32 pixels each is the mean of 2 x 2.
    Values are normalised by mean and deviation of ImageNet.

    The first call decodes the images and keeps them in ``.npy`` files, in ``data_dir`` or, where
    that is read-only, in the user's cache; later calls map those files.

    :param data_dir: holds the folder ``tiny-imagenet-200`` or the archive
        ``tiny-imagenet-200.tar.gz``, which is read as it is and never unpacked.
    :param classes: how many of the 200 classes.
    :param size: height and width of the images, 64 on disk.
    :raises MissingDataError: if neither is there; says where to get it.
    :raises DamagedDataError: if some of it is missing or cannot be read.
    """
    key = f"{TINY_IMAGENET}-{classes}x{size}"
    parts = cached(Path(data_dir), key, lambda: _read_tiny_imagenet(Path(data_dir), classes, size))
    train, test = [(pixels.reshape(-1, pixels.shape[2]), _labels(pixels)) for pixels in parts]
    return Images(train, test, channel_tables(IMAGENET_MEAN, IMAGENET_STD), (3, size, size))


def _labels(pixels: np.ndarray) -> Labels:
    """Of ``pixels [classes, examples, numbers]``, one after another."""
    return np.repeat(np.arange(pixels.shape[0]), pixels.shape[1])


def _read_tiny_imagenet(data_dir: Path, classes: int, size: int) -> list[np.ndarray]:
    """``uint8 [classes, examples, 3 * size * size]`` of the train and of the test images."""
    # Two passes, since the list of the classes is the last file of the archive.
    texts = dict(_files(data_dir, {"wnids.txt", ANNOTATIONS}.__contains__))
    if len(texts) < 2:
        raise _damaged(data_dir, f"it has no wnids.txt or no {ANNOTATIONS}")
    wnids = texts["wnids.txt"].decode().split()
    if not 0 < classes <= len(wnids):
        raise ValueError(f"classes={classes}: TinyImageNet has 1 to {len(wnids)} classes to give.")
    numbers = {wnid: number for number, wnid in enumerate(wnids[:classes])}
    place = _Places(numbers, texts[ANNOTATIONS].decode())
    found = dict(_files(data_dir, lambda name: place(name) is not None))
    groups: dict[tuple[str, int], list[bytes]] = defaultdict(list)
    for name in sorted(found):
        where = place(name)
        if where is not None:
            groups[where].append(found[name])
    return [
        _decoded(data_dir, part, [groups[part, number] for number in range(classes)], size)
        for part in ("train", "val")
    ]


class _Places:
    """Which part and class a file belongs to, by its name; None for all other files."""

    def __init__(self, numbers: dict[str, int], annotations: str) -> None:
        rows = (line.split("\t") for line in annotations.splitlines())
        self.numbers = numbers
        self.val = {row[0]: numbers[row[1]] for row in rows if row[1:] and row[1] in numbers}

    def __call__(self, name: str) -> tuple[str, int] | None:
        folders = name.split("/")
        if not name.endswith(".JPEG"):
            return None
        if len(folders) == 4 and folders[0] == "train" and folders[1] in self.numbers:
            return "train", self.numbers[folders[1]]
        if folders[:2] == ["val", "images"] and folders[-1] in self.val:
            return "val", self.val[folders[-1]]
        return None


def _decoded(data_dir: Path, part: str, groups: Sequence[Sequence[bytes]], size: int) -> np.ndarray:
    counts = sorted({len(group) for group in groups})
    if counts[0] == 0 or len(counts) > 1:
        raise _damaged(data_dir, f"its classes have {counts} images in {part}, not equally many")
    out = np.empty((len(groups), counts[0], 3 * size * size), dtype=np.uint8)
    for number, group in enumerate(groups):
        for row, encoded in enumerate(group):
            try:
                out[number, row] = decode(encoded, size)
            except (OSError, SyntaxError) as reason:
                raise _damaged(data_dir, f"an image of {part} is none: {reason}") from reason
    return out


def decode(encoded: bytes, size: int) -> np.ndarray:
    """A JPEG, grey or not, as RGB ``uint8 [3 * size * size]``, channel first."""
    with Image.open(io.BytesIO(encoded)) as opened:
        image = opened.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1).reshape(-1)


def _files(data_dir: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Names, relative to ``tiny-imagenet-200``, and contents of the files that are wanted."""
    folder, archive = data_dir / TINY_IMAGENET, data_dir / f"{TINY_IMAGENET}.tar.gz"
    if folder.is_dir():
        return _folder_files(folder, wanted)
    if archive.is_file():
        return _archive_files(archive, wanted)
    raise MissingDataError(
        f"TinyImageNet is not in {data_dir}. Unpack {TINY_IMAGENET_URL} there, so that "
        f"{folder / 'wnids.txt'} exists, or put it there as one file, {archive}."
    )


def _folder_files(folder: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    for parent, _, names in os.walk(folder):
        for path in (Path(parent) / name for name in names):
            name = path.relative_to(folder).as_posix()
            if wanted(name):
                yield name, path.read_bytes()


def _archive_files(archive: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Reads the archive as a stream. Nothing is written, so no name in it can do harm."""
    try:
        with tarfile.open(archive, "r|gz") as stream:
            for member in stream:
                name = member.name[len(TINY_IMAGENET) + 1 :]
                content = stream.extractfile(member) if member.isfile() and wanted(name) else None
                if content is not None:
                    yield name, content.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as reason:
        raise _damaged(archive, str(reason)) from reason


def _damaged(place: Path, reason: str) -> DamagedDataError:
    return damaged("TinyImageNet", place, reason, TINY_IMAGENET_URL)


# --- Cache ---------------------------------------------------------------------------------------


def cached(
    data_dir: Path,
    key: str,
    read: Callable[[], Sequence[np.ndarray]],
    parts: Sequence[str] = ("train", "test"),
) -> list[np.ndarray]:
    """Arrays from their files, which are made at the first call.

    The files are in ``data_dir`` or, where that cannot be written to, in the user's cache. Two
    processes may make them at once: each file appears whole or not at all.

    :param data_dir: the folder of the data set.
    :param key: what the arrays depend on; the files' names begin with it.
    :param read: makes the arrays.
    :param parts: what they are; the files' names end with it.
    """
    folders = (data_dir, user_cache(data_dir))
    places = [[folder / f"{key}-{part}.npy" for part in parts] for folder in folders]
    for paths in places:
        if all(path.is_file() for path in paths):
            return [_mapped(path) for path in paths]
    arrays = read()
    target = places[0] if _is_writable(data_dir) else places[1]
    for path, array in zip(target, arrays):
        _write_array(path, array)
    return [_mapped(path) for path in target]


def cached_with_labels(
    data_dir: Path, key: str, read: Callable[[], Sequence[tuple[Pixels, Labels]]]
) -> list[tuple[Pixels, Labels]]:
    """Pixels and labels, of the train and of the test set, from their files: see :func:`cached`.

    :param data_dir: the folder of the data set.
    :param key: the files' names begin with it.
    :param read: reads the data set.
    """

    def flat() -> list[np.ndarray]:
        (train_x, train_y), (test_x, test_y) = read()
        arrays = (train_x, np.asarray(train_y, np.int64), test_x, np.asarray(test_y, np.int64))
        return [np.ascontiguousarray(array) for array in arrays]

    parts = ("train", "train-labels", "test", "test-labels")
    train_x, train_y, test_x, test_y = cached(Path(data_dir), key, flat, parts)
    return [(train_x, train_y), (test_x, test_y)]


def user_cache(data_dir: Path) -> Path:
    """The folder of the user's cache for a data folder, in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    return Path(base) / "avalanche_compress" / name


def _is_writable(folder: Path) -> bool:
    # By its mode too: root may write to a folder that was made read-only on purpose.
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _write_array(path: Path, array: np.ndarray) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    write_atomically(path, header.getvalue(), array.data.cast("B"))


def _mapped(path: Path) -> np.ndarray:
    # A plain array on the mapped memory: indexing a memmap costs several times as much.
    return np.asarray(np.load(path, mmap_mode="r"))
