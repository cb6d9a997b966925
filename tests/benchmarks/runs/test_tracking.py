"""What reaches W&B's offline files of a comparison."""

from __future__ import annotations

import json

import pytest
from wandb_for_tests import offline_history, offline_records

from benchmarks import compare
from benchmarks.runs import checkpoints, recipe
from benchmarks.runs import run as runs
from benchmarks.runs.store import NAME, Store


@pytest.fixture(autouse=True)
def no_wandb_environment(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


SERIES = ("accuracy/", "forgetting/", "size/", "density/", "bits/", "rank/", "train/", "task")


def arguments(out, *strategies):
    options = ["--epochs", "2", "--workers", "1", "--wandb", "offline", "--save-every", "0"]
    return ["--strategies", *strategies, *options, "--out", str(out)]


def logged_runs(out):
    return [record.run for record in offline_records(out) if record.HasField("run")]


def config_of(run):
    return {entry.key: json.loads(entry.value_json) for entry in run.config.update}


def measured(out):
    """The metrics of each step, without times and without pictures, which have their own names."""
    steps = {}
    for row in offline_history(out):
        kept = {name: value for name, value in row.items() if name.startswith(SERIES)}
        steps.setdefault(row["_step"], {}).update(kept)
    return {step: row for step, row in steps.items() if row}


def test_a_run_is_logged_with_what_its_numbers_come_from(tmp_path):
    assert compare.main(arguments(tmp_path, "cacl")) == 0
    (result,) = Store(tmp_path / NAME).results()
    (run,) = logged_runs(tmp_path)
    config = config_of(run)
    assert (config["backbone"], config["recipe"]) == ("mlp", result.recipe)
    assert (config["order"], config["device"]) == ([0, 1, 2, 3, 4], "cpu")
    (job,) = compare.parse(arguments(tmp_path, "cacl")).jobs()
    resolved = recipe.hyper_parameters("cacl", "split_digits", job.budget, 5)
    assert config["hyper_parameters"] == resolved
    assert resolved["optimizer"] == {"name": "adam", "lr": 0.001}
    assert run.display_name == result.key.slug

    merged = {name: value for row in offline_history(tmp_path) for name, value in row.items()}
    for task in range(5):
        assert merged[f"accuracy/task_0{task}"] == result.accuracy_matrix[-1][task]
    assert merged["accuracy/mean"] == pytest.approx(result.accuracy)
    assert merged["size/archive_bytes"] == result.archive_bytes
    assert {"strategy": "cacl", "stream": "split_digits"}.items() <= config.items()
    assert (run.job_type, list(run.tags)) == ("comparison", ["cacl", "split_digits", "task"])
    assert merged["AccuracyMatrix/table/nrows"] == 5
    assert merged["pictures/matrix/_type"] == merged["pictures/ranks/_type"] == "image-file"
    artifacts = [r.artifact for r in offline_records(tmp_path) if r.HasField("artifact")]
    assert result.key.slug in {artifact.name for artifact in artifacts}


def test_the_runs_of_a_grid_share_a_group_that_its_seeds_and_orders_do_not_change(tmp_path):
    def groups(*grid):
        return {job.group for job in compare.parse(list(grid)).jobs()}

    (group,) = groups("--strategies", "naive", "wsn")
    assert group.startswith("split_digits-")
    assert groups("--strategies", "wsn", "naive", "--seeds", "3", "4", "--orders", "2") == {group}
    assert groups("--strategies", "naive", "wsn", "--epochs", "2") != {group}
    assert groups("--strategies", "naive", "lwf") != {group}
    assert compare.main(arguments(tmp_path, "naive", "wsn")) == 0
    logged = {run.run_group for run in logged_runs(tmp_path)}
    assert logged == groups("--strategies", "naive", "wsn", "--epochs", "2")


@pytest.mark.parametrize("strategy", ["wsn", "independent"])
def test_a_run_that_goes_on_goes_on_with_its_wandb_run(strategy, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert compare.main(arguments(whole, strategy)) == 0

    def write_and_stop(history, folder):
        checkpoints.write_history(history, folder)
        if len(history) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_history", write_and_stop)
        assert compare.main(arguments(killed, strategy)) == 130  # as Ctrl-C ends a command
    assert compare.main(arguments(killed, strategy)) == 0

    (run,) = logged_runs(killed)
    assert run.run_id == logged_runs(whole)[0].run_id
    assert run.resume
    assert len(list(killed.rglob("*.wandb"))) == 1
    together = measured(killed)
    assert together == measured(whole)
    for name in ("accuracy/mean", "forgetting/mean"):
        points = [row["task"] for _, row in sorted(together.items()) if name in row]
        assert points == [0, 1, 2, 3, 4]
    curve = [step for step, row in together.items() if "train/loss" in row]
    assert len(curve) >= 10  # one at the end of each of two epochs of five tasks


def test_avalanches_names_are_one_argument_away(tmp_path):
    assert compare.main([*arguments(tmp_path, "naive"), "--wandb-names", "avalanche"]) == 0
    (result,) = Store(tmp_path / NAME).results()
    merged = {name: value for row in offline_history(tmp_path) for name, value in row.items()}
    for task in range(5):
        name = f"Top1_Acc_Exp/eval_phase/test_stream/Task00{task}/Exp00{task}"
        assert merged[name] == pytest.approx(result.accuracy_matrix[-1][task])
        assert merged[f"accuracy/task_0{task}"] == result.accuracy_matrix[-1][task]
