"""The compressed file: every finished task of a network, in as few bytes as its stores need."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from avalanche_compress.coding import ByteReader, ByteWriter, CorruptStreamError
from avalanche_compress.errors import ArchiveError, TaskStateError, UnsupportedModuleError
from avalanche_compress.files import PathLike, write_atomically
from avalanche_compress.network import TaskNetwork
from avalanche_compress.stores import (
    FactoredStore,
    MaskedStore,
    PerturbedStore,
    Place,
    SlottedStore,
    Store,
    WeightStore,
)

FORMAT = "avalanche_compress"
VERSION = 1
_KINDS = {kind.kind: kind for kind in (FactoredStore, MaskedStore, PerturbedStore, SlottedStore)}


def save_archive(network: TaskNetwork, path: PathLike) -> int:
    """Write the finished tasks of a network to one compressed file.

    The file is a safetensors container of two byte tensors and a manifest: masks entropy-coded,
    codes bit-packed, what each task has for itself as raw floats. It holds no code and no pickle.
    The task in training, if there is one, is not in it.

    :param network: with any number of finished tasks.
    :param path: where; written beside and renamed, so a crash leaves the old file or the new one.
    :return: bytes written.
    :raises OSError: if it cannot be written; the previous file is as it was.
    """
    return write_atomically(path, archive_bytes(network))


def archive_bytes(network: TaskNetwork) -> bytes:
    """What :func:`save_archive` writes.

    :param network: with any number of finished tasks.

    >>> network = TaskNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> len(archive_bytes(network)) < 1000
    True
    """
    content = {"tasks": _write_tasks(network), "static": _write_static(network)}
    manifest: dict[str, Any] = {
        "version": VERSION,
        **network.options,
        "weights": _layout(network),
        "rest": _fingerprint(network),
    }
    manifest["sha256"] = _checksum(manifest, content)
    tensors = {name: _as_tensor(part) for name, part in content.items()}
    # one entry: safetensors writes several in an order that differs from run to run
    return bytes(save_safetensors(tensors, metadata={FORMAT: _compact(manifest)}))


def load_archive(path: PathLike, build_model: Callable[[], nn.Module]) -> TaskNetwork:
    """Read a network back; the logits of its tasks are bit-identical to those that were saved.

    Nothing in the file is executed, and its sizes are checked before memory is taken.

    :param path: a file of :func:`save_archive`.
    :param build_model: gives a new model of the class and sizes that were trained; its values do
        not matter.
    :return: the network, in evaluation mode; it can learn further tasks.
    :raises ArchiveError: if the file is truncated, altered, of a newer format, or of another model.
    :raises FileNotFoundError: if there is none.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no archive at {path}")
    manifest, content = _read_container(path)
    network = _build_network(path, manifest, build_model)
    try:
        _read_static(network, ByteReader(content["static"]))
        _read_tasks(network, ByteReader(content["tasks"]))
    except (CorruptStreamError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{path} is damaged: {error}") from error
    return network.eval()


# ---------------------------------------------------------------------------- container


def _read_container(path: PathLike) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            manifest = _read_manifest(path, dict(file.metadata() or {}))
            if set(file.keys()) != {"tasks", "static"}:
                raise ArchiveError(f"{path} is damaged: it holds {sorted(file.keys())}")
            tensors = {name: file.get_tensor(name) for name in ("tasks", "static")}
    except (SafetensorError, OSError) as error:
        raise ArchiveError(f"{path} is no archive, or it is truncated: {error}") from error
    if any(tensor.dtype != torch.uint8 or tensor.dim() != 1 for tensor in tensors.values()):
        raise ArchiveError(f"{path} is damaged: its content is not made of bytes")
    content = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    if manifest.pop("sha256", None) != _checksum(manifest, content):
        raise ArchiveError(f"{path} is altered: its checksum does not match its content")
    return manifest, content


def _read_manifest(path: PathLike, metadata: dict[str, str]) -> dict[str, Any]:
    if FORMAT not in metadata:
        raise ArchiveError(f"{path} is not an archive of {FORMAT}")
    try:
        manifest = json.loads(metadata[FORMAT])
        version = manifest["version"]
        newer = version > VERSION
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"{path} is damaged: its manifest cannot be read") from error
    if newer:
        raise ArchiveError(
            f"{path} has format {version} and this release reads up to {VERSION}: upgrade "
            "avalanche-compress to read it."
        )
    return dict(manifest)


def _compact(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, separators=(",", ":"))


