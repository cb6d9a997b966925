"""What a run is built from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from avalanche.benchmarks.utils import concat_datasets
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_compress import NormPlugin, TrainingCurves
from benchmarks.choices import SAVE_EVERY
from benchmarks.data.splits import Stream
from benchmarks.data.streams import Budget
from benchmarks.runs.backbones import BACKBONES, float_bytes

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": torch.optim.SGD,
}
"""The optimisers that a recipe may name."""


@dataclass(frozen=True)
class OptimizerChoice:
    """Which optimiser trains a strategy; what is None is left to torch's default.

    :param lr: learning rate of the first epoch of a task.
    :param name: in :data:`OPTIMIZERS`.
    :param momentum: of SGD.
    :param weight_decay: as the optimiser means it: added to the gradient, by AdamW taken from the
        weight.

    >>> sgd = OptimizerChoice(0.01, "sgd", momentum=0.9).build(nn.Linear(2, 2).parameters())
    >>> type(sgd).__name__, sgd.defaults["momentum"], sgd.defaults["weight_decay"]
    ('SGD', 0.9, 0)
    """

    lr: float
    name: str = "adam"
    momentum: float | None = None
    weight_decay: float | None = None

    def build(self, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
        """A new optimiser.

        :param parameters: what it trains.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return OPTIMIZERS[given.pop("name")](parameters, **given)


@dataclass(frozen=True)
class RunSettings:
    """Everything a builder needs; the same for all strategies of one stream and seed.

    :param stream: the tasks.
    :param backbone: name in :data:`benchmarks.runs.backbones.BACKBONES`.
    :param budget: epochs, batch size and learning rate.
    :param seed: of the run.
    :param plugins: Avalanche plugins that only watch, such as the progress display.
    :param loggers: Avalanche loggers that get the metrics.
    :param inference: the rule by which our strategies infer tasks in the class scenario.
    :param device: where to compute.
    :param optimizer_choice: the recipe's; None: Adam at the budget's learning rate.
    :param save_every: seconds between two states within a task of ours, at least.
    """

    stream: Stream
    backbone: str
    budget: Budget
    seed: int
    plugins: list[SupervisedPlugin] = field(default_factory=list)
    loggers: list[BaseLogger] = field(default_factory=list)
    inference: str | None = None
    device: str = "cpu"
    optimizer_choice: OptimizerChoice | None = None
    save_every: float = SAVE_EVERY

    def model(self, classes: int | None = None, bias: bool = False) -> nn.Module:
        """A new plain network; its head is as wide as the stream's shared one unless told."""
        width = self.stream.max_classes if classes is None else classes
        return BACKBONES[self.backbone](self.stream.input_shape, width, bias)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new optimiser over a model's parameters."""
        return self._choice().build(model.parameters())

    def arguments(self, model: nn.Module, *metrics: Any) -> dict[str, Any]:
        """The constructor arguments that all strategies share, without plugins.

        :param model: a new one.
        :param metrics: further metrics for the loggers.
        """
        watched = [TrainingCurves(), *metrics] if self.loggers else metrics
        evaluator = EvaluationPlugin(
            accuracy_metrics(experience=True), *watched, loggers=list(self.loggers)
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

    def plain_plugins(self) -> list[SupervisedPlugin]:
        """What a strategy of Avalanche's gets besides its own: norms are estimated as ours are."""
        return [*self.plugins, NormPlugin(data=trained_on)]

    def decay(self) -> list[SupervisedPlugin]:
        """What lowers the learning rate in the course of a task, if the budget says so."""
        factor = self.budget.lr_decay
        return [] if factor == 1 else [LearningRateDecay(self._choice().lr, factor)]

    def independent_bytes(self) -> int:
        """Bytes of one plain network per task with a head for that task's classes."""
        return sum(float_bytes(self.model(len(classes))) for classes in self.stream.tasks)

    def _choice(self) -> OptimizerChoice:
        return self.optimizer_choice or OptimizerChoice(self.budget.lr)


def trained_on(strategy: Any) -> Any:
    """The samples that norms are estimated on: the task's, and as many of them as of a memory's.

    :param strategy: of Avalanche's, after a task.
    """
    policies = [strategy, *strategy.plugins]
    buffers = [policy.storage_policy.buffer for policy in policies if _keeps_samples(policy)]
    buffers += [buffer for plugin in strategy.plugins for buffer in getattr(plugin, "buffers", [])]
    kept = [buffer for buffer in buffers if len(buffer)]
    task = strategy.adapted_dataset
    if not kept:
        return task
    order = torch.randperm(len(task), generator=torch.Generator().manual_seed(0))
    return concat_datasets([task.subset(order[: sum(map(len, kept))].tolist()), *kept])


def _keeps_samples(policy: Any) -> bool:
    return getattr(policy, "storage_policy", None) is not None


class LearningRateDecay(SupervisedPlugin):
    """Lowers the learning rate a little with each step, by the same factor over each epoch.

    A phase begins with a task, and within one whenever the optimiser gets other parameters, as
    HALRP's does after its warm-up.

    :param lr: the rate of a phase's first step.
    :param factor: what it is multiplied by over an epoch.
    """

    state_attributes = ("_parameters", "_start")

    def __init__(self, lr: float, factor: float) -> None:
        super().__init__()
        self.lr = lr
        self.factor = factor
        self._parameters: list[str] = []
        self._start = 0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """A task is a phase, whatever its parameters are."""
        self._parameters = []

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Set the rate in all groups of the optimiser."""
        groups, clock = strategy.optimizer.param_groups, strategy.clock
        epoch, step = clock.train_exp_epochs, clock.train_epoch_iterations
        if step == 0:  # not before the epoch, when plugins may still give other parameters
            trained = {id(parameter) for group in groups for parameter in group["params"]}
            names = [name for name, p in strategy.model.named_parameters() if id(p) in trained]
            if names != self._parameters:
                self._parameters, self._start = names, epoch
        done = epoch - self._start + step / len(strategy.dataloader)
        for group in groups:
            group["lr"] = self.lr * self.factor**done
