"""Promises of byte sections."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_compress.codec import ByteReader, ByteWriter, CorruptStreamError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def written(method, value):
    writer = ByteWriter()
    getattr(writer, method)(value)
    return writer.getvalue()


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_integers_come_back(numbers):
    writer = ByteWriter()
    for number in numbers:
        writer.write_uint(number)
    reader = ByteReader(writer.getvalue())
    assert [reader.read_uint() for _ in numbers] == numbers
    reader.finish()


@pytest.mark.parametrize(("number", "size"), [(0, 1), (127, 1), (128, 2), (300, 2), (2**63 - 1, 9)])
def test_small_integers_take_few_bytes(number, size):
    assert len(written("write_uint", number)) == size


@pytest.mark.parametrize("number", [-1, 2**63])
def test_integers_that_do_not_fit_are_refused(number):
    with pytest.raises(ValueError, match="expected"):
        ByteWriter().write_uint(number)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_tensors_come_back_bit_for_bit(dtype, shape):
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    data = written("write_tensor", tensor)
    assert len(data) == tensor.numel() * tensor.element_size()
    reader = ByteReader(memoryview(data))
    decoded = reader.read_tensor(dtype, shape)
    reader.finish()
    assert decoded.dtype == dtype
    assert torch.equal(decoded, tensor)
    decoded.zero_()  # the result owns writable memory


def test_nan_payloads_and_strides_survive():
    tensor = torch.tensor([0x7FC00001, -1, 0], dtype=torch.int32).view(torch.float32)
    data = written("write_tensor", tensor)
    decoded = ByteReader(data).read_tensor(torch.float32, (3,))
    assert torch.equal(decoded.view(torch.int32), tensor.view(torch.int32))
    table = torch.arange(6.0).reshape(2, 3).t()
    decoded = ByteReader(written("write_tensor", table)).read_tensor(torch.float32, (3, 2))
    assert torch.equal(decoded, table)


def test_numbers_are_little_endian():
    assert written("write_tensor", torch.tensor([1, 258])) == bytes(
        [1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]
    )


@given(st.binary(), st.binary())
def test_byte_strings_come_back_in_order(first, second):
    writer = ByteWriter()
    writer.write_bytes(first)
    writer.write_raw(second)
    reader = ByteReader(writer.getvalue())
    assert reader.read_bytes() == first
    assert reader.remaining == len(second)
    assert reader.read_raw(len(second)) == second
    reader.finish()


def test_announced_lengths_are_checked_before_memory_is_taken():
    huge = written("write_uint", 2**62) + b"abc"
    with pytest.raises(CorruptStreamError, match="truncated"):
        ByteReader(huge).read_bytes()
    with pytest.raises(CorruptStreamError, match="truncated"):
        ByteReader(b"abc").read_tensor(torch.float32, (2**40, 2**20))


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\xff" * 8, b"\xff" * 9, b"\xff" * 20, b"\x80\x00"]
)
def test_integers_that_never_end_or_are_padded_are_corrupt(data):
    with pytest.raises(CorruptStreamError):
        ByteReader(data).read_uint()


def test_bytes_left_over_are_corrupt():
    reader = ByteReader(b"\x01\x02")
    reader.read_uint()
    with pytest.raises(CorruptStreamError, match="left over"):
        reader.finish()


def test_a_boolean_that_is_neither_is_corrupt():
    with pytest.raises(CorruptStreamError, match="boolean"):
        ByteReader(b"\x00\x02").read_tensor(torch.bool, (2,))


@given(st.binary(max_size=40), st.lists(st.sampled_from(["uint", "bytes", "tensor"]), max_size=9))
def test_any_bytes_are_read_or_corrupt(data, reads):
    reader = ByteReader(data)
    try:
        for read in reads:
            if read == "uint":
                reader.read_uint()
            elif read == "bytes":
                reader.read_bytes()
            else:
                reader.read_tensor(torch.float32, (2,))
        reader.finish()
    except CorruptStreamError:
        pass


def test_unknown_dtypes_and_negative_sizes_are_refused():
    with pytest.raises(ValueError, match="dtype"):
        ByteWriter().write_tensor(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="shape"):
        ByteReader(b"").read_tensor(torch.float32, (-1,))
