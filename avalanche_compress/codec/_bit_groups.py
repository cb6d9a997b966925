"""Range coding of groups of bits: one by one, eight at once, or as the gaps between rare ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import constriction
import numpy as np

from avalanche_compress.codec.errors import CorruptStreamError
from avalanche_compress.codec.stream import ByteReader, ByteWriter

_WORD = 8
"""Bits of a symbol in a long group: one search in 256 of them takes a third of eight in two."""
_LONG = 4096
"""Elements from which on a group has such symbols: their model takes as long as 3,000 bits."""
_SPARSE = 16
"""If one element in so many differs from the others, or fewer, the gaps between them are coded."""
_FAR = 255
"""The symbol for a gap of so many elements that is not at its end."""


def encode_groups(parts: Sequence[np.ndarray]) -> bytes:
    """Code groups of bits, each with the share of its ones.

    :param parts: bool arrays.
    :return: counts of ones and of long gaps, then words of the range coder; sizes are not in it.
    """
    writer = ByteWriter()
    coder = constriction.stream.queue.RangeEncoder()
    for part in parts:
        ones = int(np.count_nonzero(part))
        writer.write_uint(ones)
        group = _Group(ones, part.size, 0)
        if group.is_sparse:
            symbols = _gap_symbols(np.flatnonzero(part if ones == group.rare else ~part))
            writer.write_uint(symbols.size - group.rare)
            coder.encode(symbols, _gaps(group))
        elif 0 < ones < part.size:
            split = group.words * _WORD
            if split:
                symbols = np.packbits(part[:split]).astype(np.int32)
                coder.encode(symbols, _eight_bernoullis(group))
            coder.encode(part[split:].astype(np.int32), _bernoulli(group))
    writer.write_raw(coder.get_compressed().astype("<u4").tobytes())
    return writer.getvalue()


def decode_groups(reader: ByteReader, sizes: Sequence[int]) -> list[np.ndarray]:
    """The inverse of :func:`encode_groups`.

    :param reader: of nothing else from here on.
    :param sizes: how many bits each group has.
    :return: bool arrays.
    :raises CorruptStreamError: if the data does not fit; spare bits at its end go unnoticed.
    """
    groups = [_read_group(reader, size) for size in sizes]
    decoder = constriction.stream.queue.RangeDecoder(_read_words(reader))
    parts = [_decode_part(decoder, group) for group in groups]
    if not decoder.maybe_exhausted():
        raise CorruptStreamError("words of code are left over, expected none; data is damaged.")
    return parts


class _Group(NamedTuple):
    """What is said of a group before its code."""

    ones: int
    size: int
    far: int
    """Symbols of gaps that go on; 0 where no gaps are coded."""

    @property
    def rare(self) -> int:
        """How many elements differ from the others."""
        return min(self.ones, self.size - self.ones)

    @property
    def is_sparse(self) -> bool:
        """Whether gaps are coded."""
        return self.size >= _LONG and 0 < self.rare * _SPARSE <= self.size

    @property
    def words(self) -> int:
        """How many symbols of eight bits a group begins with; the rest of it are single bits."""
        return self.size // _WORD if self.size >= _LONG else 0


def _read_group(reader: ByteReader, size: int) -> _Group:
    group = _Group(reader.read_uint(), size, 0)
    if group.ones > size:
        raise CorruptStreamError(
            f"{group.ones} ones are announced among {size} elements; the data is damaged."
        )
    if group.is_sparse:
        group = group._replace(far=reader.read_uint())
    if group.far * _FAR > size:
        raise CorruptStreamError(
            f"{group.far} gaps of {_FAR} are announced among {size} elements; the data is damaged."
        )
    return group


def _read_words(reader: ByteReader) -> np.ndarray:
    if reader.remaining % 4:
        raise CorruptStreamError(
            f"{reader.remaining} bytes of code were found, expected whole 32-bit words; the data "
            "is truncated."
        )
    return np.frombuffer(reader.read_raw(reader.remaining), dtype="<u4").astype(np.uint32)


def _decode_part(decoder: constriction.stream.queue.RangeDecoder, group: _Group) -> np.ndarray:
    if not group.rare:
        return np.full(group.size, group.ones > 0, dtype=np.bool_)
    try:
        bits = (_decode_gaps if group.is_sparse else _decode_bits)(decoder, group)
    except AssertionError as error:
        raise CorruptStreamError(
            "the range coder found an impossible word, expected coded symbols; the data is damaged."
        ) from error
    ones = np.count_nonzero(bits)
    if ones != group.ones:
        raise CorruptStreamError(
            f"{ones} ones are among {group.size} elements, expected {group.ones}; the data is "
            "damaged or the context is another one."
        )
    return bits


def _decode_bits(decoder: constriction.stream.queue.RangeDecoder, group: _Group) -> np.ndarray:
    split = group.words * _WORD
    bits = np.empty(group.size, dtype=np.uint8)
    if split:
        symbols = decoder.decode(_eight_bernoullis(group), group.words).astype(np.uint8)
        bits[:split] = np.unpackbits(symbols)
    bits[split:] = decoder.decode(_bernoulli(group), group.size - split)
    return bits.view(np.bool_)


def _decode_gaps(decoder: constriction.stream.queue.RangeDecoder, group: _Group) -> np.ndarray:
    symbols = decoder.decode(_gaps(group), group.rare + group.far)
    ends = symbols < _FAR
    positions = np.cumsum(symbols + ends, dtype=np.int64)[ends] - 1
    if positions.size != group.rare or not ends[-1] or positions[-1] >= group.size:
        raise CorruptStreamError(
            f"{positions.size} gaps of {group.rare} end within {group.size} elements; the data is "
            "damaged or the context is another one."
        )
    bits = np.full(group.size, group.rare < group.ones, dtype=np.bool_)
    bits[positions] = group.rare == group.ones
    return bits


def _gap_symbols(positions: np.ndarray) -> np.ndarray:
    """The gap before each position: as many 255 as fit into it, then what is left."""
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(gaps // _FAR + 1) - 1
    symbols = np.full(ends[-1] + 1, _FAR, dtype=np.int32)
    symbols[ends] = gaps % _FAR
    return symbols


def _bernoulli(group: _Group) -> constriction.stream.model.Bernoulli:
    # One float64 division of integers is the same on every machine, and ``perfect`` is explicit
    # because its default differs between versions: both decide how the data reads back.
    return constriction.stream.model.Bernoulli(group.ones / group.size, perfect=False)


def _eight_bernoullis(group: _Group) -> constriction.stream.model.Categorical:
    """The model of eight bits at once, the first of them the most significant."""
    word = np.array([(group.size - group.ones) / group.size, group.ones / group.size])
    # Products in one fixed order are the same on every machine, as no power function is.
    while word.size < 1 << _WORD:
        word = np.multiply.outer(word, word).reshape(-1)
    return constriction.stream.model.Categorical(word, perfect=False)


def _gaps(group: _Group) -> constriction.stream.model.Categorical:
    """The model of the gap before each rare element, cut into pieces of at most 255."""
    common = (group.size - group.rare) / group.size
    passed = np.multiply.accumulate(np.full(_FAR, common))
    ends = np.concatenate(([1.0], passed[:-1])) * (group.rare / group.size)
    return constriction.stream.model.Categorical(np.append(ends, passed[-1]), perfect=False)
