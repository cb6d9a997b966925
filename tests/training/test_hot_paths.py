"""What a training step does not do, and under what it still works."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch
from avalanche.core import SupervisedPlugin
from stores_for_tests import of_methods
from streams_for_tests import OURS, conv_net, make_stream, mlp
from torch import Tensor

from avalanche_compress import (
    NonFiniteError,
    TaskNetwork,
)
from avalanche_compress.methods.subnetworks.subnetwork import gradient_where
from avalanche_compress.training.step_guard import StepGuard

STORES = of_methods()


def build(name, model, plugins=(), **options):
    return OURS[name](
        model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2), train_mb_size=8,
        train_epochs=3, evaluator=None, plugins=list(plugins), **options,
    )  # fmt: skip


class WatchReads(SupervisedPlugin):
    """Writes down who reads a value off a tensor between the start and the end of a step."""

    NAMES = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self):
        super().__init__()
        self.readers = set()
        self.steps = 0
        self._watching = False

    def watched(self, name):
        read = getattr(Tensor, name)

        def spied(tensor, *arguments):
            frame = sys._getframe(1)
            if self._watching and "avalanche_compress" in frame.f_code.co_filename:
                self.readers.add(frame.f_code.co_name)
            return read(tensor, *arguments)

        return spied

    def before_training_iteration(self, strategy, *arguments, **kwargs):
        # the first step of a task is looked at closely, once
        self._watching = strategy.clock.train_exp_iterations > 0

    def after_training_iteration(self, strategy, *arguments, **kwargs):
        self.steps += self._watching
        self._watching = False


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    ("tensor_data", "readers"),
    [
        (True, {"is_finite"}),  # the loss; of targets and task labels the loader knows enough
        (False, {"is_finite", "_own_numbers", "_training_loss", "forward"}),
    ],
)
def test_a_training_step_reads_only_whether_loss_and_targets_are_sound(
    name, tensor_data, readers, monkeypatch
):
    watch = WatchReads()
    strategy = build(name, mlp(), [watch], tensor_data=tensor_data)
    for read in WatchReads.NAMES:
        monkeypatch.setattr(Tensor, read, watch.watched(read))
    for experience in make_stream(tasks=2).train_stream:
        strategy.train(experience)
    assert watch.steps > 0
    assert watch.readers == readers


class FakeEvent:
    """Stands for a GPU's event."""

    order: tuple = ()

    def record(self):
        FakeEvent.order += ("record",)

    def synchronize(self):
        FakeEvent.order += ("synchronize",)


class SpoilLoss(SupervisedPlugin):
    """Makes the loss of one step NaN, and remembers the weights before it."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.before = None

    def before_backward(self, strategy, *arguments, **kwargs):
        if strategy.clock.train_exp_iterations == self.step:
            self.before = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}
            strategy.loss = strategy.loss * float("nan")

    def after_backward(self, strategy, *arguments, **kwargs):
        FakeEvent.order += ("backward",)


@pytest.mark.parametrize("name", OURS)
def test_on_a_gpu_the_loss_is_looked_at_after_the_backward_pass_and_before_the_weights_change(
    name, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "order", ())
    spoil = SpoilLoss(step=3)
    strategy = build(name, mlp(), [spoil])
    monkeypatch.setattr(StepGuard, "waits_for", lambda self, flag: False)
    with pytest.raises(NonFiniteError, match="those before this step"):
        strategy.train(make_stream(tasks=1).train_stream[0])
    assert FakeEvent.order == ("record", "backward", "synchronize") * 4
    for parameter, weight in strategy.model.named_parameters():
        assert torch.equal(weight, spoil.before[parameter])


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("model", [mlp, conv_net])
def test_tasks_train_under_bfloat16_autocast_and_are_kept_in_full_precision(name, model):
    torch.manual_seed(0)
    strategy = build(name, model())
    stream = make_stream(tasks=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for experience in stream.train_stream:
            strategy.train(experience)
    network = strategy.network.eval()
    x = torch.stack([stream.test_stream[0].dataset[i][0] for i in range(20)])
    with torch.no_grad():
        exact = network(x, 0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(x, 0)
    assert exact.dtype is torch.float32
    assert all(weight.dtype is torch.float32 for weight in network.parameters())
    assert torch.allclose(exact, rounded.float(), atol=0.1, rtol=0.1)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
@pytest.mark.parametrize("name", STORES)
def test_a_compiled_network_computes_the_same(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = TaskNetwork(mlp(), STORES[name])
    x = torch.randn(5, 1, 8, 8)
    network.open(0, [0, 1])
    compiled = torch.compile(network)

    def gradients(model):
        network.zero_grad()
        model(x, 0).square().sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    for ours, wanted in zip(gradients(compiled), gradients(network)):
        assert torch.allclose(ours, wanted, atol=1e-4)
    with torch.no_grad():
        for store in network.weight_stores:
            store.scratch.mul_(2)
    assert torch.allclose(compiled(x, 0), network(x, 0), atol=1e-5)


def test_gradients_are_lifted_off_zero_by_what_adam_does_not_notice():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(40, 30, generator=generator)
    trainable = (torch.rand(40, 30, generator=generator) < 0.5).float()
    lifted = gradient_where(trainable, gradient, True)
    assert torch.equal(lifted, gradient * trainable + 1e-13)
    assert torch.equal(gradient_where(trainable, gradient, False), gradient * trainable)
