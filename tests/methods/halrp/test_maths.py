"""Scalings and factors: against NumPy, brute force and the bounds of Eckart and Young."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.errors import NonFiniteError
from avalanche_compress.methods.halrp.maths import (
    balanced_factors,
    leading_svd,
    least_squares_scalings,
    perturb_weight,
    scale_weight,
    spatial_mean,
)
from avalanche_compress.methods.halrp.reference import reference_scalings

SHAPES = [(5, 7), (7, 5), (4, 4), (3, 1), (1, 6), (4, 3, 3, 3), (3, 5, 2, 3), (2, 3, 4)]
METHODS = ["gram", "randomised", "exact", "auto"]
seeds = st.integers(0, 2**31)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(m, n, values, seed=0):
    left = torch.linalg.qr(draw(m, len(values), seed=seed)).Q
    right = torch.linalg.qr(draw(n, len(values), seed=seed + 1)).Q
    return left * values @ right.T


def error(tuned, base, r, s):
    return float((tuned - scale_weight(base, r, s)).square().sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_each_half_step_is_the_least_squares_solution_of_numpy(shape):
    tuned, base = draw(*shape, seed=1), draw(*shape, seed=2)
    r, s = least_squares_scalings(tuned, base)
    for o in range(shape[0]):
        expected = np.linalg.lstsq(base[o].reshape(-1, 1), tuned[o].reshape(-1), rcond=None)[0]
        assert float(r[o]) == pytest.approx(float(expected[0]), rel=1e-10)
    scaled = scale_weight(base, r, torch.ones_like(s))
    for i in range(shape[1]):
        expected = np.linalg.lstsq(
            scaled[:, i].reshape(-1, 1), tuned[:, i].reshape(-1), rcond=None
        )[0]
        assert float(s[i]) == pytest.approx(float(expected[0]), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_stationary_in_s(shape):
    tuned, base = draw(*shape, seed=3), draw(*shape, seed=4)
    r, s = least_squares_scalings(tuned, base, sweeps=3)
    s.requires_grad_()
    (tuned - scale_weight(base, r, s)).square().sum().backward()
    assert s.grad.abs().max() < 1e-8


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(SHAPES))
def test_no_sweep_makes_the_error_larger(seed, shape):
    tuned, base = draw(*shape, seed=seed), draw(*shape, seed=seed + 1)
    errors = [
        error(tuned, base, *least_squares_scalings(tuned, base, sweeps=sweeps))
        for sweeps in (1, 2, 3, 5, 9)
    ]
    slack = 1e-14 * float(tuned.square().sum())
    assert all(after <= before + slack for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("solve", [least_squares_scalings, reference_scalings])
def test_zero_rows_and_columns_are_scaled_by_zero(solve):
    tuned, base = draw(4, 5, 3, 3, seed=1), draw(4, 5, 3, 3, seed=2)
    base[1], base[:, 2] = 0, 0
    r, s = solve(tuned, base)
    assert r[1] == 0
    assert s[2] == 0
    assert r.isfinite().all()
    assert s.isfinite().all()
    r, s = solve(tuned, torch.zeros_like(base))
    assert not r.any()
    assert not s.any()


def test_scalings_of_a_scaled_weight_are_found_again():
    base, r, s = draw(6, 4, 3, 3), draw(6, seed=1).abs() + 0.5, draw(4, seed=2).abs() + 0.5
    tuned = scale_weight(base, r, s)
    found = least_squares_scalings(tuned, base, sweeps=60)
    torch.testing.assert_close(scale_weight(base, *found), tuned)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_single(dtype):
    tuned, base = draw(40, 50, seed=1).to(dtype), draw(40, 50, seed=2).to(dtype)
    r, s = least_squares_scalings(tuned, base)
    expected = least_squares_scalings(tuned.double(), base.double())
    assert r.dtype == s.dtype == torch.float32
    torch.testing.assert_close(r.double(), expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(s.double(), expected[1], rtol=1e-4, atol=1e-5)
    svd = leading_svd(tuned, 3)
    assert svd.u.dtype == svd.v.dtype == svd.singular_values.dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 11), st.integers(1, 11), st.data())
@pytest.mark.parametrize("method", METHODS)
def test_factors_reach_the_bound_of_eckart_and_young(method, seed, m, n, data):
    rank = data.draw(st.integers(1, min(m, n)))
    matrix = draw(m, n, seed=seed)
    svd = leading_svd(matrix, rank, method=method)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    assert svd.energy == pytest.approx((values**2).sum(), rel=1e-12)
    assert svd.exact
    assert svd.u.shape == (m, rank)
    assert svd.v.shape == (rank, n)
    np.testing.assert_allclose(svd.singular_values, values, atol=1e-7 * values[0])
    u, a = balanced_factors(svd, rank)
    left = float((matrix - u @ a).square().sum())
    assert left == pytest.approx((values[rank:] ** 2).sum(), rel=1e-10, abs=1e-10 * svd.energy)
    sigma = torch.diag(torch.from_numpy(values[:rank].copy()))
    for product in (u.T @ u, a @ a.T):
        torch.testing.assert_close(product, sigma, rtol=0, atol=1e-10 * values[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_full_rank_gives_the_matrix_back(method, shape):
    matrix = draw(*shape)
    u, a = balanced_factors(leading_svd(matrix, 1000, method=method), 60)
    torch.testing.assert_close(u @ a, matrix, rtol=0, atol=1e-10)
    single = matrix.float()
    u, a = balanced_factors(leading_svd(single, 1000, method=method), 60)
    torch.testing.assert_close(u @ a, single, rtol=0, atol=1e-4)


@pytest.mark.parametrize("decay", [0.8, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
@pytest.mark.parametrize("rank", [5, 20, 40])
def test_randomised_error_is_within_one_percent_on_geometric_spectra(decay, shape, rank):
    values = decay ** torch.arange(200, dtype=torch.float64)
    matrix = with_spectrum(*shape, values)
    svd = leading_svd(matrix, rank, method="randomised")
    assert not svd.exact
    assert svd.singular_values.shape == (rank,)
    u, a = balanced_factors(svd, rank)
    least = float(values[rank:].square().sum())
    assert float((matrix - u @ a).square().sum()) <= 1.01 * least
    assert (svd.singular_values <= values[:rank] * (1 + 1e-9)).all()


def test_randomised_result_depends_on_the_seed_alone():
    matrix, before = draw(50, 40), torch.get_rng_state()
    first, second, other = (
        leading_svd(matrix, 4, method="randomised", power_iterations=0, seed=seed)
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.u, second.u)
    assert torch.equal(first.v, second.v)
    assert not torch.equal(first.u, other.u)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_of_lower_rank_has_orthonormal_vectors_and_no_nan(method):
    matrix = with_spectrum(40, 30, torch.tensor([5.0, 2.0], dtype=torch.float64))
    svd = leading_svd(matrix, 9, method=method)
    torch.testing.assert_close(svd.u.T @ svd.u, torch.eye(9).double())
    torch.testing.assert_close(svd.v @ svd.v.T, torch.eye(9).double())
    assert svd.singular_values[2:].max() < 1e-6
    assert leading_svd(torch.zeros(40, 30), 9, method=method).energy == 0


@pytest.mark.parametrize("method", ["gram", "exact"])
def test_all_singular_values_descend(method):
    values = leading_svd(draw(70, 50).float(), 7, method=method).singular_values
    assert values.shape == (50,)
    assert (values.diff() <= 0).all()


@pytest.mark.parametrize(
    ("size", "rank", "exact"), [(60, 10, True), (60, 40, True), (1040, 4, False), (1040, 400, True)]
)
def test_auto_is_exact_unless_the_matrix_is_large_and_the_rank_small(size, rank, exact):
    assert leading_svd(draw(size, size).float(), rank).exact == exact


def test_spatial_mean_is_nearest_of_all_constant_kernels():
    weight = draw(3, 4, 3, 2)
    mean = spatial_mean(weight)
    distance = (weight - mean[:, :, None, None]).square().sum()
    assert float(distance + 6 * mean.square().sum()) == pytest.approx(float(weight.square().sum()))
    np.testing.assert_allclose(mean, weight.numpy().mean((2, 3)))
    assert spatial_mean(mean) is mean


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_matrix_that_is_not_finite_is_refused(bad, dtype):
    matrix = torch.ones(4, 3, dtype=dtype)
    matrix[1, 2] = bad
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        leading_svd(matrix, 2)


def test_large_single_precision_values_are_not_taken_for_infinite():
    svd = leading_svd(torch.full((4, 3), 1e30), 1)
    assert float(svd.singular_values[0]) == pytest.approx(12**0.5 * 1e30)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: least_squares_scalings(torch.ones(2, 3), torch.ones(3, 2)), r"\(2, 3\).*\(3, 2\)"),
        (lambda: least_squares_scalings(torch.ones(2), torch.ones(2)), "one shape"),
        (lambda: least_squares_scalings(torch.ones(2, 2), torch.ones(2, 2), sweeps=0), ">= 1"),
        (lambda: leading_svd(torch.ones(2, 2, 2), 1), r"\(2, 2, 2\), expected a matrix"),
        (lambda: leading_svd(torch.ones(2, 2), 0), "give rank >= 1"),
        (lambda: leading_svd(torch.ones(2, 2), 1, method="grm"), "did you mean 'gram'"),
        (lambda: leading_svd(torch.ones(2, 2), 1, oversampling=-1), "oversampling is -1"),
        (lambda: leading_svd(torch.ones(2, 2), 1, power_iterations=-1), "iterations is -1"),
        (lambda: balanced_factors(leading_svd(torch.ones(3, 3), 1), 2), "give 0 to 1"),
        (lambda: balanced_factors(leading_svd(torch.ones(3, 3), 1), -1), "rank is -1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kernel", [1, 6])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_perturbed_weight_is_its_formula_and_so_are_its_gradients(rank, kernel, flat):
    groups, n, m = 2, 4, 5
    base = draw(groups, n, m, kernel)
    shapes = (groups, n), (groups, m), (groups, n, rank), (groups, rank, m * kernel**flat)
    parts = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    weight = perturb_weight(base, *parts)
    for group in range(groups):
        r, s, left, right = (part[group] for part in parts)
        product = (left @ right).view(n, m, -1)
        expected = r[:, None, None] * base[group] * s[:, None] + product
        torch.testing.assert_close(weight[group], expected)
    assert torch.autograd.gradcheck(lambda *factors: perturb_weight(base, *factors), parts)
