"""What this package expects of an Avalanche strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Loss of logits (N, C) and targets (N,)."""


class Clock(Protocol):
    """Counters that Avalanche keeps."""

    train_iterations: int
    """Steps of all tasks."""
    train_exp_counter: int
    """Tasks that are finished."""
    train_exp_epochs: int
    """Finished epochs of the task in training."""
    train_epoch_iterations: int
    """Finished steps of the epoch."""


class Strategy(Protocol):
    """The public members of an Avalanche strategy that plugins of this package use."""

    model: nn.Module
    optimizer: Optimizer
    optimized_param_id: dict[str, Tensor] | None
    """The optimiser's parameters by name; None before the first task."""
    device: torch.device
    plugins: list[Any]
    evaluator: Any
    clock: Clock
    experience: Any
    adapted_dataset: Any
    dataloader: Any
    mbatch: Any
    mb_x: Tensor
    loss: Tensor
    train_epochs: int
    train_mb_size: int
    eval_mb_size: int | None
    is_training: bool

    def make_optimizer(self, **kwargs: Any) -> None:
        """Give the optimiser the parameters that the model has now.

        :param kwargs: of Avalanche.
        """


def criterion_of(strategy: Strategy) -> Any:
    """The criterion that a strategy was built with; Avalanche has no public name for it.

    :param strategy: an Avalanche strategy.
    """
    return strategy._criterion  # type: ignore[attr-defined]


def forward_size(strategy: Strategy) -> int:
    """How many samples are asked at once where nothing is trained.

    Avalanche's ``eval_mb_size`` is 1 unless it is given.

    :param strategy: an Avalanche strategy.
    """
    return max(strategy.train_mb_size, strategy.eval_mb_size or 0)
