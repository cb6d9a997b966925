"""Moments and low-rank Gaussians, against NumPy and torch's full normal distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from avalanche_compress import TaskInferenceError
from avalanche_compress.inference import low_rank
from avalanche_compress.inference.low_rank import (
    FLOOR,
    Gaussians,
    fit,
    joined,
    load,
    log_density,
    store,
    stored_bytes,
)
from avalanche_compress.inference.moments import Moments


def correlated(samples, width, seed=0):
    """Samples whose variances fall from direction to direction."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / torch.arange(1.0, width + 1)
    return torch.randn(samples, width, generator=generator) @ mixing.T + 3


def moments_of(*classes, batch=7):
    moments = Moments(len(classes), classes[0].shape[1])
    features = torch.cat(classes)
    positions = torch.cat([torch.full((len(samples),), c) for c, samples in enumerate(classes)])
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    for part in order.split(batch):
        moments.add(features[part], positions[part])
    return moments


def full_covariance(gaussians, place):
    means, directions, variances, rest = (tensor[place].double() for tensor in gaussians)
    width = len(means)
    inside = directions.T @ torch.diag(variances) @ directions
    return inside + rest * (torch.eye(width) - directions.T @ directions)


# ---------------------------------------------------------------------------- moments


@pytest.mark.parametrize("offset", [0, 1e4])
def test_moments_of_a_stream_are_those_of_all_samples_together(offset):
    classes = [correlated(40, 5, 1) + offset, correlated(3, 5, 2) - offset]
    moments = moments_of(*classes)
    for place, samples in enumerate(classes):
        exact = samples.double().numpy()
        np.testing.assert_allclose(moments.means()[place], exact.mean(0), rtol=1e-10)
        expected = np.cov(exact.T, bias=True)
        np.testing.assert_allclose(moments.covariances()[place], expected, atol=1e-5)
    assert moments.counts.tolist() == [40, 3]


def test_variances_alone_are_the_diagonal():
    samples = correlated(30, 4)
    whole, diagonal = Moments(1, 4), Moments(1, 4, diagonal=True)
    for moments in (whole, diagonal):
        moments.add(samples, torch.zeros(30, dtype=torch.int64))
    torch.testing.assert_close(diagonal.covariances(), whole.covariances().diagonal(dim1=1, dim2=2))


def test_a_class_without_samples_has_the_mean_of_all_and_no_variance():
    moments = Moments(2, 3)
    moments.add(torch.tensor([[1.0, 2, 3], [3, 2, 1]]), torch.tensor([1, 1]))
    assert moments.means()[0].tolist() == [2, 2, 2]
    assert bool((moments.covariances()[0] == 0).all())


# ---------------------------------------------------------------------------- fitting


def test_the_leading_eigenvectors_are_kept_and_the_rest_is_their_mean_variance():
    samples = correlated(500, 8)
    moments = moments_of(samples)
    gaussians = fit(moments, rank=3)
    values, vectors = np.linalg.eigh(np.cov(samples.double().numpy().T, bias=True))
    floor = FLOOR * values.mean()
    np.testing.assert_allclose(gaussians.variances[0], values[:-4:-1] + floor, rtol=1e-4)
    np.testing.assert_allclose(gaussians.rest[0], values[:-3].mean() + floor, rtol=1e-4)
    overlap = np.abs((gaussians.directions[0].numpy() * vectors.T[:-4:-1]).sum(1))
    np.testing.assert_allclose(overlap, 1, atol=1e-4)


def test_the_rank_is_bounded_by_samples_and_features():
    few, many = correlated(25, 6, 1), correlated(200, 6, 2)
    gaussians = fit(moments_of(few, many), rank=50)
    assert gaussians.directions.shape == (2, 5, 6)
    lengths = gaussians.directions.norm(dim=2)
    assert lengths[0].round().tolist() == [1, 1, 0, 0, 0]
    assert lengths[1].round().tolist() == [1] * 5
    assert torch.equal(gaussians.variances[0, 2:], gaussians.rest[:1].expand(3))


