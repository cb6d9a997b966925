"""Training in bfloat16 leaves everything but the forward passes of training in float32."""

from __future__ import annotations

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import as_multitask
from avalanche.training import Naive
from streams_for_tests import OURS, check_old_logits_stay, make_stream, mlp
from torch import nn

from avalanche_compress import AutocastPlugin


class Spy(SupervisedPlugin):
    """Notes in which types things are."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: set[torch.dtype] = set()
        self.outside: set[torch.dtype] = set()
        self.evaluated: set[torch.dtype] = set()

    def note(self, module: nn.Module, given: tuple, output: torch.Tensor) -> None:
        (self.inside if module.training else self.evaluated).add(output.dtype)

    def after_forward(self, strategy, **kwargs):
        self.outside.add(strategy.mb_output.dtype)

    def after_backward(self, strategy, **kwargs):
        self.outside.add(strategy.loss.dtype)
        for group in strategy.optimizer.param_groups:
            self.outside.update(p.grad.dtype for p in group["params"] if p.grad is not None)


def colour_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 64, 2),
    )


def watched(model: nn.Module, spy: Spy) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(spy.note)
    return model


@pytest.mark.parametrize("name", OURS)
def test_only_the_passes_of_training_are_in_bfloat16(name):
    stream, spy = make_stream(2, shape=(3, 8, 8)), Spy()
    model = watched(colour_net(), spy)
    strategy = OURS[name](
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_epochs=2,
        evaluator=None,
        plugins=[AutocastPlugin(), spy],
    )
    strategy.train(stream.train_stream[0])
    spy.evaluated.clear()
    strategy.eval(stream.test_stream[:1])
    assert torch.bfloat16 in spy.inside
    assert spy.outside == {torch.float32}
    assert spy.evaluated == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", OURS)
def test_old_logits_stay(name, tmp_path):
    def build():
        torch.manual_seed(0)
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return OURS[name](
            model=model,
            optimizer=optimizer,
            train_epochs=2,
            evaluator=None,
            plugins=[AutocastPlugin()],
        )

    check_old_logits_stay(build, make_stream(3), mlp, tmp_path)


def test_a_strategy_of_the_host_learns_under_it():
    stream, spy = make_stream(2), Spy()
    torch.manual_seed(0)
    model = as_multitask(watched(mlp(), spy), "5")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    plugins = [AutocastPlugin(), spy]
    strategy = Naive(
        model=model, optimizer=optimizer, train_epochs=4, train_mb_size=10, plugins=plugins
    )
    strategy.train(stream.train_stream[0])
    (accuracy,) = (
        value
        for key, value in strategy.eval(stream.test_stream[:1]).items()
        if key.startswith("Top1_Acc_Exp")
    )
    assert accuracy > 0.9
    assert torch.bfloat16 in spy.inside
    assert spy.outside == {torch.float32}


def test_a_pass_that_fails_leaves_nothing_under_autocast():
    class Failing(nn.Linear):
        def forward(self, x):
            raise RuntimeError("as told")

    model = nn.Sequential(nn.Flatten(), Failing(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = Naive(model=model, optimizer=optimizer, evaluator=None, plugins=[AutocastPlugin()])
    with pytest.raises(RuntimeError, match="as told"):
        strategy.train(make_stream(1).train_stream[0])
    assert not torch.is_autocast_enabled("cpu")
    assert not model._forward_hooks
