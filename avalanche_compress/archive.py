"""The compressed file: every finished task of a network, in as few bytes as its stores need."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_compress.codec import ByteReader, ByteWriter, CorruptStreamError
from avalanche_compress.container import Manifest, pack, unpack
from avalanche_compress.core.heads import PER_CLASS
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.registry import store_of_kind
from avalanche_compress.core.store import Place, Store, WeightStore
from avalanche_compress.errors import ArchiveError, TaskStateError, UnsupportedModuleError
from avalanche_compress.files import FileLike, name_of, write_file
from avalanche_compress.sections import (
    read_shared_sections,
    read_task_sections,
    write_shared_sections,
    write_task_sections,
)


def save_archive(network: TaskNetwork, path: FileLike) -> int:
    """Write the finished tasks of a network to one compressed file.

    The file is a safetensors container of byte tensors and a manifest: masks entropy-coded, codes
    bit-packed, what each task has for itself as raw floats, and once what all tasks share. It holds
    no code and no pickle. The task in training, if there is one, is not in it.

    :param network: with any number of finished tasks.
    :param path: where (str, bytes, PathLike): written next to it and renamed, so that a crash
        leaves the old file or the new one. The mode of an old file is kept, of a symbolic link the
        target is written, and a pipe or a device is written into. Or a file that is open in binary
        mode.
    :return: bytes written.
    :raises OSError: naming the path, if it cannot be written; the previous file is as it was.
    :raises ArchiveError: if it is no :class:`TaskNetwork`, a task has a label or classes that no
        archive holds (:data:`~avalanche_compress.core.heads.MOST_CLASSES`), a store is none that
        :func:`load_archive` could build again, or the open file takes text; the previous file is
        as it was.
    """
    data = archive_bytes(network)
    try:
        return write_file(path, data)
    except TypeError as error:
        if not isinstance(path, io.TextIOBase):
            raise
        raise ArchiveError(f"{name_of(path)} takes text: open it in binary mode, 'wb'.") from error


def archive_bytes(network: TaskNetwork) -> bytes:
    """What :func:`save_archive` writes.

    :param network: with any number of finished tasks.
    :raises ArchiveError: as of :func:`save_archive`.

    >>> network = TaskNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> len(archive_bytes(network)) < 1000
    True
    """
    if not isinstance(network, TaskNetwork):
        raise ArchiveError(
            f"{type(network).__name__} is no TaskNetwork: of a strategy it is strategy.network."
        )
    try:
        content = {
            "tasks": _write_tasks(network),
            "static": _write_static(network),
            "shared": _write_shared(network),
        }
    except CorruptStreamError as error:
        raise ArchiveError(f"the network cannot be archived: it has {error}.") from error
    for store in network.weight_stores:
        _check_registered(store)
    options = {name: _renamed(value, _plain) for name, value in network.options.items()}
    manifest = {**options, "weights": _layout(network), "rest": _fingerprint(network)}
    constants = network.constants()
    if constants:
        manifest["constants"] = {_plain(name): mark for name, mark in constants.items()}
    return pack(manifest, content)


@torch.inference_mode(False)  # whoever loads it to answer may go on to train it
def load_archive(path: FileLike, build_model: Callable[[], nn.Module]) -> TaskNetwork:
    """Read a network back; the logits of its tasks are bit-identical to those that were saved.

    Nothing in the file is executed. Its checksum is compared and its manifest checked against a
    schema and the model. What the tasks have learned is read when it is first needed, by
    activating one or training a further one, and checked then: every size, count and code length
    against the bytes that are there, before memory is taken by it. So an untrusted file gives
    a network or an error, and the model that ``build_model`` makes decides what it may cost.
    Whether the weights are any good is another matter: the checksum finds damage, not malice.

    A file that was changed and given a checksum that fits may be found out only when a task is
    used, with a :class:`~avalanche_compress.codec.errors.CorruptStreamError`, which like
    :class:`ArchiveError` is a ``CompressError`` and a ``ValueError``. To read everything at once,
    call :meth:`~avalanche_compress.core.network.TaskNetwork.verify`.

    :param path: of a file that :func:`save_archive` wrote (str, bytes, PathLike), or the file, open
        in binary mode, which need not be seekable.
    :param build_model: gives a new model of the class and sizes that were trained; the values of
        its parameters and persistent buffers do not matter, but for ``base="external"``. Of other
        tensors that it has (plain attributes, buffers that are not persistent) the file knows
        fingerprints, and a warning tells where they do not fit.
    :return: the network, in evaluation mode; it can learn further tasks.
    :raises ArchiveError: if the file is truncated, altered, of a newer format (the message says
        which release reads it), of another model, or of another base that it does not hold; or if
        ``build_model`` is no function that gives one.
    :raises FileNotFoundError: if there is none.
    """
    name = name_of(path)
    manifest, content = unpack(path)
    network = _build_network(name, manifest, build_model)
    try:
        static = _read_static(network, ByteReader(content["static"]))
        _read_shared(network, content["shared"])
        _read_tasks(network, content["tasks"], manifest["version"])
    except (CorruptStreamError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} is damaged: {error}") from error
    for store in network.weight_stores:
        store.check_built()
    _fill_static(network, static)
    own = {_plain(name): name for name in network.constants()}
    marks = manifest.get("constants", {}).items()
    network.compare_constants(name, {own.get(_plain(n), n): mark for n, mark in marks})
    return network.eval()


# ---------------------------------------------------------------------------- network


def _plain(name: str) -> str:
    """A name as it is in a model that is not compiled, so that both read each other's files."""
    return name.replace("_orig_mod.", "")


