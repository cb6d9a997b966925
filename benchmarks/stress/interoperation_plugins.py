"""Avalanche's plugins with every strategy: those that work do what they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training import plugins as stock
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    LRSchedulerPlugin,
    ReplayPlugin,
)
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from avalanche_compress import TaskInferenceError, UnsupportedPluginError
from benchmarks.stress.small_training import EPOCHS, INPUTS, RATE, Case, build, learn, small_stream

MEMORY = 10
"""Samples that are replayed."""


class _ReplayWatch(SupervisedPlugin):
    """Counts samples of finished tasks in training; none of them may train the open one."""

    replayed = 0

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        old = strategy.mb_task_id != strategy.network.open_task
        self.replayed += int(old.sum())
        if bool(old.any()):
            trained = [p for p in strategy.network.parameters() if p.requires_grad]
            logits = strategy.mb_output[old].sum()
            gradients = torch.autograd.grad(logits, trained, retain_graph=True, allow_unused=True)
            # masked weights get 1e-15 instead of 0, which is faster
            assert all(g is None or not g.numel() or g.abs().max() < 1e-12 for g in gradients)


def check_replay(name: str) -> None:
    """The buffer fills and its samples come back; they leave everything as it is."""
    replay, watch = ReplayPlugin(mem_size=MEMORY), _ReplayWatch()
    learn(build(name, plugins=[replay, watch]), small_stream(3).train_stream)
    assert len(replay.storage_policy.buffer) == MEMORY
    assert watch.replayed >= 2 * EPOCHS * MEMORY


class Rates(SupervisedPlugin):
    """Remembers the learning rate of each epoch, task by task.

    Tensors that are trained in one epoch and not in another one make another phase of the task.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[list[float]] = []
        self.phases: list[set[tuple[int, ...]]] = []

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.tasks.append([])
        self.phases.append(set())

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if strategy.clock.train_epoch_iterations == 0:
            groups = strategy.optimizer.param_groups
            self.tasks[-1].append(groups[0]["lr"])
            trained = [id(p) for group in groups for p in group["params"] if p.requires_grad]
            self.phases[-1].add(tuple(trained))


def check_scheduler(name: str) -> None:
    """The rate is halved after each epoch, and each task starts with the full one."""
    rates = Rates()
    strategy = build(name, plugins=[rates])
    scheduler = LRSchedulerPlugin(StepLR(strategy.optimizer, step_size=1, gamma=0.5))
    strategy.plugins.insert(0, scheduler)
    learn(strategy, small_stream().train_stream)
    assert rates.tasks == [[RATE, RATE / 2, RATE / 4]] * 2


def check_plateau(name: str) -> None:
    """A loss that never falls by 100 halves the rate after each epoch but the first."""
    rates = Rates()
    strategy = build(name, plugins=[rates], eval_every=1, evaluator=_quiet(loss_metrics))
    plateau = ReduceLROnPlateau(
        strategy.optimizer, factor=0.5, patience=0, threshold=100, threshold_mode="abs"
    )
    strategy.plugins.insert(0, LRSchedulerPlugin(plateau, metric="val_loss"))
    stream = small_stream()
    learn(strategy, stream.train_stream, eval_streams=_test_of(stream))
    assert rates.tasks == [[RATE, RATE, RATE / 2]] * 2


def check_early_stopping(name: str) -> None:
    """At a rate of 0 nothing gets better, so that training stops after one epoch of patience."""
    stop = EarlyStoppingPlugin(1, "test_stream")
    rates = Rates()
    strategy = build(
        name,
        rate=0.0,
        plugins=[stop, rates],
        train_epochs=8,
        eval_every=1,
        evaluator=_quiet(accuracy_metrics),
    )
    stream = small_stream()
    learn(strategy, stream.train_stream, eval_streams=_test_of(stream))
    # an epoch of whole weights before those of factors, as HALRP's tasks have, counts for itself
    epochs = [len(task) for task in rates.tasks]
    assert epochs == [1 + len(phases) for phases in rates.phases]
    assert epochs[0] == 2


