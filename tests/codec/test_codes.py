"""Codes take the bits of their entropy and come back as they were."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_compress.codec import CorruptStreamError, pack_bits
from avalanche_compress.codec.codes import code_width, decode_codes, encode_codes


def entropy(codes: np.ndarray) -> float:
    counts = np.bincount(codes)
    shares = counts[counts > 0] / codes.size
    return float(-(shares * np.log2(shares)).sum())


@given(st.data(), st.integers(1, 300), st.integers(0, 500))
def test_codes_come_back(data, kinds, count):
    seed = data.draw(st.integers(0, 2**20))
    power = data.draw(st.floats(0.1, 8))
    codes = (np.random.default_rng(seed).random(count) ** power * kinds).astype(np.int32)
    encoded = encode_codes(torch.from_numpy(codes), kinds)
    assert decode_codes(encoded, count, kinds).tolist() == codes.tolist()
    assert len(encoded) <= 1 + len(pack_bits(torch.from_numpy(codes), code_width(kinds)))


@pytest.mark.parametrize(("kinds", "count"), [(4, 20_000), (16, 20_000), (64, 50_000)])
def test_length_is_within_one_percent_of_the_entropy(kinds, count):
    rng = np.random.default_rng(0)
    codes = np.clip(np.round(rng.normal(kinds / 2, kinds / 8, count)), 0, kinds - 1).astype(int)
    encoded = encode_codes(torch.from_numpy(codes), kinds)
    assert 8 * len(encoded) <= 1.01 * count * entropy(codes)


@pytest.mark.parametrize("kinds", [1, 5000])
def test_few_and_very_many_kinds_are_packed(kinds):
    codes = torch.arange(200) % kinds
    assert encode_codes(codes, kinds)[0] == 0
    assert torch.equal(decode_codes(encode_codes(codes, kinds), 200, kinds), codes.int())


@pytest.mark.parametrize("code", [3, -1, 2**32 + 1])
def test_a_code_outside_its_range_is_refused(code):
    with pytest.raises(ValueError, match="expected 0"):
        encode_codes(torch.tensor([0, code]), kinds=3)


def test_codes_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match="expected integers"):
        encode_codes(torch.tensor([0.5]), kinds=3)


def test_every_damaged_byte_gives_codes_of_the_range_or_a_named_error():
    codes = (torch.rand(400, generator=torch.Generator().manual_seed(0)) ** 4 * 6).int()
    encoded = encode_codes(codes, 6)
    assert encoded[0] == 1
    for position in range(len(encoded)):
        for flip in (1, 128):
            damaged = bytearray(encoded)
            damaged[position] ^= flip
            try:
                read = decode_codes(bytes(damaged), 400, 6)
            except CorruptStreamError:
                continue
            assert read.shape == (400,)
            assert 0 <= int(read.min()) <= int(read.max()) < 6


@pytest.mark.parametrize("damage", [b"", b"\x02", b"\x01abc", b"\x00"])
def test_what_cannot_be_codes_is_refused(damage):
    with pytest.raises(CorruptStreamError):
        decode_codes(damage, count=8, kinds=4)


def test_words_left_over_are_refused():
    codes = (torch.rand(400, generator=torch.Generator().manual_seed(0)) ** 4 * 6).int()
    with pytest.raises(CorruptStreamError, match="left over"):
        decode_codes(encode_codes(codes, 6) + bytes(8), 400, 6)
