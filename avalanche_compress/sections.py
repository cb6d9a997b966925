"""The tasks of an archive as labels, classes and bytes, which can be read without the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from avalanche_compress.codec import ByteReader, ByteWriter, CorruptStreamError
from avalanche_compress.core.heads import too_wide
from avalanche_compress.core.statistics import read_statistics, write_statistics


class TaskSections(NamedTuple):
    """What an archive holds of one task."""

    label: int
    classes: tuple[int, ...]
    statistics: dict[str, Tensor]
    """What is kept besides the weights, by name: of task inference."""
    statistics_bytes: int
    """What they take in the file."""
    sections: list[bytes]
    """Of the stores: first what the task has for itself, then each weight's."""


def write_task_sections(
    tasks: Iterable[tuple[int, Sequence[int], dict[str, Tensor], Sequence[bytes]]],
) -> bytes:
    """The part of an archive that differs from task to task.

    :param tasks: of each in order of learning its label, classes, statistics and sections.
    :raises CorruptStreamError: if a label or classes are none that are read.
    """
    tasks = list(tasks)
    writer = ByteWriter()
    _check_width([classes for _, classes, _, _ in tasks])
    writer.write_uint(len(tasks))
    for task, classes, statistics, sections in tasks:
        _check_task(task, classes)
        writer.write_bytes(str(task).encode())
        writer.write_uint(len(classes))
        for class_number in classes:
            writer.write_uint(class_number)
        write_statistics(writer, statistics)
        for section in sections:
            writer.write_bytes(section)
    return writer.getvalue()


def read_task_sections(content: bytes | memoryview, stores: int) -> list[TaskSections]:
    """The inverse of :func:`write_task_sections`; sections are cut out and not looked at.

    :param content: of an archive, which may be an untrusted one.
    :param stores: how many sections a task has.
    :raises CorruptStreamError: if it is not as tasks are written.
    :raises UnicodeDecodeError: likewise.

    >>> data = write_task_sections([(7, (0, 1), {}, [b"private", b"weight"])])
    >>> [(task.label, task.classes, task.sections) for task in read_task_sections(data, 2)]
    [(7, (0, 1), [b'private', b'weight'])]
    """
    reader, tasks, labels = ByteReader(content), [], set()
    for _ in range(reader.read_uint()):
        label = _read_label(reader)
        if label in labels:
            raise CorruptStreamError(f"two tasks labelled {label}")
        labels.add(label)
        classes = _read_classes(reader)
        _check_task(label, classes)
        before = reader.remaining
        statistics = read_statistics(reader)
        size = before - reader.remaining
        sections = [reader.read_bytes() for _ in range(stores)]
        tasks.append(TaskSections(label, classes, statistics, size, sections))
    reader.finish()
    _check_width([task.classes for task in tasks])
    return tasks


def write_shared_sections(sections: Sequence[bytes]) -> bytes:
    """What the tasks of each store share; nothing at all if no store has any.

    :param sections: of the stores, in the order of a task's.
    """
    if not any(sections):
        return b""
    writer = ByteWriter()
    for section in sections:
        writer.write_bytes(section)
    return writer.getvalue()


def read_shared_sections(content: bytes | memoryview, stores: int) -> list[bytes]:
    """The inverse of :func:`write_shared_sections`.

    :param content: of an archive, which may be an untrusted one.
    :param stores: how many there are.
    :raises CorruptStreamError: if it is not as they are written.

    >>> read_shared_sections(write_shared_sections([b"", b"base"]), 2), read_shared_sections(b"", 2)
    ([b'', b'base'], [b'', b''])
    """
    if not len(content):
        return [b""] * stores
    reader = ByteReader(content)
    sections = [reader.read_bytes() for _ in range(stores)]
    reader.finish()
    return sections


def _check_width(classes: Sequence[Sequence[int]]) -> None:
    reason = too_wide(classes)
    if reason:
        raise CorruptStreamError(reason)


def _read_label(reader: ByteReader) -> int:
    label = reader.read_bytes().decode()
    if not re.fullmatch("0|-?[1-9][0-9]{0,18}", label):
        raise CorruptStreamError(f"a task labelled {label[:20]!r}")
    return int(label)


def _read_classes(reader: ByteReader) -> tuple[int, ...]:
    count = reader.read_uint()
    if count > reader.remaining:
        raise CorruptStreamError(f"a task of {count} classes")
    return tuple(reader.read_uint() for _ in range(count))


def _check_task(task: int, classes: Sequence[int]) -> None:
    """Refuse what no archive holds, both when it is written and when it is read."""
    if not -(1 << 63) <= task < 1 << 63:
        raise CorruptStreamError(f"a task labelled {task}, which does not fit 64 bits")
    if not classes or list(classes) != sorted(set(classes)):
        raise CorruptStreamError(f"a task of the classes {list(classes[:20])}")
