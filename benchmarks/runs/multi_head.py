"""A head for each task behind one body, for mini-batches of several tasks, too."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.models.helper_method import MultiTaskDecorator


class MultiHead(MultiTaskDecorator):
    """Avalanche's multi-task model, whose body sees a mini-batch of several tasks as a whole.

    Avalanche's passes each task's samples through the body by themselves, which takes as many times
    as long and stops at a batch norm that is given a single sample.

    :param model: a plain network whose last layer is a ``Linear``.
    :param classifier_name: of that layer; it becomes a head for each task.

    >>> from benchmarks.runs.backbones import BACKBONES
    >>> model = MultiHead(BACKBONES["mlp"]((1, 8, 8), 3, False), "head")
    >>> model(torch.zeros(2, 1, 8, 8), torch.tensor([0, 0])).shape
    torch.Size([2, 3])
    """

    def forward(self, x: torch.Tensor, task_labels: Any) -> torch.Tensor:
        """Logits ``(N, classes)``.

        :param x: (N, ...).
        :param task_labels: (N,) or one for all.
        """
        one = not isinstance(task_labels, torch.Tensor) or bool(
            (task_labels == task_labels[0]).all()
        )
        if one:
            return super().forward(x, task_labels)
        features = self.model(x).flatten(1)
        return getattr(self, self.classifier_name)(features, task_labels)
