"""What an archive holds, read without its model: tasks, classes, bytes, densities, bits, ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from avalanche_compress.archive import load_archive
from avalanche_compress.codec import ByteWriter, CorruptStreamError
from avalanche_compress.container import Manifest, unpack
from avalanche_compress.core.registry import store_kinds, store_of_kind
from avalanche_compress.core.statistics import write_statistics
from avalanche_compress.core.store import Place, WeightStore
from avalanche_compress.errors import ArchiveError
from avalanche_compress.files import AnyPath, name_of
from avalanche_compress.metrics.compression import mean_bits
from avalanche_compress.sections import TaskSections, read_shared_sections, read_task_sections

MOST_WEIGHTS = 1 << 25
"""Weights of all layers together whose sections are read without the model: their sizes are what
the file says they are, and a file of a few bytes can say anything."""
_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}

BuildModel = Callable[[], nn.Module]


@dataclass(frozen=True)
class TaskContents:
    """A task in an archive.

    :param label: of the task.
    :param classes: its class numbers.
    :param total_bytes: of what is private, the statistics, and its sections of all layers.
    :param private_bytes: of its head, biases and norms.
    :param statistics_bytes: of what task inference keeps.
    """

    label: int
    classes: tuple[int, ...]
    total_bytes: int
    private_bytes: int
    statistics_bytes: int


@dataclass(frozen=True)
class LayerContents:
    """A weight in an archive; lists have an entry for each task in order of learning.

    :param name: dotted name in the model.
    :param kind: of its store.
    :param shape: of the weight.
    :param options: of its store.
    :param shared_bytes: what all tasks share, which the file has once.
    :param section_bytes: what each task added.
    :param values: how many numbers each task added.
    :param bits: of each of them, on average; None where a task added none.
    :param density: the part of the weight a task computes with, 0..1; None without masks.
    :param ranks: terms that each task added; None where weights are not kept as terms.
    :param unread: why the last four are empty; None if they are not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    options: dict[str, object]
    shared_bytes: int
    section_bytes: list[int]
    values: list[int]
    bits: list[float | None]
    density: list[float | None]
    ranks: list[int | None]
    unread: str | None = None


@dataclass(frozen=True)
class ArchiveContents:
    """What :func:`inspect_archive` finds.

    :param file: its name.
    :param format: version of the archive's format.
    :param total_bytes: of the file, its header included.
    :param static_bytes: of tensors that all tasks share and no training changes.
    :param tasks: in order of learning.
    :param layers: the compressed weights, in the order of the model.
    """

    file: str
    format: int
    total_bytes: int
    static_bytes: int
    tasks: list[TaskContents]
    layers: list[LayerContents]


class RawArchive(NamedTuple):
    """An archive taken apart into sections, with the checks that need no model."""

    name: str
    manifest: Manifest
    static: bytes
    tasks: list[TaskSections]
    shared: list[bytes]

    def sections_of(self, layer: int) -> dict[int, bytes]:
        """The sections of a weight by task.

        :param layer: its number in the manifest.
        """
        return {task.label: task.sections[layer + 1] for task in self.tasks}


def read_archive(path: AnyPath) -> RawArchive:
    """Take an archive apart; its checksum, its manifest and its outline are checked.

    :param path: of the file.
    :raises ArchiveError: if it is no archive, damaged, altered or of a newer format.
    :raises FileNotFoundError: if there is none.
    """
    name = name_of(path)
    manifest, content = unpack(path)
    stores = 1 + len(manifest["weights"])
    try:
        tasks = read_task_sections(content["tasks"], stores)
        shared = read_shared_sections(content["shared"], stores)
    except (CorruptStreamError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} is damaged: {error}") from error
    return RawArchive(name, manifest, bytes(content["static"]), tasks, shared)


def inspect_archive(path: AnyPath, build_model: BuildModel | None = None) -> ArchiveContents:
    """What an archive holds. Nothing in it is executed, and its model is not needed.

    Names, sizes and bytes are in every file. Densities, bits and ranks are in the sections of the
    tasks; without the model they are read for :data:`MOST_WEIGHTS` weights at most, with the number
    type and, of a convolution, the number of groups with which all sections of a weight fit.

    :param path: of a file that ``save_archive`` wrote.
    :param build_model: see ``load_archive``; then every layer is read as that model's.
    :raises ArchiveError: if the file is no archive, damaged, altered, of a newer format, or of
        another model than ``build_model`` makes.
    :raises CorruptStreamError: if ``build_model`` is given and the sections of a layer do not fit.
    :raises FileNotFoundError: if there is none.

    >>> import tempfile
    >>> from avalanche_compress import TaskNetwork, save_archive
    >>> network = TaskNetwork(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = save_archive(network, file.name)
    ...     contents = inspect_archive(file.name)
    >>> [(layer.name, layer.kind, layer.shape) for layer in contents.layers], contents.tasks
    ([('0.weight', 'masked', (8, 4))], [])
    """
    raw, stores = _read(path, build_model)
    layers = [_layer(raw, number, store, unread) for number, (store, unread) in enumerate(stores)]
    tasks = [
        TaskContents(
            task.label,
            task.classes,
            task.statistics_bytes + sum(map(len, task.sections)),
            len(task.sections[0]),
            task.statistics_bytes,
        )
        for task in raw.tasks
    ]
    size = os.path.getsize(path)
    return ArchiveContents(raw.name, raw.manifest["version"], size, len(raw.static), tasks, layers)