class _Clipping(SupervisedPlugin):
    """Clips gradients, as a user would write it."""

    limit = 1e-3
    clipped = 0

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        trained = [p for p in strategy.model.parameters() if p.grad is not None]
        self._before = [p.detach().clone() for p in trained]
        self._trained = trained
        self.clipped += int(nn.utils.clip_grad_norm_(trained, self.limit) > self.limit)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        steps = [new.detach() - old for new, old in zip(self._trained, self._before)]
        length = float(torch.cat([step.flatten() for step in steps]).norm())
        assert 0 < length <= 1.01 * RATE * self.limit


def check_clipping(name: str) -> None:
    """No step is longer than the rate times the limit."""
    clipping = _Clipping()
    learn(build(name, plugins=[clipping]), small_stream().train_stream)
    assert clipping.clipped > 0


def _quiet(metrics: Callable[..., Any]) -> EvaluationPlugin:
    return EvaluationPlugin(metrics(stream=True), loggers=[])


def _test_of(stream: Any) -> Callable[[Any], list[Any]]:
    """For an experience, the test experience of the same task."""
    return lambda experience: [[stream.test_stream[experience.current_experience]]]


def _with(make: Callable[[], Any], **arguments: Any) -> Callable[[str], Any]:
    """Only builds the strategy, which is to refuse the plugin."""
    return lambda name: build(name, plugins=[make()], **arguments)


REFUSED: dict[str, Callable[[], Any]] = {
    "EWCPlugin": lambda: stock.EWCPlugin(1.0),
    "SynapticIntelligencePlugin": lambda: stock.SynapticIntelligencePlugin(1.0),
    "MASPlugin": stock.MASPlugin,
    "RWalkPlugin": stock.RWalkPlugin,
    "LwFPlugin": stock.LwFPlugin,
    "LFLPlugin": lambda: stock.LFLPlugin(1.0),
    "FeatureDistillationPlugin": stock.FeatureDistillationPlugin,
    "GEMPlugin": lambda: stock.GEMPlugin(8, 0.5),
    "AGEMPlugin": lambda: stock.AGEMPlugin(8, 8),
    "GSS_greedyPlugin": lambda: stock.GSS_greedyPlugin(8, 2, [INPUTS]),
    "MIRPlugin": lambda: stock.MIRPlugin(8),
    "RARPlugin": lambda: stock.RARPlugin(8),
    "GenerativeReplayPlugin": stock.GenerativeReplayPlugin,
    "GDumbPlugin": stock.GDumbPlugin,
    "FromScratchTrainingPlugin": stock.FromScratchTrainingPlugin,
    "CWRStarPlugin": lambda: stock.CWRStarPlugin(nn.Linear(INPUTS, 2)),
    "BiCPlugin": stock.BiCPlugin,
    "CoPEPlugin": stock.CoPEPlugin,
    "CurrentDataNCMUpdate": stock.CurrentDataNCMUpdate,
    "MemoryNCMUpdate": stock.MemoryNCMUpdate,
    "NCMOracle": stock.NCMOracle,
    "CurrentDataFeCAMUpdate": stock.CurrentDataFeCAMUpdate,
    "MemoryFeCAMUpdate": stock.MemoryFeCAMUpdate,
    "FeCAMOracle": stock.FeCAMOracle,
}
"""The plugins of Avalanche's that cannot work with frozen sub-networks."""

CASES = [
    Case("`LRSchedulerPlugin`", check_scheduler),
    Case('`LRSchedulerPlugin` with `metric="val_loss"`', check_plateau),
    Case(
        "`EarlyStoppingPlugin`",
        check_early_stopping,
        note=(
            "Each phase of a task (whole weights, after pruning) is compared with itself only. A "
            "stop ends the task: what would have been pruned, decomposed or quantised later is, "
            "but the epochs after that are not trained."
        ),
    ),
    Case("a plugin that clips gradients in `before_update`", check_clipping),
    Case(
        "`ReplayPlugin`",
        check_replay,
        note=(
            "Samples of finished tasks run through their own sub-networks, which are frozen: they "
            "take part in the mean loss and have no gradient, so replay costs time and slows "
            "learning down."
        ),
    ),
    Case(
        "`ReplayPlugin` with `task_inference=`",
        _with(ReplayPlugin, task_inference="entropy"),
        refused=TaskInferenceError,
    ),
    *(
        Case(f"`{name}`", _with(make), refused=UnsupportedPluginError)
        for name, make in REFUSED.items()
    ),
]
