"""Kill a comparison at random moments, start it again, and compare with one that was left alone.

Run ``python -m benchmarks.killtest`` for all strategies with two seeds and five kills; whatever
follows ``--`` goes to ``benchmarks.compare``.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Sequence

from benchmarks.results import RunResult
from benchmarks.store import NAME, Store

GRID = ("--seeds", "0", "1", "--epochs", "2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test.

    :param arguments: command line without the program's name.
    :return: exit code, 0 when the stores are equal.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.killtest", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--kills", type=int, default=5, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    parser.add_argument("grid", nargs="*", default=list(GRID), help=f"default: {' '.join(GRID)}")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        differences = kill_and_compare(given.grid, given.kills, Path(folder), given.seed)
    for line in differences or ["equal: accuracy matrices and archives"]:
        print(line)
    return 1 if differences else 0


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


def _start(grid: Sequence[str], out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.compare", *grid, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _finish(grid: Sequence[str], out: Path) -> str:
    """Run a comparison to its end; what it printed."""
    with _start(grid, out) as process:
        printed = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"the comparison failed:\n{printed}")
    return printed


if __name__ == "__main__":
    sys.exit(main())
