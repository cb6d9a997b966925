"""Ways to damage an archive, by accident or with intent.

Accidents change bytes; the checksum has to notice. An intruder computes a new checksum, so that
what has been changed reaches the decoders behind it: this file knows the format on its own, from
the outside, and shares no code with who reads archives but integers and strings of bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from avalanche_compress import store_kinds
from avalanche_compress.codec import ByteReader, ByteWriter

PARTS = ("tasks", "static", "shared")
"""The last one is there only if anything is shared."""
HUGE = [
    (1 << 63) - 1,
    1 << 62,
    1 << 40,
    (1 << 32) + 1,
    1 << 31,
    1 << 20,
    65537,
    65535,
    255,
    128,
    33,
    17,
    2,
    1,
    0,
]
"""Numbers that a count, a rank or a width may be replaced with."""
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2,
    1 << 70,
    1.5,
    float("nan"),
    "",
    "x" * 10_000,
    "\ud800\x1b[2J",
    [],
    {},
    [[]],
    {"version": 1},
    "hidden",
    "features",
    "features.0",
    "head",
]
"""Values that a field of a manifest may be replaced with."""
NAMES = ["place", "name", "another"]
"""Options that no store has."""
KINDS = [*store_kinds(), "private", ""]


@dataclass
class Task:
    """What the file says of one task."""

    label: bytes
    classes: list[int]
    statistics: list[tuple[bytes, bytes]]
    sections: list[bytes]


@dataclass
class Archive:
    """A file, taken apart."""

    manifest: dict[str, Any]
    tasks: list[Task]
    static: bytes
    shared: bytes

    def sealed(self) -> bytes:
        """A file of it whose checksum fits."""
        return sealed(self.manifest, write_tasks(self.tasks), self.static, self.shared)


def parse(data: bytes) -> Archive:
    """Take a valid file apart.

    :param data: its bytes.
    """
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    manifest = json.loads(header["__metadata__"]["avalanche_compress"])
    empty = {"data_offsets": [0, 0]}
    tasks, static, shared = (
        body[slice(*header.get(name, empty)["data_offsets"])] for name in PARTS
    )
    reader = ByteReader(tasks)
    stores = 1 + len(manifest["weights"])
    found = [_read_task(reader, stores) for _ in _counted(reader)]
    return Archive(manifest, found, static, shared)


def sealed(manifest: dict[str, Any], tasks: bytes, static: bytes, shared: bytes) -> bytes:
    """A file whose checksum fits.

    :param manifest: any.
    :param tasks: the content of the first tensor.
    :param static: that of the second.
    :param shared: that of the third, which is left out if it has none.
    """
    manifest = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256()
    for part in (_text(manifest).encode(), tasks, static, *([shared] if shared else [])):
        digest.update(len(part).to_bytes(8, "little") + part)
    manifest["sha256"] = digest.hexdigest()
    return _file(_text(manifest), tasks, static, shared)


def write_tasks(tasks: list[Task]) -> bytes:
    """The content of a file that holds these tasks.

    :param tasks: any.
    """
    writer = ByteWriter()
    writer.write_uint(len(tasks))
    for task in tasks:
        writer.write_bytes(task.label)
        writer.write_uint(len(task.classes))
        for number in task.classes:
            writer.write_uint(number)
        writer.write_uint(len(task.statistics))
        for name, values in task.statistics:
            writer.write_bytes(name)
            writer.write_uint(len(values) // 4)
            writer.write_raw(values)
        for section in task.sections:
            writer.write_bytes(section)
    return writer.getvalue()


# ---------------------------------------------------------------------------- accidents

Accident = Callable[[Random, bytes, bytes], bytes]


def flip_bits(random: Random, data: bytes, other: bytes) -> bytes:
    """One bit to eight are another."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 8) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def truncate(random: Random, data: bytes, other: bytes) -> bytes:
    """The end is missing."""
    return data[: random.randrange(len(data))] if data else b""


def extend(random: Random, data: bytes, other: bytes) -> bytes:
    """Something follows the end."""
    tail = random.choice([b"\0", _noise(random, 40), other, data])
    return data + tail


