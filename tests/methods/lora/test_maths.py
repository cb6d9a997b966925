"""Products of two small matrices: against plain PyTorch, brute force and the bytes of a section."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from avalanche_compress.codec import (
    ByteWriter,
    Float,
    quantise_codebook,
    quantise_fixed_point,
    write_values,
)
from avalanche_compress.methods.lora.maths import (
    adapt_weight,
    adapted_embedding,
    adapted_linear,
    largest_rank,
    part_bytes,
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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 600), st.sampled_from([None, 1, 2, 4, 8, 12]), st.booleans())
def test_no_part_takes_more_bytes_than_it_is_said_to(count, bits, fixed_point):
    numbers = draw(count).float()
    values = Float(numbers)
    if bits is not None:
        fixed_point = fixed_point and bits > 1
        values = (quantise_fixed_point if fixed_point else quantise_codebook)(numbers, bits)
    writer = ByteWriter()
    write_values(values.smallest(), writer)
    most = part_bytes(count, bits, 4)
    assert len(writer.getvalue()) <= most + (4 if fixed_point else 0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=6).map(sorted), max_size=4),
    st.integers(0, 60),
)
def test_the_largest_rank_is_the_last_that_fits(sizes, budget):
    def total(rank):
        return sum(layer[min(rank, len(layer) - 1)] for layer in sizes)

    most = max(map(len, sizes), default=1)
    fitting = [rank for rank in range(most) if total(rank) <= budget]
    assert largest_rank(sizes, budget) == max(fitting, default=None)
