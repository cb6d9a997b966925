"""Image data sets that are published as folders of PNG files: notMNIST and Omniglot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data.images import (
    DamagedDataError,
    Images,
    Labels,
    MissingDataError,
    Pixels,
    cached_with_labels,
    damaged,
    fetch,
    value_table,
)

NOTMNIST = "notMNIST_small"
NOTMNIST_URL = "http://yaroslavvb.com/upload/notMNIST/notMNIST_small.tar.gz"
LETTERS = "ABCDEFGHIJ"

OMNIGLOT = "omniglot-py"
OMNIGLOT_URL = "https://github.com/brendenlake/omniglot/tree/master/python"
OMNIGLOT_PARTS = ("images_background", "images_evaluation")
ANGLES = 4


def load_notmnist(data_dir: Path) -> Images:
    """notMNIST, the letters A to J in many fonts, 28 x 28, of which every tenth is tested on.

    By the names of the files, within each letter: 16,853 and 1,873 images in the literature on
    continual learning, which does not say which. The published files hold two that are no images;
    such files are left out. Values are normalised as in the public HAT, WSN and HALRP codes.

    :param data_dir: holds the folder ``notMNIST_small`` with the folders ``A`` to ``J``, which
        cannot be downloaded.
    :raises MissingDataError: if a letter is not there; says where to put it.
    :raises DamagedDataError: if images of a letter cannot be read.
    """
    folder = Path(data_dir) / NOTMNIST
    train, test = cached_with_labels(data_dir, "notmnist", lambda: _read_notmnist(folder))
    return Images(train, test, value_table(255, 0.4254, 0.4501), (1, 28, 28))


def _read_notmnist(folder: Path) -> list[tuple[Pixels, Labels]]:
    if not all((folder / letter).is_dir() for letter in LETTERS):
        raise MissingDataError(
            f"notMNIST is not in {folder} and cannot be downloaded. Unpack {NOTMNIST_URL} into "
            f"{folder.parent}, so that there are {folder / 'A'} to {folder / 'J'}, each with PNG "
            "files of 28 x 28 pixels."
        )
    letters = [_read_letter(folder / letter) for letter in LETTERS]
    tested = [np.arange(len(images)) % 10 == 9 for images in letters]
    return [
        _numbered([images[~rows] for images, rows in zip(letters, tested)]),
        _numbered([images[rows] for images, rows in zip(letters, tested)]),
    ]


def _read_letter(folder: Path) -> Pixels:
    images = []
    for path in sorted(folder.glob("*.png")):
        try:
            images.append(_grey(path))
        except (OSError, SyntaxError):  # some published files are empty
            continue
    if not images or {image.shape for image in images} != {(28, 28)}:
        reason = f"{len(images)} images that can be read, not all of 28 x 28 pixels"
        raise damaged("notMNIST", folder, reason, NOTMNIST_URL)
    return np.stack(images).reshape(len(images), -1)


def load_omniglot_rotation(data_dir: Path, characters: int = 1200, size: int = 28) -> Images:
    """Omniglot's first characters, each drawing also turned by 90, 180 and 270 degrees.

    Characters are numbered by the names of their folders, those of ``images_background`` first. A
    drawing keeps its label however it is turned, as in the public APD and WSN codes. Of the 20
    drawings of a character 15 are for training and 5 for testing, in all angles, as in APD (WSN
    draws among the turned ones, so that a drawing may be in both): 60 and 20 images.

    Images are resized from 105 x 105 by ``PIL.Image.BOX`` and divided by 255, as in WSN, but turned
    round, so that strokes are near 1 on a ground of 0: on a ground of 1 all ReLUs of WSN's network
    were dead after 27 steps of Adam at 1e-3 (seed 0), and whatever starts from it stays so.

    :param data_dir: folder that holds ``omniglot-py``; downloaded to it when absent.
    :param characters: how many of the 1,623 characters.
    :param size: height and width of the images.
    :raises MissingDataError: if it is neither there nor can be downloaded.
    :raises DamagedDataError: if characters are missing or images cannot be read.
    """
    key = f"omniglot-rotation-{characters}x{size}"
    train, test = cached_with_labels(
        data_dir, key, lambda: _read_omniglot(Path(data_dir), characters, size)
    )
    return Images(train, test, value_table(255, 1.0, -1.0), (1, size, size))


def _read_omniglot(data_dir: Path, characters: int, size: int) -> list[tuple[Pixels, Labels]]:
    root = data_dir / OMNIGLOT
    parts = [root / part for part in OMNIGLOT_PARTS]
    form = f"folders alphabet/character of PNG files, unpacked from {OMNIGLOT_URL}"
    fetch("Omniglot", parts, lambda: _download_omniglot(data_dir), form)
    folders = [path for part in parts for path in sorted(part.glob("*/*")) if path.is_dir()]
    if len(folders) < characters:
        raise _damaged_omniglot(root, f"it has {len(folders)} characters, not {characters}")
    drawn = [_read_character(folder, size) for folder in folders[:characters]]
    cuts = [len(images) * 3 // 4 for images in drawn]
    return [
        _numbered([_turned(images[:cut]) for images, cut in zip(drawn, cuts)]),
        _numbered([_turned(images[cut:]) for images, cut in zip(drawn, cuts)]),
    ]


def _download_omniglot(data_dir: Path) -> None:
    from torchvision.datasets import Omniglot

    for background in (True, False):
        Omniglot(str(data_dir), background=background, download=True)


def _read_character(folder: Path, size: int) -> np.ndarray:
    try:
        return np.stack([_grey(path, size) for path in sorted(folder.glob("*.png"))])
    except (OSError, SyntaxError, ValueError) as reason:
        raise _damaged_omniglot(folder, str(reason)) from reason


def _damaged_omniglot(place: Path, reason: str) -> DamagedDataError:
    return damaged("Omniglot", place, reason, OMNIGLOT_URL)


def _turned(images: np.ndarray) -> Pixels:
    """``uint8 [examples, size, size]`` in all four angles, flat."""
    turned = [np.rot90(images, angle, axes=(1, 2)) for angle in range(ANGLES)]
    return np.concatenate(turned).reshape(ANGLES * len(images), -1)


def _numbered(groups: Sequence[Pixels]) -> tuple[Pixels, Labels]:
    """The classes one after another, labelled from 0."""
    return np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(g) for g in groups])


def _grey(path: Path, size: int | None = None) -> np.ndarray:
    with Image.open(path) as opened:
        image = opened.convert("L")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BOX)
    return np.asarray(image)
