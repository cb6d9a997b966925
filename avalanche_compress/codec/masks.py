"""Entropy coding of masks, with one static probability per context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.codec._bit_groups import decode_groups, encode_groups
from avalanche_compress.codec.bits import booleans, pack_mask, unpack_mask
from avalanche_compress.codec.errors import CorruptStreamError
from avalanche_compress.codec.stream import ByteReader

_ALL_ZERO, _ALL_ONE, _RAW, _CODED = range(4)
_CONTEXTS = 16


def encode_mask(mask: Tensor, context: Tensor | None = None) -> bytes:
    r"""Write a boolean mask in about as many bits as it has entropy given its context.

    Elements are grouped by context value c and coded with the probability
    :math:`p_c = \mathrm{ones}_c / n_c`; the counts are stored, so the length is at most

    .. math:: \tfrac18 \sum_c n_c H(p_c) \cdot 1.02 + 9 + 4 C \quad \text{bytes}

    for C context values in use and fewer than :math:`2^{28}` elements, and never more than one
    byte longer than plain bits. All-zero and all-one masks take one byte. A context whose elements
    are all equal costs its count only. In one of 4,096 or more elements a symbol is eight of them
    or, where ones or zeros are rare, the gap before one: that is as short and reads back in a third
    of the time or less. A good context is what decoder and encoder know beforehand and what the
    mask depends on, such as the previous task's mask (our choice; TinySubNets, section 3, fuses
    seven tasks into one Huffman symbol instead).

    The first byte says how the rest is written: 0 all zero, 1 all one, 2 plain bits, 3 coded
    (counts of ones as LEB128 integers, each followed by that of long gaps if gaps are coded, then
    32-bit words of the range coder).

    :param mask: bool tensor of any shape, n elements.
    :param context: integer tensor with n elements in 0..15, or None for one context.
    :return: the encoded mask; neither n nor the context is in it.
    :raises ValueError: if a dtype, the number of contexts or a context value is wrong.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import decode_mask, encode_mask
        >>> mask = torch.arange(8000) % 100 == 0
        >>> data = encode_mask(mask)
        >>> len(data), torch.equal(decode_mask(data, count=8000), mask)
        (87, True)
        >>> len(encode_mask(mask, context=mask.int()))  # the context decides everything
        3
    """
    bits = booleans(mask)
    groups = _groups(context, bits.size)
    ones = int(np.count_nonzero(bits))
    if ones == 0:
        return bytes([_ALL_ZERO])
    if ones == bits.size:
        return bytes([_ALL_ONE])
    coded = bytes([_CODED]) + encode_groups([bits[_positions(group)] for group in groups])
    if len(coded) <= -(-bits.size // 8):
        return coded
    return bytes([_RAW]) + pack_mask(mask).numpy().tobytes()


def decode_mask(data: bytes, count: int, context: Tensor | None = None) -> Tensor:
    """The inverse of :func:`encode_mask`.

    Nothing is allocated by what the data says: ``count`` and ``context`` come from the caller.

    :param data: an encoded mask.
    :param count: number of elements n.
    :param context: the context that was given to the encoder, or None.
    :return: bool tensor on the CPU, shape (n,).
    :raises ValueError: if ``count`` is negative or the context does not fit.
    :raises CorruptStreamError: if the encoder cannot have written the data.

    Example::

        >>> from avalanche_compress.codec import decode_mask
        >>> decode_mask(bytes([2, 5]), count=3).tolist()
        [True, False, True]
    """
    if count < 0:
        raise ValueError(f"the count is {count}, expected zero or more; give the mask's size.")
    mask, parts = _decode(data, count, context)
    # The coder reads on past the end and ignores spare words; encoding again finds both.
    if data[0] == _CODED and bytes([_CODED]) + encode_groups(parts) != data:
        raise CorruptStreamError(
            "the mask does not encode to the data it came from; the data is damaged or the "
            "context is another one."
        )
    return mask


def recall_mask(data: bytes, count: int, context: Tensor | None = None) -> Tensor:
    """:func:`decode_mask` of what a checksum vouches for, in two thirds of the time.

    It is as safe with any data, and refuses a group that has not as many ones as its count says,
    and words that are left over. What it may miss are spare bits at the very end.

    :param data: an encoded mask.
    :param count: number of elements n.
    :param context: the context that was given to the encoder, or None.
    :return: bool tensor on the CPU, shape (n,).
    :raises CorruptStreamError: if the data does not fit.

    Example::

        >>> from avalanche_compress.codec.masks import recall_mask
        >>> recall_mask(bytes([2, 5]), count=3).tolist()
        [True, False, True]
    """
    mask, _ = _decode(data, count, context)
    return mask


def recall_mask_among(data: bytes, mask: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """:func:`recall_mask` of some elements of a mask, in half the time of cutting them out.

    :param data: what :func:`encode_mask` gave for the elements that are in one of the groups, each
        with the number of its group as context.
    :param mask: (n,) bool, on the CPU, False in all groups; it is written into.
    :param groups: (n,) bool each, on the CPU; no element is in two of them.
    :return: the mask.
    :raises CorruptStreamError: if the data does not fit.

    >>> from avalanche_compress.codec.masks import recall_mask_among
    >>> even = torch.tensor([True, False, True, False])
    >>> recall_mask_among(bytes([2, 0b10]), torch.zeros(4, dtype=torch.bool), [even]).tolist()
    [False, False, True, False]
    """
    bits = mask.numpy()
    arrays = [array for group in groups if (array := group.numpy()).any()]
    if data[:1] != bytes([_CODED]) or not arrays:
        among = np.flatnonzero(np.logical_or.reduce(arrays)) if arrays else np.empty(0, np.int64)
        bits[among] = recall_mask(data, among.size).numpy()
        return mask
    reader = ByteReader(data)
    reader.read_raw(1)
    places = [np.flatnonzero(array) for array in arrays]
    parts = decode_groups(reader, [positions.size for positions in places])
    for array, positions, part in zip(arrays, places, parts):
        # most of a group is alike: writing the rest of it takes a fifth of writing all
        mostly = 2 * int(np.count_nonzero(part)) > part.size
        if mostly:
            bits |= array
        bits[positions[np.flatnonzero(part != mostly)]] = not mostly
    return mask


def _decode(data: bytes, count: int, context: Tensor | None) -> tuple[Tensor, list[np.ndarray]]:
    """A mask, and if it is coded, its bits in each group."""
    reader = ByteReader(data)
    kind = reader.read_raw(1)[0]
    groups = [] if context is None else _groups(context, count)
    if not count and kind != _ALL_ZERO:
        raise CorruptStreamError(f"a mask of nothing is of kind {kind}, expected 0; it is damaged.")
    if kind == _RAW:
        packed = np.frombuffer(reader.read_raw(reader.remaining), dtype=np.uint8)
        return unpack_mask(torch.from_numpy(packed.copy()), count), []
    if kind == _CODED and context is None:
        parts = decode_groups(reader, [count])
        return torch.from_numpy(parts[0]), parts
    if kind == _CODED:
        parts = decode_groups(reader, [int(np.count_nonzero(group)) for group in groups])
        mask = np.zeros(count, dtype=np.bool_)
        for group, part in zip(groups, parts):
            if part.all():
                mask |= group
            elif part.any():
                mask[_positions(group)] = part
        return torch.from_numpy(mask), parts
    if kind not in (_ALL_ZERO, _ALL_ONE):
        raise CorruptStreamError(f"the kind of mask is {kind}, expected 0 to 3; data is damaged.")
    reader.finish()
    return torch.full((count,), kind == _ALL_ONE, device="cpu"), []


def _groups(context: Tensor | None, count: int) -> list[np.ndarray]:
    """Which elements (bool) have each of the context values in use, in ascending order."""
    if context is None:
        return [np.ones(count, dtype=np.bool_)]
    if context.numel() != count:
        raise ValueError(
            f"the context has {context.numel()} elements, expected {count}; give one per element."
        )
    if context.is_floating_point() or context.is_complex():
        raise ValueError(f"the context is {context.dtype}, expected integers; convert it first.")
    if not count:
        return []
    values = context.detach().cpu().reshape(-1).numpy()
    lowest, highest = int(values.min()), int(values.max())
    if not 0 <= lowest <= highest < _CONTEXTS:
        raise ValueError(
            f"context values span {lowest}..{highest}, expected 0..{_CONTEXTS - 1}; use fewer "
            "contexts."
        )
    small = values.astype(np.uint8, copy=False)
    groups = [small == count for count in range(lowest, highest + 1)]
    return [group for group in groups if group.any()]


def _positions(group: np.ndarray) -> slice | np.ndarray:
    """Where a group's elements are; for a few groups several times faster than sorting them."""
    return slice(None) if group.all() else np.flatnonzero(group)
