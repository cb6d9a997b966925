"""What people see of a run: series over the tasks and curves, read back from the loggers' files."""

from __future__ import annotations

import csv
from collections import defaultdict

import pytest
import torch
import wandb
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from streams_for_tests import make_stream
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from wandb_for_tests import offline_history, offline_records

from avalanche_compress import (
    CACL,
    WSN,
    AccuracySeries,
    SeriesCSVLogger,
    TrainingCurves,
    WandBLogger,
    layer_bits,
    layer_densities,
    layer_ranks,
    save_archive,
    task_series,
)

TASKS = 3


@pytest.fixture(autouse=True)
def no_wandb_environment(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 2))


def trained(strategy_class, loggers, *metrics, epochs=2, **own):
    torch.manual_seed(0)
    model = mlp()
    strategy = strategy_class(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=epochs,
        evaluator=EvaluationPlugin(*metrics, loggers=loggers),
        **own,
    )
    stream = make_stream(TASKS, shape=(1, 28, 28))
    results = []
    for experience in stream.train_stream:
        strategy.train(experience)
        results.append(strategy.eval(stream.test_stream))
    return strategy, results


def series_in(folder):
    """By name, what is logged over ``task``: place to value."""
    found = defaultdict(dict)
    for row in offline_history(folder):
        if "task" not in row:
            continue
        for name, value in row.items():
            if "/" in name and not name.startswith("train/"):
                found[name][row["task"]] = value
    return dict(found)


