"""Sums of rank-one terms, and the largest rank at which they are no larger than the matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import Factors, break_even_rank


def random_factors(rank, rows, columns, seed=0, dtype=torch.float64) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(rank, rows), (rank,), (rank, columns)]
    return Factors(*(torch.randn(*size, generator=generator, dtype=dtype) for size in sizes))


# ------------------------------------------------------------------ composing


def test_the_matrix_is_the_sum_of_its_terms_by_magnitude_of_scale():
    terms = random_factors(4, 5, 7)
    expected = sum(
        abs(float(s)) * np.outer(u, v)
        for u, s, v in zip(terms.left.numpy(), terms.scale, terms.right.numpy())
    )
    np.testing.assert_allclose(terms.compose().numpy(), expected, rtol=1e-12)


def test_no_terms_are_a_matrix_of_zeros():
    empty = random_factors(0, 5, 7)
    assert empty.rank == 0
    assert torch.equal(empty.compose(), torch.zeros(5, 7).double())


def test_the_gradient_is_finite_where_a_scale_is_zero():
    left, scale, right = (t.requires_grad_() for t in random_factors(3, 4, 5))
    with torch.no_grad():
        scale[1] = 0
    Factors(left, scale, right).compose().square().sum().backward()
    assert all(bool(torch.isfinite(t.grad).all()) for t in (left, scale, right))


def test_taken_terms_keep_their_order():
    terms = random_factors(5, 3, 4)
    chosen = terms.take(torch.tensor([False, True, False, True, True]))
    for part, whole in zip(chosen, terms):
        assert torch.equal(part, whole[[1, 3, 4]])


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((64, 27), 18),
        ((64, 576), 57),
        ((128, 576), 104),
        ((128, 1152), 115),
        ((256, 512), 170),
        ((16, 27), 10),
        ((64, 3), 2),
        ((1, 1), 0),
        ((100, 1), 0),
    ],
)
def test_break_even_ranks_are_those_of_the_public_code(shape, rank):
    assert break_even_rank(*shape) == rank


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400))
def test_the_break_even_rank_is_the_last_that_is_not_larger_than_the_matrix(rows, columns):
    rank = break_even_rank(rows, columns)
    assert rank * (rows + columns) <= rows * columns < (rank + 1) * (rows + columns)
    assert rank <= min(rows, columns)
