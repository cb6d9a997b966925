"""Quantisers of least error at a rate: the optimum by brute force, and the bound of a Gaussian."""

from itertools import combinations

import numpy as np
import pytest
import torch

from avalanche_compress.codec.ecsq import ecsq_1d, quantise_at_rate


def cost_of(values, codes, weight, cell_bits):
    """Squared error and weighted bits of a partition, by its definition."""
    total = 0.0
    for code in np.unique(codes):
        cell = values[codes == code]
        bits = cell.size * np.log2(values.size / cell.size) + cell_bits
        total += ((cell - cell.mean()) ** 2).sum() + weight * bits
    return total


def least_cost(values, weight, cell_bits):
    """The least cost of all partitions of the sorted values into intervals."""
    size, least = values.size, np.inf
    for count in range(size):
        for bounds in combinations(range(1, size), count):
            codes = np.zeros(size, dtype=int)
            codes[list(bounds)] = 1
            least = min(least, cost_of(np.sort(values), codes.cumsum(), weight, cell_bits))
    return least


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_partition_is_the_best_of_all(weight, seed):
    values = np.random.default_rng(seed).normal(size=9).round(1)
    centroids, codes = ecsq_1d(torch.from_numpy(values), weight, cell_bits=2.0)
    ours = cost_of(values, codes.numpy(), weight, cell_bits=2.0)
    assert ours == pytest.approx(least_cost(values, weight, 2.0), abs=1e-12)
    for code, centroid in enumerate(centroids.tolist()):
        assert centroid == pytest.approx(values[codes.numpy() == code].mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gaussian_values_come_within_a_tenth_of_a_bit_of_the_bound(bits):
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).double()
    centroids, codes = quantise_at_rate(values, bits)
    share = torch.bincount(codes) / codes.numel()
    rate = float(-(share * share.log2()).sum())
    error = float((values - centroids[codes.long()]).square().mean())
    # at high rates the best scalar quantiser takes .2546 bits more than any (Gish, Pierce 1968)
    bound = 0.5 * np.log2(float(values.var()) / error) + 0.2546
    assert rate <= bits
    assert rate <= bound + 0.02


def test_a_higher_rate_never_has_the_larger_error():
    values = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    errors = []
    for bits in (0.5, 1, 1.5, 2, 3, 5):
        centroids, codes = quantise_at_rate(values, bits)
        errors.append(float((values - centroids[codes.long()]).square().sum()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("values", [[], [2.5], [1.0, 1.0, 1.0]])
def test_few_or_equal_values_are_kept(values):
    values = torch.tensor(values)
    centroids, codes = quantise_at_rate(values, 4)
    assert torch.equal(centroids[codes.long()], values)
    assert codes.dtype == torch.int32


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale):
    values = torch.randn(500, generator=torch.Generator().manual_seed(2)).double()
    _, plain = quantise_at_rate(values, 3)
    _, scaled = quantise_at_rate(values * scale, 3)
    assert torch.equal(plain, scaled)


@pytest.mark.parametrize("bad", [torch.tensor([1.0, float("nan")]), torch.tensor([1, 2])])
def test_values_that_are_no_finite_floats_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        quantise_at_rate(bad, 2)


def test_a_rate_or_weight_out_of_range_is_refused():
    with pytest.raises(ValueError, match="more than zero"):
        quantise_at_rate(torch.ones(2), 0)
    with pytest.raises(ValueError, match="zero or more"):
        ecsq_1d(torch.ones(2), -1)