def _renamed(option: Any, name: Callable[[str], str]) -> Any:
    """An option that is a name, names, or None, with other names."""
    if isinstance(option, list):
        return [name(entry) for entry in option]
    return None if option is None else name(option)


def _layout(network: TaskNetwork) -> list[list[Any]]:
    return [
        [_plain(store.name), store.kind, list(store.shape), store.config()]
        for store in network.weight_stores
    ]


def _check_registered(store: WeightStore) -> None:
    """Refuse a store that could not be built again from its kind and its options.

    :raises ArchiveError: before anything is written.
    """
    try:
        signature(store_of_kind(store.kind)).bind(store.place, store.name, **store.config())
    except (TaskStateError, TypeError) as error:
        raise ArchiveError(
            f"the network cannot be archived: {store.name} is kept in {type(store).__name__}, kind "
            f"{store.kind!r}, options {store.config()}: {str(error).rstrip('.')}. Give the class a "
            "kind of its own, keyword arguments for its options, and register it (register_store)."
        ) from error


def _fingerprint(network: TaskNetwork, plain: Callable[[str], str] = _plain) -> str:
    """Names, types and shapes of all else; the head's rows are left out, they differ by task."""
    head = [Place(layer, name) for layer in network.heads for name in ("weight", "bias")]
    private = [
        (
            plain(name),
            str(place.tensor.dtype),
            list(place.tensor.shape[1 if place in head else 0 :]),
        )
        for name, place in zip(network.private.names, network.private.places)
    ]
    static = [(plain(n), str(t.dtype), list(t.shape)) for n, t in network.static_tensors().items()]
    dtypes = [str(store.scratch.dtype) for store in network.weight_stores]
    return hashlib.sha256(json.dumps([private, static, dtypes]).encode()).hexdigest()[:16]


