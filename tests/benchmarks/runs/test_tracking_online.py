"""What arrives of a comparison at a W&B server, also of a run that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap

import pytest
from wandb_server_for_tests import wandb_online

from benchmarks import compare
from benchmarks.runs.results import PAGES
from benchmarks.runs.store import NAME, Store

TASKS = range(5)


def arguments(out):
    grid = ["--strategies", "wsn", "--streams", "split_digits", "--epochs", "2", "--workers", "1"]
    return [*grid, "--wandb", "online", "--save-every", "0", "--out", str(out)]


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """A run that was left alone: the server's view of it, its result, and its folder."""
    out = tmp_path_factory.mktemp("online")
    with pytest.MonkeyPatch.context() as patched, wandb_online(patched, out) as server:
        assert compare.main(arguments(out / "results")) == 0
    (run,) = server.runs.values()
    (result,) = Store(out / "results" / NAME).results()
    return run, result, out / "results"


def test_series_arrive_with_a_point_for_each_task(online):
    run, result, _ = online
    for name in ("accuracy/mean", "forgetting/mean", "size/archive_bytes", "density/body.1.weight"):
        assert [task for task, _ in run.series(name)] == list(TASKS), name
    for task in TASKS:
        column = {row: result.accuracy_matrix[row][task] for row in range(task, len(TASKS))}
        assert dict(run.series(f"accuracy/task_{task:02d}")) == pytest.approx(column)
    assert run.series("size/archive_bytes")[-1][1] == result.archive_bytes


def test_training_curves_arrive_in_order(online):
    run, _, _ = online
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))
    losses = [row["train/loss"] for row in run.history if "train/loss" in row]
    assert len(losses) >= 2 * len(TASKS)  # one at the end of each epoch


def test_the_summary_and_the_configuration_sort_a_table_of_runs(online):
    run, result, _ = online
    for name in ("accuracy", "forgetting", "bwt", "stored_bytes", "archive_bytes", "ratio"):
        assert run.summary[name] == pytest.approx(getattr(result, name))
    means = [value for _, value in run.series("accuracy/mean")]
    expected = {"min": min(means), "max": max(means), "last": means[-1]}
    assert run.summary["accuracy/mean"] == pytest.approx(expected)
    assert {"strategy": "wsn", "recipe": result.recipe}.items() <= run.config.items()
    assert run.variables["tags"] == ["wsn", "split_digits", "task"]
    assert run.exit_code == 0


def test_the_archive_arrives_as_a_version_and_the_matrix_as_a_table(online):
    run, result, out = online
    (archive,) = (artifact for artifact in run.artifacts if artifact.kind == "model")
    assert archive.files[result.key.slug] == (out / "archives" / result.key.slug).read_bytes()
    assert (archive.name, archive.committed) == (result.key.slug, True)
    assert set(archive.aliases) == {"latest", f"recipe-{result.recipe}"}
    (table,) = (
        json.loads(file) for name, file in run.files.items() if "AccuracyMatrix/table" in name
    )
    assert [row[1:] for row in table["data"]] == result.accuracy_matrix
    (page,) = (out / PAGES).iterdir()
    assert page.read_text().endswith(f"/runs/{run.id}")


def test_a_run_that_is_killed_and_started_again_is_one_run(online, tmp_path, monkeypatch):
    whole, _, _ = online
    script = """
        import os, signal, sys
        from benchmarks import compare
        from benchmarks.runs import checkpoints, run

        def write_and_die(history, folder):
            checkpoints.write_history(history, folder)
            if len(history) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        run.write_history = write_and_die
        compare.main(sys.argv[1:])
    """
    with wandb_online(monkeypatch, tmp_path) as server:
        command = [sys.executable, "-c", textwrap.dedent(script), *arguments(tmp_path / "results")]
        assert subprocess.run(command, timeout=300).returncode == -signal.SIGKILL
        assert compare.main(arguments(tmp_path / "results")) == 0
    (run,) = server.runs.values()
    assert (run.id, run.starts) == (whole.id, 2)
    for name in ("accuracy/mean", "forgetting/mean", "size/archive_bytes", "density/body.1.weight"):
        assert run.series(name) == whole.series(name), name
    for name in ("accuracy", "archive_bytes", "accuracy/mean"):
        assert run.summary[name] == whole.summary[name]
