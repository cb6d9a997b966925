"""Grids that are stopped, repeated, spread over processes: the numbers stay the same."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import re
import subprocess
import sys

import pytest

from avalanche_compress import Position
from benchmarks import compare
from benchmarks.report.command import failures_in
from benchmarks.runs import checkpoints, comparison
from benchmarks.runs import run as runs
from benchmarks.runs.display import Display
from benchmarks.runs.engines import run_in_processes
from benchmarks.runs.store import NAME, Store
from benchmarks.runs.strategies import STRATEGIES
from benchmarks.stress.killtest import Tally, differences, kill_and_compare

SMALL = ["--epochs", "2", "--workers", "1"]
# those whose state within a task is kept: independent networks have one strategy each
OURS = [name for name, entry in STRATEGIES.items() if entry.infers]


def results(out):
    return Store(out / NAME).results()


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.fixture
def killed_after(monkeypatch):
    """Ends the process, as it were, right after so many tasks were written down."""

    def arm(tasks):
        written = []

        def write_and_die(history, folder):
            checkpoints.write_history(history, folder)
            written.append(folder)
            if len(written) == tasks:
                raise Killed

        monkeypatch.setattr(runs, "write_history", write_and_die)

    return arm


@pytest.fixture
def killed_in(monkeypatch):
    """Ends the process, as it were, in an epoch of a task; both count from 0."""

    def arm(task, epoch):
        def train_and_die(self, done):
            if (self.task, done) == (task, epoch + 1):
                raise Killed

        monkeypatch.setattr(runs._Now, "epoch", train_and_die)

    return arm


@pytest.mark.parametrize("strategy", ["cacl_8bit", "halrp"])
def test_ours_go_on_inside_a_task(strategy, tmp_path, killed_in, capsys):
    arguments = ["--strategies", strategy, "--epochs", "3", "--workers", "1"]
    assert compare.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    arguments += ["--save-every", "0", "--out", str(tmp_path / "killed")]
    for task, epoch in [(1, 2), (1, 2), (3, 1)]:
        killed_in(task, epoch)
        with pytest.raises(Killed):
            compare.main(arguments)
    killed_in(-1, -1)
    capsys.readouterr()
    assert compare.main(arguments) == 0
    assert "goes on after task 3/5 and epoch 1/3 of the next" in capsys.readouterr().out
    assert differences(results(tmp_path / "whole"), results(tmp_path / "killed")) == []


def test_seconds_are_those_of_a_run_that_was_never_stopped(tmp_path, monkeypatch):
    epochs = []

    def train_a_second(self, done):
        epochs.append((self.task, done))
        if epochs.count((2, 2)) == 1:
            epochs.append("killed")
            raise Killed

    monkeypatch.setattr(runs._Now, "epoch", train_a_second)
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: float(len(epochs)))
    arguments = ["--strategies", "wsn", *SMALL, "--save-every", "0", "--out", str(tmp_path)]
    with pytest.raises(Killed):
        compare.main(arguments)
    epochs.append((2, 2))
    assert compare.main(arguments) == 0
    (run,) = results(tmp_path)
    assert (run.train_seconds, run.eval_seconds) == (10, 0)
    assert len(epochs) > 10


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_killed_run_goes_on_to_the_same_numbers_and_the_same_archive(
    strategy, tmp_path, killed_after, capsys
):
    scenario = STRATEGIES[strategy].scenarios[0]
    arguments = ["--strategies", strategy, *SMALL, "--save-every", "0", "--scenario", scenario]
    assert compare.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    for more_tasks in (2, 1):
        killed_after(more_tasks)
        with pytest.raises(Killed):
            compare.main([*arguments, "--out", str(out)])
    killed_after(-1)
    capsys.readouterr()
    assert compare.main([*arguments, "--out", str(out)]) == 0
    # ours shape the third task once more
    last = "after task 1/5 and epoch 2/2 of the next" if strategy in OURS else "after task 3/5"
    printed = capsys.readouterr().out
    where = "" if scenario == "task" else " (class scenario)"
    assert f"{strategy} on split_digits{where}, seed 0: goes on {last}" in printed
    assert differences(results(tmp_path / "whole"), results(out)) == []
    assert not (out / "checkpoints").exists()


def test_inferred_tasks_and_other_orders_go_on_too(tmp_path, killed_after):
    arguments = ["--strategies", "wsn", "--scenario", "class", "--inference", "prototype"]
    arguments += ["--orders", "2", *SMALL]
    assert compare.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    killed_after(8)
    with pytest.raises(Killed):
        compare.main([*arguments, "--out", str(tmp_path / "killed")])
    killed_after(-1)
    assert compare.main([*arguments, "--out", str(tmp_path / "killed")]) == 0
    assert differences(results(tmp_path / "whole"), results(tmp_path / "killed")) == []


def test_a_checkpoint_names_the_data_instead_of_copying_them(tmp_path, killed_after):
    killed_after(5)
    arguments = ["--strategies", "replay", *SMALL, "--out", str(tmp_path)]
    with pytest.raises(Killed):
        compare.main(arguments)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    # the network with Adam's two moments and five heads are 210 kB, the memory's images 500 * 64
    assert (folder / "turn1").stat().st_size < 400_000


def test_what_other_versions_began_begins_again(tmp_path, killed_after, monkeypatch, capsys):
    killed_after(1)
    arguments = ["--strategies", "naive", *SMALL, "--out", str(tmp_path)]
    with pytest.raises(Killed):
        compare.main(arguments)
    killed_after(-1)
    monkeypatch.setattr(checkpoints, "versions", lambda: {"torch": "0.0"})
    assert compare.main(arguments) == 0
    assert "goes on" not in capsys.readouterr().out


def test_finished_runs_are_not_repeated(tmp_path, monkeypatch, capsys):
    arguments = ["--strategies", "naive", "independent", *SMALL, "--out", str(tmp_path)]
    assert compare.main(arguments) == 0
    first = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(comparison, "run_here", None)
    assert compare.main(arguments) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[0].startswith("2 of 2 runs have finished before")
    assert again[1:] == [line for line in first if "seed 0: " not in line or "tasks" in line]


def test_a_changed_recipe_or_length_is_another_run(tmp_path, monkeypatch):
    arguments = ["--strategies", "naive", "--out", str(tmp_path), "--workers", "1", "--epochs"]
    assert compare.main([*arguments, "1"]) == 0
    assert compare.main([*arguments, "2"]) == 0
    assert [run.epochs for run in results(tmp_path)] == [1, 2]
    assert (tmp_path / "table.md").read_text().count("### split_digits: ") == 2
    monkeypatch.setattr(comparison, "fingerprint", lambda *args: "changed")
    assert compare.main([*arguments, "2"]) == 0
    assert [run.recipe for run in results(tmp_path)][1:] == ["changed"]


def test_quick_runs_say_so_everywhere(tmp_path, capsys):
    arguments = ["--strategies", "packnet", "--quick", "--out", str(tmp_path), "--workers", "1"]
    assert compare.main(arguments) == 0
    (entry,) = json.loads((tmp_path / "results.json").read_text())
    assert entry["quick"] is True
    assert entry["epochs"] == 2
    printed = capsys.readouterr().out
    assert "packnet on split_digits, seed 0, quick: finished" in printed
    assert "split_digits (quick): 5 tasks, mlp, 2 epochs, seed 0" in printed
    assert "### split_digits (quick): 5 tasks" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "archives" / "split_digits-packnet-seed0-quick").exists()
    assert (tmp_path / "matrix-split_digits-packnet-seed0-quick.png").exists()


def test_runs_in_bfloat16_are_other_runs_and_say_so(tmp_path, capsys):
    arguments = ["--strategies", "wsn", "--out", str(tmp_path), "--workers", "1", "--epochs", "1"]
    assert compare.main(arguments) == 0
    assert compare.main([*arguments, "--bf16"]) == 0
    plain, bf16 = results(tmp_path)
    assert not plain.bf16
    assert bf16.bf16
    assert plain.key != bf16.key
    assert plain.archive_sha256 != bf16.archive_sha256
    assert bf16.forgetting == 0
    assert "wsn on split_digits, seed 0, bf16: finished" in capsys.readouterr().out
    assert "### split_digits (bfloat16): 5 tasks" in (tmp_path / "table.md").read_text()


def test_a_run_that_another_process_has_is_left_alone(tmp_path):
    folder = tmp_path / "run"
    refused = pytest.raises(checkpoints.RunInProgressError, match="another process")
    with checkpoints.locked(folder), refused, checkpoints.locked(folder, patience=0.1):
        pass
    with checkpoints.locked(folder, patience=0.1):
        pass


def test_several_processes_give_the_same_records_and_the_same_failures(tmp_path, capsys):
    arguments = ["--strategies", "naive", "wsn", "avalanche_packnet", "--epochs", "1"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert compare.main([*arguments, "--workers", "1", "--out", str(alone)]) == 1
    capsys.readouterr()
    assert compare.main([*arguments, "--workers", "2", "--out", str(together)]) == 1
    assert differences(results(alone), results(together)) == []
    assert len(results(together)) == 2
    printed = capsys.readouterr().out
    assert re.search(r"wsn on split_digits, seed 0: task 5/5, epoch 1/1, accuracy", printed)
    assert "failed: avalanche_packnet on split_digits, seed 0: ValueError" in printed


class Killing(Display):
    """Kills the workers that report some tasks, which are given by strategy."""

    def __init__(self, tasks):
        self.tasks = tasks

    def task(self, key, task, accuracy):
        if task in self.tasks[key.strategy]:
            self.tasks[key.strategy].remove(task)
            (worker,) = multiprocessing.active_children()
            worker.kill()


def test_a_run_whose_worker_dies_goes_on_with_another_once(tmp_path):
    arguments = ["--strategies", "naive", "independent", "--epochs", "40", "--out", str(tmp_path)]
    jobs, killing = compare.parse(arguments).jobs(), Killing({"naive": [1], "independent": [1, 3]})
    (first, naive), (second, lost) = run_in_processes(jobs, killing, workers=1)
    assert (first.key.strategy, second.key.strategy) == ("naive", "independent")
    assert naive.accuracy_matrix[0] == [1.0, None, None, None, None]
    why = "the worker was killed by signal 9, twice"
    assert str(lost) == f"failed: independent on split_digits, seed 0: {why}"
    assert failures_in(tmp_path) == {"split_digits-independent-seed0": why}
    assert 4 <= len(checkpoints.open_history(second.checkpoints)) <= 5


def test_a_recipe_that_was_changed_back_is_the_one_in_the_tables(tmp_path, monkeypatch):
    arguments = ["--strategies", "naive", *SMALL, "--out", str(tmp_path)]
    for recipe in ("first", "second", "first"):
        monkeypatch.setattr(comparison, "fingerprint", lambda *args, recipe=recipe: recipe)
        assert compare.main(arguments) == 0
    assert [run.recipe for run in results(tmp_path)] == ["first"]


def test_sigkill_at_random_moments_leaves_the_store_of_an_uninterrupted_grid(tmp_path):
    grid = ["--strategies", "replay", "tinysubnets", "--epochs", "3", "--workers", "1"]
    grid += ["--streams", "split_digits"]
    assert kill_and_compare(grid, kills=2, folder=tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_sigkill_at_random_moments_leaves_each_run_as_it_was(tmp_path):
    command = [sys.executable, "-m", "benchmarks.killtest", "--each", "--kills", "3", "--"]
    command += ["--streams", "split_digits", "--strategies", "naive", "wsn", "--epochs", "2"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    *_, naive, wsn = found.splitlines()
    assert naive.startswith("| naive on split_digits, seed 0 | 3 |")
    assert naive.endswith("| yes |")
    assert wsn.startswith("| wsn on split_digits, seed 0 | 3 |")
    assert wsn.endswith("| yes |")


def test_where_a_killed_run_went_on_is_counted():
    tally = Tally(kills=4, writing=1, equal=False)
    for done in [Position(0, 0), Position(0, 2), Position(3, 0), Position(3, 1)]:
        tally.went_on(done)
    assert str(tally) == "| 4 | 1 | 2 | 1 | 1 | NO |"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_two_workers_of_ray_give_the_same_records(tmp_path):
    arguments = ["--strategies", "naive", "tinysubnets", "--epochs", "2"]
    alone, far = tmp_path / "alone", tmp_path / "far"
    assert compare.main([*arguments, "--workers", "1", "--out", str(alone)]) == 0
    assert compare.main([*arguments, "--engine", "ray", "--workers", "2", "--out", str(far)]) == 0
    assert differences(results(alone), results(far)) == []
    assert len(results(far)) == 2


def test_without_ray_the_engine_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["--strategies", "naive", "--engine", "ray", "--out", str(tmp_path)]
    assert compare.main(arguments) == 2
    assert "pip install '.[ray]'" in capsys.readouterr().err
