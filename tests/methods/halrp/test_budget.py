"""Pruning of factor entries: the golden case of the public code, and exact counts."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.errors import NonFiniteError
from avalanche_compress.methods.halrp.budget import (
    growth_bound_count,
    prune_to_count,
)

SIGNS = torch.tensor([1.0, -1.0])
A = (torch.arange(1, 13) * SIGNS.repeat(6) / 100).reshape(2, 6)
U = (torch.arange(13, 21) * SIGNS.repeat(4) / 100).reshape(4, 2)
BASE, FIXED, ENTRIES = 100, 11, 20


def kept(masks):
    return [int(mask.sum()) for mask in masks]


def test_golden_case_a_floor_alone_leaves_126():
    masks = prune_to_count([A, U], keep=ENTRIES, floor=0.05)
    assert BASE + FIXED + sum(kept(masks)) == 126


def test_golden_case_the_exact_count_meets_the_bound():
    keep = growth_bound_count(BASE, 0.2, FIXED)
    assert keep == 9
    masks = prune_to_count([A, U], keep)
    assert kept(masks) == [1, 8]
    assert BASE + FIXED + sum(kept(masks)) == 120


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.integers(-4, 4).map(float), max_size=8), max_size=4),
    st.integers(0, 35),
    st.sampled_from([0.0, 1.0, 2.5]),
)
def test_exactly_the_largest_stay_and_ties_go_in_order(entries, keep, floor):
    masks = prune_to_count([torch.tensor(values) for values in entries], keep, floor)
    places = sorted(
        (-abs(value), layer, index)
        for layer, values in enumerate(entries)
        for index, value in enumerate(values)
        if abs(value) > floor
    )
    found = {
        (layer, index)
        for layer, mask in enumerate(masks)
        for index, stays in enumerate(mask.tolist())
        if stays
    }
    assert found == {(layer, index) for _, layer, index in places[:keep]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_dtypes_do_not_matter(dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in ((7, 3), (2, 9))]
    tensors[0].requires_grad_()
    masks = prune_to_count(tensors, 11)
    assert [mask.shape for mask in masks] == [(7, 3), (2, 9)]
    assert all(mask.dtype == torch.bool for mask in masks)
    assert sum(kept(masks)) == 11
    smallest = min(tensor[mask].abs().min() for tensor, mask in zip(tensors, masks))
    largest = max(tensor[~mask].abs().max() for tensor, mask in zip(tensors, masks))
    assert smallest >= largest


def test_nothing_to_prune_is_no_error():
    assert prune_to_count([], 3) == []
    assert kept(prune_to_count([torch.empty(2, 0), torch.zeros(3)], 3)) == [0, 0]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**8), st.integers(0, 1000), st.integers(0, 10**5))
def test_the_count_is_exact_or_the_smallest_bound_is_named(base, thousandths, fixed):
    bound, allowed = thousandths / 1000, thousandths * base // 1000
    if fixed <= allowed:
        assert growth_bound_count(base, bound, fixed) == allowed - fixed
        return
    with pytest.raises(ValueError, match="at least") as error:
        growth_bound_count(base, bound, fixed)
    least = float(re.search(r"at least (\S+)\.$", str(error.value)).group(1))
    left = growth_bound_count(base, least, fixed)
    assert 0 <= left <= 1 + 2e-3 * fixed


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="keep is -1"):
        prune_to_count([A], -1)
    with pytest.raises(ValueError, match="finite fraction"):
        growth_bound_count(100, float("nan"), 3)
    with pytest.raises(ValueError, match=r"at least 0\.11\."):
        growth_bound_count(100, 0.1, 11)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            prune_to_count([torch.tensor([1.0, bad])], 1)
