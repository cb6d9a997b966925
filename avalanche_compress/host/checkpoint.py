"""Stop anywhere, resume to the same numbers: whole-strategy checkpoints.

A checkpoint holds the complete strategy (model, optimiser state, plugins, metrics, loggers) and
the states of the random generators. The host writes it with ``dill``; this module adds what the
host's functions lack:

- they work with every torch (see :func:`_importable_optimizers`),
- a file is either the previous one or the new one, never half of it,
- a damaged file is refused by name before a single byte of it is unpickled.

.. warning::
    Reading a checkpoint runs code that is stored in it, so :func:`load_checkpoint` reads none
    unless it is told ``trusted=True``. Say so for files that you have written yourself, and for
    nothing else: the checksum finds damage, it does not find malice. To pass a compressed model on
    to other people use an archive (:func:`avalanche_compress.archive.load_archive`), which holds
    tensors only.

A file is ``magic (8 bytes), version (4), payload length (8), SHA-256 of the payload (32)``, all
little-endian, followed by the payload, which is the host's own checkpoint.
"""

from __future__ import annotations

import hashlib
import io
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from avalanche.checkpointing import checkpoint as host

from avalanche_compress.errors import CompressError
from avalanche_compress.files import PathLike, write_atomically
from avalanche_compress.host.strategy import Strategy

MapLocation = None | str | torch.device | dict[str, str]
AnyStrategy = TypeVar("AnyStrategy", bound=Strategy)

_MAGIC = b"AVCMPCKP"
_VERSION = 1
_HEADER = struct.Struct("<8sIQ32s")
# The host pickles a device under the name it was given, so "cuda" needs an entry of its own.
_CUDA_NAMES = ("cuda", *(f"cuda:{index}" for index in range(100)))


class CheckpointError(CompressError, RuntimeError):
    """A checkpoint could not be written or read; the message names the file."""


def save_checkpoint(
    strategy: Strategy, path: PathLike, exclude: Collection[str] | None = None
) -> None:
    """Write a strategy to a file from which :func:`load_checkpoint` continues to the same numbers.

    The file appears at once: it is written next to ``path`` and then moved over it, so a crash in
    between leaves the previous checkpoint. Call it between ``train`` and ``eval``, not from
    within: the host's loops cannot be resumed in their middle.

    :param strategy: any Avalanche strategy. Its ``clock.train_exp_counter`` becomes the index
        of the next experience.
    :param path: the file; missing parent folders are created.
    :param exclude: names of attributes of the strategy to leave out. After loading, such an
        attribute is the one of the strategy that was passed in. Do not leave out the optimiser:
        the one that stays holds the parameters of another model.
    :raises CheckpointError: naming the file, if the strategy cannot be pickled or the file cannot
        be written; the previous file is then as it was.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from torch import nn, optim
        >>> from avalanche.training import Naive
        >>> model = nn.Linear(2, 2)
        >>> strategy = Naive(model=model, optimizer=optim.SGD(model.parameters(), lr=0.1),
        ...                  criterion=nn.CrossEntropyLoss(), evaluator=None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(strategy, Path(folder) / "run.ckpt")
        ...     [file.name for file in Path(folder).iterdir()]
        ['run.ckpt']
    """
    target = Path(path)
    try:
        payload = _dill_strategy(strategy, exclude)
        write_atomically(target, _header(payload), payload)
    except Exception as error:
        raise CheckpointError(f"could not write checkpoint {target}: {error}") from error


