"""What a run leaves on disk after each task, so that it can go on from there when it was killed.

A run's folder holds the checkpoints of its strategy and ``progress.json``, which says how many
tasks are finished and what was measured. The checkpoints are written first, ``progress.json`` is
then replaced in one step: it always names a complete state.
"""

from __future__ import annotations

import copyreg
import json
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Iterator

from avalanche_compress import load_checkpoint, save_checkpoint
from benchmarks.results import Row, versions, write_text
from benchmarks.settings import RunSettings
from benchmarks.streams import Stream


class RunInProgressError(RuntimeError):
    """Another process is training the same run."""


@dataclass
class History:
    """What was measured after each of the tasks so far.

    :param matrix: a row of test accuracies per finished task.
    :param task_ids: the last row of how often tasks were inferred rightly.
    """

    matrix: list[Row] = field(default_factory=list)
    task_ids: Row = field(default_factory=list)
    train_seconds: float = 0.0
    eval_seconds: float = 0.0


def read_history(folder: Path) -> History:
    """What a run had measured when it was stopped.

    :param folder: of the run.
    :return: an empty history if there is none, or one that other versions of Python, torch or
        this package have written: what they began has to begin again.
    """
    path = folder / "progress.json"
    if not path.exists():
        return History()
    entry = json.loads(path.read_text(encoding="utf-8"))
    return History(**entry["history"]) if entry["versions"] == versions() else History()


def write_history(history: History, folder: Path) -> None:
    """Declare the tasks of the history finished; their checkpoint has been written.

    :param history: of all tasks so far.
    :param folder: of the run.
    """
    entry = {"versions": versions(), "history": asdict(history)}
    write_text(folder / "progress.json", json.dumps(entry))


@contextmanager
def claimed(folder: Path, patience: float = 10.0) -> Iterator[None]:
    """Keep a run's folder to this process; whatever ends the process gives it back.

    :param folder: of the run; created if missing.
    :param patience: seconds to wait for another process, which may just be ending.
    :raises RunInProgressError: if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # SQLite's lock is the one that works, and ends with its process, on every system.
    with closing(sqlite3.connect(str(folder / "lock"), timeout=patience)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise RunInProgressError(
                f"another process is training this run: start again when it has ended ({folder})."
            ) from error
        yield


def save_strategy(strategy: Any, path: Path, settings: RunSettings) -> None:
    """Write a checkpoint without what belongs to this process or lies on disk already.

    :param strategy: an Avalanche strategy between two tasks.
    :param path: the file.
    :param settings: with which it was built: its watching plugins and loggers are left out, its
        data sets are named instead of copied.
    """
    plugins, loggers = strategy.plugins, strategy.evaluator.loggers
    watching = {id(plugin) for plugin in settings.plugins}
    strategy.plugins = [plugin for plugin in plugins if id(plugin) not in watching]
    strategy.evaluator.loggers = []
    try:
        with _named_data(settings.stream):
            save_checkpoint(strategy, path)
    finally:
        strategy.plugins, strategy.evaluator.loggers = plugins, loggers


def load_strategy(strategy: Any, path: Path, settings: RunSettings) -> None:
    """Bring a strategy, and the random generators, to the state of :func:`save_strategy`.

    Reading the file runs code that is stored in it: a folder of results is to be one's own.

    :param strategy: a new one, built with ``settings``.
    :param path: the file.
    :param settings: as when it was written.
    :raises CheckpointError: if the file is damaged or cannot be read here.
    """
    with _named_data(settings.stream):
        load_checkpoint(strategy, path, settings.device, trusted=True)
    strategy.plugins[:0] = settings.plugins
    strategy.evaluator.loggers = list(settings.loggers)


_data: list[Any] = []
"""The data sets that a checkpoint may name, while one is written or read."""


@contextmanager
def _named_data(stream: Stream) -> Iterator[None]:
    """Pickle the stream's data sets as their places in it: a memory may refer to all of them."""
    benchmark = stream.benchmark
    experiences = [*benchmark.train_stream, *benchmark.test_stream]
    _data[:] = [own for experience in experiences for own in _sources(experience.dataset)]
    for kind in {type(source) for source in _data}:
        copyreg.pickle(kind, _reduce)
    try:
        yield
    finally:
        _data.clear()


def _sources(dataset: Any) -> Iterator[Any]:
    """The data sets inside Avalanche's wrappers."""
    inner = getattr(dataset, "_datasets", None)
    if inner is None:
        yield dataset
    else:
        for wrapped in inner:
            yield from _sources(wrapped)


def _reduce(dataset: Any) -> Any:
    for place, known in enumerate(_data):
        if known is dataset:
            return _nth, (place,)
    return dataset.__reduce_ex__(4)


def _nth(place: int) -> Any:
    return _data[place]
