"""Entropy coding of masks: a range coder with one static probability per context."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import constriction
import numpy as np
import torch
from torch import Tensor

from avalanche_compress.coding.bits import pack_mask, unpack_mask
from avalanche_compress.coding.errors import CorruptStreamError
from avalanche_compress.coding.stream import ByteReader, ByteWriter

_ALL_ZERO, _ALL_ONE, _RAW, _CODED = range(4)
_CONTEXTS = 16
_WORD = 8
"""Bits of a symbol in a long group: one search in 256 of them takes a third of eight in two."""
_LONG = 4096
"""Elements from which on a group has such symbols: their model takes as long as 3,000 bits."""
_SPARSE = 16
"""If one element in so many differs from the others, or fewer, the gaps between them are coded."""
_FAR = 255
"""The symbol for a gap of so many elements that is not at its end."""


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
        >>> from avalanche_compress.coding import decode_mask, encode_mask
        >>> mask = torch.arange(8000) % 100 == 0
        >>> data = encode_mask(mask)
        >>> len(data), torch.equal(decode_mask(data, count=8000), mask)
        (86, True)
        >>> len(encode_mask(mask, context=mask.int()))  # the context decides everything
        3
    """
    raw = pack_mask(mask)
    bits = mask.detach().cpu().reshape(-1).numpy()
    groups = _groups(context, bits.size)
    ones = int(np.count_nonzero(bits))
    if ones == 0:
        return bytes([_ALL_ZERO])
    if ones == bits.size:
        return bytes([_ALL_ONE])
    coded = _encode_parts([bits[_positions(group)] for group in groups])
    plain = bytes([_RAW]) + raw.numpy().tobytes()
    return coded if len(coded) < len(plain) else plain


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

        >>> from avalanche_compress.coding import decode_mask
        >>> decode_mask(bytes([2, 5]), count=3).tolist()
        [True, False, True]
    """
    if count < 0:
        raise ValueError(f"the count is {count}, expected zero or more; give the mask's size.")
    mask, parts = _decode(data, count, context)
    # The coder reads on past the end and ignores spare words; encoding again finds both.
    if data[0] == _CODED and _encode_parts(parts) != data:
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

        >>> from avalanche_compress.coding.masks import recall_mask
        >>> recall_mask(bytes([2, 5]), count=3).tolist()
        [True, False, True]
    """
    mask, _ = _decode(data, count, context)
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
        parts = _decode_parts(reader, [count])
        return torch.from_numpy(parts[0]), parts
    if kind == _CODED:
        parts = _decode_parts(reader, [int(np.count_nonzero(group)) for group in groups])
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
    return torch.full((count,), kind == _ALL_ONE), []


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
    groups = [small == own for own in range(lowest, highest + 1)]
    return [group for group in groups if group.any()]


def _positions(group: np.ndarray) -> slice | np.ndarray:
    """Where a group's elements are; for a few groups several times faster than sorting them."""
    return slice(None) if group.all() else np.flatnonzero(group)


def _bernoulli(ones: int, count: int) -> constriction.stream.model.Bernoulli:
    # One float64 division of integers is the same on every machine, and ``perfect`` is explicit
    # because its default differs between versions: both decide how the data reads back.
    return constriction.stream.model.Bernoulli(ones / count, perfect=False)


def _eight_bernoullis(ones: int, count: int) -> constriction.stream.model.Categorical:
    """The model of eight bits at once, the first of them the most significant."""
    bit = np.array([(count - ones) / count, ones / count])
    # Products in one fixed order are the same on every machine, as no power function is.
    word = bit
    while word.size < 1 << _WORD:
        word = np.multiply.outer(word, word).reshape(-1)
    return constriction.stream.model.Categorical(word, perfect=False)


def _gaps(rare: int, count: int) -> constriction.stream.model.Categorical:
    """The model of the gap before each rare element, cut into pieces of at most 255."""
    common = np.multiply.accumulate(np.full(_FAR, (count - rare) / count))
    ends = np.concatenate(([1.0], common[:-1])) * (rare / count)
    return constriction.stream.model.Categorical(np.append(ends, common[-1]), perfect=False)


def _words_of(size: int) -> int:
    """How many symbols of eight bits a group begins with; the rest of it are single bits."""
    return size // _WORD if size >= _LONG else 0


