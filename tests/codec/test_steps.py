"""Multiples of a step: they come back bit for bit, at about the bits that were asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    Steps,
    quantise_steps,
    read_values,
    skip_values,
    write_values,
)
from avalanche_compress.codec.values import size_of


def written(values) -> bytes:
    writer = ByteWriter()
    write_values(values, writer)
    return writer.getvalue()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=50),
    st.floats(0.25, 16),
    st.integers(1, 16),
)
def test_what_was_written_is_read_back_bit_for_bit(numbers, bits, most_bits):
    values = quantise_steps(torch.tensor(numbers), bits, most_bits)
    data = written(values)
    reader = ByteReader(data)
    back = read_values(reader, len(numbers), torch.float32)
    reader.finish()
    assert torch.equal(back.decode(), values.decode())
    assert torch.equal(back.words(), values.words())
    assert values.bits <= most_bits
    assert bool((values.words() < 1 << values.bits).all())
    assert skip_values(ByteReader(data), len(numbers), torch.float32) == values.bits


@pytest.mark.parametrize("bits", [1.5, 2, 3, 4, 6])
def test_the_length_is_what_was_asked_for_and_the_error_near_the_bound(bits):
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    kept = quantise_steps(values, bits)
    rate = 8 * size_of(kept) / len(values)
    assert bits - 0.05 <= rate <= bits + 0.2
    error = float((values - kept.decode()).square().mean())
    # the rate-distortion function of a normal source, and a quarter of a bit
    assert -0.5 * math.log2(error) >= rate - 0.3


def test_values_are_rounded_to_a_grid_and_moved_by_what_they_are_off_on_average():
    values = torch.randn(500, generator=torch.Generator().manual_seed(1)).numpy()
    kept = quantise_steps(torch.from_numpy(values), 1.5)
    step = float(kept.step)
    grid = np.round(values / step) * step
    off = (np.abs(grid) - np.abs(values))[grid != 0].mean()
    assert off > 0.05 * step
    expected = grid - np.sign(grid) * off
    assert np.allclose(kept.decode().numpy(), expected, atol=step / 100)
    assert np.square(values - kept.decode().numpy()).mean() < np.square(values - grid).mean()


@pytest.mark.parametrize("numbers", [[], [0.0, 0.0], [5.0], [1e-45, 0.0], [3e38, -3e38]])
def test_extreme_values_are_kept(numbers):
    values = quantise_steps(torch.tensor(numbers), 16)
    back = read_values(ByteReader(written(values)), len(numbers), torch.float32).decode()
    assert back.isfinite().all()
    assert torch.allclose(back, torch.tensor(numbers), rtol=1e-3)


def test_each_damaged_byte_gives_values_or_the_error():
    data = written(quantise_steps(torch.randn(40), 3))
    for place in range(len(data)):
        for change in (1, 128, 255):
            damaged = bytes([*data[:place], data[place] ^ change, *data[place + 1 :]])
            try:
                values = read_values(ByteReader(damaged), 40, torch.float32)
            except CorruptStreamError:
                continue
            assert len(values.decode()) == 40


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="finite"):
        quantise_steps(torch.tensor([float("nan")]), 4)
    with pytest.raises(ValueError, match="1 to 16"):
        quantise_steps(torch.ones(2), 4, 17)


def test_floats_where_they_are_smaller():
    few = quantise_steps(torch.tensor([1.0]), 16)
    assert size_of(few.smallest()) == 4
    assert isinstance(quantise_steps(torch.randn(100), 4).smallest(), Steps)
