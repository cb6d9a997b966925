"""Who does the runs: this process, several processes of this machine, or the workers of Ray.

Each engine is a generator of jobs with their outcomes, in the order in which they end. Storing a
result is left to whoever asks, so a store has one writer per command.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from avalanche_compress import Position
from benchmarks.runs.display import Display
from benchmarks.runs.results import RunKey, RunResult, write_text
from benchmarks.runs.run import Failure, Job, attempt, one_line

Outcomes = Iterator[tuple[Job, RunResult | Failure]]


class EngineError(RuntimeError):
    """An engine cannot start; the message says what to do."""


def run_here(jobs: Sequence[Job], display: Display) -> Outcomes:
    """Do the runs one after the other in this process.

    :param jobs: the runs.
    :param display: gets their progress.
    """
    calm()
    for job in jobs:
        yield job, attempt(job, display)


# --- Processes of this machine -------------------------------------------------------------------


def run_in_processes(jobs: Sequence[Job], display: Display, workers: int) -> Outcomes:
    """Do the runs in processes of one thread each. If one dies, another goes on with its run, once.

    Runs on GPUs take turns: process i sees GPU i modulo their number, and no other.

    :param jobs: the runs.
    :param display: gets the progress of all.
    :param workers: how many processes at most.
    """
    waiting = deque(jobs)
    busy: dict[Any, _Worker] = {}
    lost: set[RunKey] = set()
    gpus = _gpus() if any(job.device == "cuda" for job in jobs) else [None]
    try:
        for place in range(min(workers, len(jobs))):
            _employ(_Worker.start(gpus[place % len(gpus)]), waiting, busy)
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]
                try:
                    name, arguments = worker.connection.recv()
                except (EOFError, OSError):  # the latter in the middle of a message
                    del busy[connection]
                    if worker.job.key in lost:
                        yield worker.job, _lost(worker.job, f"{worker.end()}, twice")
                    else:
                        lost.add(worker.job.key)
                        waiting.appendleft(worker.job)
                    if waiting:
                        _employ(_Worker.start(worker.gpu), waiting, busy)
                    continue
                if name != "outcome":
                    getattr(display, name)(*arguments)
                    continue
                job = worker.job
                del busy[connection]
                _employ(worker, waiting, busy)
                yield job, arguments[0]
    finally:
        for worker in busy.values():
            worker.process.terminate()


@dataclass
class _Worker:
    """A process, the line to it, the GPU that it sees if it needs one, and the job that it has."""

    process: Any
    connection: Connection
    gpu: str | None = None
    job: Job = field(init=False)

    @classmethod
    def start(cls, gpu: str | None) -> _Worker:
        """A new process that waits for jobs."""
        context: Any = multiprocessing.get_context(_start_method(gpu))
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, gpu), daemon=True)
        process.start()
        there.close()  # so that reading ends when the process does
        return cls(process, here, gpu)

    def end(self) -> str:
        """How the process has died, in words."""
        self.process.join()
        code = self.process.exitcode
        if code < 0:
            return f"the worker was killed by signal {-code}"
        return f"the worker ended with exit code {code}"


def _start_method(gpu: str | None) -> str:
    """How a worker begins: forked off a server that has imported everything once, if it may be.

    This process is never forked, since a worker would share threads and locks that torch does not
    expect to share. The server has one thread and trains nothing; a GPU is for a process that is
    its own from the beginning.
    """
    if gpu is not None or sys.platform != "linux":
        return "spawn"
    multiprocessing.set_forkserver_preload(["benchmarks.runs.warm"])
    return "forkserver"


def _lost(job: Job, reason: str) -> Failure:
    """A run whose worker had no time to say what went wrong: the reports have to know of it."""
    with suppress(OSError):  # a full disk is no reason to end the other runs, too
        write_text(job.error_file, reason)
    return Failure(job.key, reason)


def _employ(worker: _Worker, waiting: deque[Job], busy: dict[Any, _Worker]) -> None:
    """Give the worker the next job, or let it go."""
    if not waiting:
        worker.connection.close()
        return
    worker.job = waiting.popleft()
    worker.connection.send(worker.job)
    busy[worker.connection] = worker


def _gpus() -> list[str | None]:
    """The GPUs of this process, by the names that ``CUDA_VISIBLE_DEVICES`` takes."""
    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [*(chosen.split(",") if chosen else map(str, range(count)))][:count]


def _work(connection: Connection, gpu: str | None) -> None:
    """What a worker process does: jobs, until there are none."""
    if gpu is not None:
        # As with Ray's, the GPU is number 0 of this process, whichever it is of the machine: so a
        # checkpoint has one generator's state, and a run may go on on another GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    calm()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(("outcome", (attempt(job, Line(connection)),)))


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers; they would train on for nobody."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)


class Line(Display):
    """A display at the other end of a line, which gets tuples ``(name of a method, arguments)``.

    :param connection: to it.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def start(self, key: RunKey, tasks: int, epochs: int, done: Position) -> None:
        """See :class:`~benchmarks.runs.display.Display`."""
        self.connection.send(("start", (key, tasks, epochs, done)))

    def epoch(self, key: RunKey, task: int, epoch: int) -> None:
        """See :class:`~benchmarks.runs.display.Display`."""
        self.connection.send(("epoch", (key, task, epoch)))

    def task(self, key: RunKey, task: int, accuracy: float | None) -> None:
        """See :class:`~benchmarks.runs.display.Display`."""
        self.connection.send(("task", (key, task, accuracy)))


def calm() -> None:
    """One thread, and nothing of the deprecations that Avalanche reports in every run."""
    warnings.simplefilter("ignore")
    warnings.showwarning = _say_nothing  # Avalanche has its own shown again by a filter of its own
    torch.set_num_threads(1)


def _say_nothing(*args: Any, **kwargs: Any) -> None:
    """What becomes of a warning."""


# --- Ray -----------------------------------------------------------------------------------------


def run_on_ray(
    jobs: Sequence[Job], display: Display, workers: int, address: str | None = None
) -> Outcomes:
    """Do the runs as tasks of Ray; one whose worker is lost goes on elsewhere, three times.

    The folders of data and results have to be the same on all machines of a cluster.

    :param jobs: the runs.
    :param display: learns of runs that end.
    :param workers: of a Ray that is started here.
    :param address: of a running cluster, ``"auto"`` for the one of this machine; None starts one.
    :raises EngineError: if Ray is not installed, or has no GPU for runs that need one.
    """
    try:
        import ray
    except ImportError as error:
        raise EngineError("the engine ray needs Ray: pip install '.[ray]'.") from error
    ray.init(
        address=address,
        num_cpus=workers if address is None else None,
        include_dashboard=False if address is None else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        gpus = int(any(job.device == "cuda" for job in jobs))
        if gpus and not ray.cluster_resources().get("GPU"):
            raise EngineError("the runs need a GPU, and Ray knows of none: --device cpu.")
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_attempt_far_away)
        pending = {task.remote(_absolute(job)): job for job in jobs}
        while pending:
            ready, _ = ray.wait(list(pending))
            job = pending.pop(ready[0])
            try:
                outcome = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                outcome = _lost(job, one_line(error))
            yield job, outcome
    finally:
        ray.shutdown()


def _attempt_far_away(job: Job) -> RunResult | Failure:
    calm()
    return attempt(job, Display())


def _absolute(job: Job) -> Job:
    """Workers of Ray have working directories of their own."""
    return replace(job, data=job.data.resolve(), out=job.out.resolve())
