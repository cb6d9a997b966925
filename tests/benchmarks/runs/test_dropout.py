"""Dropout with cheap masks is dropout."""

import math

import pytest
import torch
from torch import nn

from benchmarks.runs.backbones import BACKBONES
from benchmarks.runs.dropout import Dropout


@pytest.mark.parametrize("p", [0.0, 0.15, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_dropped_with_the_probability_and_others_scaled(p, dtype):
    torch.manual_seed(0)
    x = torch.full((1000, 999), 3.0, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    kept = y != 0
    factor = (torch.ones((), dtype=dtype) / (1 - p)).item()
    assert torch.equal(y, torch.where(kept, x * factor, 0))
    spread = math.sqrt(p * (1 - p) / x.numel())
    assert abs(1 - kept.double().mean().item() - p) <= 4 * spread
    y.sum().backward()
    assert torch.equal(x.grad, kept * torch.full_like(x, factor))


def test_values_are_dropped_independently_of_their_neighbours():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(400_000)) != 0).double()
    for distance in range(1, 9):  # four of them come out of one random number
        agreeing = (kept[:-distance] == kept[distance:]).double().mean().item()
        assert abs(agreeing - 0.5) < 4 * 0.5 / math.sqrt(400_000)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "with gaps"])
def test_the_layout_stays_and_the_seed_decides(layout):
    x = torch.randn(4, 6, 5, 7)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
    if layout == "with gaps":
        x = x[:, ::2]
    drop = Dropout(0.3)
    first, again = (torch.manual_seed(seed) and drop(x) for seed in (5, 5))
    assert torch.equal(first, again)
    assert first.stride() == torch.empty_like(x).stride()
    assert not torch.equal(first, drop(x))


def test_nothing_is_dropped_in_evaluation_and_everything_at_one():
    x = torch.randn(10)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert not Dropout(1.0)(x).any()


@pytest.mark.parametrize("name", ["alexnet", "alexnet_wsn", "cacl_net"])
def test_backbones_have_no_other(name):
    model = BACKBONES[name]((3, 32, 32), 5)
    assert {type(module) for module in model.modules() if isinstance(module, nn.Dropout)} == {
        Dropout
    }
