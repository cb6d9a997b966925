"""Images of training are laid out with their channels last, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from avalanche.models import as_multitask
from avalanche.training import Naive
from streams_for_tests import OURS, make_stream, mlp
from torch import nn

from avalanche_compress import ChannelsLastPlugin


def colour_net(seen: set[tuple[bool, bool]]) -> nn.Module:
    def note(module: nn.Module, given: tuple, output: torch.Tensor) -> None:
        last = [part.is_contiguous(memory_format=torch.channels_last) for part in (*given, output)]
        seen.add((module.training, all(last)))

    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3)]
    for module in (body[0], body[3]):
        module.register_forward_hook(note)
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * 16, 2))


def trained(build, shape, plugins):
    torch.manual_seed(1)
    model = build()
    strategy = OURS["packnet"](
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_epochs=2,
        evaluator=None,
        plugins=plugins,
    )
    stream = make_stream(2, shape=shape)
    strategy.train(stream.train_stream[0])
    strategy.eval(stream.test_stream[:1])
    return strategy.model


@pytest.mark.parametrize("name", OURS)
def test_images_of_training_only(name):
    seen: set[tuple[bool, bool]] = set()
    stream, model = make_stream(2, shape=(3, 8, 8)), colour_net(seen)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = [ChannelsLastPlugin()]
    strategy = OURS[name](
        model=model, optimizer=optimizer, train_epochs=2, evaluator=None, plugins=plugins
    )
    strategy.train(stream.train_stream[0])
    while_training = {last for training, last in seen if training}
    strategy.eval(stream.test_stream[:1])
    assert while_training == {True}
    assert {last for training, last in seen if not training} == {False}


def test_a_strategy_of_the_host_trains_so():
    seen: set[tuple[bool, bool]] = set()
    stream = make_stream(2, shape=(3, 8, 8))
    model = as_multitask(colour_net(seen), "5")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Naive(model=model, optimizer=optimizer, evaluator=None, plugins=[ChannelsLastPlugin()]).train(
        stream.train_stream[0]
    )
    assert seen == {(True, True)}


def test_the_same_is_learned_up_to_rounding():
    with_it = trained(lambda: colour_net(set()), (3, 8, 8), [ChannelsLastPlugin()])
    without = trained(lambda: colour_net(set()), (3, 8, 8), [])
    x = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(with_it(x, 0), without(x, 0), rtol=1e-3, atol=1e-4)


def test_what_is_no_image_stays():
    (with_it, without) = (trained(mlp, (64,), plugins) for plugins in ([ChannelsLastPlugin()], []))
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(with_it(x, 0), without(x, 0))