def splice(random: Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one and the end of another, at one place or at two."""
    cut = random.randrange(len(data) + 1)
    return data[:cut] + other[cut if random.random() < 0.5 else random.randrange(len(other) + 1) :]


def overwrite(random: Random, data: bytes, other: bytes) -> bytes:
    """A run of bytes is another."""
    first, run = _place(random, data), random.randint(1, 64)
    fill = random.choice([b"\0" * run, b"\xff" * run, _noise(random, run), other[first:][:run]])
    return data[:first] + fill + data[first + len(fill) :]


def move(random: Random, data: bytes, other: bytes) -> bytes:
    """A run of bytes is missing, twice there, or elsewhere."""
    first, run = _place(random, data), random.randint(1, 64)
    piece, rest = data[first : first + run], data[:first] + data[first + run :]
    if random.random() < 0.3:
        return rest
    whole = random.choice([data, rest])
    target = _place(random, whole)
    return whole[:target] + piece + whole[target:]


def enlarge(random: Random, data: bytes, other: bytes) -> bytes:
    """Where some number may stand, there is a huge one."""
    first = (
        _place(random, data) if random.random() < 0.5 else random.randrange(min(12, len(data) + 1))
    )
    return data[:first] + _integer(random.choice(HUGE)) + data[first + random.randint(0, 2) :]


ACCIDENTS: dict[str, Accident] = {
    "bits flipped": flip_bits,
    "truncated": truncate,
    "extended": extend,
    "spliced": splice,
    "overwritten": overwrite,
    "moved": move,
    "huge numbers": enlarge,
}
"""What may happen to any run of bytes; the second one is of another archive."""


def swap_tensors(random: Random, data: bytes, other: bytes) -> bytes:
    """The header says that two tensors are each where the other one is, or one is elsewhere."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    kind = random.randrange(4)
    if kind == 0:
        header["tasks"], header["static"] = header["static"], header["tasks"]
    else:
        entry = header[random.choice([name for name in PARTS if name in header])]
        if kind == 1:
            entry["data_offsets"][random.randrange(2)] = random.choice(HUGE)
        elif kind == 2:
            entry["shape"] = random.choice([[], [1 << 42], [1, entry["shape"][0]], [-1], "all"])
        else:
            entry["dtype"] = random.choice(["F64", "BOOL", "F4", "C64", "I8", "", None])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


# ---------------------------------------------------------------------------- intent

Attack = Callable[[Random, Archive, Archive], bytes]


def attack_stream(random: Random, archive: Archive, other: Archive) -> bytes:
    """The tasks, the static tensors or what is shared as one run of bytes."""
    tasks, static, shared = write_tasks(archive.tasks), archive.static, archive.shared
    kind = random.random()
    if kind < 0.7:
        tasks = _accident(random, tasks, write_tasks(other.tasks))
    elif kind < 0.85:
        static = _accident(random, static, other.static)
    else:
        shared = _accident(random, shared, other.shared)
    return sealed(archive.manifest, tasks, static, shared)


def attack_sections(random: Random, archive: Archive, other: Archive) -> bytes:
    """Within some sections, whose lengths are right again."""
    for _ in range(random.randint(1, 3)):
        sections = random.choice(archive.tasks).sections
        place = random.randrange(len(sections))
        theirs = random.choice(random.choice(other.tasks).sections)
        sections[place] = _accident(random, sections[place], theirs)
    return archive.sealed()


def swap_sections(random: Random, archive: Archive, other: Archive) -> bytes:
    """Some sections are those of other weights, other tasks or another archive."""
    for _ in range(random.randint(1, 3)):
        ours = random.choice(archive.tasks).sections
        theirs = random.choice(random.choice([archive, other]).tasks).sections
        place = random.randrange(len(ours))
        from_place = place if random.random() < 0.6 else random.randrange(len(theirs))
        ours[place], theirs[from_place % len(theirs)] = (
            theirs[from_place % len(theirs)],
            ours[place],
        )
    return archive.sealed()


def attack_tasks(random: Random, archive: Archive, other: Archive) -> bytes:
    """Labels, classes and statistics; tasks missing, twice there or in another order."""
    tasks = archive.tasks
    task = random.choice(tasks)
    kind = random.randrange(9)
    if kind == 0:
        random.shuffle(tasks)
    elif kind == 1:
        tasks.remove(task)
    elif kind == 2:
        copy = Task(random.choice([task.label, b"77"]), task.classes, [], list(task.sections))
        tasks.extend([copy] * random.choice([1, 40]))
    elif kind == 3:
        labels = [b"-0", b"00", b" 1", b"9" * 19, b"9" * 400, b"", b"\xff", b"\xd9\xa1", b"-1"]
        task.label = random.choice(labels)
    elif kind == 4:
        task.classes = random.choice(
            [[], [0], [1, 0], [0, 0], [0, 1, 2], [0, (1 << 63) - 1], [5, 1 << 20], list(range(999))]
        )
    elif kind == 5:
        task.classes[random.randrange(len(task.classes))] = random.choice(HUGE)
    elif kind == 6:
        task.statistics = random.choice([other, archive]).tasks[0].statistics * 2
    elif kind == 7:
        names = [b"prototype_means", b"prototype_variance", b"similarity", b"\xff", b""]
        task.statistics = [
            (random.choice(names), b"\0" * 4 * random.choice([0, 1, 10, 20, 500])) for _ in range(2)
        ]
    else:
        theirs = random.choice(other.tasks)
        tasks[tasks.index(task)] = Task(task.label, task.classes, [], theirs.sections)
    return archive.sealed()


def attack_manifest(random: Random, archive: Archive, other: Archive) -> bytes:
    """Fields that are missing, of another type, or of another archive; other kinds of stores."""
    manifest, weights = archive.manifest, archive.manifest["weights"]
    entry = random.choice(weights)
    kind = random.randrange(10)
    if kind == 0:
        del manifest[random.choice(list(manifest))]
    elif kind == 1:
        manifest[random.choice([*manifest, "extra"])] = random.choice(ODD)
    elif kind == 2:
        name = random.choice(list(manifest))
        manifest[name] = other.manifest[name]
    elif kind == 3:
        entry[random.randrange(4)] = random.choice(ODD)
    elif kind == 4:
        options = _options(archive, other)
        entry[3] = dict(random.sample(options, random.randint(0, 3)))
    elif kind == 5:
        entry[3].update([random.choice(_options(archive, other))])
    elif kind == 6:
        entry[1] = random.choice(KINDS)
        entry[3] = {}
    elif kind == 7:
        manifest["weights"] = random.choice(
            [weights[1:], weights * 2, weights[::-1], weights * 999]
        )
    elif kind == 8:
        name = random.choice(["exclude", "include"])
        names = [
            "hidden",
            "features",
            "features.0",
            "hidden.weight",
            "head",
            "",
            "features.1.weight",
        ]
        manifest[name] = random.sample(names, random.randint(1, 3)) * random.choice([1, 5000])
    else:
        opening, closing = random.choice(["[]", ('{"a":', "}")])
        depth = random.choice([100, 900, 100_000])
        texts = [opening * depth + closing * depth, "9" * 5000, "nul", "Infinity"]
        tasks = write_tasks(archive.tasks)
        return _file(random.choice(texts), tasks, archive.static, archive.shared)
    return archive.sealed()


ATTACKS: dict[str, Attack] = {
    "stream": attack_stream,
    "within sections": attack_sections,
    "sections swapped": swap_sections,
    "tasks": attack_tasks,
    "manifest": attack_manifest,
}
"""What somebody may do who computes a new checksum; both archives are theirs to change."""

MUTATIONS: list[str] = [*ACCIDENTS, "tensors swapped", *(f"sealed: {name}" for name in ATTACKS)]


def mutate(name: str, random: Random, data: bytes, other: bytes) -> bytes:
    """An archive that is damaged.

    :param name: one of :data:`MUTATIONS`.
    :param random: decides where.
    :param data: a valid file.
    :param other: another one, of the same model.
    """
    if name.startswith("sealed: "):
        return ATTACKS[name[len("sealed: ") :]](random, parse(data), parse(other))
    return {**ACCIDENTS, "tensors swapped": swap_tensors}[name](random, data, other)


# ---------------------------------------------------------------------------- within


def _options(archive: Archive, other: Archive) -> list[tuple[str, Any]]:
    """Those of the stores of both, and some that no store takes."""
    entries = [*archive.manifest["weights"], *other.manifest["weights"]]
    known = {name: value for entry in entries for name, value in entry[3].items()}
    odd = [(name, value) for name in (*known, *NAMES) for value in ODD[:6]]
    return [*known.items(), *odd]


def _read_task(reader: ByteReader, stores: int) -> Task:
    label = reader.read_bytes()
    classes = [reader.read_uint() for _ in _counted(reader)]
    statistics = [
        (reader.read_bytes(), reader.read_raw(4 * reader.read_uint())) for _ in _counted(reader)
    ]
    return Task(label, classes, statistics, [reader.read_bytes() for _ in range(stores)])


def _counted(reader: ByteReader) -> range:
    return range(reader.read_uint())


def _text(manifest: Any) -> str:
    return json.dumps(manifest, separators=(",", ":"))


def _file(manifest: str, tasks: bytes, static: bytes, shared: bytes) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"avalanche_compress": manifest}}
    first = 0
    for name, part in zip(PARTS, (tasks, static, shared)):
        if part or name != "shared":
            header[name] = _tensor(first, first + len(part))
            first += len(part)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tasks + static + shared


def _tensor(first: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - first], "data_offsets": [first, end]}


def _accident(random: Random, data: bytes, other: bytes) -> bytes:
    return random.choice(list(ACCIDENTS.values()))(random, data, other)


def _place(random: Random, data: bytes) -> int:
    return random.randrange(len(data) + 1)


def _noise(random: Random, size: int) -> bytes:
    return bytes(random.randrange(256) for _ in range(size))


def _integer(value: int) -> bytes:
    writer = ByteWriter()
    writer.write_uint(value)
    return writer.getvalue()
