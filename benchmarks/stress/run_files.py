"""Damaged results and records: read field by field or refused; no name leads elsewhere."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from avalanche_compress import CompressError
from avalanche_compress.errors import LONGEST_MESSAGE
from benchmarks.records import RECORDS, RecordsError, read_records
from benchmarks.report.command import markdown_tables
from benchmarks.runs.reading import ResultsError, check_together, read_results
from benchmarks.runs.results import RunResult
from benchmarks.runs.store import NAME, Store
from benchmarks.stress.cases import EXACT, OTHER, REFUSED, Case, Target
from benchmarks.stress.mutations import ACCIDENTS
from benchmarks.stress.trees import change

FIELDS = "fields"
MUTATIONS = [*ACCIDENTS, FIELDS]
_READERS: dict[str, Callable[[Path], list[RunResult]]] = {
    "results.json": read_results,
    NAME: lambda path: Store(path).results(),
    "records.jsonl": read_records,
}
_RUNS = 6


def mutate(name: str, random: Random, data: bytes, other: bytes) -> bytes:
    """A file of runs that is damaged, or whose fields are other ones.

    :param name: one of :data:`MUTATIONS`.
    :param random: decides where.
    :param data: a valid file.
    :param other: another one.
    """
    if name != FIELDS:
        return ACCIDENTS[name](random, data, other)
    if data.startswith(b"SQLite"):
        return _in_store(random, data)
    if data.startswith(b"["):
        return json.dumps(change(random, json.loads(data))).encode()
    lines = data.decode().splitlines()
    place = random.randrange(len(lines))
    lines[place] = json.dumps(change(random, json.loads(lines[place])))
    return "\n".join(lines).encode()


def _in_store(random: Random, data: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(data)
        with closing(sqlite3.connect(str(path))) as connection, connection:
            rows = connection.execute("SELECT rowid, record FROM runs").fetchall()
            place, record = random.choice(rows)
            changed: Any = json.dumps(change(random, json.loads(record)))
            changed = random.choice([changed, changed, changed.encode()[::-1], None, 3])
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute("UPDATE runs SET record = ? WHERE rowid = ?", (changed or "", place))
        return path.read_bytes()


def results_examples() -> dict[str, bytes]:
    """Results as both kinds of files have them."""
    runs = _runs()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / NAME)
        for run in runs:
            store.add(run)
        with closing(sqlite3.connect(str(store.path))) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
        text = json.dumps([asdict(run) for run in runs])
        return {"results.json": text.encode(), NAME: store.path.read_bytes()}


def records_examples() -> dict[str, bytes]:
    """Records as the repository has them."""
    lines = "".join(json.dumps(asdict(run)) + "\n" for run in _runs())
    return {"records.jsonl": lines.encode()}


def _runs() -> list[RunResult]:
    """Short ones of the records, one of them with ranks."""
    runs = sorted(read_records(RECORDS), key=lambda run: len(json.dumps(asdict(run))))
    ranked = next(run for run in runs if run.ranks)
    return [*runs[: _RUNS - 1], ranked]


def expect(files: dict[str, bytes]) -> dict[str, str]:
    """What valid files hold.

    :param files: by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name, data in files.items():
            path = Path(folder) / name
            path.write_bytes(data)
            found[name] = repr(_READERS[name](path))
        return found


def outcome(case: Case, expected: Mapping[str, str], folder: Path) -> str:
    """Read a damaged file and make its tables and the names of its pictures.

    :param case: it.
    :param expected: what each valid file holds.
    :param folder: for the file.
    """
    path = folder / case.example
    path.write_bytes(case.data)
    try:
        runs = _READERS[case.example](path)
        check_together(runs)
        markdown_tables(runs)
    except (ResultsError, RecordsError, CompressError) as error:
        said = str(error)
        short = len(said) <= LONGEST_MESSAGE + len(str(path)) and "\n" not in said
        return REFUSED if short else f"a message of {len(said)} characters: {said[:80]}"
    for run in runs:
        slug = run.key.slug
        if Path(slug).name != slug or len(slug) > 200:
            return f"a run whose file is {slug!r}"
    return EXACT if repr(runs) == expected[case.example] else OTHER


RESULTS = Target("results", MUTATIONS, mutate, results_examples, expect, outcome)
RUN_RECORDS = Target("records", MUTATIONS, mutate, records_examples, expect, outcome)
