"""Ctrl-C, SIGTERM, and what else may end a comparison: one line, and the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import compare
from benchmarks.runs import run as runs
from benchmarks.runs.stopping import Terminated, stopping
from benchmarks.runs.store import NAME, Store

ROOT = Path(__file__).parents[2]
COMMAND = ["--strategies", "naive", "packnet", "--epochs", "2", "--workers", "1"]


def start(out, *arguments):
    """The command in a process of its own, once its first run has been stored."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.compare", *arguments, "--out", str(out)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "results.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.fixture
def started(tmp_path):
    """Starts the command, and ends it with the test."""
    processes = []

    def begin(*arguments):
        processes.append(start(tmp_path, *arguments))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [(signal.SIGINT, 130, "1"), (signal.SIGTERM, 143, "1"), (signal.SIGTERM, 143, "2")],
)
def test_a_comparison_that_is_stopped_says_in_one_line_how_to_go_on(
    number, code, workers, tmp_path, started
):
    seeds = ["--seeds", *map(str, range(8))]
    arguments = ["--strategies", "naive", "--epochs", "5", *seeds, "--workers", workers]
    process = started(*arguments)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    lines = [line for line in said.splitlines() if line.strip()]
    assert lines[-1].startswith("stopped: ")
    assert str(tmp_path / NAME) in lines[-1]
    assert "Traceback" not in said
    assert "same command again" in lines[-1]
    assert 0 < len(Store(tmp_path / NAME).results()) < 16  # of two streams


def test_a_comparison_that_is_killed_leaves_no_worker_behind(started):
    seeds = ["--seeds", *map(str, range(8))]
    process = started("--strategies", "naive", "--epochs", "5", *seeds, "--workers", "2")
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    deadline = time.monotonic() + 60
    while alive := [worker for worker in workers if is_alive(worker)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_run_is_one_line_as_well(
    number, code, tmp_path, monkeypatch, capsys
):
    def parse(arguments):  # as if the signal came while torch is imported
        signal.raise_signal(number)

    monkeypatch.setattr(compare, "parse", parse)
    before = signal.getsignal(number)
    assert compare.main(["--out", str(tmp_path)]) == code
    said = capsys.readouterr().err.splitlines()
    assert said == ["stopped: no run has begun; give the same command again."]
    assert signal.getsignal(number) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_that_a_destructor_swallows_is_raised_again(number, kind):
    class Deaf:
        def __del__(self):
            signal.raise_signal(number)

    with stopping() as check:
        check()
        Deaf()
        with pytest.raises(kind):
            check()


def test_a_handler_of_before_is_there_again(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    assert compare.main([*COMMAND[:2], "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_damaged_store_ends_the_command_before_anything_is_trained(tmp_path, capsys):
    (tmp_path / NAME).write_bytes(b"no database" * 1000)
    assert compare.main([*COMMAND, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert str(tmp_path / NAME) in said
    assert "\n" not in said


def test_an_out_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        compare.main([*COMMAND, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "which is a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_one_bad_run_does_not_end_the_others(tmp_path, capsys):
    naive, _ = compare.parse([*COMMAND, "--out", str(tmp_path)]).jobs()
    naive.checkpoints.mkdir(parents=True)
    (naive.checkpoints / "progress.json").write_text("{")
    assert compare.main([*COMMAND, "--out", str(tmp_path)]) == 1
    assert "progress.json" in capsys.readouterr().out
    assert [run.strategy for run in Store(tmp_path / NAME).results()] == ["packnet"]


def test_a_run_whose_error_cannot_be_written_does_not_end_the_others(tmp_path, monkeypatch):
    perform = runs.perform

    def fail(job, display):
        if job.key.strategy == "naive":
            raise ValueError("no")
        return perform(job, display)

    monkeypatch.setattr(runs, "perform", fail)
    (tmp_path / "errors" / "split_digits-naive-seed0.txt").mkdir(parents=True)  # in its place
    assert compare.main([*COMMAND, "--out", str(tmp_path)]) == 1
    assert [run.strategy for run in Store(tmp_path / NAME).results()] == ["packnet"]
