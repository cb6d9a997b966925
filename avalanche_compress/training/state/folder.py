"""The last two states of a run on disk, of which the older one is there in case of need."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from avalanche_compress.errors import TrainingStateError
from avalanche_compress.files import PathLike, write_atomically
from avalanche_compress.training.state.tree import (
    HEADER,
    DamagedError,
    check_version,
    fits_header,
    pack,
    unpack,
)

_NAME = re.compile(r"(\d{8,})\.state")


def write_newest(tree: Any, folder: PathLike) -> Path:
    """Write a state and drop all but the newest whole one before it.

    :param tree: what :func:`~avalanche_compress.training.state.tree.pack` takes.
    :param folder: of the run; created if missing.
    :return: the file.
    :raises TrainingStateError: if it cannot be written; the files are then as they were.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for epoch in range(3):
    ...         _ = write_newest({"epoch": epoch}, folder)
    ...     [path.name for path in states_in(folder)]
    ['00000002.state', '00000001.state']
    """
    earlier = states_in(folder)
    number = 1 + int(earlier[0].stem) if earlier else 0
    path = Path(folder) / f"{number:08d}.state"
    data = pack(tree)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise TrainingStateError(str(error)) from error
    spare = next((old for old in earlier if _is_whole(old)), None)
    for old in earlier:
        if old != spare:
            with suppress(OSError):  # a file too many does no harm
                old.unlink()
    return path


def read_newest(folder: PathLike, check: Callable[[Any, Path], None]) -> Any:
    """The newest state that is whole and fits; a warning names those that do not.

    :param folder: of the run.
    :param check: is given each state and its file, and raises a ``TrainingStateError`` if it does
        not fit.
    :return: the tree, or None if no state was ever written.
    :raises TrainingStateError: if there are states and none will do, or one is of another version.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_newest({"epoch": 4}, folder)
    ...     read_newest(folder, lambda tree, path: None)
    {'epoch': 4}
    """
    reasons = []
    for path in states_in(folder):
        check_version(_start_of(path), path)
        try:
            tree = unpack(_read(path), path)
            check(tree, path)
        except TrainingStateError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(f"{' '.join(reasons)} The run goes on from {path}.", stacklevel=3)
        return tree
    if reasons:
        raise TrainingStateError(" ".join(reasons))
    return None


def states_in(folder: PathLike) -> list[Path]:
    """The files of a run's states, the newest first.

    :param folder: of the run; it need not exist.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    numbered = {int(match.group(1)): name for name in names if (match := _NAME.fullmatch(name))}
    return [Path(folder) / numbered[number] for number in sorted(numbered, reverse=True)]


def _is_whole(path: Path) -> bool:
    try:
        return path.is_file() and fits_header(_start_of(path), path.stat().st_size, path)
    except (TrainingStateError, OSError):
        return False


def _start_of(path: Path) -> bytes:
    """As many bytes as a header has, none if they cannot be read; a pipe is not waited for."""
    try:
        if path.is_file():
            with open(path, "rb") as file:
                return file.read(HEADER.size)
    except OSError:
        pass
    return b""


def _read(path: Path) -> bytes:
    """All bytes of a file that is as long as its header says, however long others may be."""
    if not _is_whole(path):
        raise DamagedError(f"{path} is no file, truncated or overlong.")
    try:
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise DamagedError(f"{path} cannot be read: {error!r}.") from error
