"""Results that may come from elsewhere: each field of its kind and within its range, or an error.

Files of results are read as plain data. What is drawn and compared takes their numbers as they are,
so they are checked here, once, wherever they come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from avalanche_compress.errors import shortened
from benchmarks.runs.results import RunResult

Check = Callable[[Any], bool]


class ResultsError(ValueError):
    """A file of results cannot be read; the message, a line, names it and says what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(" ".join(message.split())))


def is_text(value: Any) -> bool:
    """Whether a value is a name that can be shown."""
    return isinstance(value, str) and len(value) <= 200 and value.isprintable()


def is_flag(value: Any) -> bool:
    """Whether a value is a truth value."""
    return isinstance(value, bool)


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value is a whole number of a sensible size."""
    return isinstance(value, int) and not is_flag(value) and least <= value < 1 << 53


def is_number(value: Any, least: float = 0.0, most: float = 1e15) -> bool:
    """Whether a value is a finite number, by default not negative."""
    return isinstance(value, (int, float)) and not is_flag(value) and least <= value <= most


def is_part(value: Any) -> bool:
    """Whether a value lies between 0 and 1."""
    return is_number(value, most=1.0)


def is_row(value: Any) -> bool:
    """Whether a value is a list of accuracies, None for those that are not known."""
    return isinstance(value, list) and all(entry is None or is_part(entry) for entry in value)


def _is_positive(value: Any) -> bool:
    return is_count(value, least=1)


def _is_change(value: Any) -> bool:
    return is_number(value, least=-1.0, most=1.0)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _by_name(check: Check) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(map(is_text, value)) and all(map(check, value.values()))
    )


_CHECKS: dict[str, Check] = {
    "strategy": is_text,
    "stream": is_text,
    "backbone": is_text,
    "seed": is_count,
    "order": lambda value: _list_of(is_count)(value) and sorted(value) == [*range(len(value))],
    "accuracy": is_part,
    "accuracy_matrix": _list_of(is_row),
    "forgetting": _or_none(_is_change),
    "bwt": _or_none(_is_change),
    "archive_bytes": _or_none(is_count),
    "stored_bytes": is_count,
    "independent_bytes": _is_positive,
    "train_seconds": is_number,
    "eval_seconds": is_number,
    "versions": _by_name(is_text),
    "epochs": _is_positive,
    "train_mb_size": _is_positive,
    "scenario": is_text,
    "task_inference": _or_none(is_text),
    "task_id_accuracy": _or_none(is_part),
    "order_index": is_count,
    "ranks": _or_none(_by_name(_list_of(is_count))),
    "quick": is_flag,
    "recipe": is_text,
    "device": is_text,
    "archive_sha256": _or_none(is_text),
    "own_backbone": is_flag,
    "densities": _or_none(_by_name(_list_of(is_part))),
    "bits": _or_none(_by_name(_list_of(_or_none(is_number)))),
    "hardware": is_text,
    "bf16": is_flag,
    "memory_bytes": _or_none(is_count),
    "refused": _or_none(is_row),
    "refused_before": _or_none(is_row),
    "variant": is_text,
}
_REQUIRED = [field.name for field in fields(RunResult) if field.default is MISSING]


def result_of(entry: Any, source: str) -> RunResult:
    """A result out of plain data.

    :param entry: what JSON gave.
    :param source: where it comes from, for messages.
    :raises ResultsError: if a field is missing, of another kind, or out of its range.
    """
    if not isinstance(entry, dict):
        raise ResultsError(f"{source} is no run but {entry!r}.")
    missing = [name for name in _REQUIRED if name not in entry]
    if missing:
        raise ResultsError(f"{source} is no run: it has no {missing[0]}.")
    for name, value in entry.items():
        if name not in _CHECKS or not _CHECKS[name](value):
            raise ResultsError(f"{source} is no run: its {name} is {value!r}.")
    result = RunResult(**entry)
    tasks, matrix = len(result.order), result.accuracy_matrix
    is_square = len(matrix) == tasks and all(len(row) == tasks for row in matrix)
    if not tasks or not is_square or None in matrix[-1]:
        raise ResultsError(f"{source} is no run: its accuracies are not those of {tasks} tasks.")
    for layers in (result.ranks, result.densities, result.bits):
        if layers and any(len(row) != tasks for row in layers.values()):
            raise ResultsError(f"{source} is no run: its layers are not those of {tasks} tasks.")
    for row in (result.refused, result.refused_before):
        if row is not None and len(row) != tasks:
            raise ResultsError(f"{source} is no run: its refusals are not those of {tasks} tasks.")
    return result


def parse(text: str | bytes, source: str) -> Any:
    """JSON of anybody's as plain data.

    :param text: what a file held.
    :param source: where it comes from, for messages.
    :raises ResultsError: if it is none.

    >>> parse("[1]", "a file")
    [1]
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{source} is damaged, it is no JSON: {error}.") from error


def read_results(path: Path) -> list[RunResult]:
    """Read what :func:`~benchmarks.runs.results.write_results` wrote.

    :param path: the file.
    :raises ResultsError: if it is damaged, or cannot be read.
    """
    try:
        text = path.read_bytes()
    except (OSError, ValueError) as error:  # the latter of a NUL in the name
        raise ResultsError(f"{str(path)!r} cannot be read: {error}.") from error
    entries = parse(text, str(path))
    if not isinstance(entries, list):
        raise ResultsError(f"{path} is no list of runs.")
    return [result_of(entry, f"{path}, entry {place}") for place, entry in enumerate(entries)]


def check_together(results: Iterable[RunResult]) -> None:
    """Refuse runs of one stream that are of other numbers of tasks: no table can hold both.

    :param results: of any files.
    :raises ResultsError: naming two such runs.
    """
    seen: dict[tuple[str, str], RunResult] = {}
    for result in results:
        first = seen.setdefault((result.stream, result.scenario), result)
        if len(first.order) != len(result.order):
            raise ResultsError(
                f"{first.key} has {len(first.order)} tasks and {result.key} has "
                f"{len(result.order)}: they cannot stand in one table."
            )
