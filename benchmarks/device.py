"""What is most wanted of a machine with a GPU that is there for minutes, in this order.

Run ``python -m benchmarks.device --minutes 12``:

1. the tests that need a GPU (``pytest -m gpu``),
2. what it takes, method by method (``python -m benchmarks.speed --device cuda``),
3. Split CIFAR-100 in twenty tasks at CACL's 200 epochs (``python -m benchmarks.compare``).

A part that is done is not repeated, and a run goes on where it was stopped, so the same command,
with what ``--out`` holds, goes on in the next minutes, on this machine or another. ``--device cpu``
rehearses all of it, in a minute or less.

``--pack DIR`` writes CIFAR-100 from ``--data`` as two files of less than 60 MB; with ``--parts
DIR`` the command unpacks it from there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.choices import DEVICES

STREAM = "split_cifar100_20"
STRATEGIES = (
    "independent_warm",
    "cacl",
    "cacl_8bit",
    "halrp",
    "ada_qpacknet",
    "packnet",
    "wsn",
    "tinysubnets",
)
SAVE_EVERY = 20
"""Seconds of a run that a stop may cost, about."""
GRACE = 20.0
"""Seconds that a part has to stop in when its time is over, at most."""
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Part:
    """Something to be done.

    :param name: of its log, without the ending.
    :param command: that does it.
    :param share: of all the time, at most; 1 for all that is left.
    """

    name: str
    command: Sequence[str]
    share: float = 1.0


def parts(given: argparse.Namespace) -> list[Part]:
    """What is done, in its order.

    :param given: the command line.
    """
    python, out = [sys.executable, "-m"], given.out
    minutes = f"{given.minutes / 3:.3f}"  # begun by then, a backbone may take a while
    speed = [*python, "benchmarks.speed", "--device", given.device, "--minutes", minutes]
    compare = [
        *[*python, "benchmarks.compare", "--streams", given.stream],
        *["--strategies", *given.strategies, "--device", given.device],
        *["--data", str(given.data), "--out", str(out), "--save-every", str(SAVE_EVERY)],
        *(["--workers", str(given.workers)] if given.workers else []),
    ]
    return [
        Part("tests", [*python, "pytest", "-q", "-m", "gpu", "--on", given.device, "tests"], 1 / 4),
        Part("speed", [*speed, "--json", str(out / "speed.json")], 0.45),
        Part("compare", compare),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do as much as there is time for.

    :param arguments: command line without the program's name.
    :return: exit code: 0 unless a part failed; what a signal says where one has ended it.
    """
    began = time.monotonic()
    parser = _parser()
    given = parser.parse_args(arguments)
    from benchmarks.runs.stopping import exit_code, stopping

    try:
        if given.pack is not None:
            return _pack(given.data, given.pack)
        _check(parser, given)
        given.out.mkdir(parents=True, exist_ok=True)
        with stopping():
            return _do(parts(given), given.out, began, 60 * given.minutes)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt as stopped:
        print(f"stopped: {_GO_ON}", file=sys.stderr)
        return exit_code(stopped)


_GO_ON = "give the same command again with the same --out, and it goes on from there."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=12.0, metavar="N", help="default: 12")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--parts", type=Path, metavar="DIR", help="CIFAR-100, if --data has it not")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="only write these parts")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at a time on the GPU")
    parser.add_argument("--stream", default=STREAM, metavar="NAME", help=f"default: {STREAM}")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), metavar="NAME")
    return parser


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Choose the device and have the data there, before time is spent."""
    import torch

    from benchmarks.data.packing import unpack_cifar100

    if not 0 < given.minutes < float("inf"):
        parser.error(f"--minutes is {given.minutes}, but something takes some time.")
    found = torch.cuda.is_available()
    if given.device == "cuda" and not found:
        parser.error("this machine has no GPU that torch can use: --device cpu rehearses.")
    if given.device == "auto":
        given.device = "cuda" if found else "cpu"
    if given.parts is not None and unpack_cifar100(given.parts, given.data):
        print(f"CIFAR-100 is in {given.data} now", flush=True)


def _pack(data: Path, folder: Path) -> int:
    from benchmarks.data.packing import pack_cifar100

    for path in pack_cifar100(data, folder):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def _do(todo: Sequence[Part], out: Path, began: float, seconds: float) -> int:
    """Do parts in turn until the time is over.

    :param todo: the parts.
    :param out: folder of their logs: ``NAME.txt`` of what is done, ``NAME.part.txt`` of others.
    :param began: on the clock, when the command began.
    :param seconds: of all together, with what it takes to stop the last one.
    """
    grace = min(GRACE, seconds / 10)
    end = began + seconds - grace
    failed, left = [], []
    for part in todo:
        log = out / f"{part.name}.part.txt"
        done = out / f"{part.name}.txt"
        if done.exists():
            print(f"{part.name}: done before, see {done}", flush=True)
            continue
        allowed = min(part.share * seconds, end - time.monotonic())
        code = None if allowed <= 0 else _run(part.command, log, allowed, grace)
        if code == 0:
            os.replace(log, done)
        elif code is None:
            left.append(part.name)
        else:
            failed.append(part.name)
        said = {0: "done", None: "not finished in its time"}.get(code, f"ended with code {code}")
        print(f"{part.name}: {said}, see {done if code == 0 else log}", flush=True)
    if left:
        print(f"time is up with {', '.join(left)} not finished: {_GO_ON}", flush=True)
    return 1 if failed else 0


def _run(command: Sequence[str], log: Path, seconds: float, grace: float) -> int | None:
    """The exit code of a command, whose output is logged; None if its time was over."""
    environment = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", **os.environ}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=_ROOT
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(grace)
                process.kill()
                process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
