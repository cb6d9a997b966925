"""Choosing a rule, its options and its layer on held-out data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_compress.codec import ByteWriter
from avalanche_compress.core.batches import moved_to, rows_of
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.statistics import write_statistics
from avalanche_compress.errors import TaskInferenceError
from avalanche_compress.inference.task_inference import TaskInference

Batches = list[tuple[Any, Tensor]]


class Trial(NamedTuple):
    """What a way of inferring tasks came to on held-out samples."""

    inference: TaskInference
    accuracy: float
    """Percent of the samples whose class was answered, mean over tasks."""
    task_accuracy: float
    """Percent of the samples whose task was inferred."""
    bytes: int
    """That its statistics take in an archive."""


def select_inference(
    network: TaskNetwork,
    training: Sequence[Iterable[Sequence[Any]]],
    held_out: Sequence[Iterable[Sequence[Any]]],
    candidates: Sequence[TaskInference],
    most_bytes: int | None = None,
) -> list[Trial]:
    """Try ways of inferring tasks on samples that were held out, the best first.

    Half of a task's held-out samples calibrate, as they do in training; the other half is what
    the trials are judged by. Among those that cannot be told from the best, by one standard error
    of its accuracy, the one of fewest bytes is first. The network's statistics stay as they are.

    :param network: that has learned the tasks.
    :param training: of each of its tasks the samples that it was trained on, batch by batch.
    :param held_out: of each of its tasks others.
    :param candidates: to choose from.
    :param most_bytes: that statistics may take; None for any number.
    :return: a trial each, of those that fit the bytes.
    :raises TaskInferenceError: if there are not samples of each task, or nothing to choose from.
    """
    if not len(training) == len(held_out) == len(network.tasks) > 1:
        raise TaskInferenceError(
            f"the network has the tasks {network.tasks} and there are training data of "
            f"{len(training)} and held-out data of {len(held_out)}: give both of each of two tasks "
            "or more."
        )
    seen = [[(batch[0], batch[1]) for batch in batches] for batches in training]
    halves = [_halves(batches) for batches in held_out]
    trials = [_try(network, seen, halves, inference) for inference in candidates]
    trials = [trial for trial in trials if most_bytes is None or trial.bytes <= most_bytes]
    if not trials:
        raise TaskInferenceError(
            f"none of {len(candidates)} candidates keeps {most_bytes} bytes at most: allow more, "
            "or give candidates of lower rank or fewer references."
        )
    best = max(trial.accuracy for trial in trials)
    samples = sum(len(y) for _, judged in halves for _, y in judged)
    error = math.sqrt(max(best * (100 - best), 1) / samples)
    trials.sort(key=lambda trial: -trial.accuracy)
    chosen = min(
        (trial for trial in trials if trial.accuracy >= best - error), key=lambda trial: trial.bytes
    )
    return [chosen, *(trial for trial in trials if trial is not chosen)]


def _try(
    network: TaskNetwork,
    training: Sequence[Batches],
    halves: Sequence[tuple[Batches, Batches]],
    inference: TaskInference,
) -> Trial:
    apart = copy.copy(network)  # the same sub-networks, with statistics of its own
    apart.statistics = {}
    writer = ByteWriter()
    for task, batches, (calibrating, _) in zip(network.tasks, training, halves):
        inference.collect(apart, task, batches, calibrating)
    for task in network.tasks:
        write_statistics(writer, apart.statistics.get(task, {}))
    classes, tasks = [], []
    for task, (_, judged) in zip(network.tasks, halves):
        device = network.head.weight.device
        found = [inference(apart, moved_to(x, device)) for x, _ in judged]
        targets = torch.cat([y for _, y in judged]).to(device)
        answered = torch.cat([answer.logits.argmax(dim=1) for answer in found])
        classes.append(float((answered == targets).float().mean()))
        tasks.append(float(torch.cat([answer.tasks == task for answer in found]).float().mean()))
    count = len(network.tasks)
    return Trial(
        inference, 100 * sum(classes) / count, 100 * sum(tasks) / count, len(writer.getvalue())
    )


def _halves(batches: Iterable[Sequence[Any]]) -> tuple[Batches, Batches]:
    """Every other sample, to calibrate with and to be judged by."""
    halves: tuple[Batches, Batches] = ([], [])
    for x, y, *_ in batches:
        for half, first in zip(halves, range(min(2, len(y)))):
            half.append((rows_of(x, torch.arange(first, len(y), 2)), y[first::2]))
    return halves
