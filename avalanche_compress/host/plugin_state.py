"""What changes in Avalanche's plugins while a strategy trains."""

from __future__ import annotations

from avalanche.training.plugins import EarlyStoppingPlugin, LRSchedulerPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base_sgd import PeriodicEval

STATE_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    Clock: tuple(vars(Clock())),
    EarlyStoppingPlugin: ("best_state", "best_val", "best_step"),
    LRSchedulerPlugin: (
        "scheduler",
        "_was_training",
        "_just_validated",
        "_executed_train_iteration",
    ),
    PeriodicEval: ("do_final",),
}
"""By class, the attributes that a training state has to keep."""
