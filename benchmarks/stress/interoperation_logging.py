"""Avalanche's loggers and metrics with every strategy: what they say is what was computed."""

from __future__ import annotations

import csv
import io
import math
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from avalanche.evaluation.metrics import (
    MAC_metrics,
    accuracy_metrics,
    bwt_metrics,
    confusion_matrix_metrics,
    forgetting_metrics,
    loss_metrics,
    timing_metrics,
)
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn.functional import cross_entropy

from avalanche_compress import UnsupportedPluginError, WandBLogger, compression_metrics
from benchmarks.stress.small_training import EPOCHS, Case, build, learn, small_stream

TASKS = 3
WEIGHT = "size/archive_bytes"
EPOCH = "Top1_Acc_Epoch/train_phase/train_stream/Task{:03d}"
"""What is measured in a task's last epoch of training."""


def exp_name(metric: str, task: int) -> str:
    """The name under which Avalanche reports a metric of a test experience.

    :param metric: its own name.
    :param task: label and position of the experience.

    >>> exp_name("Top1_Acc_Exp", 1)
    'Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001'
    """
    return f"{metric}/eval_phase/test_stream/Task{task:03d}/Exp{task:03d}"


@dataclass(frozen=True)
class Logged:
    """A training with all loggers and metrics.

    :param metrics: after each task, all metrics that were emitted last.
    :param logits: of each task's test samples, (N, 2), after all tasks.
    :param targets: of these samples, (N,).
    :param screen: what the interactive logger printed.
    :param text: what the text logger wrote.
    :param training_rows: of the CSV file on training.
    :param evaluation_rows: of the CSV file on evaluation.
    :param scalars: the values of each of Tensorboard's tags, in order.
    :param summary: the last value of each of W&B's names.
    """

    metrics: list[dict[str, Any]]
    logits: list[Tensor]
    targets: list[Tensor]
    screen: str
    text: str
    training_rows: list[dict[str, str]]
    evaluation_rows: list[dict[str, str]]
    scalars: dict[str, list[float]]
    summary: dict[str, Any]


@cache
def logged(name: str) -> Logged:
    """Train a strategy under all loggers and metrics, once.

    :param name: of the strategy.
    """
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as screen:
        return _train(name, Path(folder), screen)


def _train(name: str, folder: Path, screen: io.StringIO) -> Logged:
    text = io.StringIO()
    board = TensorboardLogger(str(folder / "board"))
    wandb = WandBLogger(
        dir=folder / "wandb", save_code=False, params={"mode": "offline"}, host_names=True
    )
    tables = CSVLogger(str(folder))
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        timing_metrics(epoch=True, experience=True),
        confusion_matrix_metrics(num_classes=2, save_image=False, stream=True),
        compression_metrics(),
        loggers=[InteractiveLogger(), TextLogger(text), tables, board, wandb],
    )
    strategy, stream = build(name, momentum=0.9, evaluator=evaluator), small_stream(TASKS)
    metrics: list[dict[str, Any]] = []

    def evaluate() -> None:
        strategy.eval(stream.test_stream)
        metrics.append(dict(evaluator.get_last_metrics()))

    learn(strategy, stream.train_stream, then=evaluate)
    tables.close()
    board.writer.flush()
    wandb.run.log({}, commit=True)  # W&B takes a row as complete when the next one begins
    summary = dict(wandb.run.summary)
    wandb.finish()
    logits, targets = zip(*(_answers(strategy, experience) for experience in stream.test_stream))
    return Logged(
        metrics,
        list(logits),
        list(targets),
        screen.getvalue(),
        text.getvalue(),
        _rows(folder / "training_results.csv"),
        _rows(folder / "eval_results.csv"),
        _scalars(folder / "board"),
        summary,
    )


