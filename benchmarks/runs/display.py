"""Progress while the comparison runs: a live bar on a terminal, short lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avalanche.core import SupervisedPlugin
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from avalanche_compress import Position
from benchmarks.runs.results import RunKey, RunResult


class Display:
    """What the comparison tells its audience; several runs may be under way. This one is silent."""

    def start(self, key: RunKey, tasks: int, epochs: int, done: Position) -> None:
        """A run begins, or goes on from where it was stopped."""

    def epoch(self, key: RunKey, task: int, epoch: int) -> None:
        """Epoch ``epoch`` (from 1) of task ``task`` (from 0) is over."""

    def task(self, key: RunKey, task: int, accuracy: float | None) -> None:
        """Task ``task`` (from 0) is learnt; ``accuracy`` is the mean over the tasks so far."""

    def finish(self, result: RunResult) -> None:
        """A run is over."""

    def fail(self, key: RunKey) -> None:
        """A run came to a bad end."""

    def close(self) -> None:
        """Nothing more will come."""


class LineDisplay(Display):
    """One short line per task, without control codes; epochs are not reported, there may be many.

    :param console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lengths: dict[RunKey, tuple[int, int]] = {}

    def start(self, key: RunKey, tasks: int, epochs: int, done: Position) -> None:
        """See :class:`Display`."""
        self.lengths[key] = tasks, epochs
        if any(done):
            inside = f" and epoch {done.epochs}/{epochs} of the next" if done.epochs else ""
            self._print(f"{key}: goes on after task {done.experience}/{tasks}{inside}")

    def task(self, key: RunKey, task: int, accuracy: float | None) -> None:
        """See :class:`Display`."""
        if accuracy is None:
            return
        tasks, epochs = self.lengths[key]
        self._print(
            f"{key}: task {task + 1}/{tasks}, epoch {epochs}/{epochs}, "
            f"accuracy so far {percent(accuracy)}"
        )

    def finish(self, result: RunResult) -> None:
        """See :class:`Display`."""
        self._print(f"{result.key}: finished, {percent(result.accuracy)}")

    def fail(self, key: RunKey) -> None:
        """See :class:`Display`."""
        self._print(f"{key}: failed")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass
class _Bar:
    """The bar of a run that is under way."""

    number: TaskID
    tasks: int
    epochs: int
    accuracy: str = "-"


class LiveDisplay(Display):
    """A bar for all runs, and one for each that is under way.

    :param console: the terminal.
    :param runs: how many runs there will be.
    """

    def __init__(self, console: Console, runs: int) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.all_runs = self.progress.add_task("all runs", total=runs, detail=f"0/{runs}")
        self.runs, self.finished = runs, 0
        self.bars: dict[RunKey, _Bar] = {}
        self.progress.start()

    def start(self, key: RunKey, tasks: int, epochs: int, done: Position) -> None:
        """See :class:`Display`."""
        if key not in self.bars:  # as it is when a run goes on with another worker
            number = self.progress.add_task(str(key), total=tasks * epochs, detail="")
            self.bars[key] = _Bar(number, tasks, epochs)
        if done.epochs:
            self._show(key, done.experience, done.epochs)
        elif done.experience:
            self._show(key, done.experience - 1, epochs)

    def epoch(self, key: RunKey, task: int, epoch: int) -> None:
        """See :class:`Display`."""
        self._show(key, task, epoch)

    def task(self, key: RunKey, task: int, accuracy: float | None) -> None:
        """See :class:`Display`."""
        self.bars[key].accuracy = percent(accuracy)
        self._show(key, task, self.bars[key].epochs)

    def finish(self, result: RunResult) -> None:
        """See :class:`Display`."""
        seconds = result.train_seconds + result.eval_seconds
        line = f"[green]done[/]    {result.key}: {percent(result.accuracy)} in {seconds:.0f} s"
        self._done(result.key, line)

    def fail(self, key: RunKey) -> None:
        """See :class:`Display`."""
        self._done(key, f"[red]failed[/]  {key}")

    def close(self) -> None:
        """See :class:`Display`."""
        self.progress.stop()

    def _show(self, key: RunKey, task: int, epoch: int) -> None:
        bar = self.bars[key]
        detail = (
            f"task {task + 1}/{bar.tasks}  epoch {epoch}/{bar.epochs}  "
            f"accuracy so far {bar.accuracy}"
        )
        self.progress.update(bar.number, completed=task * bar.epochs + epoch, detail=detail)

    def _done(self, key: RunKey, line: str) -> None:
        self.finished += 1
        self.progress.console.print(line, highlight=False)
        if key in self.bars:  # one that failed may never have begun
            self.progress.remove_task(self.bars.pop(key).number)
        detail = f"{self.finished}/{self.runs}"
        self.progress.update(self.all_runs, completed=self.finished, detail=detail)


class EpochWatcher(SupervisedPlugin):
    """Tells a function after each epoch how many the current experience has had.

    :param tell: called with the number of finished epochs.
    """

    state_attributes = ()

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self.tell = tell

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Avalanche's clock counts the epoch only after this call."""
        self.tell(strategy.clock.train_exp_epochs + 1)


def make_display(console: Console, runs: int) -> Display:
    """The live display on a terminal, lines elsewhere."""
    return LiveDisplay(console, runs) if console.is_terminal else LineDisplay(console)


def percent(accuracy: float | None) -> str:
    """An accuracy as people read it.

    >>> percent(0.98765), percent(None)
    ('98.8 %', '-')
    """
    return "-" if accuracy is None else f"{100 * accuracy:.1f} %"
