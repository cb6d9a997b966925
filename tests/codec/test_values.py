"""Kept values come back bit for bit, and no bytes do more than be refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    quantise_codebook,
    quantise_fixed_point,
)
from avalanche_compress.codec.values import bits_of, decoded, read_values, write_values

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def written(values):
    writer = ByteWriter()
    write_values(values, writer)
    return writer.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 300),
    bits=st.integers(2, 16),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    form=st.sampled_from(["floats", "codebook", "fixed point"]),
)
def test_values_come_back_bit_for_bit(seed, count, bits, scale, form):
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale
    if form == "codebook":
        values = quantise_codebook(values, min(bits, 6))
    elif form == "fixed point":
        values = quantise_fixed_point(values, bits)
    reader = ByteReader(written(values))
    read = read_values(reader, count, torch.float32)
    reader.finish()
    assert torch.equal(decoded(read), decoded(values)) and bits_of(read) == bits_of(values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_floats_of_every_precision_come_back(dtype):
    values = torch.randn(50).to(dtype)
    read = read_values(ByteReader(written(values)), 50, dtype)
    assert read.dtype == dtype and torch.equal(read, values)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.integers(0, 3),
    data=st.binary(max_size=60),
    count=st.integers(0, 60),
    dtype=st.sampled_from(DTYPES),
)
def test_any_bytes_are_values_or_corrupt(kind, data, count, dtype):
    reader = ByteReader(bytes([kind]) + data)
    try:
        values = read_values(reader, count, dtype)
    except CorruptStreamError:
        return
    assert decoded(values).shape == (count,) and 1 <= bits_of(values) <= 64


@pytest.mark.parametrize("head", [[0], [1, 2], [1, 1 << 16], [1, 1 << 62], [2, 8, 4], [2, 16, 0]])
@pytest.mark.parametrize("count", [1 << 33, 1 << 62, 1 << 90])
def test_counts_of_terabytes_are_refused_at_once(head, count):
    writer = ByteWriter()
    for number in head:
        writer.write_uint(number)
    writer.write_raw(b"\0" * 100)
    with pytest.raises(CorruptStreamError):
        read_values(ByteReader(writer.getvalue()), count, torch.float32)


@pytest.mark.parametrize(
    "numbers",
    [
        [3],
        [1, 0],
        [1, (1 << 16) + 1],
        [2, 0, 0],
        [2, 1, 0],
        [2, 17, 0],
        [2, 8, 2033],
        [2, 8, 1 << 62],
    ],
)
def test_widths_and_exponents_that_no_encoder_writes_are_refused(numbers):
    writer = ByteWriter()
    for number in numbers:
        writer.write_uint(number)
    writer.write_raw(b"\x01" * 400_000)
    with pytest.raises(CorruptStreamError):
        read_values(ByteReader(writer.getvalue()), 3, torch.float32)
