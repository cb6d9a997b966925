"""Compact byte sections: variable-length integers, byte strings and raw tensors, little-endian."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.codec.errors import CorruptStreamError

_LONGEST_UINT = 9
_LARGEST_UINT = (1 << 7 * _LONGEST_UINT) - 1

# NumPy has no bfloat16, so every dtype travels as the integer of its width.
_WIRE = {
    torch.float64: (torch.int64, "<i8"),
    torch.float32: (torch.int32, "<i4"),
    torch.float16: (torch.int16, "<i2"),
    torch.bfloat16: (torch.int16, "<i2"),
    torch.int64: (torch.int64, "<i8"),
    torch.int32: (torch.int32, "<i4"),
    torch.int16: (torch.int16, "<i2"),
    torch.int8: (torch.int8, "i1"),
    torch.uint8: (torch.uint8, "u1"),
    torch.bool: (torch.uint8, "u1"),
}


def bytes_tensor(data: bytes) -> Tensor:
    """A copy of bytes as a tensor, uint8, of which there may be none.

    :param data: the bytes.

    >>> bytes_tensor(b"ab"), bytes_tensor(b"").shape
    (tensor([97, 98], dtype=torch.uint8), torch.Size([0]))
    """
    if not data:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class ByteWriter:
    """Collects a section of bytes that :class:`ByteReader` reads back in the same order.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import ByteReader, ByteWriter
        >>> writer = ByteWriter()
        >>> writer.write_uint(300)
        >>> writer.write_bytes(b"abc")
        >>> writer.write_tensor(torch.tensor([1.5, -2.0]))
        >>> reader = ByteReader(writer.getvalue())
        >>> reader.read_uint(), reader.read_bytes(), reader.read_tensor(torch.float32, (2,))
        (300, b'abc', tensor([ 1.5000, -2.0000]))
        >>> reader.finish()
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def write_uint(self, value: int) -> None:
        """Append an integer in LEB128: seven bits per byte, low bits first, 1 to 9 bytes.

        :param value: an integer in ``0 .. 2**63 - 1``.
        :raises ValueError: if ``value`` is outside that range.
        """
        if not 0 <= value <= _LARGEST_UINT:
            raise ValueError(f"the integer is {value}, expected 0 to 2**63 - 1; it does not fit.")
        while value > 0x7F:
            self._buffer.append(value & 0x7F | 0x80)
            value >>= 7
        self._buffer.append(value)

    def write_bytes(self, data: bytes) -> None:
        """Append the length of a byte string as an integer, then the string.

        :param data: any number of bytes.
        """
        self.write_uint(len(data))
        self._buffer += data

    def write_raw(self, data: bytes) -> None:
        """Append bytes whose number the reader knows.

        :param data: any number of bytes.
        """
        self._buffer += data

    def write_tensor(self, tensor: Tensor) -> None:
        """Append the elements of a tensor, little-endian; the reader knows its dtype and shape.

        :param tensor: a float, integer or bool tensor; a bool takes one byte (pack it to save).
        :raises ValueError: if the dtype has no wire format.
        """
        wire, code = _wire_format(tensor.dtype)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self._buffer += flat.view(wire).numpy().astype(code, copy=False).tobytes()

    def getvalue(self) -> bytes:
        """All bytes written so far."""
        return bytes(self._buffer)


class ByteReader:
    r"""Reads what :class:`ByteWriter` wrote; checks every length before it allocates anything.

    :param data: the bytes of one section.

    Example::

        >>> from avalanche_compress.codec import ByteReader, CorruptStreamError
        >>> reader = ByteReader(b"\x05ab")
        >>> try:
        ...     reader.read_bytes()
        ... except CorruptStreamError:
        ...     print("damaged")
        damaged
    """

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).cast("B")
        self._position = 0

    @property
    def remaining(self) -> int:
        """Number of bytes not read yet."""
        return len(self._view) - self._position

    def peek(self) -> int | None:
        """The next byte, which is still to be read; None at the end."""
        return self._view[self._position] if self.remaining else None

    def read_uint(self) -> int:
        """Read an integer.

        :return: an integer in ``0 .. 2**63 - 1``.
        :raises CorruptStreamError: if the data ends early, the integer is longer than 9 bytes, or
            it is written with more bytes than it needs.
        """
        if self._position < len(self._view) and self._view[self._position] < 0x80:
            self._position += 1
            return self._view[self._position - 1]
        value = 0
        for place in range(_LONGEST_UINT):
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                if byte == 0 and place:
                    break
                return value
        raise CorruptStreamError(
            f"an integer ends neither within {_LONGEST_UINT} bytes nor in its shortest form, "
            "expected LEB128; the data is damaged."
        )

    def read_bytes(self) -> bytes:
        """Read a byte string with its length.

        :return: the string.
        :raises CorruptStreamError: if the data ends early.
        """
        return self.read_raw(self.read_uint())

    def read_raw(self, count: int) -> bytes:
        """Read a known number of bytes.

        :param count: number of bytes.
        :return: the bytes.
        :raises CorruptStreamError: if the data ends early.
        """
        return bytes(self._take(count))

    def read_tensor(self, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Read the elements of a tensor.

        :param dtype: the dtype that was written.
        :param shape: the shape that was written.
        :return: a new tensor on the CPU, in memory that torch has aligned as it does its own.
        :raises ValueError: if the dtype has no wire format or a dimension is negative.
        :raises CorruptStreamError: if the data ends early, or a bool is neither 0 nor 1.
        """
        wire, code = _wire_format(dtype)
        if any(size < 0 for size in shape):
            raise ValueError(
                f"the shape is {tuple(shape)}, expected sizes of zero or more; fix it."
            )
        count = 1
        for size in shape:
            count *= int(size)
        raw = np.frombuffer(self._take(count * np.dtype(code).itemsize), dtype=code)
        if dtype == torch.bool and raw.size and raw.max() > 1:
            raise CorruptStreamError(
                f"a boolean is stored as {int(raw.max())}, expected 0 or 1; the data is damaged."
            )
        tensor = torch.empty(tuple(shape), dtype=wire, device="cpu")
        np.copyto(tensor.view(-1).numpy(), raw)
        return tensor.bool() if dtype == torch.bool else tensor.view(dtype)

    def finish(self) -> None:
        """Say that nothing should be left.

        :raises CorruptStreamError: if bytes are left.
        """
        if self.remaining:
            raise CorruptStreamError(
                f"{self.remaining} bytes are left over, expected none; the data is damaged."
            )

    def _take(self, count: int) -> memoryview:
        end = self._position + count
        if not self._position <= end <= len(self._view):
            raise CorruptStreamError(
                f"{count} bytes were expected at position {self._position}, only "
                f"{self.remaining} are there; the data is truncated."
            )
        part = self._view[self._position : end]
        self._position = end
        return part


def _wire_format(dtype: torch.dtype) -> tuple[torch.dtype, str]:
    if dtype not in _WIRE:
        raise ValueError(f"the dtype is {dtype}, expected a float, integer or bool; convert it.")
    return _WIRE[dtype]
