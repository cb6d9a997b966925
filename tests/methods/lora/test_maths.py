"""Products of two small matrices: against plain PyTorch, brute force and the bytes of a section."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from avalanche_compress.methods.lora.maths import (
    adapt_weight,
    adapted_embedding,
    adapted_linear,
)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def test_each_group_of_a_weight_gets_its_own_product():
    base, left, right = draw(3, 4, 5), draw(3, 4, 2, seed=1), draw(3, 2, 5, seed=2)
    weight = adapt_weight(base, left, right, 0.7)
    for group in range(3):
        expected = base[group] + 0.7 * left[group] @ right[group]
        torch.testing.assert_close(weight[group], expected)


def test_a_linear_layer_and_a_table_compute_what_their_weight_does_and_so_do_their_gradients():
    base, left, right = draw(9, 5), draw(9, 2, seed=1), draw(2, 5, seed=2)
    left[2] = 0  # a row of padding starts at zero and is never trained
    x, bias = draw(3, 4, 5, seed=3), draw(9, seed=4)
    index = torch.tensor([[0, 3, 8], [3, 2, 2]])
    leaves = [left.requires_grad_(), right.requires_grad_()]
    weight = base + 0.7 * left @ right
    for ours, theirs in (
        (adapted_linear(x, base, left, right, 0.7, bias), F.linear(x, weight, bias)),
        (adapted_embedding(index, base, left, right, 0.7), F.embedding(index, weight)),
        (adapted_embedding(index, base, left, right, 0.7, 2), F.embedding(index, weight, 2)),
    ):
        torch.testing.assert_close(ours, theirs)
        pairs = (
            torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True) for y in (ours, theirs)
        )
        for found, expected in zip(*pairs):
            torch.testing.assert_close(found, expected)
