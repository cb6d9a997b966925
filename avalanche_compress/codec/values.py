"""Kept values on their way to bytes and back: floats as they are, or codes bit-packed."""

from __future__ import annotations

from typing import Any, Union

import torch
from torch import Tensor

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    Codebook,
    CorruptStreamError,
    FixedPoint,
    pack_bits,
    unpack_bits,
)

Values = Union[Tensor, Codebook, FixedPoint]
"""Float tensor (n,), or n codes with what decodes them."""

_FLOATS, _CODEBOOK, _FIXED_POINT = range(3)


def decoded(values: Values) -> Tensor:
    """The floats that a task will compute with.

    :param values: n kept values.
    :return: float tensor (n,).
    """
    return values if isinstance(values, Tensor) else values.decode()


def bits_of(values: Values) -> int:
    """Bits a value.

    :param values: n kept values.

    >>> bits_of(torch.zeros(3))
    32
    """
    return 8 * values.element_size() if isinstance(values, Tensor) else values.bits


def cheapest(values: Values) -> Values:
    """The same numbers as floats, where codes and codebook take more bytes.

    :param values: n kept values.

    >>> cheapest(Codebook(torch.zeros(3, dtype=torch.int32), torch.tensor([1.5, 2.0])))
    Codebook(codes=tensor([0, 0, 0], dtype=torch.int32), centroids=tensor([1.5000, 2.0000]))
    >>> cheapest(Codebook(torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1.5, 2.0])))
    tensor([1.5000, 2.0000])
    """
    if not isinstance(values, Codebook):
        return values
    size = values.centroids.element_size()
    count = values.codes.numel()
    coded = size * values.centroids.numel() + _packed_size(values.bits, count)
    return values.decode() if size * count <= coded else values


def write_values(values: Values, writer: ByteWriter) -> None:
    """Append n kept values; n and the float type are known to who reads.

    :param values: floats or codes.
    :param writer: the section.
    """
    if isinstance(values, Tensor):
        writer.write_uint(_FLOATS)
        writer.write_tensor(values)
    elif isinstance(values, Codebook):
        writer.write_uint(_CODEBOOK)
        writer.write_uint(values.centroids.numel())
        writer.write_tensor(values.centroids)
        writer.write_tensor(pack_bits(values.codes, values.bits))
    else:
        writer.write_uint(_FIXED_POINT)
        writer.write_uint(values.bits)
        # the exponent may be negative (large weights): zigzag, as in protocol buffers
        exponent = values.fraction_bits
        writer.write_uint(2 * exponent if exponent >= 0 else -2 * exponent - 1)
        writer.write_tensor(pack_bits(values.codes + (1 << (values.bits - 1)), values.bits))


def read_values(reader: ByteReader, count: int, dtype: torch.dtype) -> Values:
    """The inverse of :func:`write_values`.

    :param reader: the section.
    :param count: n.
    :param dtype: the float type of the weight.
    :raises CorruptStreamError: if the section does not fit.

    >>> writer = ByteWriter()
    >>> write_values(torch.tensor([1.5, -2.0]), writer)
    >>> read_values(ByteReader(writer.getvalue()), 2, torch.float32)
    tensor([ 1.5000, -2.0000])
    """
    head = _read_head(reader, count, dtype)
    if head is None:
        return reader.read_tensor(dtype, (count,))
    bits, decoder = head
    packed = reader.read_tensor(torch.uint8, (_packed_size(bits, count),))
    codes = _checked(unpack_bits, packed, bits, count)
    if isinstance(decoder, Tensor):
        return _checked(Codebook, codes, decoder)
    return _checked(FixedPoint, codes - (1 << (bits - 1)), bits, decoder)


def pass_values(reader: ByteReader, count: int, dtype: torch.dtype) -> int:
    """Leave out what :func:`read_values` would read.

    :param reader: the section.
    :param count: n.
    :param dtype: the float type of the weight.
    :return: bits a value, as :func:`bits_of` says.
    :raises CorruptStreamError: if the section does not fit; codes are not looked at.
    """
    head = _read_head(reader, count, dtype)
    bits = 8 * dtype.itemsize if head is None else head[0]
    reader.read_raw(_packed_size(bits, count))
    return bits


def _read_head(
    reader: ByteReader, count: int, dtype: torch.dtype
) -> tuple[int, Tensor | int] | None:
    """Bits of the codes that follow and the centroids or the exponent; None if floats follow."""
    kind = reader.read_uint()
    if kind == _FLOATS:
        return None
    if kind == _CODEBOOK:
        size = reader.read_uint()
        if not (size <= 1 << 16 and (size > 0 or count == 0)):
            raise CorruptStreamError(f"a codebook of {size} centroids for {count} values")
        return max(1, (size - 1).bit_length()), reader.read_tensor(dtype, (size,))
    if kind == _FIXED_POINT:
        bits, zigzag = reader.read_uint(), reader.read_uint()
        if not (1 < bits <= 16 and zigzag <= 2032):
            raise CorruptStreamError(f"fixed point of {bits} bits, exponent code {zigzag}")
        return bits, zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    raise CorruptStreamError(f"kept values of unknown kind {kind}")


def _packed_size(bits: int, count: int) -> int:
    return (count * bits + 7) // 8


def _checked(build: Any, *arguments: Any) -> Any:
    """Call ``build``; what it refuses is damage here, not a caller's mistake."""
    try:
        return build(*arguments)
    except ValueError as error:
        raise CorruptStreamError(str(error)) from error