def load_checkpoint(
    strategy: AnyStrategy,
    path: PathLike,
    map_location: MapLocation = None,
    unique_objects: Any = None,
    *,
    trusted: bool = False,
) -> tuple[AnyStrategy, int]:
    """Bring a strategy to the state of a checkpoint; this runs code that is in the file.

    The state of the random generators (torch, NumPy, Python) is restored too. The objects inside
    the strategy are new ones afterwards: use ``strategy.model``, not the model it was built from.

    :param strategy: a strategy of the same class, built as in the first run; updated in place,
        and left as it is if the file is refused.
    :param path: the file. If there is none, the strategy comes back untouched with index 0, so
        a script may call this in its first run too.
    :param map_location: the device to load to (``"cpu"``, ``torch.device("cuda:1")``), or a
        dictionary from saved to wanted device names. ``None`` keeps the saved devices. As in the
        host, what was saved on the CPU stays there: the states of the generators must.
    :param unique_objects: objects that need not be unpickled again; pass the benchmark.
    :param trusted: whether to read the file at all: say True for one of your own.
    :return: the strategy and the index of the experience to train next.
    :raises CheckpointError: if nobody says that the file is to be trusted, whether there is one or
        not; if it is truncated, altered, of another kind, of an unknown version, or holds something
        that cannot be unpickled here.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_checkpoint("a strategy", Path(folder) / "nothing there yet", trusted=True)
        ('a strategy', 0)
    """
    source = Path(path)
    if not trusted:
        raise CheckpointError(
            f"checkpoint {source} was not read, because reading one runs code that is in it: pass "
            "trusted=True if you have written it yourself. An archive (save_archive, load_archive) "
            "is safe to load from anybody."
        )
    try:
        with open(source, "rb") as file:
            header, payload = file.read(_HEADER.size), file.read()
    except FileNotFoundError:
        return strategy, 0
    except OSError as error:
        raise CheckpointError(f"could not read checkpoint {source}: {error}") from error
    _verify(header, payload, source)
    try:
        with _importable_optimizers():
            loaded: tuple[AnyStrategy, int] = host.maybe_load_checkpoint(
                strategy, io.BytesIO(payload), _device_map(map_location), unique_objects
            )
    except Exception as error:
        raise CheckpointError(f"could not unpickle checkpoint {source}: {error}") from error
    return loaded


@contextmanager
def _importable_optimizers() -> Iterator[None]:
    """Give ``torch.optim`` its submodules back as attributes, for the length of a ``with``.

    torch.optim deletes the names of its submodules (``del sgd``), so dill, which looks a class up
    along attributes, does not find ``torch.optim.sgd.SGD``, pickles the class by value and fails
    on what the class refers to.

    Example::

        >>> with _importable_optimizers():
        ...     torch.optim.sgd.SGD is torch.optim.SGD
        True
    """
    prefix = torch.optim.__name__ + "."
    hidden = {
        name[len(prefix) :]: module
        for name, module in list(sys.modules.items())
        if name.startswith(prefix)
        and "." not in name[len(prefix) :]
        and name[len(prefix) :] not in vars(torch.optim)
    }
    vars(torch.optim).update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            vars(torch.optim).pop(name, None)


def _dill_strategy(strategy: Strategy, exclude: Collection[str] | None) -> bytes:
    """Return the host's own checkpoint of a strategy."""
    buffer = io.BytesIO()
    with _importable_optimizers():
        host.save_checkpoint(strategy, buffer, exclude)
    return buffer.getvalue()


def _device_map(map_location: MapLocation) -> dict[str, str] | None:
    """Spell a device out as the host's dictionary, including the index-free name ``cuda``.

    :param map_location: a device, its name, a ready dictionary, or ``None``.
    :return: saved device name -> wanted device name.
    """
    if map_location is None or isinstance(map_location, dict):
        return map_location
    device = str(torch.device(map_location))
    return {"cpu": "cpu", **dict.fromkeys(_CUDA_NAMES, device)}


def _header(payload: bytes) -> bytes:
    """Return the 52 bytes that go before a payload."""
    return _HEADER.pack(_MAGIC, _VERSION, len(payload), hashlib.sha256(payload).digest())


def _verify(header: bytes, payload: bytes, source: Path) -> None:
    """Check that the bytes of a checkpoint file are those that were written.

    :param header: the first 52 bytes of the file, or all of a shorter file.
    :param payload: the other bytes.
    :param source: the file, for the message.
    :raises CheckpointError: if any byte of the file is missing, altered or too many.
    """
    if len(header) < _HEADER.size:
        raise CheckpointError(
            f"{source} is not a checkpoint: it has {len(header)} bytes, a header alone has "
            f"{_HEADER.size}"
        )
    magic, version, length, digest = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise CheckpointError(
            f"{source} is not a checkpoint of avalanche_compress (files of Avalanche's own "
            f"save_checkpoint are read by its maybe_load_checkpoint)"
        )
    if version != _VERSION:
        raise CheckpointError(
            f"{source} has checkpoint version {version}, this package reads version {_VERSION}"
        )
    if len(payload) != length:
        raise CheckpointError(
            f"{source} is truncated or overlong: its payload has {len(payload)} bytes, its "
            f"header says {length}"
        )
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{source} is damaged: its payload does not match its SHA-256")


__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]
