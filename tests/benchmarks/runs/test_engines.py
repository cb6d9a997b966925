"""Which process sees which GPU, without GPUs; runs that lose their worker."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from benchmarks_for_tests import make_result

from benchmarks import compare
from benchmarks.runs import engines
from benchmarks.runs.display import Display
from benchmarks.stress.killtest import differences


class Worker(threading.Thread):
    """Stands for a process: answers each job at once, and dies of one of ewc."""

    exitcode = -9

    def __init__(self, target, args, daemon):
        super().__init__(daemon=daemon)
        assert target is engines._work
        line, self.gpu = args
        # a thread's end of the line would be closed with the parent's copy of it
        self.line = Connection(os.dup(line.fileno()))

    def run(self):
        while True:
            try:
                job = self.line.recv()
            except EOFError:
                break
            if job.key.strategy == "ewc":
                break
            self.line.send(("outcome", (make_result(strategy=job.key.strategy),)))
        self.line.close()


class Context:
    """Stands for multiprocessing; remembers how each process was started, and its GPU."""

    def __init__(self):
        self.methods, self.gpus = [], []

    def __call__(self, method):
        self.methods.append(method)
        return self

    def Pipe(self):  # noqa: N802
        return multiprocessing.Pipe()

    def Process(self, **arguments):  # noqa: N802
        worker = Worker(**arguments)
        self.gpus.append(worker.gpu)
        return worker


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Returns what starts a grid and tells its outcomes and the GPU of each process."""

    def run(device, gpus, visible=None, strategies=("naive", "lwf", "wsn"), workers=3):
        context = Context()
        monkeypatch.setattr(multiprocessing, "get_context", context)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        jobs = [
            replace(job, device=device)
            for job in compare.parse(["--strategies", *strategies, "--out", str(tmp_path)]).jobs()
        ]
        outcomes = dict(engines.run_in_processes(jobs, Display(), workers))
        assert {job.key.strategy for job in outcomes} == set(strategies)
        assert device == "cpu" or set(context.methods) == {"spawn"}  # CUDA wants it
        return outcomes, context.gpus

    return run


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        (1, None, ["0", "0", "0"]),
        (2, None, ["0", "1", "0"]),
        (8, None, ["0", "1", "2"]),
        (2, "5,3", ["5", "3", "5"]),
        (2, "GPU-aa,GPU-bb,none", ["GPU-aa", "GPU-bb", "GPU-aa"]),
    ],
)
def test_processes_share_the_gpus_of_this_one_evenly(started, gpus, visible, expected):
    assert started("cuda", gpus, visible)[1] == expected


def test_runs_on_the_processor_leave_the_gpus_alone(started):
    assert started("cpu", gpus=2)[1] == [None, None, None]


def test_the_process_after_one_that_died_gets_its_gpu(started):
    outcomes, gpus = started("cuda", 4, strategies=("ewc", "naive", "wsn"), workers=1)
    assert gpus == ["0", "0", "0"]  # the second one has the run once more
    died = [outcome for outcome in outcomes.values() if isinstance(outcome, engines.Failure)]
    assert [failure.key.strategy for failure in died] == ["ewc"]
    assert died[0].reason == "the worker was killed by signal 9, twice"


class Parents(Display):
    """Remembers which process each worker was forked off, and whether that one had torch."""

    def __init__(self):
        self.seen = set()

    def task(self, key, task, accuracy):
        for worker in multiprocessing.active_children():
            parent = Path("/proc", Path("/proc", str(worker.pid), "stat").read_text().split()[3])
            self.seen.add((parent, "libtorch" in (parent / "maps").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="workers are spawned elsewhere")
def test_workers_are_forked_off_one_process_that_has_imported_everything(tmp_path):
    arguments = ["--strategies", "naive", "wsn", "--epochs", "1", "--out", str(tmp_path)]
    parents = Parents()
    outcomes = dict(engines.run_in_processes(compare.parse(arguments).jobs(), parents, 2))
    assert not [outcome for outcome in outcomes.values() if isinstance(outcome, engines.Failure)]
    ((parent, has_torch),) = parents.seen
    assert has_torch
    assert int(parent.name) != os.getpid()


def kill_when_a_task_is_finished(progress, killed):
    """SIGKILL to the worker of Ray that has the run, once its first task is written down."""
    import psutil

    while not progress.exists() or not json.loads(progress.read_text())["tasks"]:
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        if "_attempt_far_away" in " ".join(process.cmdline()):
            killed.append(len(json.loads(progress.read_text())["tasks"]))
            process.kill()


with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)


@with_ray
def test_a_ray_without_gpus_says_so_instead_of_waiting_for_one():
    (job,) = compare.parse(["--strategies", "naive"]).jobs()
    with pytest.raises(engines.EngineError, match="Ray knows of none: --device cpu"):
        list(engines.run_on_ray([replace(job, device="cuda")], Display(), workers=1))


@with_ray
def test_a_run_whose_ray_worker_is_lost_goes_on_with_another(tmp_path):
    arguments = ["--strategies", "wsn", "--epochs", "20"]
    (job,) = compare.parse([*arguments, "--out", str(tmp_path / "lost")]).jobs()
    killed: list = []
    killer = threading.Thread(
        target=kill_when_a_task_is_finished, args=(job.checkpoints / "progress.json", killed)
    )
    killer.start()
    ((_, found),) = engines.run_on_ray([job], Display(), workers=1)
    killer.join()
    assert len(killed) == 1
    assert 1 <= killed[0] < 5
    (whole,) = compare.parse([*arguments, "--out", str(tmp_path / "whole")]).jobs()
    ((_, expected),) = engines.run_here([whole], Display())
    assert differences([expected], [found]) == []


def test_a_calm_process_says_nothing_of_what_avalanche_deprecates():
    # a process of its own: pytest shows warnings in its own way
    code = """
import warnings
from benchmarks.runs.engines import calm
calm()
warnings.simplefilter("once", DeprecationWarning)  # as Avalanche does at each deprecated call
warnings.warn("old", DeprecationWarning)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "old" not in done.stderr
