"""Bit packing: codes of 1 to 16 bits side by side in bytes, least significant bit first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.codec.errors import CorruptStreamError

_WIDEST = 16


def pack_bits(codes: Tensor, width: int) -> Tensor:
    """Write every code with ``width`` bits: bit b of code i is bit ``i * width + b`` of the result.

    :param codes: integer tensor of any shape, n elements in ``0 .. 2**width - 1``.
    :param width: bits per code, 1 to 16.
    :return: uint8 tensor on the CPU, shape (ceil(n * width / 8),); the last byte is padded with
        zero bits.
    :raises ValueError: if ``width`` or a code is outside its range.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import pack_bits
        >>> pack_bits(torch.tensor([1, 2, 3]), width=4).tolist()
        [33, 3]
    """
    _check_width(width)
    numbers = integers(codes)
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < 1 << width:
        raise ValueError(
            f"codes span {int(numbers.min())}..{int(numbers.max())}, expected 0..{2**width - 1} "
            f"for width {width}; use a wider code."
        )
    if width == _WIDEST:
        return torch.from_numpy(numbers.astype("<u2").view(np.uint8))
    size = _packed_size(numbers.size, width)
    # Eight codes fill ``width`` whole bytes, at most two 64-bit words of two halves each.
    eights = np.zeros((-(-numbers.size // 8), 8), dtype="<u8")
    eights.reshape(-1)[: numbers.size] = numbers
    first, second = _join(eights[:, :4], width), _join(eights[:, 4:], width)
    words = np.empty((eights.shape[0], 2), dtype="<u8")
    words[:, 0] = first | second << np.uint64(4 * width)
    words[:, 1] = second >> np.uint64(64 - 4 * width)
    return torch.from_numpy(words.view(np.uint8)[:, :width].reshape(-1)[:size].copy())


def unpack_bits(packed: Tensor, width: int, count: int) -> Tensor:
    """The inverse of :func:`pack_bits`.

    :param packed: uint8 tensor, shape (ceil(count * width / 8),).
    :param width: bits per code, 1 to 16.
    :param count: number of codes n.
    :return: int32 tensor on the CPU, shape (n,).
    :raises ValueError: if ``width`` is outside its range or ``count`` is negative.
    :raises CorruptStreamError: if ``packed`` has another length, or padding bits are not zero.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import unpack_bits
        >>> unpack_bits(torch.tensor([33, 3], dtype=torch.uint8), width=4, count=3).tolist()
        [1, 2, 3]
    """
    _check_width(width)
    data = _checked_bytes(packed, width, count)
    if width == _WIDEST:
        return torch.from_numpy(data.view("<u2").astype(np.int32))
    groups = -(-count // 8)
    padded = np.zeros(groups * width, dtype=np.uint8)
    padded[: data.size] = data
    grouped = np.zeros((groups, 16), dtype=np.uint8)
    grouped[:, :width] = padded.reshape(groups, width)
    words = grouped.view("<u8")
    second = words[:, 0] >> np.uint64(4 * width) | words[:, 1] << np.uint64(64 - 4 * width)
    codes = np.empty((groups, 8), dtype=np.int32)
    _split(words[:, 0], width, codes[:, :4])
    _split(second, width, codes[:, 4:])
    return torch.from_numpy(codes.reshape(-1)[:count].copy())


def pack_mask(mask: Tensor) -> Tensor:
    """Write a boolean mask with one bit per element, least significant bit first.

    :param mask: bool tensor of any shape, n elements.
    :return: uint8 tensor on the CPU, shape (ceil(n / 8),), padded with zero bits.
    :raises ValueError: if ``mask`` is not boolean.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import pack_mask
        >>> pack_mask(torch.tensor([True, False, True])).tolist()
        [5]
    """
    return torch.from_numpy(np.packbits(booleans(mask), bitorder="little"))


def unpack_mask(packed: Tensor, count: int) -> Tensor:
    """The inverse of :func:`pack_mask`.

    :param packed: uint8 tensor, shape (ceil(count / 8),).
    :param count: number of elements n.
    :return: bool tensor on the CPU, shape (n,).
    :raises ValueError: if ``count`` is negative.
    :raises CorruptStreamError: if ``packed`` has another length, or padding bits are not zero.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import unpack_mask
        >>> unpack_mask(torch.tensor([5], dtype=torch.uint8), count=3).tolist()
        [True, False, True]
    """
    data = _checked_bytes(packed, 1, count)
    return torch.from_numpy(np.unpackbits(data, count=count, bitorder="little").view(np.bool_))


def booleans(mask: Tensor) -> np.ndarray:
    """A mask as a flat array.

    :param mask: bool tensor of any shape.
    :raises ValueError: if it is not boolean.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask is {mask.dtype}, expected torch.bool; compare it with zero.")
    flat: np.ndarray = mask.detach().cpu().reshape(-1).numpy()
    return flat


def _check_width(width: int) -> None:
    if not 1 <= width <= _WIDEST:
        raise ValueError(f"the width is {width} bits, expected 1 to {_WIDEST}; choose one of them.")


def integers(codes: Tensor) -> np.ndarray:
    """Codes as a flat array.

    :param codes: integer tensor of any shape.
    :raises ValueError: if they are no integers.
    """
    if codes.is_floating_point() or codes.is_complex():
        raise ValueError(f"codes are {codes.dtype}, expected integers; convert them first.")
    return codes.detach().cpu().reshape(-1).numpy()


def _packed_size(count: int, width: int) -> int:
    return -(-count * width // 8)


def _checked_bytes(packed: Tensor, width: int, count: int) -> np.ndarray:
    if count < 0:
        raise ValueError(f"the count is {count}, expected zero or more; give the number of codes.")
    if packed.dtype != torch.uint8:
        raise ValueError(f"packed codes are {packed.dtype}, expected torch.uint8; convert them.")
    data = np.ascontiguousarray(packed.detach().cpu().reshape(-1).numpy())
    size = _packed_size(count, width)
    if data.size != size:
        raise CorruptStreamError(
            f"packed codes have {data.size} bytes, expected {size} for {count} codes of {width} "
            "bits; the data is damaged or the count is wrong."
        )
    used = count * width % 8
    if used and int(data[-1]) >> used:
        raise CorruptStreamError(
            f"padding after {count} codes of {width} bits is not zero, expected zero bits; "
            "the data is damaged or the count is wrong."
        )
    return data


def _join(codes: np.ndarray, width: int) -> np.ndarray:
    joined = codes[:, 0].copy()
    for place in range(1, 4):
        joined |= codes[:, place] << np.uint64(place * width)
    return joined


def _split(words: np.ndarray, width: int, out: np.ndarray) -> None:
    mask = np.uint64((1 << width) - 1)
    for place in range(4):
        out[:, place] = words >> np.uint64(place * width) & mask