def test_a_run_is_series_over_the_tasks_and_curves_over_the_steps(tmp_path):
    series = task_series(curves_every=5)
    params = {"mode": "offline", "tags": ["digits"], "job_type": "train", "group": "tests"}
    with WandBLogger(dir=tmp_path, save_code=False, params=params) as logger:
        strategy, results = trained(WSN, [logger], accuracy_metrics(experience=True), series)
        logger.log_accuracy_matrix(series[0].matrix)
        size = save_archive(strategy.model, tmp_path / "archive")
        logger.log_archive(tmp_path / "archive", "digits", aliases=["final"])
    network, places = strategy.network, range(TASKS)
    points = series_in(tmp_path)
    for name in ("accuracy/mean", "forgetting/mean", "size/archive_bytes", "size/bits_per_weight"):
        assert list(points[name]) == list(places), name
    assert set(points["forgetting/mean"].values()) == {0.0}
    assert points["size/archive_bytes"][TASKS - 1] == size
    assert points["density/1.weight"] == dict(enumerate(layer_densities(network)["1.weight"]))
    known = {place: bits for place, bits in enumerate(layer_bits(network)["1.weight"]) if bits}
    assert points["bits/1.weight"] == known
    for task in places:
        name = f"Top1_Acc_Exp/eval_phase/test_stream/Task{task:03d}/Exp{task:03d}"
        assert points[f"accuracy/task_{task:02d}"] == pytest.approx(
            {place: results[place][name] for place in range(task, TASKS)}
        )

    rows = offline_history(tmp_path)
    curve = {row["_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    steps = strategy.clock.train_iterations
    assert max(curve) == steps
    assert len(curve) >= steps // 5
    assert all(0 <= row["train/accuracy"] <= 1 for row in rows if "train/loss" in row)
    assert not any("Exp0" in name for row in rows for name in row)

    records = offline_records(tmp_path)
    defined = {r.metric.name: r.metric for r in records if r.HasField("metric")}
    assert all(defined[name].step_metric == "task" for name in points if "Matrix" not in name)
    (run,) = {r.run.run_id: r.run for r in records if r.HasField("run")}.values()
    assert (list(run.tags), run.job_type, run.run_group) == (["digits"], "train", "tests")
    artifacts = {r.artifact.name: r.artifact for r in records if r.HasField("artifact")}
    assert set(artifacts["digits"].aliases) == {"latest", "final"}


def test_the_summary_sorts_a_table_of_runs(tmp_path):
    with WandBLogger(dir=tmp_path, save_code=False, params={"mode": "offline"}) as logger:
        trained(WSN, [logger], AccuracySeries(), TrainingCurves())
        logger.run.log({}, commit=True)  # W&B takes a row as complete when the next one begins
        summary = {name: dict(logger.run.summary[name]) for name in ("accuracy/mean", "train/loss")}
    means = list(series_in(tmp_path)["accuracy/mean"].values())
    assert summary["accuracy/mean"] == {"min": min(means), "max": max(means), "last": means[-1]}
    rows = offline_history(tmp_path)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert summary["train/loss"] == {"min": min(losses), "max": max(losses), "last": losses[-1]}


def test_tensorboard_and_csv_have_the_same_names_and_numbers(tmp_path):
    board, table = (
        TensorboardLogger(tmp_path / "board"),
        SeriesCSVLogger(tmp_path / "new" / "s.csv"),
    )
    strategy, _ = trained(CACL, [board, table], task_series(curves_every=4))
    board.writer.flush()
    with open(tmp_path / "new" / "s.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    written = defaultdict(list)
    for row in rows:
        written[row["name"]].append((int(row["at"]), float(row["value"])))
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == set(written)
    for name, points in written.items():
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == [step for step, _ in points]
        assert [value for _, value in shown] == pytest.approx([value for _, value in points])
    ranks = layer_ranks(strategy.network)["1.weight"]
    assert written["rank/1.weight"] == list(enumerate(ranks))
    axes = {row["name"].split("/")[0]: row["axis"] for row in rows}
    assert axes["accuracy"] == axes["size"] == axes["rank"] == "task"
    assert axes["train"] == "iteration"


def test_forgetting_is_what_the_best_earlier_accuracy_lost():
    series = AccuracySeries()
    trained(Naive, [], series, epochs=4)
    lost = []
    for task in range(TASKS - 1):
        best = max(series.matrix[row][task] for row in range(task, TASKS - 1))
        lost.append(best - series.matrix[-1][task])
    assert series._forgetting(series._rows[TASKS - 1]) == pytest.approx(sum(lost) / len(lost))
    last = series.matrix[-1]
    assert series.result() == pytest.approx(sum(last) / len(last))
    assert all(value != value for value in series.matrix[0][1:])


def test_evaluations_of_a_task_in_training_are_no_points(tmp_path):
    table = SeriesCSVLogger(tmp_path / "series.csv")
    torch.manual_seed(0)
    model = mlp()
    strategy = WSN(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        train_mb_size=8,
        train_epochs=3,
        eval_every=1,
        evaluator=EvaluationPlugin(AccuracySeries(), loggers=[table]),
    )
    stream = make_stream(2, shape=(1, 28, 28))
    for place, experience in enumerate(stream.train_stream):
        strategy.train(experience, eval_streams=[stream.test_stream[: place + 1]])
        strategy.eval(stream.test_stream)
    names = [row.split(",")[2] for row in (tmp_path / "series.csv").read_text().splitlines()[1:]]
    assert names.count("accuracy/mean") == 2
    assert names.count("accuracy/task_00") == 2
    assert names.count("accuracy/task_01") == 1


def test_avalanches_names_are_there_when_they_are_asked_for(tmp_path):
    name = "Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001"
    for asked in (False, True):
        folder = tmp_path / str(asked)
        with WandBLogger(
            dir=folder, save_code=False, params={"mode": "offline"}, host_names=asked
        ) as logger:
            trained(WSN, [logger], accuracy_metrics(experience=True), AccuracySeries(), epochs=1)
        assert any(name in row for row in offline_history(folder)) is asked


def test_who_would_see_nothing_is_told(tmp_path):
    logger = WandBLogger(dir=tmp_path, save_code=False, params={"mode": "disabled"})
    with pytest.warns(UserWarning, match=r"task_series\(\)"):
        trained(WSN, [logger], accuracy_metrics(epoch=True), epochs=1)
    logger.finish()
    assert wandb.run is None
