"""Entropy coding of codes, with probabilities that are learned from the codes before."""

from __future__ import annotations

from collections.abc import Iterator

import constriction
import numpy as np
import torch
from torch import Tensor

from avalanche_compress.codec.bits import integers, pack_bits, unpack_bits
from avalanche_compress.codec.errors import CorruptStreamError

_PACKED, _CODED = range(2)
_MOST_KINDS = 4096
"""Kinds of code up to which a model is worth its time."""
_FIRST_BLOCK = 32
_PRIOR = 0.5
"""What is added to each count (Krichevsky and Trofimov, 1981)."""


def code_width(kinds: int) -> int:
    """Bits of a code where all are equally long: ``max(1, ceil(log2 kinds))``.

    :param kinds: K, how many different codes there may be.

    >>> code_width(1), code_width(5), code_width(256)
    (1, 3, 8)
    """
    return max(1, (kinds - 1).bit_length())


def encode_codes(codes: Tensor, kinds: int) -> bytes:
    r"""Write codes in about as many bits as they have entropy.

    They are coded in blocks, each half as long as all before it. The probability of code k in a
    block is :math:`(n_k + 1/2) / (n + K/2)`, with :math:`n_k` of the n codes before the block
    equal to k, so no table is stored: the first 32 codes are taken for equally likely, and what
    the estimates cost is about :math:`0.6 (K - 1) \log_2 n` bits in all (our choice).
    Where plain codes of equal length are shorter, those are written.

    The first byte says how the rest is written: 0 packed (see
    :func:`~avalanche_compress.codec.bits.pack_bits`), 1 coded (32-bit words of a range coder).

    :param codes: integers of any shape, n of them, in ``0 .. kinds - 1``.
    :param kinds: K, 1 to 65,536.
    :return: the bytes; neither n nor K is in them.
    :raises ValueError: if a code is outside its range.

    >>> codes = (torch.arange(4000) % 10 == 0).int() * 3  # nine zeros, one three
    >>> len(encode_codes(codes, kinds=4)), len(pack_bits(codes, width=2))
    (245, 1000)
    """
    width = code_width(kinds)
    numbers = integers(codes)
    if not 1 < kinds <= _MOST_KINDS or not numbers.size:
        return _packed(codes, width)
    lowest, highest = int(numbers.min()), int(numbers.max())
    if not 0 <= lowest <= highest < kinds:
        raise ValueError(f"codes span {lowest}..{highest}, expected 0..{kinds - 1}.")
    symbols = numbers.astype(np.int32, copy=False)
    coder = constriction.stream.queue.RangeEncoder()
    counts = np.zeros(kinds, dtype=np.int64)
    for start, end in _blocks(symbols.size):
        coder.encode(symbols[start:end], _model(counts))
        counts += np.bincount(symbols[start:end], minlength=kinds)
    coded = bytes([_CODED]) + coder.get_compressed().astype("<u4").tobytes()
    return coded if len(coded) <= -(-symbols.size * width // 8) else _packed(codes, width)


def _packed(codes: Tensor, width: int) -> bytes:
    return bytes([_PACKED]) + pack_bits(codes, width).numpy().tobytes()


def decode_codes(data: bytes, count: int, kinds: int) -> Tensor:
    """The inverse of :func:`encode_codes`.

    Nothing is allocated by what the data says: ``count`` and ``kinds`` come from the caller.

    :param data: encoded codes.
    :param count: how many codes there are, n.
    :param kinds: K.
    :return: int32 tensor on the CPU, shape (n,).
    :raises CorruptStreamError: if the encoder cannot have written the data.

    >>> decode_codes(encode_codes(torch.tensor([2, 0, 1]), kinds=3), count=3, kinds=3).tolist()
    [2, 0, 1]
    """
    if not data or data[0] not in (_PACKED, _CODED):
        raise CorruptStreamError(f"codes begin with {data[:1]!r}, expected 0 or 1; it is damaged.")
    body = np.frombuffer(data, dtype=np.uint8, offset=1)
    if data[0] == _PACKED:
        codes = unpack_bits(torch.from_numpy(body.copy()), code_width(kinds), count)
        if codes.numel() and int(codes.max()) >= kinds:
            raise CorruptStreamError(f"a code is {int(codes.max())}, expected 0..{kinds - 1}.")
        return codes
    if body.size % 4 or not 1 < kinds <= _MOST_KINDS or not count:
        raise CorruptStreamError(f"{count} codes of {kinds} kinds cannot be coded so.")
    symbols = _decode(body.view("<u4").astype(np.uint32), count, kinds)
    return torch.from_numpy(symbols)


def _decode(words: np.ndarray, count: int, kinds: int) -> np.ndarray:
    decoder = constriction.stream.queue.RangeDecoder(words)
    symbols = np.empty(count, dtype=np.int32)
    counts = np.zeros(kinds, dtype=np.int64)
    try:
        for start, end in _blocks(count):
            symbols[start:end] = decoder.decode(_model(counts), end - start)
            counts += np.bincount(symbols[start:end], minlength=kinds)
    except AssertionError as error:
        raise CorruptStreamError(
            "the range coder found an impossible word, expected codes; the data is damaged."
        ) from error
    if not decoder.maybe_exhausted():
        raise CorruptStreamError("words of code are left over, expected none; data is damaged.")
    return symbols


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    """Where blocks begin and end: 32 codes, then half as many as there were before."""
    start = 0
    while start < count:
        end = min(count, start + max(_FIRST_BLOCK, start // 2))
        yield start, end
        start = end


def _model(counts: np.ndarray) -> constriction.stream.model.Categorical:
    # Sums of halves are exact and one division is the same on every machine; ``perfect`` is
    # explicit because its default differs between versions: both decide how the data reads back.
    weights = counts + _PRIOR
    return constriction.stream.model.Categorical(weights / weights.sum(), perfect=False)
