"""Penalties: against the formulas on all rows together, autograd, and the public code's numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.methods.cacl import penalties as regularisers
from avalanche_compress.methods.cacl.penalties import FrozenRows, differentiable


def orthogonality(rows, frozen=None):
    value, slope = regularisers.orthogonality(rows, frozen)
    return differentiable(value, [rows], [slope])


def sparsity(scale, *arguments):
    value, slope = regularisers.sparsity(scale, *arguments)
    return differentiable(value, [scale], [slope])


def naive_orthogonality(rows):
    """The formula on one matrix, with its smaller Gram matrix."""
    gram = rows @ rows.t() if rows.shape[0] <= rows.shape[1] else rows.t() @ rows
    d = gram.shape[0]
    return (gram - torch.eye(d, dtype=rows.dtype)).square().sum() / d**2


def naive_sparsity(scale, kind):
    if kind == "l1":
        return scale.abs().sum()
    if not scale.any():
        return torch.zeros((), dtype=scale.dtype)
    ratio = scale.abs().sum() / scale.norm()
    return ratio - 1 if kind == "hoyer" else ratio**2 - 1


def random_rows(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype) / shape[1] ** 0.5


# ------------------------------------------------------------------ numbers of the public code


@pytest.mark.parametrize(
    ("kind", "value"), [("hoyer", 0.8257418), ("hoyer_square", 2.3333333), ("l1", 10)]
)
def test_sparsity_is_that_of_the_public_code(kind, value):
    assert sparsity(torch.tensor([1.0, -2, 3, 4]), kind).item() == pytest.approx(value, abs=1e-6)


def test_sparsity_of_several_layers_adds_up_to_that_of_the_public_code():
    layers = torch.tensor([1.0, -2, 3, 4]), torch.tensor([0.5, 0.5])
    assert sum(sparsity(s).item() for s in layers) == pytest.approx(1.2399553, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        (torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]), 0.2508250),
        (torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]).t().contiguous(), 0.2508250),
        (torch.eye(3), 0),
        (torch.zeros(4, 2), 0.5),
        (torch.cos(torch.arange(10.0)).view(2, 5), 2.1364627),
    ],
)
def test_orthogonality_is_that_of_the_public_code(rows, value):
    assert orthogonality(rows).item() == pytest.approx(value, abs=1e-6)


# ------------------------------------------------------------------ sparsity


@pytest.mark.parametrize("kind", ["hoyer", "hoyer_square", "l1"])
@pytest.mark.parametrize("earlier", [0, 1, 4])
def test_sparsity_is_the_formula_on_all_scales_together(kind, earlier):
    generator = torch.Generator().manual_seed(2)
    scale = torch.randn(6, generator=generator, dtype=torch.float64)
    frozen = torch.randn(earlier, generator=generator, dtype=torch.float64)
    ours, reference = (scale.clone().requires_grad_() for _ in "ab")
    norms = float(frozen.abs().sum()), float(frozen.square().sum())
    value = sparsity(ours, kind, norms)
    expected = naive_sparsity(torch.cat([frozen, reference]), kind)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, reference.grad)


@pytest.mark.parametrize("kind", ["hoyer", "hoyer_square", "l1"])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_zero_scales_give_zero_and_no_gradient(kind, size):
    scale = torch.zeros(size, requires_grad=True)
    value = sparsity(scale, kind)
    value.backward()
    assert value.item() == 0
    assert torch.equal(scale.grad, torch.zeros(size))


@pytest.mark.parametrize("kind", ["hoyer", "hoyer_square"])
def test_one_scale_that_is_not_zero_is_as_sparse_as_can_be(kind):
    scale = torch.tensor([0.0, -3.0, 0.0], requires_grad=True)
    value = sparsity(scale, kind)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert bool(torch.isfinite(scale.grad).all())


@pytest.mark.parametrize("kind", ["hoyer", "hoyer_square", "l1"])
def test_frozen_scales_alone_have_their_sparsity(kind):
    frozen = torch.tensor([1.0, -2, 3, 4])
    norms = float(frozen.abs().sum()), float(frozen.square().sum())
    value = sparsity(torch.empty(0), kind, norms)
    assert value.item() == pytest.approx(naive_sparsity(frozen, kind).item(), abs=1e-6)


# ------------------------------------------------------------------ orthogonality


def check_against_the_formula(frozen, rows):
    ours, reference = (rows.clone().requires_grad_() for _ in "ab")
    value = orthogonality(ours, None if frozen is None else FrozenRows(frozen))
    whole = reference if frozen is None else torch.cat([frozen, reference])
    expected = naive_orthogonality(whole) if whole.numel() else torch.zeros((), dtype=rows.dtype)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    (3 * value).backward()
    (3 * expected).backward()
    slope = torch.zeros_like(rows) if reference.grad is None else reference.grad
    torch.testing.assert_close(ours.grad, slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 8, 20])
@pytest.mark.parametrize("earlier", [None, 0, 2, 6, 8, 30])
def test_orthogonality_and_gradient_are_the_formula_on_all_rows_together(rank, earlier):
    """The width is 8: fewer rows, as many, and more, frozen ones and all of them."""
    frozen = None if earlier is None else random_rows(earlier, 8, seed=1)
    check_against_the_formula(frozen, random_rows(rank, 8, seed=2))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(0, 20), st.integers(0, 20), st.integers(0, 10**6), st.booleans()
)
def test_any_sizes_give_the_formula(width, earlier, rank, seed, some_frozen):
    frozen = random_rows(earlier, width, seed=seed) if some_frozen else None
    if rank + (earlier if some_frozen else 0) == 0:
        return
    check_against_the_formula(frozen, random_rows(rank, width, seed=seed + 1))


def test_no_rows_have_the_penalty_of_the_frozen_ones_and_an_empty_gradient():
    frozen, rows = random_rows(3, 8), torch.empty(0, 8, dtype=torch.float64, requires_grad=True)
    value = orthogonality(rows, FrozenRows(frozen))
    torch.testing.assert_close(value, naive_orthogonality(frozen))
    value.backward()
    assert rows.grad.shape == (0, 8)
    assert orthogonality(rows).item() == 0


@pytest.mark.parametrize("earlier", [0, 3, 12])
def test_the_gradient_is_that_of_finite_differences(earlier):
    frozen = FrozenRows(random_rows(earlier, 5, seed=3))
    rows = random_rows(4, 5, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: orthogonality(r, frozen), (rows,))


@pytest.mark.parametrize("earlier", [100, 2000])
def test_single_precision_is_near_the_formula_with_many_frozen_rows(earlier):
    frozen, rows = random_rows(earlier, 300, seed=5), random_rows(40, 300, seed=6)
    ours = orthogonality(rows.float(), FrozenRows(frozen.float())).item()
    assert ours == pytest.approx(naive_orthogonality(torch.cat([frozen, rows])).item(), rel=1e-4)


@pytest.mark.parametrize("earlier", [3, 40])
def test_what_is_prepared_is_never_more_than_the_width_allows(earlier):
    """A step must not cost more the more tasks there are: at most (w, w) numbers are kept."""
    prepared = FrozenRows(random_rows(earlier, 8))
    kept = prepared.rows if prepared.gram is None else prepared.gram
    assert kept.numel() <= 8 * 8
    assert prepared.rows is None or prepared.gram is None


# ------------------------------------------------------------------ bounds


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(1, 12),
    earlier=st.integers(0, 30),
    rank=st.integers(0, 6),
    seed=st.integers(0, 10_000),
    far=st.floats(0, 1),
)
def test_a_bound_is_exact_where_it_was_made_and_not_below_around(width, earlier, rank, seed, far):
    start, frozen = random_rows(rank, width, seed=seed), random_rows(earlier, width, seed=seed + 1)
    rows = (start + far * random_rows(rank, width, seed=seed + 2)).requires_grad_()
    prepared = FrozenRows(frozen)
    exact = naive_orthogonality(torch.cat([frozen, rows])) if rank + earlier else torch.zeros(())
    there, slope = regularisers.OrthogonalityBound(rows, prepared).at(rows)
    torch.testing.assert_close(there.double(), exact.detach().double())
    if rank:
        torch.testing.assert_close(slope, torch.autograd.grad(exact, rows)[0])
        value, slope = regularisers.OrthogonalityBound(start, prepared).at(rows)
        norm = torch.linalg.matrix_norm
        if norm(rows, 2) ** 2 <= norm(start, 2) ** 2 + 0.6:
            # the power method stops after some steps
            assert value >= exact - 1e-9 - 0.01 * float((rows - start).square().sum())


def test_a_bound_is_a_quadratic_whose_gradient_is_its_own():
    start, frozen = random_rows(5, 16), FrozenRows(random_rows(9, 16, seed=1))
    bound = regularisers.OrthogonalityBound(start, frozen)
    step = 0.3 * random_rows(5, 16, seed=2)
    values = [float(bound.at(start + part * step)[0]) for part in (-1, 0, 1, 2)]
    assert values[3] - 3 * values[2] + 3 * values[1] - values[0] == pytest.approx(0, abs=1e-9)
    slope = bound.at(start + step)[1]
    assert float((slope * step).sum()) == pytest.approx((values[3] - values[1]) / 2, rel=1e-9)


@pytest.mark.parametrize("earlier", [0, 3, 40])
@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
def test_many_steps_down_a_bound_go_down_the_penalty(earlier, size):
    """At a rate at which as many steps down an old gradient would go far beyond."""
    rows, prepared = size * random_rows(5, 16), FrozenRows(random_rows(earlier, 16, seed=1))
    exact = [float(regularisers.orthogonality(rows, prepared)[0])]
    beyond = rows
    for _ in range(30):
        bound = regularisers.OrthogonalityBound(rows, prepared)
        rate, old = 0.9 / bound._curvature, regularisers.orthogonality(beyond, prepared)[1]
        for _ in range(200):
            rows, beyond = rows - rate * bound.at(rows)[1], beyond - rate * old
        exact.append(float(regularisers.orthogonality(rows, prepared)[0]))
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(exact))
    assert not float(regularisers.orthogonality(beyond, prepared)[0]) < 100 * exact[0]
    for _ in range(5000):
        rows = rows - rate * regularisers.orthogonality(rows, prepared)[1]
    least = float(regularisers.orthogonality(rows, prepared)[0])
    assert exact[-1] - least <= 0.5 * (exact[0] - least)