def _is_sparse(ones: int, size: int) -> bool:
    return size >= _LONG and min(ones, size - ones) * _SPARSE <= size


def _encode_parts(parts: Sequence[np.ndarray]) -> bytes:
    """Code the bits of each group."""
    writer = ByteWriter()
    writer.write_raw(bytes([_CODED]))
    coder = constriction.stream.queue.RangeEncoder()
    for part in parts:
        ones = int(np.count_nonzero(part))
        writer.write_uint(ones)
        if ones in (0, part.size):
            continue
        if _is_sparse(ones, part.size):
            symbols = _gap_symbols(np.flatnonzero(part if 2 * ones <= part.size else ~part))
            rare = min(ones, part.size - ones)
            writer.write_uint(symbols.size - rare)
            coder.encode(symbols, _gaps(rare, part.size))
            continue
        words = _words_of(part.size)
        if words:
            symbols = np.packbits(part[: words * _WORD]).astype(np.int32)
            coder.encode(symbols, _eight_bernoullis(ones, part.size))
        coder.encode(part[words * _WORD :].astype(np.int32), _bernoulli(ones, part.size))
    writer.write_raw(coder.get_compressed().astype("<u4").tobytes())
    return writer.getvalue()


def _gap_symbols(positions: np.ndarray) -> np.ndarray:
    """The gap before each position: as many 255 as fit into it, then what is left."""
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(gaps // _FAR + 1) - 1
    symbols = np.full(ends[-1] + 1, _FAR, dtype=np.int32)
    symbols[ends] = gaps % _FAR
    return symbols


class _Group(NamedTuple):
    """What is said of a group before its code."""

    ones: int
    size: int
    far: int
    """Symbols of gaps that go on; 0 where no gaps are coded."""

    @property
    def is_sparse(self) -> bool:
        """Whether gaps are coded."""
        return 0 < self.ones < self.size and _is_sparse(self.ones, self.size)


def _decode_parts(reader: ByteReader, sizes: Sequence[int]) -> list[np.ndarray]:
    """The inverse of :func:`_encode_parts`; the reader stands behind the kind."""
    groups = [_read_group(reader, size) for size in sizes]
    decoder = constriction.stream.queue.RangeDecoder(_read_words(reader))
    parts = [_decode_part(decoder, group) for group in groups]
    if not decoder.maybe_exhausted():
        raise CorruptStreamError("words of code are left over, expected none; data is damaged.")
    return parts


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
    ones, size, _ = group
    if ones in (0, size):
        return np.full(size, ones > 0, dtype=np.bool_)
    try:
        bits = (_decode_gaps if group.is_sparse else _decode_bits)(decoder, group)
    except AssertionError as error:
        raise CorruptStreamError(
            "the range coder found an impossible word, expected coded symbols; the data is damaged."
        ) from error
    if np.count_nonzero(bits) != ones:
        raise CorruptStreamError(
            f"{np.count_nonzero(bits)} ones are among {size} elements, expected {ones}; the data "
            "is damaged or the context is another one."
        )
    return bits


def _decode_bits(decoder: constriction.stream.queue.RangeDecoder, group: _Group) -> np.ndarray:
    ones, size, _ = group
    words = _words_of(size)
    bits = np.empty(size, dtype=np.uint8)
    if words:
        symbols = decoder.decode(_eight_bernoullis(ones, size), words).astype(np.uint8)
        bits[: words * _WORD] = np.unpackbits(symbols)
    rest = size - words * _WORD
    bits[words * _WORD :] = decoder.decode(_bernoulli(ones, size), rest)
    return bits.view(np.bool_)


def _decode_gaps(decoder: constriction.stream.queue.RangeDecoder, group: _Group) -> np.ndarray:
    ones, size, far = group
    rare = min(ones, size - ones)
    symbols = decoder.decode(_gaps(rare, size), rare + far)
    ends = symbols < _FAR
    positions = np.cumsum(symbols + ends, dtype=np.int64)[ends] - 1
    if positions.size != rare or not ends[-1] or positions[-1] >= size:
        raise CorruptStreamError(
            f"{positions.size} gaps of {rare} end within {size} elements; the data is damaged or "
            "the context is another one."
        )
    bits = np.full(size, rare < ones, dtype=np.bool_)
    bits[positions] = rare == ones
    return bits
