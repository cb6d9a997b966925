"""Within a step, whoever does something at a callback is called, as Avalanche calls them all."""

from __future__ import annotations

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.utils import trigger_plugins
from streams_for_tests import make_stream, mlp

from avalanche_compress import PackNet

CALLBACKS = (
    "before_training_iteration", "before_forward", "after_forward", "before_backward",
    "after_backward", "before_update", "after_update", "after_training_iteration",
    "before_eval_iteration", "before_eval_forward", "after_eval_forward", "after_eval_iteration",
)  # fmt: skip


class AsAvalanche(PackNet):
    def _call_plugins(self, callback, **kwargs):
        trigger_plugins(self, callback, **kwargs)


def noting(base, log, *callbacks, **members):
    """An instance of a class that writes down these callbacks."""

    def method(callback):
        return lambda self, *arguments, **kwargs: log.append((type(self).__name__, callback))

    methods = {callback: method(callback) for callback in callbacks}
    return type(f"{base.__name__}At{len(callbacks)}", (base,), {**methods, **members})()


class Duck:
    """A plugin that inherits nothing."""

    def __init__(self, log):
        self.log = log

    def before_update(self, strategy, **kwargs):
        self.log.append("duck")


class ComesLater(SupervisedPlugin):
    """Adds a plugin, and takes it out again, in the middle of epochs."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def before_backward(self, strategy, **kwargs):
        step = strategy.clock.train_epoch_iterations
        if step == 1:
            strategy.plugins.append(self.other)
        if step == 3:
            strategy.plugins.remove(self.other)


class SpiedLogger(BaseLogger, SupervisedPlugin):
    def __init__(self, log):
        super().__init__()
        self.log = log

    def log_single_metric(self, name, value, x_plot):
        self.log.append((name, x_plot))


def calls(strategy_class, case):
    """What a training of two tasks with an evaluation after each writes down."""
    log = []
    plugins, metrics, loggers = case(log)
    torch.manual_seed(0)
    model = mlp()
    strategy = strategy_class(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_mb_size=8,
        train_epochs=2, eval_mb_size=8, plugins=plugins, eval_every=1,
        evaluator=EvaluationPlugin(*metrics, loggers=loggers),
    )  # fmt: skip
    for experience in make_stream(tasks=2).train_stream:
        strategy.train(experience)
    return log


def on_its_own(log):
    plugin = SupervisedPlugin()
    for callback in CALLBACKS[::2]:
        setattr(plugin, callback, lambda *given, name=callback, **kwargs: log.append(name))
    return plugin


def other_metrics(log):
    """A metric of one's own at every callback but two."""
    members = {"result": lambda self: None, "reset": lambda self: None}
    return noting(PluginMetric, log, *CALLBACKS[1:-1], **members)


CASES = {
    "plugins": lambda log: (
        [noting(SupervisedPlugin, log, *CALLBACKS), noting(SupervisedPlugin, log, *CALLBACKS[3:7])],
        [], [],
    ),
    "methods of an instance": lambda log: ([on_its_own(log)], [], []),
    "a plugin without a base class": lambda log: ([Duck(log)], [], []),
    "comes and goes": lambda log: ([ComesLater(noting(SupervisedPlugin, log, *CALLBACKS))], [], []),
    "metrics": lambda log: ([], [other_metrics(log)], []),
    "metrics of Avalanche": lambda log: (
        [], [accuracy_metrics(minibatch=True, epoch=True, epoch_running=True)], [SpiedLogger(log)]
    ),
    "loggers": lambda log: ([], [], [noting(SpiedLogger, log, *CALLBACKS[2:5], __init__=(
        lambda self: SpiedLogger.__init__(self, log)))]),
    "a logger that wants every callback": lambda log: ([], [], [noting(
        SpiedLogger, log, __init__=lambda self: SpiedLogger.__init__(self, log),
        log_metrics=lambda self, values: self.log.append(len(values)))]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_step_calls_whom_avalanche_calls_in_its_order(case):
    ours = calls(PackNet, CASES[case])
    assert ours
    assert ours == calls(AsAvalanche, CASES[case])


def test_empty_methods_are_not_called(monkeypatch):
    called = []
    monkeypatch.setattr(
        EvaluationPlugin,
        "_update_metrics_and_loggers",
        lambda self, strategy, callback: called.append(callback),
    )
    calls(PackNet, lambda log: ([SupervisedPlugin()], [accuracy_metrics(epoch=True)], []))
    assert set(called) & set(CALLBACKS) == {
        "before_training_iteration",
        "after_training_iteration",
        "before_eval_iteration",
        "after_eval_iteration",
    }
