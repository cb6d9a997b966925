"""Promises of dynamic fixed point."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_compress.codec import fixed_point, from_fixed_point

GOLDEN = torch.tensor([0.3, -0.7, 0.051, 0.9999, -1.3, 0.0])


@pytest.mark.parametrize(
    ("bits", "fraction", "expected"),
    [
        (4, 2, [0.25, -0.75, 0, 1, -1.25, 0]),
        (8, 6, [0.296875, -0.703125, 0.046875, 1, -1.296875, 0]),
    ],
)
def test_golden_cases(bits, fraction, expected):
    codes, fraction_bits = fixed_point(GOLDEN, bits)
    assert fraction_bits == fraction
    assert from_fixed_point(codes, fraction_bits).tolist() == expected


def test_the_largest_value_is_clipped_to_the_word():
    codes, fraction_bits = fixed_point(torch.tensor([3.99, -3.99]), 4)
    assert (codes.tolist(), fraction_bits) == ([7, -7], 1)


@given(
    st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=20), st.integers(2, 16)
)
def test_codes_are_those_of_the_formula(numbers, bits):
    values = np.array(numbers)
    largest = np.abs(values).max()
    exponent = 0 if largest == 0 else math.frexp(largest)[1] - (math.frexp(largest)[0] == 0.5)
    shift = bits - 1 - exponent
    bound = 2 ** (bits - 1) - 1
    expected = np.clip(np.round(np.ldexp(values, shift)), -bound, bound)
    codes, fraction_bits = fixed_point(torch.from_numpy(values), bits)
    assert fraction_bits == shift
    assert codes.dtype == torch.int32
    assert codes.tolist() == expected.astype(int).tolist()


@given(st.integers(0, 2**31), st.integers(2, 16), st.floats(1e-6, 1e6))
def test_the_error_is_at_most_half_a_step_inside_the_range(seed, bits, scale):
    values = torch.randn(50, generator=torch.Generator().manual_seed(seed)).double() * scale
    codes, fraction_bits = fixed_point(values, bits)
    inside = codes.abs() < 2 ** (bits - 1) - 1
    error = (from_fixed_point(codes, fraction_bits, torch.float64) - values).abs()
    assert (error[inside] <= 0.5 * 2.0**-fraction_bits).all()


def test_powers_of_two_need_no_extra_integer_bit():
    assert [fixed_point(torch.tensor([2.0**power]), 8)[1] for power in (-3, 0, 3)] == [10, 7, 4]


def test_halves_round_to_even():
    codes, _ = fixed_point(torch.tensor([1.0, 0.375, 0.125, -0.375]), 3)
    assert codes.tolist() == [3, 2, 0, -2]


@pytest.mark.parametrize("values", [torch.zeros(3), torch.empty(0), torch.empty(2, 0)])
def test_zeros_and_nothing_use_the_whole_word_for_the_fraction(values):
    codes, fraction_bits = fixed_point(values, 6)
    assert fraction_bits == 5
    assert torch.equal(from_fixed_point(codes, fraction_bits), values.reshape(-1))


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 3e38])
def test_the_ends_of_float32_survive(largest):
    codes, fraction_bits = fixed_point(torch.tensor([largest]), 16)
    decoded = from_fixed_point(codes, fraction_bits)
    torch.testing.assert_close(decoded, torch.tensor([largest]), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        (torch.tensor([1.0]), 1),
        (torch.tensor([1.0]), 17),
        (torch.tensor([1]), 4),
        (torch.tensor([float("nan")]), 4),
        (torch.tensor([float("-inf")]), 4),
    ],
)
def test_wrong_arguments_are_named(values, bits):
    with pytest.raises(ValueError, match="expected"):
        fixed_point(values, bits)


def test_an_absurd_fraction_is_refused():
    with pytest.raises(ValueError, match="fraction"):
        from_fixed_point(torch.tensor([1]), 10**6)