def verify_archive(path: AnyPath, build_model: BuildModel | None = None) -> list[str]:
    """Read all of an archive with all checks that there are.

    Without the model nothing is said of the tensors that each task has for itself, nor of layers
    beyond :data:`MOST_WEIGHTS` weights.

    :param path: of a file that ``save_archive`` wrote.
    :param build_model: see ``load_archive``.
    :return: what was not checked, as sentences; empty if everything was.
    :raises ArchiveError: as of :func:`inspect_archive`.
    :raises CorruptStreamError: if a section is not as a network writes it.
    :raises FileNotFoundError: if there is no file.
    """
    if build_model is not None:
        load_archive(path, build_model).verify()
        return []
    raw, stores = _read(path, None)
    left = ["the tensors that each task has for itself"] if raw.tasks else []
    for layer, (_, unread) in zip(raw.manifest["weights"], stores):
        if unread is not None and unread.damaged:
            raise CorruptStreamError(unread.reason)
        if unread is not None:
            left.append(f"{layer[0]} ({unread.reason})")
    return left


@dataclass(frozen=True)
class Difference:
    """One thing in which two archives differ.

    :param where: ``options``, ``task 3``, or ``task 3, layer 0.weight``.
    :param what: how.
    """

    where: str
    what: str


def diff_archives(old: AnyPath, new: AnyPath) -> list[Difference]:
    """In what two archives differ, section by section; equal sections give equal bits.

    :param old: of a file.
    :param new: another one.
    :return: empty if every task of both computes the same.
    :raises ArchiveError: if one is no archive, damaged, altered or of a newer format.
    :raises FileNotFoundError: if one is missing.
    """
    return list(_differences(read_archive(old), read_archive(new)))


class _Unread(NamedTuple):
    """Why the sections of a layer were not read."""

    reason: str
    damaged: bool


_Layers = Iterator[tuple[WeightStore | None, _Unread | None]]


def _read(path: AnyPath, build_model: BuildModel | None) -> tuple[RawArchive, _Layers]:
    raw = read_archive(path)
    if build_model is None:
        return raw, _WithoutModel(raw).stores()
    network = load_archive(path, build_model)
    return raw, ((store, None) for store in network.weight_stores)


def _layer(
    raw: RawArchive, number: int, store: WeightStore | None, unread: _Unread | None
) -> LayerContents:
    name, kind, shape, options = raw.manifest["weights"][number]
    tasks = [] if store is None else [task.label for task in raw.tasks]
    read = [
        (store.stored_values(t), mean_bits(store, t), store.density_of(t), store.rank_of(t))
        for t in tasks
        if store is not None
    ]
    values, bits, density, ranks = map(list, zip(*read)) if read else ([], [], [], [])
    return LayerContents(
        name,
        kind,
        tuple(shape),
        options,
        len(raw.shared[number + 1]),
        [len(section) for section in raw.sections_of(number).values()],
        values,
        bits,
        density,
        ranks,
        None if unread is None else unread.reason,
    )


class _WithoutModel:
    """Reads the layers of an archive with modules of its own in place of the model's.

    :param raw: the archive.
    """

    def __init__(self, raw: RawArchive):
        self._raw = raw
        self._left = MOST_WEIGHTS
        self._types = list(_TYPES)

    def stores(self) -> _Layers:
        """The stores one after another, so that one is in memory at a time."""
        return map(self._attempt, range(len(self._raw.manifest["weights"])))

    def _attempt(self, number: int) -> tuple[WeightStore | None, _Unread | None]:
        try:
            return self._fitting(number), None
        except (CorruptStreamError, TypeError, RuntimeError) as error:
            name, kind, *_ = self._raw.manifest["weights"][number]
            damaged = kind in store_kinds() and not isinstance(error, _BeyondError)
            return None, _Unread(f"{name}: {error}", damaged)

    def _fitting(self, number: int) -> WeightStore:
        """The store of a layer, of the first number type and groups with which its sections fit.

        :raises CorruptStreamError: of the usual type and one group, if there are none.
        """
        name, kind, shape, options = self._raw.manifest["weights"][number]
        build, first = store_of_kind(kind), None
        if any(size < 0 for size in shape):
            raise CorruptStreamError(f"{name} of shape {shape}")
        for groups in _groups(shape):
            for dtype in list(self._types):
                self._left -= math.prod(shape)
                if self._left < 0:
                    raise _BeyondError(
                        f"beyond {MOST_WEIGHTS:,} weights, which takes the model to read"
                    )
                store = build(_place(shape, dtype, groups), name, **options)
                try:
                    _fill(store, self._raw, number)
                except CorruptStreamError as error:
                    first = first or error
                    continue
                self._types.sort(key=lambda known: known != dtype)  # a model has one, mostly
                return store
        raise first or CorruptStreamError(name)


