"""Statistics of tasks as bytes: types and sizes come back, and damage is refused."""

from __future__ import annotations

import pytest
import torch

from avalanche_compress.codec import ByteReader, ByteWriter, CorruptStreamError
from avalanche_compress.core.statistics import read_statistics, write_statistics


def written(statistics):
    writer = ByteWriter()
    write_statistics(writer, statistics)
    return writer.getvalue()


def record(name, words, content):
    writer = ByteWriter()
    writer.write_uint(1)
    writer.write_bytes(name)
    writer.write_uint(words)
    writer.write_raw(content)
    return writer.getvalue()


def test_types_and_sizes_come_back():
    statistics = {
        "a": torch.randn(5),
        "b": torch.randint(-128, 128, (2, 3, 5), dtype=torch.int8),
        "c": torch.randn(3, 1).half(),
        "d": torch.randn(2, 2),
        "e": torch.zeros(0, 4, dtype=torch.int8),
    }
    read = read_statistics(ByteReader(written(statistics)))
    assert list(read) == list(statistics)
    for name, tensor in statistics.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_number_of_a_type_takes_the_bytes_of_the_type():
    def size(dtype):
        return len(written({"a": torch.zeros(30, 40, dtype=dtype)}))

    assert size(torch.float32) - size(torch.float16) == 2400
    assert size(torch.float16) - size(torch.int8) == pytest.approx(1200, abs=4)


def test_a_vector_of_floats_is_written_as_in_version_1():
    assert written({"a": torch.ones(2)}) == b"\x01\x01a\x02" + 2 * b"\x00\x00\x80\x3f"


def test_a_reader_of_float32_vectors_passes_over_other_types():
    reader = ByteReader(written({"a": torch.ones(3, 3, dtype=torch.int8)}))
    assert reader.read_uint() == 1
    reader.read_bytes()
    reader.read_tensor(torch.float32, (reader.read_uint(),))
    reader.finish()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (b"a\0int8\0005", 1),  # five bytes are two words
        (b"a\0int8\0999999999,999999999", 2),
        (b"a\0int8\0-4", 1),
        (b"a\0int8\0" + b",".join([b"1"] * 9), 1),
        (b"a\0int8\0", 1),
        (b"a\0int8", 1),
        (b"a\0int16\0002", 1),
        (b"a\0float32\0001", 1),  # would be a second way to write a vector
        (b"a\0int8\0004\0", 1),
    ],
)
def test_damage_is_refused(name, words):
    with pytest.raises(CorruptStreamError):
        read_statistics(ByteReader(record(name, words, bytes(4 * words))))


def test_what_fills_up_is_zero():
    with pytest.raises(CorruptStreamError, match="filled up"):
        read_statistics(ByteReader(record(b"a\0int8\0003", 1, b"\0\0\0\1")))


def test_two_of_one_name_are_refused():
    twice = record(b"a\0int8\0004", 1, bytes(4))[1:]
    with pytest.raises(CorruptStreamError, match="out of order"):
        read_statistics(ByteReader(b"\x02" + twice + record(b"a\0float16\0002", 1, bytes(4))[1:]))
