"""Avalanche's early stopping, for tasks that are trained in phases."""

from __future__ import annotations

from avalanche.training.plugins import EarlyStoppingPlugin

from avalanche_compress.host.strategy import Strategy


def forget_best_epoch(strategy: Strategy) -> None:
    """Let every ``EarlyStoppingPlugin`` of a strategy wait for the next evaluation.

    It would otherwise compare the epochs to come with, and go back to, weights of another phase or
    task.

    :param strategy: an Avalanche strategy.
    """
    for plugin in strategy.plugins:
        if isinstance(plugin, EarlyStoppingPlugin):
            plugin.best_state = plugin.best_val = plugin.best_step = None
            results = strategy.evaluator.last_metric_results
            for name in [name for name in results if name.startswith(plugin.metric_key)]:
                del results[name]
