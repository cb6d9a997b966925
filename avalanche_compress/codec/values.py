"""Kept values: n numbers of a task as a section keeps them, one class for each way to do so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from avalanche_compress.codec.bits import pack_bits, unpack_bits
from avalanche_compress.codec.errors import CorruptStreamError
from avalanche_compress.codec.fixed_point import from_fixed_point
from avalanche_compress.codec.stream import ByteReader, ByteWriter

T = TypeVar("T")

_MOST_BITS = 16
_LARGEST_ZIGZAG = 2032
FLOAT_WORD = 32
"""Bits of a float where values of few bits lie side by side in words."""


class Values(ABC):
    """n numbers and how they are kept.

    A further way to keep numbers is a subclass, and an entry in
    :data:`~avalanche_compress.codec.kinds.KINDS`.
    """

    bits: int
    """Bits a value, what decodes it not counted."""

    def bits_of(self, count: int) -> int:
        """Bits of all values, what decodes them not counted.

        :param count: n.
        """
        return count * self.bits

    @property
    def word_bits(self) -> int:
        """Bits of one of :meth:`words`."""
        return self.bits

    @abstractmethod
    def decode(self) -> Tensor:
        """The numbers that a task computes with, float (n,); the same bits every time."""

    @abstractmethod
    def words(self) -> Tensor:
        """The numbers as codes that are not negative, int64 (n,)."""

    @abstractmethod
    def write(self, writer: ByteWriter) -> None:
        """Append the values; n and the float type are known to who reads.

        :param writer: the section.
        """

    @classmethod
    @abstractmethod
    def read(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> Values:
        """The inverse of :meth:`write`; nothing is allocated before the bytes are there.

        :param reader: the section.
        :param count: n.
        :param dtype: the float type of the weight.
        :raises CorruptStreamError: if the section does not fit.
        """

    @classmethod
    @abstractmethod
    def skip(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> int:
        """Leave out what :meth:`read` would read; codes are not looked at.

        :param reader: the section.
        :param count: n.
        :param dtype: the float type of the weight.
        :return: :attr:`word_bits`.
        :raises CorruptStreamError: if the section does not fit.
        """

    @property
    def parameter(self) -> Tensor | None:
        """What may be trained while the codes stay; None if there is nothing."""
        return None

    def parameter_gradient(self, gradients: Tensor) -> Tensor:
        """dL/d :attr:`parameter`.

        :param gradients: dL/dw, float (n,).
        """
        raise TypeError(f"{type(self).__name__} has nothing to train.")

    def copy(self) -> Values:
        """The same codes, and a :attr:`parameter` that may be written to."""
        return self

    def shortest(self) -> Values:
        """The same words, written in whichever way takes the fewest bytes."""
        return self

    def smallest(self) -> Values:
        """The same numbers, as :meth:`shortest` or as floats: what takes the fewest bytes."""
        return self


@dataclass(frozen=True, eq=False)
class Float(Values):
    """Values as they are: floating-point tensor, shape (n,).

    >>> Float(torch.zeros(3)).bits
    32
    """

    values: Tensor

    def __post_init__(self) -> None:
        check_flat("values", self.values)

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 8 * self.values.element_size()

    @property
    def word_bits(self) -> int:
        return FLOAT_WORD

    def decode(self) -> Tensor:
        return self.values

    def words(self) -> Tensor:
        return self.values.float().view(torch.int32).long() & (1 << FLOAT_WORD) - 1

    def write(self, writer: ByteWriter) -> None:
        writer.write_tensor(self.values)

    @classmethod
    def read(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> Float:
        return cls(reader.read_tensor(dtype, (count,)))

    @classmethod
    def skip(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> int:
        reader.read_raw(count * dtype.itemsize)
        return FLOAT_WORD


@dataclass(frozen=True, eq=False)
class FixedPoint(Values):
    """Values that are multiples of a power of two: ``value_i = codes_i * 2**-fraction_bits``.

    :param codes: signed int32 tensor, shape (n,), within ``±(2**(bits - 1) - 1)``.
    :param bits: word length in bits, sign included, 2 to 16.
    :param fraction_bits: binary digits after the point.
    :raises ValueError: if the codes are not flat or do not fit the word.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import FixedPoint
        >>> FixedPoint(torch.tensor([1, -3], dtype=torch.int32), bits=4, fraction_bits=2).decode()
        tensor([ 0.2500, -0.7500])
    """

    codes: Tensor
    bits: int
    fraction_bits: int

    def __post_init__(self) -> None:
        check_flat("codes", self.codes)
        if not 2 <= self.bits <= _MOST_BITS:
            raise ValueError(f"the word has {self.bits} bits, expected 2 to {_MOST_BITS}.")
        bound = 2 ** (self.bits - 1) - 1
        check_span(self.codes, -bound, bound)

    def decode(self) -> Tensor:
        """The values, shape (n,), float32; the same bits every time."""
        return from_fixed_point(self.codes, self.fraction_bits)

    def words(self) -> Tensor:
        """Codes that count from the lowest one."""
        return self.codes.long() + (1 << (self.bits - 1))

    def write(self, writer: ByteWriter) -> None:
        writer.write_uint(self.bits)
        # the exponent may be negative (large weights): zigzag, as in protocol buffers
        exponent = self.fraction_bits
        writer.write_uint(2 * exponent if exponent >= 0 else -2 * exponent - 1)
        writer.write_tensor(pack_bits(self.words(), self.bits))

    @classmethod
    def read(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> FixedPoint:
        bits, fraction_bits = cls._read_word(reader)
        codes = read_codes(reader, count, bits) - (1 << (bits - 1))
        return built(lambda: cls(codes, bits, fraction_bits))

    @classmethod
    def skip(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> int:
        bits, _ = cls._read_word(reader)
        reader.read_raw(packed_size(bits, count))
        return bits

    @staticmethod
    def _read_word(reader: ByteReader) -> tuple[int, int]:
        bits, zigzag = reader.read_uint(), reader.read_uint()
        if not (1 < bits <= _MOST_BITS and zigzag <= _LARGEST_ZIGZAG):
            raise CorruptStreamError(f"fixed point of {bits} bits, exponent code {zigzag}")
        return bits, zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2


@dataclass(frozen=True, eq=False)
class Half(Values):
    """Values in half as many bits: bfloat16, which has the range of single precision.

    :param values: bfloat16 tensor, shape (n,).
    :param dtype: of what they are decoded to.

    >>> Half.of(torch.tensor([1.0, 3.14159])).decode()
    tensor([1.0000, 3.1406])
    """

    values: Tensor
    dtype: torch.dtype = torch.float32
    bits = 16

    @classmethod
    def of(cls, values: Tensor) -> Half:
        """The nearest values of half as many bits; of a tensor of any shape."""
        return cls(values.detach().flatten().bfloat16(), values.dtype)

    def decode(self) -> Tensor:
        return self.values.to(self.dtype)

    def words(self) -> Tensor:
        return self.values.view(torch.int16).long() & 0xFFFF

    def write(self, writer: ByteWriter) -> None:
        writer.write_tensor(self.values)

    @classmethod
    def read(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> Half:
        return cls(reader.read_tensor(torch.bfloat16, (count,)), dtype)

    @classmethod
    def skip(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> int:
        reader.read_raw(2 * count)
        return cls.bits


@dataclass(frozen=True, eq=False)
class Constant(Values):
    """n times one value, which is written once.

    :param value: floating-point tensor, shape (1,).
    :param count: n.

    >>> Constant(torch.tensor([0.5]), 3).decode()
    tensor([0.5000, 0.5000, 0.5000])
    """

    value: Tensor
    count: int
    bits = 0

    @property
    def word_bits(self) -> int:
        return FLOAT_WORD

    def decode(self) -> Tensor:
        return self.value.expand(self.count)

    def words(self) -> Tensor:
        return Float(self.decode()).words()

    def write(self, writer: ByteWriter) -> None:
        writer.write_tensor(self.value)

    @classmethod
    def read(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> Constant:
        return cls(reader.read_tensor(dtype, (1,)), count)

    @classmethod
    def skip(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> int:
        reader.read_raw(dtype.itemsize)
        return FLOAT_WORD


def read_codes(reader: ByteReader, count: int, bits: int) -> Tensor:
    """Packed codes, int32 (n,).

    :param reader: the section.
    :param count: n.
    :param bits: of each.
    :raises CorruptStreamError: if the section does not fit.
    """
    packed = reader.read_tensor(torch.uint8, (packed_size(bits, count),))
    return built(lambda: unpack_bits(packed, bits, count))


def built(build: Callable[[], T]) -> T:
    """What is made; what is refused is damage here, not a caller's mistake.

    :param build: makes it.
    :raises CorruptStreamError: if it is refused.
    """
    try:
        return build()
    except ValueError as error:
        raise CorruptStreamError(str(error)) from error


def size_of(values: Values) -> int:
    """Bytes of some values.

    :param values: of any kind.
    """
    writer = ByteWriter()
    values.write(writer)
    return len(writer.getvalue())


def packed_size(bits: int, count: int) -> int:
    """Bytes of packed codes.

    :param bits: of each.
    :param count: how many.
    """
    return (count * bits + 7) // 8


def check_flat(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not flat.

    :param name: for the message.
    :param tensor: any.
    :raises ValueError: if it has another number of dimensions than one.
    """
    if tensor.dim() != 1:
        raise ValueError(
            f"{name} have shape {tuple(tensor.shape)}, expected one dimension; flatten them."
        )


def check_span(codes: Tensor, lowest: int, highest: int) -> None:
    """Refuse codes that nothing stands for.

    :param codes: any.
    :param lowest: that there is.
    :param highest: that there is.
    :raises ValueError: if one is outside of these, or they are not int32.
    """
    if codes.dtype != torch.int32:
        raise ValueError(f"codes are {codes.dtype}, expected torch.int32; convert them.")
    if not codes.numel():
        return
    least, most = (int(bound) for bound in codes.aminmax())
    if not lowest <= least <= most <= highest:
        raise ValueError(
            f"codes span {least}..{most}, expected {lowest}..{highest}; the data is damaged."
        )
