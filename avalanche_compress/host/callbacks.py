"""The callbacks within a step, called on those plugins that do something at them."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partialmethod
from typing import Any, Iterator

from avalanche.core import BaseSGDPlugin
from avalanche.evaluation import PluginMetric
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin


class StepCallbacks:
    """The part of a strategy that calls its plugins within a step.

    Avalanche calls each plugin at each of a step's eight callbacks, most of them at a method that
    is empty, and its evaluator copies the experience every time. With a small model this takes as
    long as a tenth of the step. Here a plugin is called at what it, or its class, implements, in
    Avalanche's order. An evaluator is, where one of its metrics or loggers is.

    Who implements what is found out once an epoch, and anew when a plugin has come or gone.
    """

    _plugins_then: list[Any] | None = None
    """The plugins when it was found out who of them is called; between epochs None."""
    _called_at: dict[str, list[Any]]

    def training_epoch(self, **kwargs: Any) -> None:
        """Train on all mini-batches; see Avalanche.

        :param kwargs: of ``train``.
        """
        with self._finding_out_anew():
            super().training_epoch(**kwargs)  # type: ignore[misc]

    def eval_epoch(self, **kwargs: Any) -> None:
        """Evaluate all mini-batches; see Avalanche.

        :param kwargs: of ``eval``.
        """
        with self._finding_out_anew():
            super().eval_epoch(**kwargs)  # type: ignore[misc]

    @contextmanager
    def _finding_out_anew(self) -> Iterator[None]:
        """What is found out in an epoch is forgotten at its end."""
        try:
            yield
        finally:
            self._plugins_then, self._called_at = None, {}

    def _call_plugins(self: Any, callback: str, **kwargs: Any) -> None:
        if self._plugins_then != self.plugins:
            self._plugins_then, self._called_at = list(self.plugins), {}
        called = self._called_at.get(callback)
        if called is None:
            called = [plugin for plugin in self.plugins if _implements(plugin, callback)]
            self._called_at[callback] = called
        for plugin in called:
            getattr(plugin, callback)(self, **kwargs)

    _before_training_iteration = partialmethod(_call_plugins, "before_training_iteration")
    _before_forward = partialmethod(_call_plugins, "before_forward")
    _after_forward = partialmethod(_call_plugins, "after_forward")
    _before_backward = partialmethod(_call_plugins, "before_backward")
    _after_backward = partialmethod(_call_plugins, "after_backward")
    _before_update = partialmethod(_call_plugins, "before_update")
    _after_update = partialmethod(_call_plugins, "after_update")
    _after_training_iteration = partialmethod(_call_plugins, "after_training_iteration")
    _before_eval_iteration = partialmethod(_call_plugins, "before_eval_iteration")
    _before_eval_forward = partialmethod(_call_plugins, "before_eval_forward")
    _after_eval_forward = partialmethod(_call_plugins, "after_eval_forward")
    _after_eval_iteration = partialmethod(_call_plugins, "after_eval_iteration")


def _implements(plugin: Any, callback: str) -> bool:
    """Whether a plugin, a metric or a logger does something at a callback, as far as one can tell.

    :param plugin: any.
    :param callback: its name.
    """
    if type(plugin) is EvaluationPlugin:
        # a logger is given the new values at each callback, even if there are none
        if any(type(own).log_metrics is not BaseLogger.log_metrics for own in plugin.loggers):
            return True
        return any(_implements(own, callback) for own in (*plugin.metrics, *plugin.loggers))
    method = getattr(plugin, callback, None)
    empty = getattr(BaseSGDPlugin, callback), getattr(PluginMetric, callback)
    return method is not None and getattr(method, "__func__", method) not in empty
