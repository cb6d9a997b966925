"""The ways to keep values, and tables of which some rows are kept in another way than the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_compress.codec.codebook import Codebook, EntropyCoded
from avalanche_compress.codec.errors import CorruptStreamError
from avalanche_compress.codec.masks import decode_mask, encode_mask
from avalanche_compress.codec.steps import Steps
from avalanche_compress.codec.stream import ByteReader, ByteWriter
from avalanche_compress.codec.values import (
    FLOAT_WORD,
    Constant,
    FixedPoint,
    Float,
    Half,
    Values,
    size_of,
)


@dataclass(frozen=True, eq=False)
class ByRow(Values):
    """Values of which those of some rows are kept in one way and all others in another.

    Entry i is of row ``(i // width) % r``: a table (r, width), or any number of them, one after
    another.

    :param chosen: bool tensor, shape (r,).
    :param width: entries of a row that stand side by side.
    :param kept: those of the chosen rows, in order.
    :param rest: all others, in order.

    >>> floats, zeros = Float(torch.tensor([1.0, 2.0])), Constant(torch.zeros(1), 4)
    >>> ByRow(torch.tensor([False, True, False]), 2, floats, zeros).decode()
    tensor([0., 0., 1., 2., 0., 0.])
    """

    chosen: Tensor
    width: int
    kept: Values
    rest: Values

    @property
    def bits(self) -> int:  # type: ignore[override]
        """On average, rounded up."""
        count = len(self.kept.decode()) + len(self.rest.decode())
        return math.ceil(self.bits_of(count) / max(1, count))

    @property
    def word_bits(self) -> int:
        return FLOAT_WORD

    def bits_of(self, count: int) -> int:
        kept = self._kept_of(self.chosen, count)
        return self.kept.bits_of(kept) + self.rest.bits_of(count - kept)

    def decode(self) -> Tensor:
        kept, rest = self.kept.decode(), self.rest.decode()
        values = kept.new_empty(len(kept) + len(rest))
        mask = entries_of(self.chosen, self.width, len(values))
        values[mask], values[~mask] = kept, rest.to(kept)
        return values

    def words(self) -> Tensor:
        return Float(self.decode()).words()

    def write(self, writer: ByteWriter) -> None:
        writer.write_uint(len(self.chosen))
        writer.write_uint(self.width)
        writer.write_bytes(encode_mask(self.chosen))
        write_values(self.kept, writer)
        write_values(self.rest, writer)

    @classmethod
    def read(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> ByRow:
        chosen, width = cls._read_rows(reader, count)
        kept = cls._kept_of(chosen, count)
        parts = [
            _read_kind(reader, within=True).read(reader, number, dtype)
            for number in (kept, count - kept)
        ]
        return cls(chosen, width, *parts)

    @classmethod
    def skip(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> int:
        chosen, _ = cls._read_rows(reader, count)
        kept = cls._kept_of(chosen, count)
        for number in (kept, count - kept):
            _read_kind(reader, within=True).skip(reader, number, dtype)
        return FLOAT_WORD

    @staticmethod
    def _read_rows(reader: ByteReader, count: int) -> tuple[Tensor, int]:
        rows, width = reader.read_uint(), reader.read_uint()
        if not (rows and width and rows * width <= count and count % (rows * width) == 0):
            raise CorruptStreamError(f"{count} values in rows, {rows} times {width}")
        return decode_mask(reader.read_bytes(), rows), width

    @staticmethod
    def _kept_of(chosen: Tensor, count: int) -> int:
        return count // len(chosen) * int(chosen.sum())

    def smallest(self) -> Values:
        parts = self.kept.smallest(), self.rest.smallest()
        return min(Float(self.decode()), ByRow(self.chosen, self.width, *parts), key=size_of)


KINDS: tuple[type[Values], ...] = (
    Float,
    Codebook,
    FixedPoint,
    EntropyCoded,
    Half,
    Constant,
    ByRow,
    Steps,
)
"""The ways to keep values; a section names one by its place in here, so new ones go to the end."""


def entries_of(chosen: Tensor, width: int, count: int) -> Tensor:
    """Which entries of tables, one after another, are of chosen rows.

    :param chosen: bool, (r,).
    :param width: entries of a row that stand side by side.
    :param count: n, a multiple of ``r * width``.
    :return: bool, (n,).

    >>> entries_of(torch.tensor([True, False]), width=2, count=4).tolist()
    [True, True, False, False]
    """
    return chosen.view(1, -1, 1).expand(count // (len(chosen) * width), -1, width).flatten()


def write_values(values: Values, writer: ByteWriter) -> None:
    """Append n kept values and how they are kept; n and the float type are known to who reads.

    :param values: floats or codes.
    :param writer: the section.
    """
    writer.write_uint(KINDS.index(type(values)))
    values.write(writer)


def read_values(reader: ByteReader, count: int, dtype: torch.dtype) -> Values:
    """The inverse of :func:`write_values`.

    :param reader: the section.
    :param count: n.
    :param dtype: the float type of the weight.
    :raises CorruptStreamError: if the section does not fit.

    >>> writer = ByteWriter()
    >>> write_values(Float(torch.tensor([1.5, -2.0])), writer)
    >>> read_values(ByteReader(writer.getvalue()), 2, torch.float32).decode()
    tensor([ 1.5000, -2.0000])
    """
    return _read_kind(reader).read(reader, count, dtype)


def skip_values(reader: ByteReader, count: int, dtype: torch.dtype) -> int:
    """Leave out what :func:`read_values` would read.

    :param reader: the section.
    :param count: n.
    :param dtype: the float type of the weight.
    :return: bits of a word, see :attr:`Values.word_bits`.
    :raises CorruptStreamError: if the section does not fit; codes are not looked at.
    """
    return _read_kind(reader).skip(reader, count, dtype)


def _read_kind(reader: ByteReader, within: bool = False) -> type[Values]:
    kind = reader.read_uint()
    if kind >= len(KINDS) or (within and KINDS[kind] is ByRow):
        raise CorruptStreamError(f"kept values of unknown kind {kind}")
    return KINDS[kind]
