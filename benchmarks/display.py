"""Progress while the comparison runs: a live bar on a terminal, short lines elsewhere."""

from __future__ import annotations

from typing import Any, Callable, Protocol

from avalanche.core import SupervisedPlugin
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.results import RunKey, RunResult


class Display(Protocol):
    """What the comparison tells its audience."""

    def start(self, key: RunKey, tasks: int, epochs: int) -> None:
        """A run begins."""

    def epoch(self, task: int, epoch: int) -> None:
        """Epoch ``epoch`` (from 1) of task ``task`` (from 0) is over."""

    def task(self, task: int, accuracy: float | None) -> None:
        """Task ``task`` (from 0) is learnt; ``accuracy`` is the mean over the tasks so far."""

    def finish(self, result: RunResult) -> None:
        """The run is over."""

    def fail(self, key: RunKey) -> None:
        """The run came to a bad end."""

    def close(self) -> None:
        """Nothing more will come."""


class LineDisplay:
    """One short line per task, without control codes.

    :param console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.prefix = ""
        self.tasks = 0
        self.epochs = 0

    def start(self, key: RunKey, tasks: int, epochs: int) -> None:
        """See :class:`Display`."""
        self.prefix, self.tasks, self.epochs = str(key), tasks, epochs

    def epoch(self, task: int, epoch: int) -> None:
        """Epochs are not reported: there may be hundreds."""

    def task(self, task: int, accuracy: float | None) -> None:
        """See :class:`Display`."""
        if accuracy is None:
            return
        self._print(
            f"{self.prefix}: task {task + 1}/{self.tasks}, epoch {self.epochs}/{self.epochs}, "
            f"accuracy so far {percent(accuracy)}"
        )

    def finish(self, result: RunResult) -> None:
        """See :class:`Display`."""
        self._print(f"{result.key}: finished, {percent(result.accuracy)}")

    def fail(self, key: RunKey) -> None:
        """See :class:`Display`."""
        self._print(f"{key}: failed")

    def close(self) -> None:
        """See :class:`Display`."""

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """A bar for all runs and a bar for the current one.

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
        self.current = self.progress.add_task("", total=1, detail="")
        self.runs, self.finished = runs, 0
        self.tasks, self.epochs, self.accuracy = 1, 1, "-"
        self.progress.start()

    def start(self, key: RunKey, tasks: int, epochs: int) -> None:
        """See :class:`Display`."""
        self.tasks, self.epochs, self.accuracy = tasks, epochs, "-"
        self.progress.reset(self.current, total=tasks * epochs, description=str(key), detail="")

    def epoch(self, task: int, epoch: int) -> None:
        """See :class:`Display`."""
        self._show(task, epoch)

    def task(self, task: int, accuracy: float | None) -> None:
        """See :class:`Display`."""
        self.accuracy = percent(accuracy)
        self._show(task, self.epochs)

    def finish(self, result: RunResult) -> None:
        """See :class:`Display`."""
        self._done(
            f"[green]done[/]    {result.key}: {percent(result.accuracy)} "
            f"in {result.train_seconds + result.eval_seconds:.0f} s"
        )

    def fail(self, key: RunKey) -> None:
        """See :class:`Display`."""
        self._done(f"[red]failed[/]  {key}")

    def close(self) -> None:
        """See :class:`Display`."""
        self.progress.stop()

    def _show(self, task: int, epoch: int) -> None:
        detail = (
            f"task {task + 1}/{self.tasks}  epoch {epoch}/{self.epochs}  "
            f"accuracy so far {self.accuracy}"
        )
        completed = task * self.epochs + epoch
        self.progress.update(self.current, completed=completed, detail=detail)

    def _done(self, line: str) -> None:
        self.finished += 1
        self.progress.console.print(line, highlight=False)
        detail = f"{self.finished}/{self.runs}"
        self.progress.update(self.all_runs, completed=self.finished, detail=detail)


class EpochWatcher(SupervisedPlugin):
    """Tells a function after each epoch how many the current experience has had.

    :param tell: called with the number of finished epochs.
    """

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
