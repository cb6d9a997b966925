"""Backbones: sizes known from the literature, heads where Avalanche expects them."""

import pytest
import torch
from torch import nn

from benchmarks.backbones import BACKBONES, float_bytes, lenet, mlp


def test_mlp_784_100_100_has_88400_weights_and_its_head():
    model = mlp(784, 10)
    body = sum(p.numel() for p in model.body.parameters())
    assert body == 88_400
    assert sum(p.numel() for p in model.parameters()) == 88_400 + 10 * 100


def test_lenet_has_the_layers_of_the_public_wsn_code():
    shapes = [tuple(p.shape) for p in lenet((3, 32, 32), 5).parameters()]
    assert shapes == [(20, 3, 5, 5), (50, 20, 5, 5), (800, 3200), (500, 800), (5, 500)]


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_backbone_ends_in_one_linear_head(name, bias):
    model = BACKBONES[name]((1, 28, 28), 7, bias)
    assert isinstance(model.head, nn.Linear)
    assert list(model.modules())[-1] is model.head
    assert all(hasattr(m, "bias") and (m.bias is not None) == bias for m in layers(model))
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 7)


def layers(model):
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def test_float_bytes_counts_parameters_and_float_buffers():
    # 3 * 2 weights, 2 biases, 4 vectors of 2 in the norm; its batch counter is an integer.
    assert float_bytes(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))) == 4 * (6 + 2 + 8)