def _checksum(manifest: dict[str, Any], content: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for part in (_compact(manifest).encode(), content["tasks"], content["static"]):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _as_tensor(part: bytes) -> Tensor:
    return torch.frombuffer(bytearray(part), dtype=torch.uint8) if part else torch.empty(0).byte()


# ---------------------------------------------------------------------------- network


def _layout(network: TaskNetwork) -> list[list[Any]]:
    return [
        [store.name, store.kind, list(store.shape), store.config()]
        for store in network.weight_stores
    ]


def _fingerprint(network: TaskNetwork) -> str:
    """Names, types and shapes of all else; the head's rows are left out, they differ by task."""
    head = (Place(network.head, "weight"), Place(network.head, "bias"))
    private = [
        (name, str(place.tensor.dtype), list(place.tensor.shape[1 if place in head else 0 :]))
        for name, place in zip(network.private.names, network.private.places)
    ]
    static = [(n, str(t.dtype), list(t.shape)) for n, t in network.static_tensors().items()]
    dtypes = [str(store.scratch.dtype) for store in network.weight_stores]
    return hashlib.sha256(json.dumps([private, static, dtypes]).encode()).hexdigest()[:16]


def _build_network(
    path: PathLike, manifest: dict[str, Any], build_model: Callable[[], nn.Module]
) -> TaskNetwork:
    try:
        kinds = {n: (_KINDS[kind], dict(config)) for n, kind, _, config in manifest["weights"]}
        options: dict[str, Any] = {"head": str(manifest["head"])}
        for name in ("exclude", "include"):
            options[name] = [str(entry) for entry in manifest[name]]
        rest = manifest["rest"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(f"{path} is damaged: its manifest does not fit") from error

    def store(place: Place, name: str) -> WeightStore:
        if name not in kinds:
            raise ArchiveError(f"{path} was made for another model: it knows no weight {name!r}")
        kind, config = kinds[name]
        try:
            return kind(place, name, **config)
        except (TypeError, TaskStateError) as error:
            raise ArchiveError(f"{path} is damaged: {name} is kept in an unknown way") from error

    try:
        network = TaskNetwork(build_model(), store, **options)
    except UnsupportedModuleError as error:
        raise ArchiveError(f"{path} was made for another model: {error}") from error
    ours, theirs = _layout(network), manifest["weights"]
    if ours != theirs:
        differing = [f"{b[0]} {b[2]}" for a, b in zip(ours, theirs) if a != b] or ["more weights"]
        raise ArchiveError(
            f"{path} was made for another model: it holds {', '.join(differing[:3])}, which "
            "build_model() does not have in that shape and order."
        )
    if _fingerprint(network) != rest:
        raise ArchiveError(
            f"{path} was made for another model: its biases, norms, buffers or number types differ "
            "from those of build_model()."
        )
    return network


# ---------------------------------------------------------------------------- content


def _stores(network: TaskNetwork) -> list[Store]:
    return [network.private, *network.weight_stores]


def _write_tasks(network: TaskNetwork) -> bytes:
    writer = ByteWriter()
    writer.write_uint(len(network.tasks))
    for task, classes in network.classes.items():
        writer.write_bytes(str(task).encode())
        writer.write_uint(len(classes))
        for class_number in classes:
            writer.write_uint(class_number)
        statistics = network.statistics.get(task, {})
        writer.write_uint(len(statistics))
        for name, values in sorted(statistics.items()):
            writer.write_bytes(name.encode())
            writer.write_uint(values.numel())
            writer.write_tensor(values.flatten().float())
        for store in _stores(network):
            writer.write_bytes(store.sections[task])
    return writer.getvalue()


def _read_tasks(network: TaskNetwork, reader: ByteReader) -> None:
    classes: dict[int, tuple[int, ...]] = {}
    for _ in range(reader.read_uint()):
        task = _read_label(reader)
        if task in classes:
            raise CorruptStreamError(f"two tasks labelled {task}")
        classes[task] = _read_classes(reader)
        statistics = {}
        for _ in range(reader.read_uint()):
            name = reader.read_bytes().decode()
            statistics[name] = reader.read_tensor(torch.float32, (reader.read_uint(),))
        if statistics:
            network.statistics[task] = statistics
        for store in _stores(network):
            store.restore(task, reader.read_bytes())
    reader.finish()
    network.finish_loading(classes)


def _read_label(reader: ByteReader) -> int:
    label = reader.read_bytes().decode()
    if not (label.isascii() and label[label.startswith("-") :].isdecimal() and len(label) < 20):
        raise CorruptStreamError(f"a task labelled {label[:20]!r}")
    return int(label)


def _read_classes(reader: ByteReader) -> tuple[int, ...]:
    count = reader.read_uint()
    if count > reader.remaining:
        raise CorruptStreamError(f"a task of {count} classes")
    classes = tuple(reader.read_uint() for _ in range(count))
    if list(classes) != sorted(set(classes)) or not classes:
        raise CorruptStreamError(f"a task of the classes {classes}")
    return classes


def _write_static(network: TaskNetwork) -> bytes:
    writer = ByteWriter()
    for tensor in network.static_tensors().values():
        writer.write_tensor(tensor.detach().cpu())
    return writer.getvalue()


@torch.no_grad()
def _read_static(network: TaskNetwork, reader: ByteReader) -> None:
    for tensor in network.static_tensors().values():
        tensor.copy_(reader.read_tensor(tensor.dtype, tuple(tensor.shape)))
    network.remember_static()
    reader.finish()
