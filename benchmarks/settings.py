"""What a run is built from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from benchmarks.backbones import BACKBONES, float_bytes
from benchmarks.streams import Budget, Stream


@dataclass(frozen=True)
class RunSettings:
    """Everything a builder needs; the same for all strategies of one stream and seed.

    :param stream: the tasks.
    :param backbone: name in :data:`benchmarks.backbones.BACKBONES`.
    :param budget: epochs, batch size and learning rate.
    :param seed: of the run.
    :param plugins: Avalanche plugins that only watch, such as the progress display.
    :param loggers: Avalanche loggers that get the metrics.
    :param inference: the rule by which our strategies infer tasks in the class scenario.
    :param device: where to compute.
    """

    stream: Stream
    backbone: str
    budget: Budget
    seed: int
    plugins: list[SupervisedPlugin] = field(default_factory=list)
    loggers: list[BaseLogger] = field(default_factory=list)
    inference: str | None = None
    device: str = "cpu"

    def model(self, classes: int | None = None, bias: bool = False) -> nn.Module:
        """A new plain network; its head is as wide as the stream's shared one unless told."""
        width = self.stream.max_classes if classes is None else classes
        return BACKBONES[self.backbone](self.stream.input_shape, width, bias)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new Adam over a model's parameters."""
        return torch.optim.Adam(model.parameters(), lr=self.budget.lr)

    def arguments(self, model: nn.Module, *metrics: Any) -> dict[str, Any]:
        """The constructor arguments that all strategies share, without plugins.

        :param model: a new one.
        :param metrics: further metrics for the loggers.
        """
        evaluator = EvaluationPlugin(
            accuracy_metrics(experience=True), *metrics, loggers=list(self.loggers)
        )
        return {
            "model": model,
            "optimizer": self.optimizer(model),
            "criterion": nn.CrossEntropyLoss(),
            "train_mb_size": self.budget.train_mb_size,
            "train_epochs": self.budget.epochs,
            "eval_mb_size": self.budget.eval_mb_size,
            "evaluator": evaluator,
            "device": self.device,
        }

    def decay(self) -> list[SupervisedPlugin]:
        """What lowers the learning rate in the course of a task, if the budget says so."""
        return [] if self.budget.lr_decay == 1 else [LearningRateDecay(self.budget)]

    def independent_bytes(self) -> int:
        """Bytes of one plain network per task with a head for that task's classes."""
        return sum(float_bytes(self.model(len(classes))) for classes in self.stream.tasks)


class LearningRateDecay(SupervisedPlugin):
    """Sets the learning rate before each epoch, by the number of the epoch in its task.

    It remembers nothing, so a run that was stopped goes on with the right rate.

    :param budget: has the rate of the first epoch and the factor.
    """

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Set the rate in all groups of the optimiser."""
        rate = self.budget.lr * self.budget.lr_decay**strategy.clock.train_exp_epochs
        for group in strategy.optimizer.param_groups:
            group["lr"] = rate
