"""The callbacks within a step, called on those plugins that do something at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from avalanche.core import BaseSGDPlugin
from avalanche.evaluation import PluginMetric
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin


def _calls(callback: str) -> Callable[..., None]:
    """A method that calls plugins; ``functools.partialmethod`` takes as long as a callback.

    :param callback: its name.
    """

    def call(self: StepCallbacks, **kwargs: Any) -> None:
        self._call_plugins(callback, **kwargs)

    return call


class StepCallbacks:
    """The part of a strategy that calls its plugins within a step.

    Avalanche calls each plugin at each of a step's eight callbacks, most of them at a method that
    is empty, and its evaluator copies the experience every time. With a small model this takes as
    long as a tenth of the step. Here a plugin is called at what it, or its class, implements, in
    Avalanche's order. An evaluator is, where one of its metrics or loggers is.

    The listeners of each callback are cached for an epoch, or until a plugin comes or goes.
    """

    _cached_for: list[Any] | None = None
    """The plugins that the cache is of; between epochs None."""
    _listeners: dict[str, list[Any]]

    def training_epoch(self, **kwargs: Any) -> None:
        """Train on all mini-batches; see Avalanche.

        :param kwargs: of ``train``.
        """
        with self._cached_listeners():
            super().training_epoch(**kwargs)  # type: ignore[misc]

    def eval_epoch(self, **kwargs: Any) -> None:
        """Evaluate all mini-batches; see Avalanche.

        :param kwargs: of ``eval``.
        """
        with self._cached_listeners():
            super().eval_epoch(**kwargs)  # type: ignore[misc]

    @contextmanager
    def _cached_listeners(self) -> Iterator[None]:
        """The cache goes at the end of an epoch."""
        try:
            yield
        finally:
            self._cached_for, self._listeners = None, {}

    def _call_plugins(self: Any, callback: str, **kwargs: Any) -> None:
        if self._cached_for != self.plugins:
            self._cached_for, self._listeners = list(self.plugins), {}
        before, listeners = self._cached_for, self._listeners.get(callback)
        if listeners is None:
            listeners = [plugin for plugin in before if _implements(plugin, callback)]
            self._listeners[callback] = listeners
        for plugin in listeners:
            getattr(plugin, callback)(self, **kwargs)
            if before != self.plugins:  # one has come or gone: the others as they stand now
                position = next(n for n, known in enumerate(before) if known is plugin)
                for other in islice(self.plugins, position + 1, None):
                    if _implements(other, callback):
                        getattr(other, callback)(self, **kwargs)
                return

    _before_training_iteration = _calls("before_training_iteration")
    _before_forward = _calls("before_forward")
    _after_forward = _calls("after_forward")
    _before_backward = _calls("before_backward")
    _after_backward = _calls("after_backward")
    _before_update = _calls("before_update")
    _after_update = _calls("after_update")
    _after_training_iteration = _calls("after_training_iteration")
    _before_eval_iteration = _calls("before_eval_iteration")
    _before_eval_forward = _calls("before_eval_forward")
    _after_eval_forward = _calls("after_eval_forward")
    _after_eval_iteration = _calls("after_eval_iteration")


def _implements(plugin: Any, callback: str) -> bool:
    """Whether a plugin, a metric or a logger does something at a callback, as far as one can tell.

    :param plugin: any.
    :param callback: its name.
    """
    if type(plugin) is EvaluationPlugin:
        # a logger is given the new values at each callback, even if there are none
        if any(type(log).log_metrics is not BaseLogger.log_metrics for log in plugin.loggers):
            return True
        return any(_implements(part, callback) for part in (*plugin.metrics, *plugin.loggers))
    method = getattr(plugin, callback, None)
    empty = getattr(BaseSGDPlugin, callback), getattr(PluginMetric, callback)
    return method is not None and getattr(method, "__func__", method) not in empty