@torch.no_grad()
def _answers(strategy: Any, experience: Any) -> tuple[Tensor, Tensor]:
    samples = [experience.dataset[index] for index in range(len(experience.dataset))]
    x, targets = torch.stack([s[0] for s in samples]), torch.tensor([int(s[1]) for s in samples])
    return strategy.network.eval()(x, experience.task_label), targets


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _scalars(folder: Path) -> dict[str, list[float]]:
    board = EventAccumulator(str(folder)).Reload()
    return {tag: [event.value for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def _right(run: Logged, task: int) -> float:
    """Accuracy of a task's test samples, 0..1."""
    return float((run.logits[task].argmax(1) == run.targets[task]).float().mean())


def _close(a: Any, b: float, tolerance: float = 1e-5) -> bool:
    return abs(float(a) - b) <= tolerance


# ---------------------------------------------------------------------------- loggers


def check_screen(name: str) -> None:
    """Progress and metrics of each epoch, metrics of each evaluation."""
    screen = logged(name).screen
    assert screen.count("-- >> Start of training phase << --") == TASKS
    assert screen.count("Epoch ") >= TASKS * EPOCHS
    assert "100%" in screen
    assert f"{exp_name('Top1_Acc_Exp', 0)} = {_right(logged(name), 0):.4f}" in screen


def check_text(name: str) -> None:
    """Each metric by its name, as often as it was emitted."""
    text = logged(name).text
    assert text.count(f"{exp_name('Top1_Acc_Exp', 0)} = ") == TASKS
    assert text.count(f"{EPOCH.format(0)} = ") == EPOCHS
    assert f"{exp_name('ExperienceForgetting', 0)} = 0.0000" in text
    assert f"{WEIGHT} = " in text


def check_csv(name: str) -> None:
    """A row for each epoch, and one for each experience of each evaluation."""
    run = logged(name)
    assert [(row["training_exp"], row["epoch"]) for row in run.training_rows] == [
        (str(task), str(epoch)) for task in range(TASKS) for epoch in range(EPOCHS)
    ]
    order = [(row["training_exp"], row["eval_exp"]) for row in run.evaluation_rows]
    assert order == [(str(a), str(b)) for a in range(TASKS) for b in range(TASKS)]
    for task, row in enumerate(run.evaluation_rows[-TASKS:]):
        assert _close(row["eval_accuracy"], _right(run, task), 1e-4)
        assert float(row["forgetting"]) == 0


def check_tensorboard(name: str) -> None:
    """Every number, with its course."""
    run = logged(name)
    assert len(run.scalars[EPOCH.format(1)]) == EPOCHS
    assert len(run.scalars[exp_name("Top1_Acc_Exp", 0)]) == TASKS
    assert _close(run.scalars[exp_name("Top1_Acc_Exp", 2)][-1], _right(run, 2))
    assert run.scalars[WEIGHT][0] > 0


def check_wandb(name: str) -> None:
    """Every number, offline."""
    run = logged(name)
    numbers = {k: v for metrics in run.metrics for k, v in metrics.items() if isinstance(v, float)}
    assert len(numbers) > 20
    for metric, value in numbers.items():
        # of what runs are compared by there is the least and the greatest, too
        last = run.summary[metric]["last"] if metric.startswith("size/") else run.summary[metric]
        assert _close(last, value), metric


# ---------------------------------------------------------------------------- metrics


def check_accuracy(name: str) -> None:
    """Those of the logits, for each task and all of them."""
    run = logged(name)
    accuracies = [_right(run, task) for task in range(TASKS)]
    for task, accuracy in enumerate(accuracies):
        assert _close(run.metrics[-1][exp_name("Top1_Acc_Exp", task)], accuracy)
    stream = run.metrics[-1][f"Top1_Acc_Stream/eval_phase/test_stream/Task{TASKS - 1:03d}"]
    assert _close(stream, sum(accuracies) / TASKS)
    assert stream > 0.6  # something was learned


def check_loss(name: str) -> None:
    """Those of the logits."""
    run = logged(name)
    for task, (logits, targets) in enumerate(zip(run.logits, run.targets)):
        loss = float(cross_entropy(logits, targets))
        assert _close(run.metrics[-1][exp_name("Loss_Exp", task)], loss)


def check_forgetting(name: str) -> None:
    """Zero, exactly, for each finished task after each later one."""
    for after, metrics in enumerate(logged(name).metrics):
        found = [metrics.get(exp_name("ExperienceForgetting", task)) for task in range(after)]
        assert found == [0.0] * after
    assert logged(name).metrics[-1]["StreamForgetting/eval_phase/test_stream"] == 0


def check_bwt(name: str) -> None:
    """Zero, exactly."""
    for after, metrics in enumerate(logged(name).metrics):
        found = [metrics.get(exp_name("ExperienceBWT", task)) for task in range(after)]
        assert found == [0.0] * after
    assert logged(name).metrics[-1]["StreamBWT/eval_phase/test_stream"] == 0


def check_timing(name: str) -> None:
    """More than no time."""
    metrics = logged(name).metrics[-1]
    assert metrics["Time_Epoch/train_phase/train_stream/Task000"] > 0
    assert all(metrics[exp_name("Time_Exp", task)] > 0 for task in range(TASKS))


def check_confusion(name: str) -> None:
    """Each sample of all tasks, counted by hand."""
    run = logged(name)
    counts = torch.zeros(2, 2)
    for logits, targets in zip(run.logits, run.targets):
        for answer, target in zip(logits.argmax(1).tolist(), targets.tolist()):
            counts[target, answer] += 1
    found = run.metrics[-1]["ConfusionMatrix_Stream/eval_phase/test_stream"]
    assert torch.equal(found.float(), counts)
    assert counts.sum() == 12 * TASKS


def check_confusion_image(name: str) -> None:
    """A picture of the counts, of the size of the matrix or larger."""
    metrics = confusion_matrix_metrics(num_classes=2, save_image=True, stream=True)
    strategy = build(name, evaluator=EvaluationPlugin(metrics, loggers=[]))
    stream = small_stream()
    learn(strategy, stream.train_stream)
    results = strategy.eval(stream.test_stream)
    found = results["ConfusionMatrix_Stream/eval_phase/test_stream"]
    assert len(found.alternatives) == 2


def check_compression(name: str) -> None:
    """The bytes of the archive after each task, which become more."""
    sizes = [metrics[WEIGHT] for metrics in logged(name).metrics]
    assert sizes == sorted(set(sizes))
    assert all(math.isfinite(size) for size in sizes)


def refuse_mac(name: str) -> None:
    """Only builds the strategy.

    :raises UnsupportedPluginError: as it should.
    """
    build(name, evaluator=EvaluationPlugin(MAC_metrics(epoch=True), loggers=[]))


LOGGERS = [
    Case("`InteractiveLogger`", check_screen),
    Case("`TextLogger`", check_text),
    Case("`CSVLogger`", check_csv),
    Case("`TensorboardLogger`", check_tensorboard),
    Case(
        "`avalanche_compress.WandBLogger`",
        check_wandb,
        note="Avalanche 0.6's own `WandBLogger` fails with current releases of wandb.",
    ),
]
METRICS = [
    Case("`accuracy_metrics`", check_accuracy),
    Case("`loss_metrics`", check_loss),
    Case(
        "`forgetting_metrics`",
        check_forgetting,
        note=(
            "0 for every finished task. Avalanche knows an experience by its number and not by its "
            "stream: if a validation stream is evaluated as well, it takes the difference of the "
            "two streams for forgetting."
        ),
    ),
    Case("`bwt_metrics`", check_bwt),
    Case("`timing_metrics`", check_timing),
    Case("`confusion_matrix_metrics(save_image=False)`", check_confusion),
    Case(
        "`confusion_matrix_metrics(save_image=True)`",
        check_confusion_image,
        note="On old-style benchmarks only, in Avalanche 0.6.",
    ),
    Case("`avalanche_compress.compression_metrics`", check_compression),
    Case("`MAC_metrics`", refuse_mac, refused=UnsupportedPluginError),
]
CASES = [*LOGGERS, *METRICS]
