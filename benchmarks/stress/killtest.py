"""Kill comparisons at random moments, start them again, and compare with some that were left alone.

``python -m benchmarks.killtest`` kills a whole grid: all strategies with two seeds, five kills.
``python -m benchmarks.killtest --each`` kills every run of a grid for itself, thirty times, and
prints a table. Whatever follows ``--`` goes to ``benchmarks.compare``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from avalanche_compress import Position
from benchmarks import compare
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import build_stream
from benchmarks.runs.engines import Line, calm
from benchmarks.runs.results import RunResult
from benchmarks.runs.run import Failure, Job, attempt
from benchmarks.runs.store import NAME, Store

GRID = ("--seeds", "0", "1", "--epochs", "2")
EACH = ("--epochs", "4")
OFTEN = ("--save-every", "0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test.

    :param arguments: command line without the program's name.
    :return: exit code, 0 when what was killed ended as what was not.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.killtest", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--each", action="store_true", help="kill every run for itself")
    parser.add_argument("--kills", type=int, metavar="N", help="default: 5, with --each 30")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    parser.add_argument(
        "grid", nargs="*", help=f"default: {' '.join(GRID)}, with --each {' '.join(EACH)}"
    )
    given = parser.parse_args(arguments)
    test = _kill_each if given.each else _kill_grid
    with tempfile.TemporaryDirectory() as folder:
        return 0 if test(given, Path(folder)) else 1


def _kill_grid(given: argparse.Namespace, folder: Path) -> bool:
    found = kill_and_compare(given.grid or GRID, given.kills or 5, folder, given.seed)
    for line in found or ["equal: accuracy matrices and archives"]:
        print(line)
    return not found


def _kill_each(given: argparse.Namespace, folder: Path) -> bool:
    grid = [*(given.grid or EACH), *OFTEN, "--out", str(folder)]
    calm()
    moments, equal = random.Random(given.seed), True
    print(Tally.HEAD, flush=True)
    for job in compare.parse(grid).jobs():
        tally = kill_run(job, given.kills or 30, moments)
        print(f"| {job.key} {tally}", flush=True)
        equal = equal and tally.equal
    return equal


# --- A whole grid --------------------------------------------------------------------------------


def kill_and_compare(grid: Sequence[str], kills: int, folder: Path, seed: int = 0) -> list[str]:
    """What differs between a comparison that was killed and one that was not.

    :param grid: arguments of ``benchmarks.compare`` without ``--out``.
    :param kills: how often the process is killed; its workers have to notice by themselves.
    :param folder: gets the folders ``whole`` and ``killed``.
    :param seed: of the random moments.
    :return: a line per difference.
    :raises RuntimeError: if a comparison fails, or ends before it was killed as often.
    """
    moments = random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    began = time.monotonic()
    lines = len(_finish(grid, whole).splitlines())
    pace = (time.monotonic() - began) / lines
    for kill in range(kills):
        with _start(grid, killed) as process:
            printed: Any = process.stdout
            # counted in lines, about one a task: seconds would depend on what else is running
            for _ in range(moments.randint(1, max(1, lines // (kills + 1)))):
                printed.readline()
            time.sleep(moments.uniform(0, pace))
            if process.poll() is not None:
                raise RuntimeError(f"the grid was killed {kill} times, then it ended: give more.")
            process.kill()
        print(f"kill {kill + 1}: {len(Store(killed / NAME).results())} runs had finished")
    _finish(grid, killed)
    return differences(Store(whole / NAME).results(), Store(killed / NAME).results())


def differences(expected: Sequence[RunResult], found: Sequence[RunResult]) -> list[str]:
    """A line for each run that is not in both, or whose accuracies or archive differ.

    :param expected: some results.
    :param found: what should be the same.
    """
    left, right = ({_identity(run): _outcome(run) for run in runs} for runs in (expected, found))
    lines = [f"{run}: only in one of them" for run in left.keys() ^ right.keys()]
    lines += [f"{run}: differs" for run in left.keys() & right.keys() if left[run] != right[run]]
    return sorted(lines)


def _identity(run: RunResult) -> str:
    return f"{run.key}, {run.epochs} epochs, recipe {run.recipe}"


def _outcome(run: RunResult) -> tuple[Any, ...]:
    return run.accuracy_matrix, run.task_id_accuracy, run.archive_sha256, run.stored_bytes


def _start(grid: Sequence[str], out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.compare", *grid, *OFTEN, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _finish(grid: Sequence[str], out: Path) -> str:
    """Run a comparison to its end; what it printed."""
    with _start(grid, out) as process:
        printed = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"the comparison failed:\n{printed}")
    return printed


# --- Every run for itself ------------------------------------------------------------------------


@dataclass
class Tally:
    """What a run went through.

    :param kills: SIGKILLs that met a living process.
    :param writing: those that left a file that was being written.
    :param inside: how often the run went on inside a task.
    :param between: how often with a new task, the first one not counted.
    :param equal: whether it ended as the run that was left alone.
    """

    HEAD: ClassVar = (
        "| run | kills | while writing | went on inside a task | between tasks | from the start "
        "| equal |\n| :-- | --: | --: | --: | --: | --: | :-- |"
    )

    kills: int = 0
    writing: int = 0
    inside: int = 0
    between: int = 0
    equal: bool = True

    def went_on(self, done: Position) -> None:
        """Count a start, the first one as well, which is from the beginning."""
        self.inside += done.epochs > 0
        self.between += done.epochs == 0 and done.experience > 0

    def __str__(self) -> str:
        start = self.kills - self.inside - self.between
        cells = (self.kills, self.writing, self.inside, self.between, start)
        return f"| {' | '.join(map(str, cells))} | {'yes' if self.equal else 'NO'} |"


def kill_run(job: Job, kills: int, moments: random.Random) -> Tally:
    """Kill a run at moments that are spread evenly over its length, and start it again each time.

    Every third kill waits until a file is being written. A run that ends too soon is followed by
    another one, until there were enough kills.

    :param job: the run; its folder gets the folders ``whole`` and ``killed``.
    :param kills: how often it is killed.
    :param moments: random ones.
    :raises RuntimeError: if the run fails.
    """
    # what this imports and reads is then there for all processes
    build_stream(StreamRequest(job.key.stream, job.data, job.key.seed))
    expected, timeline = _timed(replace(job, out=job.out / "whole"))
    job, tally = replace(job, out=job.out / "killed"), Tally()
    while tally.kills < kills:
        length = timeline[-1].seconds
        drawn = sorted(moments.uniform(0, length) for _ in range(kills - tally.kills))
        targets = iter([*(_place(timeline, seconds) for seconds in drawn), _Moment(_END, 0)])
        found = None
        while found is None:
            training = _Training(job)
            found = _killed(training, next(targets), while_writing=tally.kills % 3 == 2)
            tally.went_on(training.done)
            tally.kills += found is None
        tally.writing += len(training.unfinished())
        tally.equal = tally.equal and not differences([expected], [found])
        shutil.rmtree(job.out)
    return tally


class _Moment(NamedTuple):
    """So many seconds after a position was reached."""

    position: Position
    seconds: float


_BEGIN, _END = Position(-1, 0), Position(sys.maxsize, 0)


def _timed(job: Job) -> tuple[RunResult, list[_Moment]]:
    """A run that is left alone, and when it came to its positions."""
    training = _Training(job)
    began = time.monotonic()
    reached = [_Moment(at, time.monotonic() - began) for at in training.positions()]
    return training.result(), [*reached, _Moment(_END, time.monotonic() - began)]


def _place(timeline: Sequence[_Moment], seconds: float) -> _Moment:
    """A time after the start as one after a position: the clock of a run that is killed stops.

    >>> timeline = [_Moment(_BEGIN, 0), _Moment(Position(0, 0), 2), _Moment(Position(0, 1), 5)]
    >>> _place(timeline, 3.5)
    _Moment(position=Position(experience=0, epochs=0), seconds=1.5)
    """
    position, reached = next(at for at in reversed(timeline) if at.seconds <= seconds)
    return _Moment(position, seconds - reached)


def _killed(training: _Training, moment: _Moment, while_writing: bool) -> RunResult | None:
    """Kill a run at a moment; its result if it ends before."""
    for position in training.positions():
        if position >= moment.position:
            time.sleep(moment.seconds)
            if while_writing:
                training.wait_for_file()
            if training.kill():
                return None
    return training.result()


class _Training:
    """A process that goes on with a run.

    It is a copy of this process, which has imported everything: so a start takes little time.

    :param job: the run.
    """

    def __init__(self, job: Job) -> None:
        fork = multiprocessing.get_context("fork")
        self.job, self.done = job, Position(0, 0)
        self._files = len(self.unfinished())
        self._reports, there = fork.Pipe(duplex=False)
        self._process = fork.Process(target=_train, args=(job, there), daemon=True)
        self._process.start()
        there.close()  # so that reading ends when the process does
        self._outcome: RunResult | Failure | None = None

    def positions(self) -> Iterator[Position]:
        """Where the run is: before its start, then whenever it reports, until it has ended."""
        yield _BEGIN
        while True:
            name, arguments = self._reports.recv()
            if name == "outcome":
                self._outcome = arguments[0]
                return
            if name == "start":
                self.done = arguments[-1]
                yield self.done
            elif name == "epoch":
                yield Position(*arguments[1:])
            else:
                yield Position(arguments[1] + 1, 0)

    def result(self) -> RunResult:
        """What came of it.

        :raises RuntimeError: if it failed.
        """
        if not isinstance(self._outcome, RunResult):
            raise RuntimeError(str(self._outcome))
        return self._outcome

    def unfinished(self) -> list[Path]:
        """The files that are being written, or were when a process was killed."""
        return list(self.job.out.rglob("*.tmp"))

    def wait_for_file(self) -> None:
        """Wait until a file is being written, or there is nobody left to write one."""
        while self._process.is_alive() and len(self.unfinished()) <= self._files:
            time.sleep(0.0002)

    def kill(self) -> bool:
        """Kill the process; whether it was alive."""
        self._process.kill()
        self._process.join()
        return bool(self._process.exitcode == -signal.SIGKILL)


def _train(job: Job, reports: Connection) -> None:
    reports.send(("outcome", (attempt(job, Line(reports)),)))
