"""The arithmetic of an accuracy matrix: row i holds the accuracy of every task after task i."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

Row = list[float | None]
"""An accuracy per task, 0 to 1; None where it was not measured."""

_PER_EXPERIENCE = r"/eval_phase/test_stream/Task\d+/Exp(\d+)"


def accuracy_row(metrics: Mapping[str, float], tasks: int, metric: str = "Top1_Acc_Exp") -> Row:
    """Per-task accuracies out of the dictionary that Avalanche's ``eval`` returns.

    :param metrics: metric name to value.
    :param tasks: number of tasks of the stream.
    :param metric: which one, as Avalanche calls it.
    :return: one accuracy per task, None where there is none.

    >>> accuracy_row({"Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001": 0.5}, 3)
    [None, 0.5, None]
    """
    row: Row = [None] * tasks
    for name, value in metrics.items():
        found = re.fullmatch(metric + _PER_EXPERIENCE, name)
        if found:
            row[int(found.group(1))] = float(value)
    return row


@torch.no_grad()
def accuracy_on(network: Any, experience: Any) -> float:
    """The part of an experience's samples that its task answers rightly, 0 to 1.

    :param network: that has learned it; it is in evaluation mode afterwards.
    :param experience: of one task.
    """
    network.eval()
    data = experience.dataset.eval()
    x, y, *_ = zip(*(data[i] for i in range(len(data))))
    parts = torch.stack(x).split(500)
    answers = torch.cat([network(part, experience.task_label) for part in parts])
    return float((answers.argmax(1) == torch.tensor([int(target) for target in y])).float().mean())


def mean_so_far(row: Row) -> float | None:
    """Mean accuracy over the tasks of a row that were measured; None where none was.

    >>> mean_so_far([0.5, 1.0, None]), mean_so_far([None, None])
    (0.75, None)
    """
    known = [accuracy for accuracy in row if accuracy is not None]
    return mean(known) if known else None


def final_accuracy(matrix: Sequence[Row]) -> float:
    r"""``1/T sum_j a[T-1][j]``: the mean over tasks after the last one.

    :raises ValueError: if a task has no final accuracy.
    """
    return mean(final_row(matrix))


def final_row(matrix: Sequence[Row]) -> list[float]:
    """``a[T-1]``: the accuracy of every task after the last one.

    :raises ValueError: if a task has none.
    """
    values = [value for value in matrix[-1] if value is not None]
    if len(values) != len(matrix[-1]):
        raise ValueError(f"Every task needs a final accuracy, but the last row is {matrix[-1]}.")
    return values


def forgetting(matrix: Sequence[Row]) -> float | None:
    r"""``mean_{j<T-1} (max_{i<T-1} a[i][j] - a[T-1][j])`` (Chaudhry et al., 2018).

    :return: None when no task was measured before the last one was learnt; 0 for a single task.
    """
    if len(matrix) == 1:
        return 0.0
    earlier = [[row[task] for row in matrix[:-1]] for task in range(len(matrix) - 1)]
    best = [max((a for a in column if a is not None), default=None) for column in earlier]
    if None in best:
        return None
    return mean([most - now for most, now in zip(best, final_row(matrix)) if most is not None])


def backward_transfer(matrix: Sequence[Row]) -> float | None:
    r"""``mean_{j<T-1} (a[T-1][j] - a[j][j])`` (Lopez-Paz and Ranzato, 2017).

    :return: None when some task was not measured right after it was learnt; 0 for a single task.
    """
    if len(matrix) == 1:
        return 0.0
    learnt = [matrix[task][task] for task in range(len(matrix) - 1)]
    if None in learnt:
        return None
    return mean([now - then for now, then in zip(final_row(matrix), learnt) if then is not None])


def mean(values: Sequence[float]) -> float:
    """The sum over the number of values, added up in their order.

    >>> mean([1, 2])
    1.5
    """
    return sum(values) / len(values)
