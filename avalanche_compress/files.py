"""Writing a file so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Union

PathLike = Union[str, "os.PathLike[str]"]

_NO_FOLDER_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)
"""What systems answer that cannot, or may not, write a folder through to the disk."""


def write_atomically(path: PathLike, *chunks: bytes | memoryview) -> int:
    """Write a file by way of a temporary one beside it: fsync, rename, fsync of the folder.

    A process that is killed in between leaves the previous file, and beside it perhaps a hidden
    one whose name ends in ``.tmp``.

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
    target = Path(path)
    # In the same folder, since a rename is atomic only within one file system. Not by tempfile:
    # its files are readable by their owner only, and the rename would keep that.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"could not write {target}: {reason}") from error
        raise
    return sum(len(chunk) for chunk in chunks)


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
