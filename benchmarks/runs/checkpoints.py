"""What a run leaves on disk, so that it can go on when it was killed.

A run's folder holds ``progress.json``, which says what was measured after each finished task, and
the learner's state. Our strategies write theirs every few seconds, between two epochs. Avalanche's
cannot go on inside a task: their checkpoint is written after each task, then ``progress.json`` is
replaced in one step. So there is always a complete state, and what was measured until then.
"""

from __future__ import annotations

import copyreg
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from avalanche.core import SupervisedPlugin

from avalanche_compress import (
    Position,
    TrainingStatePlugin,
    load_checkpoint,
    load_training_state,
    save_checkpoint,
)
from benchmarks.data.splits import Stream
from benchmarks.runs.accuracies import Row
from benchmarks.runs.reading import ResultsError, is_number, is_row, parse
from benchmarks.runs.results import versions, write_text
from benchmarks.runs.settings import RunSettings

LOGGED = "logged.jsonl"
"""In a run's folder, what it has logged to W&B."""


class RunInProgressError(RuntimeError):
    """Another process is training the same run."""


@dataclass(frozen=True)
class Measured:
    """What was measured when a task had been learnt.

    :param accuracies: test accuracies of all tasks; None for those to come.
    :param task_ids: how often these tasks were inferred rightly.
    :param train_seconds: of learning it.
    :param eval_seconds: of evaluating the tasks so far.
    :param refused: the part of the test samples that is refused: of the next task, and after the
        last one of all; None for the others, and where nothing can be refused.
    """

    accuracies: Row
    task_ids: Row
    train_seconds: float
    eval_seconds: float
    refused: Row


def open_history(folder: Path) -> list[Measured]:
    """What a run had measured when it was stopped, task by task.

    :param folder: of the run.
    :return: an empty history if there is none, or one that other versions of Python, torch or
        this package have written: what they began has to begin again.
    :raises ResultsError: if the file is damaged.
    """
    path = folder / "progress.json"
    entry = parse(path.read_bytes(), str(path)) if path.exists() else {}
    if not isinstance(entry, dict):
        raise _damaged(path)
    if entry.get("versions") == versions():
        tasks = entry.get("tasks")
        if not isinstance(tasks, list):
            raise _damaged(path)
        return [_measured(task, path) for task in tasks]
    shutil.rmtree(folder / _STATES, ignore_errors=True)
    (folder / LOGGED).unlink(missing_ok=True)
    write_history([], folder)
    return []


def _measured(task: Any, path: Path) -> Measured:
    names = [field.name for field in fields(Measured)]
    if (
        not isinstance(task, dict)
        or task.keys() != set(names)
        or not all(map(is_row, (task["accuracies"], task["task_ids"], task["refused"])))
        or not all(map(is_number, (task["train_seconds"], task["eval_seconds"])))
    ):
        raise _damaged(path)
    return Measured(**task)


def _damaged(path: Path) -> ResultsError:
    return ResultsError(
        f"{path} is damaged: delete its folder, {path.parent}, and the run begins again."
    )


def write_history(history: list[Measured], folder: Path) -> None:
    """Declare the tasks of the history finished.

    :param history: of all tasks so far.
    :param folder: of the run.
    """
    entry = {"versions": versions(), "tasks": [asdict(task) for task in history]}
    write_text(folder / "progress.json", json.dumps(entry))


@contextmanager
def locked(folder: Path, patience: float = 10.0) -> Iterator[None]:
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


class Stopwatch(SupervisedPlugin):
    """Measures how long a task is trained, as if the run had never been stopped.

    >>> watch = Stopwatch()
    >>> watch.seconds = 60.0
    >>> 60 < watch.seconds < 61
    True
    """

    state_attributes = ("seconds",)

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    @property
    def seconds(self) -> float:
        """Since the start; set it to go on from what was measured before."""
        return time.perf_counter() - self._start

    @seconds.setter
    def seconds(self, before: float) -> None:
        self._start = time.perf_counter() - before


_STATES = "states"


def resume(strategy: Any, folder: Path, every_seconds: float) -> Position:
    """Bring a strategy of this package to its last state, and have it write more of them.

    :param strategy: a new one.
    :param folder: of the run.
    :param every_seconds: how long to wait between two states, at least.
    :return: where it goes on; the start if there is no state.
    :raises TrainingStateError: if there are states and all are damaged.
    """
    states = folder / _STATES
    strategy.plugins.insert(0, TrainingStatePlugin(states, every_seconds=every_seconds))
    return load_training_state(strategy, states)


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
    # Avalanche prints each device that it finds in the file
    with _named_data(settings.stream), redirect_stdout(None):
        load_checkpoint(strategy, path, trusted=True)
    strategy.plugins[:0] = settings.plugins
    strategy.evaluator.loggers = list(settings.loggers)


_data: list[Any] = []
"""The data sets that a checkpoint may name, while one is written or read."""


@contextmanager
def _named_data(stream: Stream) -> Iterator[None]:
    """Pickle the stream's data sets as their places in it: a memory may refer to all of them."""
    benchmark = stream.benchmark
    experiences = [*benchmark.train_stream, *benchmark.test_stream]
    _data[:] = [data for experience in experiences for data in _sources(experience.dataset)]
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
