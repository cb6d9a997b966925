"""The results of all runs in one SQLite file that several processes may write at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.data.streams import STREAMS
from benchmarks.runs.reading import ResultsError, parse, result_of
from benchmarks.runs.results import RunKey, RunResult
from benchmarks.runs.strategies import STRATEGIES

NAME = "results.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    stream TEXT NOT NULL,
    scenario TEXT NOT NULL,
    backbone TEXT NOT NULL,  -- empty for the stream's own
    strategy TEXT NOT NULL,
    inference TEXT NOT NULL,  -- empty where no task was inferred
    seed INTEGER NOT NULL,
    order_index INTEGER NOT NULL,
    epochs INTEGER NOT NULL,
    quick INTEGER NOT NULL,
    recipe TEXT NOT NULL,
    stored TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f')),
    record TEXT NOT NULL,  -- the RunResult as JSON
    PRIMARY KEY (
        stream, scenario, backbone, strategy, inference, seed, order_index, epochs, quick, recipe
    )
)
"""


class Store:
    """Finished runs by everything that their numbers come from.

    A run is identified by its :class:`~benchmarks.runs.results.RunKey`, its epochs and the
    fingerprint of its recipe. Every call is a transaction of its own; writers wait for each other.
    A file that is damaged, or none of this kind, gives a
    :class:`~benchmarks.runs.reading.ResultsError` that names it.

    :param path: the file; made when the first result comes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Store(Path(folder) / NAME).results()
    []
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, result: RunResult) -> None:
        """Store a finished run, in the place of an earlier one with the same identity."""
        row = _identity(result.key, result.epochs, result.recipe)
        row["record"] = json.dumps(asdict(result))
        names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            connection.execute(f"INSERT OR REPLACE INTO runs ({names}) VALUES ({places})", row)

    def find(self, key: RunKey, epochs: int, recipe: str) -> RunResult | None:
        """The result of a run, if it has finished.

        :param key: which run.
        :param epochs: per task.
        :param recipe: the fingerprint.
        """
        row = _identity(key, epochs, recipe)
        found = self._records(" AND ".join(f"{name} = :{name}" for name in row), row)
        return found[0] if found else None

    def results(self) -> list[RunResult]:
        """All runs, of several recipes of the same run the last one, in the registries' order."""
        newest = {(run.key, run.epochs): run for run in self._records("1", {})}
        return in_order(newest.values())

    def _records(self, condition: str, values: dict[str, str | int]) -> list[RunResult]:
        if not self.path.exists():
            return []
        query = f"SELECT record FROM runs WHERE {condition} ORDER BY stored, rowid"
        with self._connection() as connection:
            rows = connection.execute(query, values).fetchall()
        return [self._result(record) for (record,) in rows]

    def _result(self, record: Any) -> RunResult:
        if not isinstance(record, (str, bytes)):
            raise ResultsError(f"{self.path} is damaged: a record is {record!r}.")
        return result_of(parse(record, f"a record of {self.path}"), f"a record of {self.path}")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(str(self.path), timeout=60)) as connection, connection:
                # readers and one writer at a time do not block each other
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(_SCHEMA)
                yield connection
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise ResultsError(f"{self.path} cannot be used, {error}: move it away.") from error


def in_order(results: Iterable[RunResult]) -> list[RunResult]:
    """Results in the order of the registries, whichever finished first."""
    streams, strategies = list(STREAMS), list(STRATEGIES)
    return sorted(
        results,
        key=lambda run: (
            _place(run.stream, streams),
            run.scenario != "task",
            (not run.own_backbone, run.backbone),
            (run.quick, run.epochs, run.bf16),
            run.order_index,
            run.seed,
            _place(run.strategy, strategies),
            run.variant,
            run.task_inference or "",
        ),
    )


def _place(name: str, known: list[str]) -> tuple[int, str]:
    """Names that are not registered any more come last."""
    return (known.index(name), "") if name in known else (len(known), name)


def _identity(key: RunKey, epochs: int, recipe: str) -> dict[str, str | int]:
    return {
        "stream": key.stream,
        "scenario": key.scenario,
        "backbone": key.backbone or "",
        "strategy": key.strategy,
        "inference": key.inference or "",
        "seed": key.seed,
        "order_index": key.order_index,
        "epochs": epochs,
        "quick": key.quick,
        "recipe": recipe,
    }
