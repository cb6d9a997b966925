"""Whatever fails within a step, the model is as it was before the step."""

from __future__ import annotations

import pytest
import torch
from avalanche.core import SupervisedPlugin
from streams_for_tests import OURS, conv_net, make_stream

from avalanche_compress.training.step_guard import StepGuard

WITHIN = [
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
]


class FailAt(SupervisedPlugin):
    """Raises at a callback of a step, and remembers the network before that step."""

    def __init__(self, callback, step=2):
        super().__init__()
        self.step = step
        self.before = None
        setattr(self, callback, self.fail)

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == self.step:
            state = strategy.network.state_dict()
            self.before = {n: t.clone() for n, t in state.items() if isinstance(t, torch.Tensor)}

    def fail(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == self.step:
            raise KeyboardInterrupt


def interrupted(method, callback):
    """A strategy whose training was interrupted, and the plugin that did it."""
    torch.manual_seed(0)
    model, plugin = conv_net(), FailAt(callback)
    strategy = OURS[method](
        model=model, optimizer=torch.optim.Adam(model.parameters(), lr=5e-3), train_mb_size=8,
        train_epochs=2, evaluator=None, plugins=[plugin],
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        strategy.train(make_stream(1).train_stream[0])
    return strategy, plugin


@pytest.mark.parametrize("callback", WITHIN)
@pytest.mark.parametrize("method", OURS)
def test_a_step_that_a_plugin_interrupts_leaves_weights_and_statistics(method, callback):
    strategy, plugin = interrupted(method, callback)
    state = strategy.network.state_dict()
    assert any("running_mean" in name for name in plugin.before)
    for name, tensor in plugin.before.items():
        assert torch.equal(state[name], tensor), name


def test_what_fails_after_the_weights_have_changed_leaves_the_step_done():
    strategy, plugin = interrupted("packnet", "after_update")
    state = strategy.network.state_dict()
    moved = [name for name, tensor in plugin.before.items() if not torch.equal(state[name], tensor)]
    assert any(name.endswith("running_mean") for name in moved)
    assert any(name.endswith("weight") for name in moved)


def test_an_epoch_that_ends_well_keeps_its_statistics():
    statistics, guard = torch.zeros(2), StepGuard()
    with guard:
        for _ in range(3):
            guard.step_begins([statistics])
            statistics.add_(1)
            guard.weights_change()
            guard.step_ends()
    assert statistics.tolist() == [3, 3]


def test_a_failure_undoes_one_step_only():
    statistics, guard = torch.zeros(1), StepGuard()

    def fail_in_the_third_step():
        with guard:
            for step in range(3):
                guard.step_begins([statistics])
                statistics.add_(1)
                if step == 2:
                    raise ZeroDivisionError
                guard.step_ends()

    with pytest.raises(ZeroDivisionError):
        fail_in_the_third_step()
    assert statistics.item() == 2


def test_a_guard_holds_nothing_between_epochs():
    guard = StepGuard()
    with guard:
        guard.step_begins([torch.zeros(1)])
    assert vars(guard) == vars(StepGuard())
