"""Promises of bit packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import (
    CorruptStreamError,
    pack_bits,
    pack_mask,
    unpack_bits,
    unpack_mask,
)


def reference(codes, width):
    bits = [code >> place & 1 for code in codes for place in range(width)]
    return np.packbits(np.array(bits, dtype=np.uint8), bitorder="little").tolist()


@pytest.mark.parametrize("width", range(1, 17))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_codes_come_back_at_every_width_and_lie_least_significant_bit_first(width, data):
    codes = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=70))
    packed = pack_bits(torch.tensor(codes, dtype=torch.int32), width)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == reference(codes, width)
    decoded = unpack_bits(packed, width, len(codes))
    assert decoded.dtype == torch.int32
    assert decoded.tolist() == codes


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype_and_shape_packs_the_same(dtype):
    codes = torch.arange(30).reshape(5, 6).t()
    expected = pack_bits(codes.reshape(-1), 5)
    assert torch.equal(pack_bits(codes.to(dtype), 5), expected)


@given(st.lists(st.booleans(), max_size=50))
def test_a_mask_packs_like_codes_of_one_bit(bits):
    mask = torch.tensor(bits, dtype=torch.bool)
    packed = pack_mask(mask)
    assert torch.equal(packed, pack_bits(mask.int(), 1))
    assert torch.equal(unpack_mask(packed, len(bits)), mask)


@pytest.mark.parametrize("width", [0, 17, -1])
def test_other_widths_are_refused(width):
    with pytest.raises(ValueError, match="width"):
        pack_bits(torch.tensor([0]), width)
    with pytest.raises(ValueError, match="width"):
        unpack_bits(torch.tensor([0], dtype=torch.uint8), width, 1)


@pytest.mark.parametrize(("code", "width"), [(-1, 4), (16, 4), (65536, 16), (2, 1)])
def test_codes_that_do_not_fit_are_refused(code, width):
    with pytest.raises(ValueError, match="wider"):
        pack_bits(torch.tensor([0, code]), width)


def test_floating_codes_and_masks_of_numbers_are_refused():
    with pytest.raises(ValueError, match="integers"):
        pack_bits(torch.tensor([1.0]), 4)
    with pytest.raises(ValueError, match="bool"):
        pack_mask(torch.tensor([1]))


@pytest.mark.parametrize("width", range(1, 17))
def test_a_wrong_length_is_corrupt(width):
    packed = pack_bits(torch.zeros(9, dtype=torch.int32), width)
    for damaged in (packed[:-1], torch.cat((packed, packed[:1]))):
        with pytest.raises(CorruptStreamError):
            unpack_bits(damaged, width, 9)


def test_padding_that_is_not_zero_is_corrupt():
    with pytest.raises(CorruptStreamError, match="padding"):
        unpack_bits(torch.tensor([0b1000], dtype=torch.uint8), 3, 1)
    with pytest.raises(CorruptStreamError, match="padding"):
        unpack_mask(torch.tensor([0b1000], dtype=torch.uint8), 3)


def test_a_negative_count_or_another_dtype_is_refused():
    with pytest.raises(ValueError, match="count"):
        unpack_bits(torch.empty(0, dtype=torch.uint8), 3, -1)
    with pytest.raises(ValueError, match="uint8"):
        unpack_mask(torch.tensor([1]), 3)