def _build_network(
    source: str, manifest: Manifest, build_model: Callable[[], nn.Module]
) -> TaskNetwork:
    kinds = {_plain(name): (kind, config) for name, kind, _, config in manifest["weights"]}

    def store(place: Place, name: str) -> WeightStore:
        if _plain(name) not in kinds:
            raise ArchiveError(f"{source} was made for another model: it knows no weight {name!r}")
        kind, config = kinds[_plain(name)]
        try:
            return store_of_kind(kind)(place, name, **config)
        except (KeyError, TypeError, TaskStateError) as error:
            raise ArchiveError(
                f"{source} is damaged, or of a method that is not installed: {name} is kept in an "
                f"unknown way, and {error}"
            ) from error

    model = None
    if callable(build_model) and not isinstance(build_model, nn.Module):
        model = build_model()
    if not isinstance(model, nn.Module):
        raise ArchiveError(
            f"{source} is not read: build_model={type(build_model).__name__} must be a function "
            "without arguments that gives a new nn.Module, such as its class or lambda: model."
        )
    named = [*model.named_modules(), *model.named_parameters(remove_duplicate=False)]
    own_names: dict[str, str] = {_plain(name): name for name, _ in named}

    def own(name: str) -> str:
        return own_names.get(_plain(name), name)

    options = {name: _renamed(manifest[name], own) for name in ("head", "exclude", "include")}
    try:
        network = TaskNetwork(model, store, compressed={*map(own, kinds)}, **options)
    except UnsupportedModuleError as error:
        raise ArchiveError(f"{source} was made for another model: {error}") from error
    ours = _layout(network)
    theirs = [[_plain(name), *others] for name, *others in manifest["weights"]]
    if ours != theirs:
        differing = [f"{b[0]!r} {b[2]}" for a, b in zip(ours, theirs) if a != b] or ["more weights"]
        raise ArchiveError(
            f"{source} was made for another model: it holds {', '.join(differing[:3])}, which "
            "build_model() does not have in that shape and order."
        )
    # earlier releases wrote a compiled model's names
    if manifest["rest"] not in (_fingerprint(network), _fingerprint(network, str)):
        raise ArchiveError(
            f"{source} was made for another model: its biases, norms, buffers, frozen parameters "
            "or number types differ from those of build_model()."
        )
    return network


# ---------------------------------------------------------------------------- content


def _stores(network: TaskNetwork) -> list[Store]:
    return [network.private, *network.weight_stores]


def _write_tasks(network: TaskNetwork) -> bytes:
    stores = _stores(network)
    return write_task_sections(
        (task, classes, network.statistics.get(task, {}), [s.sections[task] for s in stores])
        for task, classes in network.classes.items()
    )


def _write_shared(network: TaskNetwork) -> bytes:
    return write_shared_sections([store.encode_shared() for store in _stores(network)])


def _read_shared(network: TaskNetwork, content: memoryview) -> None:
    stores = _stores(network)
    for store, section in zip(stores, read_shared_sections(content, len(stores))):
        store.accept_shared(section)


def _read_tasks(network: TaskNetwork, content: memoryview, version: int) -> None:
    stores = _stores(network)
    tasks = read_task_sections(content, len(stores))
    for task in tasks:
        if task.statistics:
            network.statistics[task.label] = task.statistics
        for store, section in zip(stores, task.sections):
            old = version == 1
            store.defer(task.label, store.section_of_version_1(section) if old else section)
        _check_private(network, task.label, len(task.classes))
    network.finish_loading({task.label: task.classes for task in tasks})


def _check_private(network: TaskNetwork, task: int, classes: int) -> None:
    """Refuse tensors that are not of the model's sizes, the head's rows being the classes."""
    private = network.private
    for place, name, shape in zip(private.places, private.names, private.shapes_of(task)):
        expected = place.tensor.shape
        if place.module in network.heads and place.name in PER_CLASS:
            expected = torch.Size((classes, *expected[1:]))
        if shape != expected:
            raise CorruptStreamError(f"{name} of shape {list(shape)}, not {list(expected)}")


def _write_static(network: TaskNetwork) -> bytes:
    writer = ByteWriter()
    for tensor in network.static_tensors().values():
        writer.write_tensor(tensor.detach().cpu())
    return writer.getvalue()


def _read_static(network: TaskNetwork, reader: ByteReader) -> list[Tensor]:
    static = network.static_tensors().values()
    read = [reader.read_tensor(tensor.dtype, tuple(tensor.shape)) for tensor in static]
    reader.finish()
    return read


@torch.no_grad()
def _fill_static(network: TaskNetwork, content: Sequence[Tensor]) -> None:
    for tensor, values in zip(network.static_tensors().values(), content):
        tensor.copy_(values)
    network.remember_static()