class _BeyondError(RuntimeError):
    """A layer has more weights than are read without the model."""


def _fill(store: WeightStore, raw: RawArchive, number: int) -> None:
    store.accept_shared(raw.shared[number + 1])
    old = raw.manifest["version"] == 1
    for task, section in raw.sections_of(number).items():
        store.restore(task, store.section_of_version_1(section) if old else section)


def _groups(shape: Sequence[int]) -> list[int]:
    """How many groups a convolution of this shape may have, 1 first."""
    if len(shape) not in _CONVOLUTIONS or 0 in shape:
        return [1]
    return [groups for groups in range(1, shape[0] + 1) if shape[0] % groups == 0]


def _place(shape: Sequence[int], dtype: torch.dtype, groups: int) -> Place:
    """A module with a weight of this shape, zero."""
    module = nn.Module()
    if len(shape) in _CONVOLUTIONS and 0 not in shape:
        outputs, inputs, *kernel = shape
        convolution: Any = _CONVOLUTIONS[len(shape)]
        module = convolution(
            inputs * groups, outputs, tuple(kernel), groups=groups, bias=False, device="meta"
        )
    module.weight = nn.Parameter(torch.zeros(tuple(shape), dtype=dtype))
    return Place(module, "weight")


def _differences(old: RawArchive, new: RawArchive) -> Iterator[Difference]:
    for field in ("head", "include", "exclude"):
        if old.manifest[field] != new.manifest[field]:
            yield Difference(field, f"{old.manifest[field]} and {new.manifest[field]}")
    if old.manifest["rest"] != new.manifest["rest"]:
        yield Difference("model", "biases, norms, buffers or number types are others")
    before, after = ({w[0]: w[1:] for w in raw.manifest["weights"]} for raw in (old, new))
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield Difference(f"layer {name}", f"{_layout(before, name)} and {_layout(after, name)}")
    shared = [_by_name(raw, raw.shared) for raw in (old, new)]
    yield from _unequal(
        "all tasks, ", *({**x, "constants": r.static} for x, r in zip(shared, (old, new)))
    )
    earlier, later = ({task.label: task for task in raw.tasks} for raw in (old, new))
    common = [[t for t in earlier if t in later], [t for t in later if t in earlier]]
    if common[0] != common[1]:
        yield Difference("order of learning", f"{common[0]} and {common[1]}")
    for label in {**earlier, **later}:
        if label not in later or label not in earlier:
            yield Difference(f"task {label}", f"only in {(new if label in later else old).name}")
            continue
        a, b = earlier[label], later[label]
        if a.classes != b.classes:
            yield Difference(f"task {label}", f"classes {list(a.classes)} and {list(b.classes)}")
        yield from _unequal(f"task {label}, ", *(_parts(r, t) for r, t in ((old, a), (new, b))))


def _layout(weights: dict[str, list[Any]], name: str) -> str:
    if name not in weights:
        return "none"
    kind, shape, options = weights[name]
    return f"{kind} {shape} {options}"


def _parts(raw: RawArchive, task: TaskSections) -> dict[str, bytes]:
    """All that an archive has of a task, by what it is."""
    writer = ByteWriter()
    write_statistics(writer, task.statistics)
    return {**_by_name(raw, task.sections), "statistics": writer.getvalue()}


def _by_name(raw: RawArchive, sections: Sequence[bytes]) -> dict[str, bytes]:
    names = [f"layer {weight[0]}" for weight in raw.manifest["weights"]]
    return dict(zip(["private tensors", *names], sections))


def _unequal(where: str, a: dict[str, bytes], b: dict[str, bytes]) -> Iterator[Difference]:
    for name, part in a.items():
        if name in b and part != b[name]:
            sizes = f"{len(part):,} and {len(b[name]):,} bytes"
            yield Difference(
                where + name, sizes if len(part) != len(b[name]) else f"{sizes}, others"
            )
