"""What the sub-networks say of a mini-batch: each is run when it is first asked, and once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from avalanche_compress.core.batches import rows_of
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.inference.features import Features

Value = TypeVar("Value")


class Answers:
    """Logits and features of N samples under the sub-networks of T tasks, by their position.

    :param network: that learned the tasks.
    :param tasks: their labels.
    :param x: ``(N, ...)``; None if all that will be asked is filled in.
    :param features: what is read of a sub-network besides its logits.
    """

    def __init__(self, network: TaskNetwork, tasks: Sequence[int], x: Any, features: Features):
        self.tasks = list(tasks)
        self._network, self._x, self._read = network, x, features
        self._logits: dict[int, Tensor] = {}
        self._features: dict[int, Tensor] = {}
        self._computed: dict[Hashable, Any] = {}

    def logits(self, position: int) -> Tensor:
        """Logits ``(N, ..., C_t)`` of a task's classes.

        :param position: of the task, 0..T-1.
        """
        if position not in self._logits:
            self._logits[position] = self._network.own_logits(self._x, self.tasks[position])
        return self._logits[position]

    def features(self, position: int) -> Tensor:
        """Features ``(N, d)`` under the sub-network of a task.

        :param position: of the task, 0..T-1.
        """
        if position not in self._features:
            logits, features = self._read(self._network, self._x, self.tasks[position])
            self._logits[position], self._features[position] = logits, features
        return self._features[position]

    def fill(self, position: int, logits: Tensor, features: Tensor | None = None) -> None:
        """Say what a sub-network answers, so that it is not run.

        :param position: of the task, 0..T-1.
        :param logits: ``(N, ..., C_t)``.
        :param features: ``(N, d)``, if these are known.
        """
        self._logits[position] = logits
        if features is not None:
            self._features[position] = features

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """What was computed under this key before, or is now.

        :param key: any.
        :param compute: gives the value.
        """
        if key not in self._computed:
            self._computed[key] = compute()
        value: Value = self._computed[key]
        return value

    def rows(self, chosen: Tensor) -> Answers:
        """What was asked so far, of some of the samples.

        :param chosen: ``(N,)`` bool, or indices.
        """
        part = Answers(self._network, self.tasks, rows_of(self._x, chosen), self._read)
        part._logits = {position: logits[chosen] for position, logits in self._logits.items()}
        part._features = {
            position: features[chosen] for position, features in self._features.items()
        }
        return part

    def on_cpu(self) -> Answers:
        """What was asked so far, on the CPU."""
        part = Answers(self._network, self.tasks, self._x, self._read)
        part._logits = {position: logits.cpu() for position, logits in self._logits.items()}
        part._features = {position: features.cpu() for position, features in self._features.items()}
        return part

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """What several mini-batches were asked alike, as one; their samples are not kept.

        :param parts: one or more.
        """
        first = parts[0]
        whole = Answers(first._network, first.tasks, None, first._read)
        for name in ("_logits", "_features"):
            asked = {p: [getattr(part, name)[p] for part in parts] for p in getattr(first, name)}
            setattr(whole, name, {p: torch.cat(tensors) for p, tensors in asked.items()})
        return whole
