"""Writing a file so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

PathLike = str | os.PathLike[str]
AnyPath = PathLike | bytes | os.PathLike[bytes]
FileLike = AnyPath | BinaryIO
"""Where a file is, or one that is open in binary mode."""

_NO_FOLDER_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)
"""What systems answer that cannot, or may not, write a folder through to the disk."""
_PREFIX = 24
"""Characters of a file's name in that of its temporary one: at most 96 of the 255 bytes of a
name."""


def write_atomically(path: AnyPath, *chunks: bytes | memoryview) -> int:
    """Write a file by way of a temporary one next to it: fsync, rename, fsync of the folder.

    A process that is killed in between leaves the previous file, and next to it perhaps a hidden
    one whose name ends in ``.tmp``. The new file has the mode of the previous one. Of a symbolic
    link the target is written. What is no regular file, such as a pipe or a device, is never
    replaced: it is written into, which waits for whoever reads a pipe.

    :param path: where; missing parent folders are created.
    :param chunks: the content, in order.
    :return: bytes written.
    :raises OSError: naming the path and the reason, with the previous file as it was and no
        temporary file left; if it is the folder that fails last, the file is the new one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(os.path.join(folder, "new", "file"), b"abc")
    3
    """
    target = path_of(path)
    try:
        mode = _mode_of(target)
        if mode is None or stat.S_ISREG(mode):
            _replace(target, mode, chunks)
        else:
            with open(target, "wb") as file:
                _write_all(file, chunks)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"could not write {target}: {reason}") from error
    except ValueError as error:  # a NUL in the name, or a character that the system cannot write
        raise OSError(errno.EINVAL, f"could not write {str(target)!r}: {error}") from error
    return sum(len(chunk) for chunk in chunks)


def write_file(target: FileLike, *chunks: bytes | memoryview) -> int:
    """Write to a path, atomically, or into a file that is open, from where it is.

    :param target: either of these.
    :param chunks: the content, in order.
    :return: bytes written.
    :raises OSError: if it cannot be written, a path as by :func:`write_atomically`.

    >>> import io
    >>> write_file(io.BytesIO(), b"abc")
    3
    """
    if isinstance(target, (str, bytes, os.PathLike)):
        return write_atomically(target, *chunks)
    _write_all(target, chunks)
    return sum(len(chunk) for chunk in chunks)


@contextmanager
def open_to_read(source: FileLike) -> Iterator[BinaryIO]:
    """A file to read; one that was open already stays open.

    :param source: a path or an open file.
    :raises OSError: if a path cannot be opened.

    >>> import io
    >>> with open_to_read(io.BytesIO(b"abc")) as file:
    ...     file.read()
    b'abc'
    """
    if not isinstance(source, (str, bytes, os.PathLike)):
        yield source
        return
    path = path_of(source)
    if "\0" in str(path):
        raise OSError(errno.EINVAL, f"could not read {str(path)!r}: it holds a NUL character")
    with open(path, "rb") as file:
        yield file


def name_of(source: FileLike) -> str:
    """What messages call a file.

    :param source: a path or an open file.

    >>> import io
    >>> name_of(b"folder/file"), name_of(io.BytesIO())
    ('folder/file', 'the open BytesIO')
    """
    if isinstance(source, (str, bytes, os.PathLike)):
        return str(path_of(source))
    return f"the open {type(source).__name__}"


def path_of(path: AnyPath) -> Path:
    """A path whose name may have been given as bytes.

    :param path: any.
    """
    return Path(os.fsdecode(path))


def _mode_of(target: Path) -> int | None:
    """Kind and permissions of what is there, behind symbolic links; None if nothing is."""
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return None


def _replace(target: Path, mode: int | None, chunks: Sequence[bytes | memoryview]) -> None:
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    # In the same folder, since a rename is atomic only within one file system. Not by tempfile:
    # its files are readable by their owner only, and the rename would keep that.
    temporary = target.with_name(f".{target.name[:_PREFIX]}.{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            if mode is not None:  # before the content, which nobody else may read meanwhile
                os.chmod(temporary, stat.S_IMODE(mode))
            _write_all(file, chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _write_all(file: Any, chunks: Sequence[bytes | memoryview]) -> None:
    """Write all, though a file without a buffer may take a part at a time."""
    for chunk in chunks:
        left = memoryview(chunk).cast("B")
        while left:
            written = file.write(left)
            left = left[len(left) if written is None else written :]


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
