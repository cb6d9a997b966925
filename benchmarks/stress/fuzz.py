"""Damage files of every kind in every way: each is read exactly or says what is wrong with it.

Run ``python -m benchmarks.fuzz --count 20000 --seed 0``, or with ``--kinds archives`` for one of
them: archives, training states, results, records. A process of its own, whose memory is limited,
reads each file and does with it what users do. What counts as a failure:

- any error but the named ones, or the end of the process,
- more time or memory than an honest file takes by far,
- other content without an error, where a checksum was not computed again.

A file that somebody has changed and sealed with a new checksum may hold other weights; it may not
do any harm. Case n of a seed is always the same: ``--first n --count 1`` repeats it.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.stress.archives import ARCHIVES
from benchmarks.stress.cases import OUTCOMES, Case, Target
from benchmarks.stress.run_files import RESULTS, RUN_RECORDS
from benchmarks.stress.states import STATES

TARGETS = {target.name: target for target in (ARCHIVES, STATES, RESULTS, RUN_RECORDS)}
SECONDS = 10.0
"""The longest that a file is waited for."""
LONGEST = 2.0
"""The most of the processor's seconds that a file may take."""
MEGABYTES = 256
"""The most memory that a file may take, beyond what the process had before."""


@dataclass(frozen=True)
class Result:
    """What became of a case.

    :param outcome: one of :data:`~benchmarks.stress.cases.OUTCOMES`, or what went wrong.
    :param seconds: of the processor.
    :param megabytes: of memory at most, beyond what the process had before; 0 where nobody knows.
    """

    number: int
    example: str
    mutation: str
    outcome: str
    seconds: float
    megabytes: float = 0.0


def make_case(seed: int, number: int, files: dict[str, bytes], target: Target = ARCHIVES) -> Case:
    """Case ``number`` of a seed.

    :param seed: any.
    :param number: any.
    :param files: valid ones by name.
    :param target: their kind.
    """
    random = Random(f"{seed}/{number}")
    example, other = random.choice(list(files)), random.choice(list(files))
    mutation = random.choice(target.mutations)
    data = target.mutate(mutation, random, files[example], files[other])
    return Case(number, example, other, mutation, data)


def run_case(
    case: Case, expected: Mapping[str, Any], folder: Path, target: Target = ARCHIVES
) -> Result:
    """Read a damaged file and do with it what users do.

    :param case: it.
    :param expected: what each valid file holds.
    :param folder: for a folder of the file's own.
    :param target: its kind.
    """
    before, began = _restart_peak(), time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as own_folder:
        try:
            outcome = target.outcome(case, expected, Path(own_folder))
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"[:200]
    seconds, megabytes = time.process_time() - began, max(0.0, _peak() - before)
    if seconds > LONGEST:
        outcome = f"{seconds:.1f} s of the processor"
    return Result(case.number, case.example, case.mutation, outcome, seconds, megabytes)


def _restart_peak() -> float:
    """Let the process's peak be what it uses now: MB, 0 where the system does not tell."""
    # free memory that the C library keeps would hide what a case takes
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0.0
    return _peak()


def _peak() -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)


# ---------------------------------------------------------------------------- processes


def run(
    seed: int,
    first: int,
    count: int,
    files: dict[str, bytes],
    expected: Mapping[str, Any],
    target: Target = ARCHIVES,
) -> Iterator[Result]:
    """Run cases in a process whose memory is limited; a new one takes over when it dies.

    :param seed: of the mutations.
    :param first: number of the first case.
    :param count: how many.
    :param files: valid ones by name.
    :param expected: what they hold.
    :param target: their kind.
    """
    context = multiprocessing.get_context("spawn")
    number, end = first, first + count
    while number < end:
        reader, writer = context.Pipe(duplex=False)
        arguments = (writer, seed, number, end, files, expected, target.name)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        writer.close()
        reader.recv()  # it is ready
        while number < end:
            outcome = "the process died"
            if reader.poll(SECONDS):
                try:
                    yield reader.recv()
                    number += 1
                    continue
                except EOFError:
                    pass
            else:
                outcome = f"not done after {SECONDS:g} s"
            case = make_case(seed, number, files, target)
            yield Result(number, case.example, case.mutation, outcome, SECONDS)
            number += 1
            break
        process.kill()
        process.join()


def _work(
    connection: Connection,
    seed: int,
    first: int,
    end: int,
    files: dict[str, bytes],
    expected: Mapping[str, Any],
    kind: str,
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target = TARGETS[kind]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():  # what a first use makes for good is none of a case's
            run_case(Case(0, name, name, "none", data), expected, Path(folder), target)
        _limit_memory()
        connection.send("ready")
        for number in range(first, end):
            case = make_case(seed, number, files, target)
            connection.send(run_case(case, expected, Path(folder), target))


def _limit_memory() -> None:
    """More memory than this is an error from here on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# ---------------------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: command line without the program's name.
    :return: exit code, 0 when nothing failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--count", type=int, default=20_000, metavar="N", help="of all kinds together"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="number of the first case of a kind"
    )
    parser.add_argument("--kinds", nargs="+", choices=TARGETS, default=list(TARGETS))
    given = parser.parse_args(arguments)
    shares = [given.count * n // len(given.kinds) for n in range(len(given.kinds) + 1)]
    failed = 0
    for kind, before, after in zip(given.kinds, shares, shares[1:]):
        failed += _fuzz(TARGETS[kind], given.seed, given.first, after - before)
    return 1 if failed else 0


def _fuzz(target: Target, seed: int, first: int, count: int) -> int:
    """Damage files of one kind; how many cases failed."""
    began = time.monotonic()
    files = target.examples()
    expected = target.expect(files)
    print(f"{len(files)} {target.name}, {sum(map(len, files.values()))} bytes")
    results = list(run(seed, first, count, files, expected, target))
    print(table(results))
    slowest = max(results, key=lambda result: result.seconds)
    largest = max(results, key=lambda result: result.megabytes)
    print(
        f"slowest: case {slowest.number}, {1000 * slowest.seconds:.0f} ms; largest: case "
        f"{largest.number}, {largest.megabytes:.0f} MB; memory limit: {MEGABYTES} MB; all: "
        f"{time.monotonic() - began:.0f} s"
    )
    failures = [result for result in results if result.outcome not in OUTCOMES]
    for result in failures[:30]:
        print(f"case {result.number}: {result.example}, {result.mutation}: {result.outcome}")
    return len(failures)


def table(results: Sequence[Result]) -> str:
    """Outcomes by mutation.

    :param results: of any cases.

    >>> print(table([Result(0, "wsn", "truncated", "refused", 0.1)]))
    mutation                 cases  refused  exact  other weights  failed
    truncated                    1        1      0              0       0
    all                          1        1      0              0       0
    """
    counts = Counter(
        (result.mutation, result.outcome if result.outcome in OUTCOMES else "failed")
        for result in results
    )
    rows = {
        mutation: [counts[mutation, outcome] for outcome in (*OUTCOMES, "failed")]
        for mutation in dict.fromkeys(result.mutation for result in results)
    }
    rows = {mutation: [sum(row), *row] for mutation, row in rows.items() if any(row)}
    rows["all"] = [sum(column) for column in zip(*rows.values())]
    lines = [_line("mutation", ("cases", *OUTCOMES, "failed"))]
    return "\n".join(lines + [_line(mutation, row) for mutation, row in rows.items()])


def _line(name: str, entries: Sequence[object]) -> str:
    widths = (7, 9, 7, 15, 8)
    return f"{name:<23}" + "".join(f"{entry:>{width}}" for entry, width in zip(entries, widths))
