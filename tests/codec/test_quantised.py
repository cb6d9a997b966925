"""Promises of quantised tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import (
    Codebook,
    FixedPoint,
    fixed_point,
    kmeans_1d,
    pack_bits,
    quantise_codebook,
    quantise_fixed_point,
    unpack_bits,
)


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 500), st.integers(1, 8))
def test_a_codebook_holds_what_kmeans_found_and_survives_packing(seed, size, bits):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    book = quantise_codebook(values, bits)
    centroids, codes = kmeans_1d(values, 2**bits)
    assert torch.equal(book.decode(), centroids[codes.long()])
    assert book.bits <= bits
    codes = unpack_bits(pack_bits(book.codes, book.bits), book.bits, size)
    assert torch.equal(Codebook(codes, book.centroids).decode(), book.decode())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 500), st.integers(2, 16))
def test_fixed_point_survives_packing_with_an_offset(seed, size, bits):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    word = quantise_fixed_point(values, bits)
    assert torch.equal(word.codes, fixed_point(values, bits)[0])
    offset = 2 ** (bits - 1)
    codes = unpack_bits(pack_bits(word.codes + offset, bits), bits, size) - offset
    assert torch.equal(FixedPoint(codes, bits, word.fraction_bits).decode(), word.decode())


@pytest.mark.parametrize("count, bits", [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8)])
def test_bits_are_the_fewest_that_name_every_centroid(count, bits):
    assert Codebook(int32([]), torch.arange(float(count))).bits == bits


@pytest.mark.parametrize("quantise", [quantise_codebook, quantise_fixed_point])
def test_nothing_and_all_zero_are_quantised_without_error(quantise):
    for values in (torch.empty(0), torch.zeros(7)):
        assert torch.equal(quantise(values, 4).decode(), values)


def test_quantising_to_a_codebook_twice_changes_nothing():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    once = quantise_codebook(values, 5).decode()
    assert torch.equal(quantise_codebook(once, 5).decode(), once)


def test_codes_without_a_centroid_are_refused():
    for codes in ([2], [-1]):
        with pytest.raises(ValueError, match="codes span"):
            Codebook(int32(codes), torch.tensor([0.0, 1.0]))


def test_codes_that_do_not_fit_the_word_are_refused():
    for code in (8, -8):
        with pytest.raises(ValueError, match="codes span"):
            FixedPoint(int32([code]), bits=4, fraction_bits=0)


def test_wrong_shapes_dtypes_and_widths_are_refused():
    with pytest.raises(ValueError, match="flatten"):
        Codebook(int32([[0]]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="int32"):
        Codebook(torch.tensor([0]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="bits"):
        FixedPoint(int32([0]), bits=17, fraction_bits=0)
    with pytest.raises(ValueError, match="bits"):
        quantise_codebook(torch.zeros(3), 17)
