"""Ranks over all layers: against loops over sorted lists, and their promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from avalanche_compress.errors import NonFiniteError
from avalanche_compress.methods.halrp.maths import leading_svd
from avalanche_compress.methods.halrp.rank_selection import (
    choose_conv_mode,
    ranks_within_budget,
    select_ranks,
)

ANY = st.integers(0, 8).map(lambda quarters: quarters / 4)


@st.composite
def networks(draw, importance=ANY):
    """Spectra of small integers, so that ties are common and sums exact; importance; K."""
    number = draw(st.integers(1, 5))
    spectra = [
        sorted(draw(st.lists(st.integers(0, 6), min_size=1, max_size=8)), reverse=True)
        for _ in range(number)
    ]
    sizes = draw(st.lists(st.sampled_from([1, 4, 9]), min_size=number, max_size=number))
    weights = draw(st.lists(importance, min_size=number, max_size=number))
    return [torch.tensor(values, dtype=torch.float64) for values in spectra], weights, sizes


rates = st.sampled_from([1e-9, 0.1, 0.25, 0.5, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999999])


def components(spectra, importance, sizes):
    """(score, layer, index) of every component; importance 1 if nothing scores."""
    scored = [
        (size * weight * value**2, layer, index)
        for layer, (values, weight, size) in enumerate(zip(spectra, importance, sizes))
        for index, value in enumerate(values.tolist())
    ]
    if any(score for score, _, _ in scored) or all(weight == 1 for weight in importance):
        return scored
    return components(spectra, [1] * len(spectra), sizes)


def public_rule(spectra, importance, rate, sizes, min_rank=1, max_rank=10**6):
    scored = sorted(components(spectra, importance, sizes), key=lambda c: (-c[0], c[1], c[2]))
    total, reached, kept = sum(score for score, _, _ in scored), 0.0, [0] * len(spectra)
    for score, layer, _ in scored:
        if reached > rate * total or score == 0:
            break
        reached += score
        kept[layer] += 1
    return [min(max(rank, min_rank), max_rank, len(values)) for rank, values in zip(kept, spectra)]


def greedy(spectra, importance, costs, budget, sizes, min_rank):
    ranks = [min(min_rank, len(values)) for values in spectra]
    left = budget - sum(rank * cost for rank, cost in zip(ranks, costs))
    gains = [
        (-score / costs[layer], layer, index)
        for score, layer, index in components(spectra, importance, sizes)
        if index >= ranks[layer] and score > 0
    ]
    for _, layer, _ in sorted(gains):
        if costs[layer] > left:
            break
        left -= costs[layer]
        ranks[layer] += 1
    return ranks


def ranks_of(spectra, importance, rate, **limits):
    return select_ranks(spectra, importance, rate, **limits).ranks


@settings(max_examples=300, deadline=None)
@given(networks(), rates, st.integers(0, 3), st.integers(3, 9))
def test_ranks_are_those_of_a_loop_over_the_sorted_scores(network, rate, least, most):
    spectra, importance, sizes = network
    selection = select_ranks(
        spectra, importance, rate, kernel_sizes=sizes, min_rank=least, max_rank=most
    )
    assert selection.ranks == public_rule(spectra, importance, rate, sizes, least, most)
    assert all(selection.certified)


def test_a_sum_that_is_just_the_rates_part_is_not_above_it():
    spectra = [[6, 5, 4, 3, 2, 2, 1], [1, 1, 1], [6, 4, 4, 4, 3, 3, 2, 1], [0]]
    spectra = [torch.tensor(values, dtype=torch.float64) for values in spectra]
    # 54 + 37.5 + 36 + 24 are .6 of 252.5; a division by 1.5 would round them apart
    importance, sizes = [1.5, 0.25, 0.25, 0.0], [1, 4, 4, 1]
    assert ranks_of(spectra, importance, 0.6, kernel_sizes=sizes, min_rank=0) == [3, 0, 2, 0]


@pytest.mark.parametrize("largest", [5e-324, 1.7e308])
def test_the_extremes_of_importance_have_ratios_too(largest):
    spectra = [torch.ones(3), torch.ones(3)]
    importance = torch.tensor([largest, 0.0], dtype=torch.float64)
    assert ranks_of(spectra, importance, 0.9, min_rank=0) == [3, 0]


@settings(max_examples=150, deadline=None)
@given(networks())
def test_a_larger_rate_lowers_no_rank_and_one_is_full_rank(network):
    spectra, importance, sizes = network
    chosen = [
        ranks_of(spectra, importance, rate, kernel_sizes=sizes)
        for rate in (0.01, 0.1, 0.3, 0.5, 0.9, 0.99, 0.999999, 1.0)
    ]
    for lower, higher in itertools.pairwise(chosen):
        assert all(a <= b for a, b in zip(lower, higher))
    assert chosen[-1] == [len(values) for values in spectra]


@settings(max_examples=150, deadline=None)
@given(networks(), rates, st.integers(-60, 60))
def test_only_ratios_of_the_importance_matter(network, rate, exponent):
    spectra, importance, sizes = network
    scaled = [2.0**exponent * weight for weight in importance]
    assert ranks_of(spectra, scaled, rate, kernel_sizes=sizes) == ranks_of(
        spectra, importance, rate, kernel_sizes=sizes
    )


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), rates, st.randoms())
def test_permuting_layers_permutes_their_ranks(seed, number, rate, random):
    rng = np.random.default_rng(seed)
    spectra = [
        torch.from_numpy(np.sort(rng.random(rng.integers(1, 9)))[::-1].copy())
        for _ in range(number)
    ]
    importance = rng.random(number)
    order = random.sample(range(number), number)
    ranks = ranks_of(spectra, importance, rate)
    permuted = ranks_of([spectra[i] for i in order], importance[order], rate)
    assert permuted == [ranks[i] for i in order]


def test_of_equal_scores_the_earlier_layer_goes_first():
    assert ranks_of([torch.ones(4), torch.ones(4)], [1, 1], 0.6) == [4, 1]


@settings(max_examples=100, deadline=None)
@given(networks(), rates, st.integers(0, 2))
def test_a_layer_of_no_importance_gets_the_least_rank(network, rate, least):
    spectra, importance, sizes = network
    assume(any(weight * values[0] for weight, values in zip(importance, spectra)))
    ranks = ranks_of(spectra, importance, rate, kernel_sizes=sizes, min_rank=least)
    for rank, values, weight in zip(ranks, spectra, importance):
        assert weight > 0 or rank == min(least, len(values))


def test_no_importance_at_all_means_equal_importance():
    spectra = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.5])]
    for importance in ([0, 0], [0.0, -0.0], torch.zeros(2)):
        assert select_ranks(spectra, importance, 0.9) == select_ranks(spectra, [1, 1], 0.9)
        assert ranks_within_budget(spectra, importance, [1, 1], 3) == [2, 1]
    assert ranks_of([torch.zeros(3), torch.zeros(2)], [1, 1], 0.9) == [1, 1]
    assert ranks_of([torch.zeros(3), torch.ones(3)], [1, 0], 0.9) == [1, 3]


def test_a_cap_cuts_a_rank_and_its_share_goes_nowhere():
    spectra = [torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([1.0, 0.9])]
    assert ranks_of(spectra, [1, 1], 0.9) == [4, 1]
    assert ranks_of(spectra, [1, 1], 0.9, caps=[2, 5]) == [2, 1]
    assert ranks_of(spectra, [1, 1], 1.0, caps=[3, 0]) == [3, 0]
    assert ranks_of(spectra, [1, 1], 1.0, max_rank=1) == [1, 1]


@settings(max_examples=200, deadline=None)
@given(networks(importance=st.integers(1, 8)), rates, st.data())
def test_certified_ranks_are_those_of_all_singular_values(network, rate, data):
    spectra, importance, sizes = network
    given_counts = [data.draw(st.integers(1, len(values))) for values in spectra]
    leading = [values[:count] for values, count in zip(spectra, given_counts)]
    energies = [
        None if count == len(values) else float(values.square().sum())
        for values, count in zip(spectra, given_counts)
    ]
    exact = ranks_of(spectra, importance, rate, kernel_sizes=sizes)
    selection = select_ranks(leading, importance, rate, kernel_sizes=sizes, energies=energies)
    if all(selection.certified):
        assert selection.ranks == exact
    for rank, known, truth, count in zip(selection.ranks, selection.certified, exact, given_counts):
        assert rank >= min(truth, count)
        assert not known or truth <= count


def test_a_cut_below_the_last_given_singular_value_is_not_certified():
    values = torch.tensor([4.0, 3.0, 2.0, 1.0])
    energies = [30.0, None]
    spectra = [values[:2], values]
    assert select_ranks(spectra, [1, 1], 0.5, energies=energies).certified == [True, True]
    assert select_ranks(spectra, [1, 1], 0.95, energies=energies).certified == [False, True]
    assert select_ranks(spectra, [1e-9, 1], 0.9, energies=energies).certified == [True, True]
    assert select_ranks(spectra, [0, 1], 0.9, energies=energies).certified == [True, True]


def test_full_rank_is_certified_if_the_caps_are_reached():
    values = torch.tensor([4.0, 3.0])
    assert select_ranks([values], [1], 1.0, energies=[30.0]).certified == [False]
    assert select_ranks([values], [1], 1.0, energies=[30.0], max_rank=2).certified == [True]
    assert select_ranks([values], [1], 1.0, energies=[30.0], caps=[3]).certified == [False]


def test_ranks_of_decomposed_layers_are_those_of_numpy():
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator) for shape in ((30, 20), (10, 40), (25, 25))]
    decompositions = [leading_svd(matrix, 3) for matrix in matrices]
    spectra = [torch.from_numpy(np.linalg.svd(matrix.numpy())[1]) for matrix in matrices]
    importance = [0.5, 2.0, 1.0]
    for rate in (0.3, 0.7, 0.95):
        found = ranks_of([svd.singular_values for svd in decompositions], importance, rate)
        assert found == public_rule(spectra, importance, rate, [1, 1, 1])


def test_no_layers_have_no_ranks():
    assert select_ranks([], [], 0.5).ranks == []
    assert ranks_within_budget([], [], [], 0) == []


@settings(max_examples=300, deadline=None)
@given(networks(importance=st.sampled_from([0, 1, 2, 4])), st.integers(0, 2), st.data())
def test_budgeted_ranks_are_those_of_a_greedy_loop(network, least, data):
    spectra, importance, sizes = network
    costs = [data.draw(st.integers(1, 30)) for _ in spectra]
    fixed = sum(min(least, len(values)) * cost for values, cost in zip(spectra, costs))
    budget = fixed + data.draw(st.integers(0, 200))
    limits = {"kernel_sizes": sizes, "min_rank": least}
    ranks = ranks_within_budget(spectra, importance, costs, budget, **limits)
    assert sum(rank * cost for rank, cost in zip(ranks, costs)) <= budget
    assert ranks == greedy(spectra, importance, costs, budget, sizes, least)
    more = ranks_within_budget(spectra, importance, costs, budget + 7, **limits)
    assert all(a <= b for a, b in zip(ranks, more))


def test_budgeted_ranks_keep_their_caps_and_take_no_zero_components():
    spectra = [torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0])]
    assert ranks_within_budget(spectra, [1, 1], [1, 1], 100, caps=[2, 9]) == [2, 1]
    assert ranks_within_budget(spectra, [1, 1], [1, 1], 100, caps=[0, 9], min_rank=0) == [0, 1]
    assert ranks_within_budget(spectra, [1, 1], [1, 1], 0, min_rank=0) == [0, 0]


def test_a_budget_below_the_least_ranks_names_the_smallest():
    spectra = [torch.ones(3), torch.ones(1)]
    with pytest.raises(ValueError, match="at least 17"):
        ranks_within_budget(spectra, [1, 1], [5, 7], 16, min_rank=2)
    assert ranks_within_budget(spectra, [1, 1], [5, 7], 17, min_rank=2) == [2, 1]


def nearest_of_rank(matrix, rank):
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ v[:rank]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.integers(0, 400))
def test_conv_mode_is_that_whose_factors_come_nearer_to_the_kernel(seed, constancy, parameters):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(8, 6, 9)) * (1 - constancy) + rng.normal(size=(8, 6, 1)) * constancy
    mean, flat = kernel.mean(2), kernel.reshape(8, 54)
    near_mean = nearest_of_rank(mean, parameters // 14)[:, :, None]
    near_flat = nearest_of_rank(flat, parameters // 62).reshape(kernel.shape)
    left = [np.square(kernel - near).sum() for near in (near_mean, near_flat)]
    values = [torch.from_numpy(np.linalg.svd(matrix)[1]) for matrix in (mean, flat)]
    expected = "flatten" if left[1] < left[0] - 1e-12 * np.square(kernel).sum() else "spatial_mean"
    assert choose_conv_mode(*values, 8, 6, 9, parameters) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"approx_rate": 0}, "approx_rate is 0"),
        ({"approx_rate": -0.1}, "approx_rate is -0.1"),
        ({"approx_rate": 1.1}, "up to 1"),
        ({"approx_rate": float("nan")}, "approx_rate is nan"),
        ({"importance": [1, -1]}, "expected 0 or more"),
        ({"importance": [1]}, "importance has 1 entries, expected one for each of 2"),
        ({"kernel_sizes": [1, 2, 3]}, "kernel_sizes has 3"),
        ({"caps": [1]}, "caps has 1"),
        ({"caps": [1, -1]}, "0 or more"),
        ({"energies": [None]}, "energies has 1"),
        ({"min_rank": 3, "max_rank": 2}, "at least 3"),
        ({"min_rank": -1}, "min_rank is -1"),
        ({"singular_values": [torch.ones(2), torch.ones(0)]}, "no singular values"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    good = {"singular_values": [torch.ones(2)] * 2, "importance": [1, 1], "approx_rate": 0.9}
    with pytest.raises(ValueError, match=message):
        select_ranks(**{**good, **arguments})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(NonFiniteError, match="importance"):
        select_ranks([torch.ones(2)], [bad], 0.9)
    with pytest.raises(NonFiniteError, match="singular value"):
        select_ranks([torch.tensor([bad, 1.0])], [1], 0.9)
    with pytest.raises(NonFiniteError, match="importance"):
        ranks_within_budget([torch.ones(2)], torch.tensor([bad]), [1], 5)


def test_wrong_costs_are_named():
    with pytest.raises(ValueError, match="at least 1 each"):
        ranks_within_budget([torch.ones(2)], [1], [0], 5)
    with pytest.raises(ValueError, match="costs_per_rank has 2"):
        ranks_within_budget([torch.ones(2)], [1], [1, 2], 5)
