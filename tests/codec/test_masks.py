"""Promises of mask coding."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    decode_mask,
    encode_mask,
    recall_mask,
    recall_mask_among,
)

SIZE = 40_000


def entropy_bytes(mask, context=None):
    context = torch.zeros(mask.numel()) if context is None else context
    bits = 0.0
    for value in context.unique():
        part = mask[context == value]
        for count in (int(part.sum()), int((~part).sum())):
            if count:
                bits -= count * math.log2(count / part.numel())
    return bits / 8


def random_mask(density, generator, size=SIZE):
    return torch.rand(size, generator=generator) < density


def inherited_mask(parent, share, generator):
    """As many ones as the parent has, a share of them in the same places."""
    kept = parent & (torch.rand(parent.numel(), generator=generator) < share)
    density = (parent.sum() - kept.sum()) / (~parent).sum()
    return kept | (~parent & (torch.rand(parent.numel(), generator=generator) < density))


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.01])
def test_a_random_mask_takes_its_entropy(density):
    mask = random_mask(density, torch.Generator().manual_seed(0))
    data = encode_mask(mask)
    assert torch.equal(decode_mask(data, SIZE), mask)
    assert len(data) <= 1.02 * entropy_bytes(mask) + 13


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.01])
def test_an_inherited_mask_takes_its_conditional_entropy(density):
    generator = torch.Generator().manual_seed(1)
    parent = random_mask(density, generator)
    owned = parent | random_mask(0.1, generator)
    mask = inherited_mask(parent, 0.8, generator)
    context = parent.to(torch.uint8) + 2 * owned
    data = encode_mask(mask, context)
    assert torch.equal(decode_mask(data, SIZE, context), mask)
    assert len(data) <= 1.02 * entropy_bytes(mask, context) + 9 + 4 * 3
    assert len(data) < 0.75 * len(encode_mask(mask))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(0, 400),
    st.sampled_from([0, 0.02, 0.5, 0.9, 1]),
    st.booleans(),
)
def test_any_mask_comes_back_and_is_never_longer_than_plain_bits(
    seed, size, density, given_context
):
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(density, generator, size)
    context = torch.randint(0, 16, (size,), generator=generator) if given_context else None
    data = encode_mask(mask, context)
    assert torch.equal(decode_mask(data, size, context), mask)
    assert len(data) <= -(-size // 8) + 1


@pytest.mark.parametrize("size", [4095, 4096, 4099, 30_001])
@pytest.mark.parametrize("density", [0.5, 0.9, 0.06, 0.003, 0.97, "one", "all but one"])
def test_symbols_of_eight_bits_and_gaps_are_as_short_as_single_bits(size, density):
    mask = torch.arange(size) == 4000
    if density == "all but one":
        mask = ~mask
    elif density != "one":
        mask = random_mask(density, torch.Generator().manual_seed(size), size)
    data = encode_mask(mask)
    assert torch.equal(decode_mask(data, size), mask)
    assert torch.equal(recall_mask(data, size), mask)
    assert len(data) <= min(entropy_bytes(mask) * 1.001 + 12, size / 8 + 2)


@pytest.mark.parametrize("value", [False, True])
def test_a_constant_mask_takes_one_byte(value):
    mask = torch.full((3, 1000), value)
    data = encode_mask(mask)
    assert len(data) == 1
    assert torch.equal(decode_mask(data, 3000), mask.reshape(-1))


def test_an_empty_mask_works():
    empty = torch.empty(0, dtype=torch.bool)
    for context in (None, torch.empty(0, dtype=torch.uint8)):
        assert torch.equal(decode_mask(encode_mask(empty, context), 0, context), empty)
    for data in (b"\x01", b"\x02", b"\x03\x00"):
        for read in (decode_mask, recall_mask):
            with pytest.raises(CorruptStreamError, match="of nothing"):
                read(data, 0)


def test_a_decided_context_costs_only_its_count():
    context = torch.arange(10_000) % 3
    data = encode_mask(context == 1, context)
    assert len(data) <= 1 + 3 * 2
    assert torch.equal(decode_mask(data, 10_000, context), context == 1)


def test_an_incompressible_mask_is_stored_plainly():
    mask = random_mask(0.5, torch.Generator().manual_seed(0), 64)
    data = encode_mask(mask)
    assert data[0] == 2
    assert len(data) == 9


def coded_example(name="bits"):
    """A mask of single bits, of eight bits a symbol or of gaps; its size and context."""
    generator = torch.Generator().manual_seed(3)
    size, density = {"bits": (2000, 0.2), "words": (9000, 0.2), "gaps": (40_000, 0.004)}[name]
    parent = random_mask(density, generator, size)
    context = parent.to(torch.uint8)
    return encode_mask(inherited_mask(parent, 0.8, generator), context), size, context


EXAMPLES = st.sampled_from(["bits", "words", "gaps"])


@settings(max_examples=200, deadline=None)
@given(
    EXAMPLES,
    st.integers(0, 10**6),
    st.integers(0, 255),
    st.integers(0, 12),
    st.binary(max_size=5),
)
def test_damaged_data_is_corrupt_or_another_mask(name, position, byte, cut, tail):
    original, size, context = coded_example(name)
    assert original[0] == 3
    data = bytearray(original)
    data[position % len(data)] ^= byte
    damaged = bytes(data[: len(data) - cut]) + tail
    try:
        mask = decode_mask(damaged, size, context)
    except CorruptStreamError:
        return
    assert mask.shape == (size,)
    assert damaged[0] != 3 or encode_mask(mask, context) == damaged


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30), st.sampled_from([0, 1, 7, 100, 200, 4096, 70_000]))
def test_any_bytes_are_a_mask_or_corrupt(data, count):
    for head in (b"", b"\x00", b"\x01", b"\x02", b"\x03"):
        for read in (decode_mask, recall_mask):
            with contextlib.suppress(CorruptStreamError):
                assert read(head + data, count).shape == (count,)


@settings(max_examples=200, deadline=None)
@given(EXAMPLES, st.integers(0, 10**6), st.integers(1, 255))
def test_a_mask_that_a_checksum_vouches_for_is_refused_or_has_the_ones_that_are_announced(
    name, position, byte
):
    original, size, context = coded_example(name)
    data = bytearray(original)
    data[position % len(data)] ^= byte
    try:
        mask = recall_mask(bytes(data), size, context)
    except CorruptStreamError:
        return
    if data[0] == 3:
        announced = ByteReader(bytes(data[1:])).read_uint()
        assert int(mask[context == 0].sum()) == announced


@pytest.mark.parametrize("far", [0, 1, 4, 7, 40, 1 << 40])
def test_a_wrong_number_of_long_gaps_is_corrupt(far):
    mask = torch.zeros(10_000, dtype=torch.bool)
    mask[[700, 2000]] = True  # two gaps of 255 before the first one and five before the second
    data = encode_mask(mask)
    assert data[:3] == b"\x03\x02\x07"
    writer = ByteWriter()
    writer.write_uint(far)
    for read in (decode_mask, recall_mask):
        with contextlib.nullcontext() if far == 7 else pytest.raises(CorruptStreamError):
            assert torch.equal(read(data[:2] + writer.getvalue() + data[3:], 10_000), mask)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("size", [0, 9, 5000, 30_001])
def test_a_part_of_a_mask_is_recalled_where_it_belongs(size, density):
    generator = torch.Generator().manual_seed(size)
    context = torch.randint(-1, 3, (size,), generator=generator)
    mask = torch.rand(size, generator=generator) < density
    among = context >= 0
    data = encode_mask(mask[among], context[among])
    groups = [context == value for value in range(3)]
    rest = ~among & (torch.rand(size, generator=generator) < 0.5)
    found = recall_mask_among(data, rest.clone(), groups)
    assert torch.equal(found, torch.where(among, mask, rest))
    for wrong in (data + bytes(12), bytes([9]), b""):
        with pytest.raises(CorruptStreamError):
            recall_mask_among(wrong, rest.clone(), groups)


def test_words_that_are_left_over_are_refused_even_behind_a_checksum():
    original, size, context = coded_example()
    assert torch.equal(recall_mask(original, size, context), decode_mask(original, size, context))
    with pytest.raises(CorruptStreamError, match="left over"):
        recall_mask(original + bytes(12), size, context)


def test_every_truncation_and_every_extra_byte_is_corrupt():
    generator = torch.Generator().manual_seed(0)
    for density in (0, 0.1, 0.5, 1):
        mask = random_mask(density, generator, 1500)
        data = encode_mask(mask)
        for size in range(len(data)):
            with pytest.raises(CorruptStreamError):
                decode_mask(data[:size], 1500)
        for tail in (b"\x00", b"\x00" * 4, b"\xff" * 4):
            with pytest.raises(CorruptStreamError):
                decode_mask(data + tail, 1500)


@pytest.mark.parametrize(
    "data", [b"", b"\x04", b"\x03\xe9\x07", b"\x03\x05" + b"\x00" * 3, b"\x03\x05"]
)
def test_contradictions_are_corrupt(data):
    with pytest.raises(CorruptStreamError):
        decode_mask(data, 1000)


@pytest.mark.parametrize(
    "context",
    [torch.zeros(3).int(), torch.full((4,), 16), torch.full((4,), -1), torch.zeros(4)],
)
def test_contexts_that_do_not_fit_are_named(context):
    mask = torch.tensor([True, False, True, True])
    with pytest.raises(ValueError, match="context"):
        encode_mask(mask, context)
    with pytest.raises(ValueError, match="context"):
        decode_mask(b"\x00", 4, context)


def test_masks_of_numbers_and_negative_counts_are_refused():
    with pytest.raises(ValueError, match="bool"):
        encode_mask(torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="count"):
        decode_mask(b"\x00", -1)
