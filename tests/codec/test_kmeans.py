"""Promises of the one-dimensional k-means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from avalanche_compress.codec import kmeans_1d
from avalanche_compress.codec._segments import Moments, optimal_cuts


def inertia(values, centroids, codes):
    return float((values.double().reshape(-1) - centroids.double()[codes.long()]).square().sum())


def solve(values, k):
    return inertia(values, *kmeans_1d(values, k))


def brute_force(values, k):
    ordered = np.sort(values.double().numpy())
    cuts = itertools.combinations(range(1, ordered.size), min(k, ordered.size) - 1)
    return min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, list(cut)))
        for cut in cuts
    )


def quadratic_programme(ordered, k):
    """Least error by the plain O(k n^2) programme, every pair of cuts tried."""
    total = np.concatenate(([0.0], np.cumsum(ordered)))
    square = np.concatenate(([0.0], np.cumsum(ordered**2)))
    rank = np.arange(ordered.size + 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = (total[None, :] - total[:, None]) ** 2 / (rank[None, :] - rank[:, None])
    cost = np.where(
        rank[None, :] > rank[:, None], square[None, :] - square[:, None] - spread, np.inf
    )
    error = cost[0]
    for _ in range(k - 1):
        error = (error[:, None] + cost).min(0)
    return error[-1]


def draw(name, size, generator):
    normal = torch.randn(size, generator=generator)
    if name == "uniform":
        return torch.rand(size, generator=generator)
    if name == "laplace":
        return normal.sign() * -torch.rand(size, generator=generator).clamp_min(1e-9).log()
    if name == "bimodal":
        return normal * 0.02 + torch.randint(0, 2, (size,), generator=generator)
    if name == "outliers":
        normal[:2] = torch.tensor([1e4, -3e3])
    if name == "heavy":
        return normal / torch.randn(size, generator=generator)
    if name == "lognormal":
        return (2 * normal).exp()
    return normal


SIXTEEN = "-.52 -.5 -.31 -.3 -.29 -.05 0 .04 .11 .12 .33 .34 .36 .7 .71 .75"
NAMES = ["normal", "uniform", "laplace", "bimodal", "outliers", "heavy", "lognormal"]


def test_small_golden_case_has_the_known_centroids_and_codes():
    values = torch.tensor([4, 4.1, 4.2, -50, 200.2, 200.4, 200.9, 80, 100, 102])
    centroids, codes = kmeans_1d(values, 4)
    torch.testing.assert_close(centroids, torch.tensor([-50, 4.1, 94, 200.5]))
    assert codes.tolist() == [1, 1, 1, 0, 3, 3, 3, 2, 2, 2]


def test_sixteen_weights_golden_case_has_the_known_error():
    values = torch.tensor(
        [float(x) for x in SIXTEEN.split()],
        dtype=torch.float64,
    )
    centroids, codes = kmeans_1d(values, 2)
    torch.testing.assert_close(
        centroids, torch.tensor([-0.17, 0.531667]).double(), atol=1e-6, rtol=0
    )
    assert inertia(values, centroids, codes) == pytest.approx(0.74688333, abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.floats(-1e3, 1e3, width=32) | st.integers(-3, 3).map(float), min_size=1, max_size=9
    ),
    st.integers(1, 9),
)
def test_no_partition_has_a_lower_error(numbers, k):
    values = torch.tensor(numbers)
    scale = float(values.double().square().sum())
    assert solve(values, k) <= brute_force(values, k) + 1e-11 * scale


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 400), st.integers(1, 40), st.sampled_from(NAMES))
def test_error_equals_that_of_the_plain_quadratic_programme(seed, size, k, name):
    values = draw(name, size + 2, torch.Generator().manual_seed(seed)).double()
    k = min(k, size + 2)
    exact = quadratic_programme(np.sort(values.numpy()), k)
    slack = 1e-11 * float(values.square().sum())
    assert solve(values, k) == pytest.approx(exact, rel=1e-9, abs=slack)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(2, 3000), st.sampled_from([2, 4, 16]), st.sampled_from(NAMES)
)
def test_sklearn_never_finds_a_lower_inertia(seed, size, k, name):
    values = draw(name, size + k, torch.Generator().manual_seed(seed))
    theirs = KMeans(n_clusters=k, n_init=4, random_state=0).fit(values.double().reshape(-1, 1))
    assert solve(values.double(), k) <= theirs.inertia_ * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [2, 4, 16, 64])
def test_large_inputs_come_within_1e_4_of_the_optimum(name, k):
    values = draw(name, 12_000, torch.Generator().manual_seed(k))
    ordered = np.sort(values.numpy())
    moments, guess = Moments.of(ordered), np.linspace(0, ordered.size, k + 1).astype(int)
    optimum = moments.errors(optimal_cuts(moments, k, guess)).sum()
    assert solve(values, k) <= optimum * (1 + 1e-4)


def test_large_inputs_at_256_centroids_come_within_1e_4_of_the_optimum():
    values = torch.randn(12_000, generator=torch.Generator().manual_seed(0))
    ordered = np.sort(values.numpy())
    moments, guess = Moments.of(ordered), np.linspace(0, ordered.size, 257).astype(int)
    optimum = moments.errors(optimal_cuts(moments, 256, guess)).sum()
    assert solve(values, 256) <= optimum * (1 + 1e-4)


def test_a_large_input_beats_sklearn():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    theirs = KMeans(n_clusters=16, n_init=1, random_state=0).fit(values.double().reshape(-1, 1))
    assert solve(values, 16) <= theirs.inertia_


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6000), st.integers(1, 300), st.sampled_from(NAMES))
def test_centroids_ascend_and_are_the_means_of_their_members(seed, size, k, name):
    values = draw(name, size + 2, torch.Generator().manual_seed(seed))
    centroids, codes = kmeans_1d(values, k)
    assert len(centroids) == min(k, len(values.unique())) or len(centroids) == len(values.unique())
    assert (centroids.diff() > 0).all()
    assert codes.dtype == torch.int32
    counts = torch.bincount(codes.long(), minlength=len(centroids))
    assert counts.min() > 0
    means = torch.zeros(len(centroids)).double().index_add_(0, codes.long(), values.double())
    torch.testing.assert_close(centroids.double(), means / counts, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(1, 20_000))
def test_enough_centroids_leave_no_error(seed, distinct, size):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(distinct, generator=generator)
    values = table[torch.randint(0, distinct, (size,), generator=generator)]
    centroids, codes = kmeans_1d(values, distinct)
    assert torch.equal(centroids[codes.long()], values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_of_the_input_do_not_matter(dtype):
    values = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    centroids, codes = kmeans_1d(values, 4)
    assert centroids.dtype == dtype
    assert torch.equal(codes, kmeans_1d(values.double().flatten(), 4)[1])


def test_large_discrete_inputs_are_solved_exactly():
    values = torch.randint(0, 300, (12_000,), generator=torch.Generator().manual_seed(0)).double()
    assert solve(values, 300) == 0.0
    ordered = np.sort(values.numpy())
    moments, guess = Moments.of(ordered), np.linspace(0, ordered.size, 8).astype(int)
    optimum = moments.errors(optimal_cuts(moments, 7, guess)).sum()
    assert solve(values, 7) == pytest.approx(optimum, rel=1e-9)


def test_far_outliers_do_not_spoil_the_rest():
    body = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    values = torch.cat((body, torch.tensor([-1e30, 1e30])))
    centroids, codes = kmeans_1d(values, 18)
    assert centroids[[0, -1]].tolist() == [values.min(), values.max()]
    assert inertia(body, centroids, codes[:-2]) <= solve(body, 16) * (1 + 1e-4)


def test_extreme_magnitudes_stay_finite():
    values = torch.tensor([1e308, -1e308, 9e307, 3e-320, 0.0], dtype=torch.float64)
    centroids, codes = kmeans_1d(values, 3)
    assert centroids.isfinite().all()
    assert codes.tolist() == [2, 0, 2, 1, 1]


def test_an_empty_input_has_no_centroids():
    centroids, codes = kmeans_1d(torch.empty(0, 3), 4)
    assert centroids.shape == codes.shape == (0,)
    assert centroids.dtype == torch.float32
    assert codes.dtype == torch.int32


@pytest.mark.parametrize(
    ("values", "k"),
    [
        (torch.tensor([1.0, float("nan")]), 2),
        (torch.tensor([1.0, float("inf")]), 2),
        (torch.tensor([1.0]), 0),
        (torch.tensor([1]), 1),
    ],
)
def test_wrong_arguments_are_named(values, k):
    with pytest.raises(ValueError, match=r"expected|needs"):
        kmeans_1d(values, k)