def test_classes_of_one_sample_and_dead_features_have_finite_densities():
    moments = moments_of(torch.ones(1, 4), correlated(50, 4) * torch.tensor([1.0, 1, 0, 0]))
    densities = log_density(torch.randn(9, 4).double(), fit(moments, rank=3))
    assert torch.isfinite(densities).all()
    alone = fit(moments_of(torch.zeros(1, 4)), rank=2)
    assert torch.isfinite(log_density(torch.zeros(2, 4).double(), alone)).all()


# ---------------------------------------------------------------------------- densities


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_densities_are_those_of_the_full_normal_distribution(rank):
    gaussians = fit(moments_of(correlated(90, 5, 1), correlated(80, 5, 2) - 5), rank)
    x = correlated(20, 5, 3).double()
    found = log_density(x, gaussians)
    for place in range(2):
        covariance = full_covariance(gaussians, place)
        normal = MultivariateNormal(gaussians.means[place], covariance)
        expected = normal.log_prob(x) + 2.5 * np.log(2 * np.pi)
        torch.testing.assert_close(found[:, place], expected)


def test_many_samples_are_scored_in_parts(monkeypatch):
    gaussians = fit(moments_of(correlated(90, 5, 1), correlated(80, 5, 2)), 2)
    x = correlated(50, 5, 3).double()
    whole = log_density(x, gaussians)
    monkeypatch.setattr(low_rank, "_AT_A_TIME", 20)
    torch.testing.assert_close(log_density(x, gaussians), whole)
    assert log_density(x[:0], gaussians).shape == (0, 2)


def test_sets_of_other_ranks_are_joined_without_a_change():
    parts = [fit(moments_of(correlated(90, 5, seed)), rank) for seed, rank in ((1, 2), (2, 4))]
    x = correlated(10, 5, 3).double()
    apart = torch.cat([log_density(x, gaussian) for gaussian in parts], dim=1)
    torch.testing.assert_close(log_density(x, joined(parts)), apart)


# ---------------------------------------------------------------------------- storing


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 0.05), (torch.int8, 0.3)]
)
def test_stored_gaussians_are_nearly_those_that_were_fitted(dtype, tolerance):
    gaussians = fit(moments_of(correlated(400, 20, 1), correlated(300, 20, 2)), 5)
    loaded = load(store(gaussians, dtype))
    x = correlated(50, 20, 1)
    exact = log_density(x.double(), gaussians)
    assert (log_density(x, loaded) - exact).abs().mean() < tolerance * exact.std()
    products = loaded.directions @ loaded.directions.transpose(1, 2)
    torch.testing.assert_close(products, torch.eye(5).expand(2, 5, 5), atol=1e-5, rtol=0)
    # rounding turns no direction round
    assert bool(((loaded.directions * gaussians.directions.float()).sum(2) > 0.99).all())


def test_bytes_of_a_class_are_as_the_formula_says():
    for dtype in (torch.int8, torch.float16, torch.float32):
        kept = store(fit(moments_of(correlated(400, 100)), 20), dtype)
        size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        assert size == stored_bytes(100, 20, dtype)
    assert stored_bytes(100, 20) <= 2500


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_variances_that_are_none_are_refused(value):
    kept = store(fit(moments_of(correlated(50, 4)), 2), torch.int8)
    for place in (1, 2, 3):
        numbers = kept.numbers.clone()
        numbers[0, place] = value
        with pytest.raises(TaskInferenceError, match="not positive, or NaN"):
            load(kept._replace(numbers=numbers))


def test_directions_that_nobody_fitted_still_make_a_density():
    """As in a file that somebody has changed."""
    vectors = torch.randint(-128, 128, (2, 4, 6), dtype=torch.int8)
    vectors[1, 2] = vectors[1, 1]
    gaussians = load(low_rank.StoredGaussians(vectors, torch.rand(2, 5) + 0.1))
    assert isinstance(gaussians, Gaussians)
    assert torch.isfinite(log_density(torch.randn(7, 6), gaussians)).all()
