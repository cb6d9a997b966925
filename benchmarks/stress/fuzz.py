"""Damage archives of every kind in every way: each has to load exactly or say what is wrong.

Run ``python -m benchmarks.fuzz --count 20000 --seed 0``. A process of its own, whose memory is
limited, loads each file, computes with every task of it, in an order of the case's own, and reads
all at once. What counts as a failure:

- any error but the named ones, or the end of the process,
- more time or memory than an honest file takes by far,
- other weights without an error, where the checksum was not computed anew,
- a task that is refused when it is used, in a file that is sound when all is read at once.

A file that somebody has changed and sealed with a new checksum may hold other weights; it may not
do any harm. Case n of a seed is always the same: ``--first n --count 1`` repeats it.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Iterator, Sequence

import torch

from avalanche_compress import (
    ArchiveError,
    TaskInferenceError,
    TaskNetwork,
    infer,
    load_archive,
    save_archive,
)
from avalanche_compress.codec import CorruptStreamError
from benchmarks.stress.examples import EXAMPLES, build_model, inputs, train
from benchmarks.stress.mutations import MUTATIONS, mutate

REFUSED, EXACT, OTHER = "refused", "exact", "other weights"
OUTCOMES = (REFUSED, EXACT, OTHER)
"""What may become of a file; whatever else happens is a failure."""
SECONDS = 10.0
"""The most that a file may take."""
MEGABYTES = 256
"""The most memory that a file may take, beyond what the process had before."""


@dataclass(frozen=True)
class Case:
    """A damaged file.

    :param example: the archive that it was.
    :param other: the archive that parts of it may come from.
    :param mutation: what was done to it.
    """

    number: int
    example: str
    other: str
    mutation: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Result:
    """What became of it.

    :param outcome: one of :data:`OUTCOMES`, or what went wrong.
    """

    number: int
    example: str
    mutation: str
    outcome: str
    seconds: float


def make_case(seed: int, number: int, archives: dict[str, bytes]) -> Case:
    """Case ``number`` of a seed.

    :param seed: any.
    :param number: any.
    :param archives: valid files by name.
    """
    random = Random(f"{seed}/{number}")
    example, other = random.choice(list(archives)), random.choice(list(archives))
    mutation = random.choice(MUTATIONS)
    data = mutate(mutation, random, archives[example], archives[other])
    return Case(number, example, other, mutation, data)


def run_case(case: Case, digests: dict[str, str], folder: Path) -> Result:
    """Load a damaged file, compute with it, write it again.

    :param case: it.
    :param digests: what each valid file holds.
    :param folder: for the file.
    """
    path = folder / "archive"
    path.write_bytes(case.data)
    began = time.perf_counter()
    try:
        outcome = _outcome(case, {digests[case.example], digests[case.other]}, path)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"[:200]
    return Result(case.number, case.example, case.mutation, outcome, time.perf_counter() - began)


def digest_of(network: TaskNetwork) -> str:
    """All that a network holds and computes, as one number.

    :param network: loaded.
    """
    digest = hashlib.sha256(repr((network.classes, network.max_class_label)).encode())
    for name, tensor in network.static_tensors().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    for task in network.tasks:
        kept = [store.committed(task) for store in network.weight_stores]
        kept += network.private.committed(task)
        kept += network.statistics.get(task, {}).values()
        kept.append(network(inputs(), task))
        for tensor in kept:
            digest.update(tensor.detach().numpy().tobytes())
        for store in network.weight_stores:
            digest.update(repr((store.stored_values(task), store.value_bits(task))).encode())
    return digest.hexdigest()


def _outcome(case: Case, expected: set[str], path: Path) -> str:
    build = partial(build_model, case.example)
    try:
        network = load_archive(path, build)
    except ArchiveError as error:
        return REFUSED if str(path) in str(error) else f"an error that names no file: {error}"
    sound = _is_sound(network)
    with torch.no_grad():
        try:
            for task in Random(case.number).sample(network.tasks, len(network.tasks)):
                network.activate(task)
            digest = digest_of(network)
        except CorruptStreamError as error:
            return f"sound at once, and then: {error}" if sound else REFUSED
        if network.statistics:
            with suppress(TaskInferenceError):
                infer(network, inputs(), "prototype")
        if network.tasks:
            network.materialise(network.tasks[-1], form="auto")(inputs())
    save_archive(network, path)
    if digest_of(load_archive(path, build)) != digest:
        return "written again, it held something else"
    if digest in expected:  # of a splice, the beginning may be empty
        return EXACT
    return OTHER if case.mutation.startswith("sealed") else "silently other weights"


def _is_sound(network: TaskNetwork) -> bool:
    try:
        network.verify()
    except CorruptStreamError:
        return False
    return True


# ---------------------------------------------------------------------------- processes


def run(
    seed: int, first: int, count: int, archives: dict[str, bytes], digests: dict[str, str]
) -> Iterator[Result]:
    """Run cases in a process whose memory is limited; a new one takes over when it dies.

    :param seed: of the mutations.
    :param first: number of the first case.
    :param count: how many.
    :param archives: valid files by name.
    :param digests: what they hold.
    """
    context = multiprocessing.get_context("spawn")
    number, end = first, first + count
    while number < end:
        ours, theirs = context.Pipe(duplex=False)
        arguments = (theirs, seed, number, end, archives, digests)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        ours.recv()  # it is ready
        while number < end:
            outcome = "the process died"
            if ours.poll(SECONDS):
                try:
                    yield ours.recv()
                    number += 1
                    continue
                except EOFError:
                    pass
            else:
                outcome = f"not done after {SECONDS:g} s"
            case = make_case(seed, number, archives)
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
    archives: dict[str, bytes],
    digests: dict[str, str],
) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        warm_up = next(iter(archives))
        run_case(Case(0, warm_up, warm_up, "none", archives[warm_up]), digests, Path(folder))
        _limit_memory()
        connection.send("ready")
        for number in range(first, end):
            case = make_case(seed, number, archives)
            connection.send(run_case(case, digests, Path(folder)))


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
    parser.add_argument("--count", type=int, default=20_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="number of the first case"
    )
    given = parser.parse_args(arguments)
    began = time.monotonic()
    archives = {name: train(name) for name in EXAMPLES}
    digests = digests_of(archives)
    print(f"{len(archives)} archives, {sum(map(len, archives.values()))} bytes")
    results = list(run(given.seed, given.first, given.count, archives, digests))
    print(table(results))
    slowest = max(results, key=lambda result: result.seconds)
    print(
        f"slowest: case {slowest.number}, {1000 * slowest.seconds:.0f} ms; memory limit: "
        f"{MEGABYTES} MB; all: {time.monotonic() - began:.0f} s"
    )
    failures = [result for result in results if result.outcome not in OUTCOMES]
    for result in failures[:30]:
        print(f"case {result.number}: {result.example}, {result.mutation}: {result.outcome}")
    return 1 if failures else 0


def digests_of(archives: dict[str, bytes]) -> dict[str, str]:
    """What valid files hold.

    :param archives: by name.
    """
    digests = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, data in archives.items():
            path = Path(folder) / name
            path.write_bytes(data)
            digests[name] = digest_of(load_archive(path, partial(build_model, name)))
    return digests


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
        for mutation in MUTATIONS
    }
    rows = {mutation: [sum(row), *row] for mutation, row in rows.items() if any(row)}
    rows["all"] = [sum(column) for column in zip(*rows.values())]
    lines = [_line("mutation", ("cases", *OUTCOMES, "failed"))]
    return "\n".join(lines + [_line(mutation, row) for mutation, row in rows.items()])


def _line(name: str, entries: Sequence[object]) -> str:
    widths = (7, 9, 7, 15, 8)
    return f"{name:<23}" + "".join(f"{entry:>{width}}" for entry, width in zip(entries, widths))
