"""CIFAR-100 as a few small files, for a machine without network that takes little at a time.

Each channel is predicted from its neighbours (the median edge detector of LOCO-I, Weinberger et
al., 2000), red and blue as differences from green, and what is left is coded by Huffman's codes of
:mod:`zlib`: 104 MB instead of 184, to the same bytes and in the same order.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np

from avalanche_compress.files import write_atomically
from benchmarks.data.images import DamagedDataError, MissingDataError
from benchmarks.data.pickled_images import load_pickle

FOLDER = "cifar-100-python"
NAME = "cifar-100.part"
MOST_BYTES = 55_000_000
"""Of a part."""
_LABELS = ("fine_labels", "coarse_labels")
_SHAPE = (3, 32, 32)


def pack_cifar100(data_dir: Path, folder: Path, most_bytes: int = MOST_BYTES) -> list[Path]:
    """Write the parts.

    :param data_dir: holds ``cifar-100-python``.
    :param folder: of the parts.
    :param most_bytes: of a part.
    :return: their paths.
    :raises MissingDataError: if the data set is not there.
    """
    arrays = {}
    for part in ("train", "test"):
        path = data_dir / FOLDER / part
        if not path.is_file():
            raise MissingDataError(f"CIFAR-100 is not in {data_dir}: there is no {path}.")
        held = load_pickle(path)
        for channel, plane in enumerate(_planes(held["data"])):
            arrays[f"{part}-{channel}"] = _coded(_left_over(plane))
        for key in _LABELS:
            arrays[f"{part}-{key}"] = np.asarray(held[key], dtype=np.uint8)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # keywords are arrays
    data = file.getvalue()
    paths = []
    for number, first in enumerate(range(0, len(data), most_bytes)):
        paths.append(folder / f"{NAME}{number}")
        write_atomically(paths[-1], data[first : first + most_bytes])
    return paths


def unpack_cifar100(folder: Path, data_dir: Path) -> bool:
    """Write the pickles of the data set from its parts, unless they are there.

    :param folder: of all parts.
    :param data_dir: gets ``cifar-100-python``.
    :return: whether they were written.
    :raises MissingDataError: if there are no parts.
    :raises DamagedDataError: if one is missing or damaged.
    """
    files = {part: data_dir / FOLDER / part for part in ("train", "test")}
    if all(path.is_file() for path in files.values()):
        return False
    count = len(list(folder.glob(f"{NAME}*")))
    if not count:
        raise MissingDataError(f"there is no {folder / NAME}0: make it with --pack.")
    try:
        data = b"".join((folder / f"{NAME}{number}").read_bytes() for number in range(count))
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for part, path in files.items():
                planes = [_restored(arrays[f"{part}-{channel}"]) for channel in range(3)]
                held = {key: arrays[f"{part}-{key}"].tolist() for key in _LABELS}
                write_atomically(path, pickle.dumps({"data": _images(planes), **held}, protocol=4))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as reason:
        raise DamagedDataError(
            f"the {count} parts of CIFAR-100 in {folder} do not make a whole ({reason}): copy all "
            "of them anew."
        ) from reason
    return True


def _planes(images: np.ndarray) -> list[np.ndarray]:
    """Green, red less green and blue less green, ``uint8 [height, width, images]``."""
    red, green, blue = images.reshape(-1, *_SHAPE).transpose(1, 2, 3, 0)
    return [green, red - green + np.uint8(128), blue - green + np.uint8(128)]


def _images(planes: list[np.ndarray]) -> np.ndarray:
    """The inverse, ``uint8 [images, 3072]``."""
    green, red, blue = planes
    channels = [red + green - np.uint8(128), green, blue + green - np.uint8(128)]
    return np.ascontiguousarray(np.stack(channels).transpose(3, 0, 1, 2).reshape(-1, 3 * 32 * 32))


def _left_over(plane: np.ndarray) -> np.ndarray:
    """What the prediction of each value leaves, modulo 256."""
    known = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1, plane.shape[2]), np.int16)
    known[1:, 1:] = plane
    rows = [_predicted(known, row, slice(1, None)) for row in range(1, len(known))]
    return plane - np.stack(rows).astype(np.uint8)


def _restored(coded: np.ndarray) -> np.ndarray:
    """A plane from its code: value by value, of all images at once."""
    left = np.frombuffer(zlib.decompress(coded.tobytes()), np.uint8).reshape(*_SHAPE[1:], -1)
    known = np.zeros((left.shape[0] + 1, left.shape[1] + 1, left.shape[2]), np.int16)
    for row in range(1, known.shape[0]):
        for column in range(1, known.shape[1]):
            predicted = _predicted(known, row, column).astype(np.uint8)
            known[row, column] = left[row - 1, column - 1] + predicted
    return known[1:, 1:].astype(np.uint8)


def _predicted(known: np.ndarray, row: int, columns: int | slice) -> np.ndarray:
    """The values to the left, above and in the corner between say what a value may be.

    :param known: int16, with a row and a column of zeros in front.
    :param row: of it.
    :param columns: one, or all but the first.
    """
    before = columns - 1 if isinstance(columns, int) else slice(0, -1)
    left, above, corner = known[row, before], known[row - 1, columns], known[row - 1, before]
    return np.clip(left + above - corner, np.minimum(left, above), np.maximum(left, above))


def _coded(values: np.ndarray) -> np.ndarray:
    coder = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(coder.compress(values.tobytes()) + coder.flush(), np.uint8)
