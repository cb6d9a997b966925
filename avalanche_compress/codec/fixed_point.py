"""Symmetric dynamic fixed point: a word of few bits and one power of two per tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FEWEST_BITS, _MOST_BITS = 2, 16
# A float64 power of two beyond this overflows; only subnormal doubles ask for it.
_LARGEST_SHIFT = 1000


def fixed_point(values: Tensor, word_bits: int) -> tuple[Tensor, int]:
    r"""Round values to multiples of a power of two that fit a signed word.

    .. math::
        f = w - 1 - \lceil \log_2 \max|W| \rceil, \qquad
        q = \mathrm{clip}(\mathrm{round}(W 2^f), \pm(2^{w-1} - 1)), \qquad W \approx q 2^{-f}

    Halves round to even. The range is symmetric, so the lowest two's complement code is unused
    (Ada-QPacknet's linear quantisation; the clip is ours, the reference code's is one bit too
    wide).

    :param values: floating-point tensor of any shape, n elements; it may be empty.
    :param word_bits: word length w in bits, sign included, 2 to 16.
    :return: ``(codes, fraction_bits)``: int32 signed codes q, shape (n,), and f, which may be
        negative or larger than w; f = w - 1 if every value is zero.
    :raises ValueError: if ``word_bits`` is outside its range, or ``values`` is not floating-point
        or not finite.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import fixed_point
        >>> codes, fraction_bits = fixed_point(torch.tensor([0.3, -0.7, -1.3, 0.0]), word_bits=4)
        >>> codes.tolist(), fraction_bits
        ([1, -3, -5, 0], 2)
    """
    if not _FEWEST_BITS <= word_bits <= _MOST_BITS:
        raise ValueError(
            f"the word has {word_bits} bits, expected {_FEWEST_BITS} to {_MOST_BITS}; choose one."
        )
    if not values.is_floating_point():
        raise ValueError(f"values are {values.dtype}, expected floating point; convert them first.")
    flat = values.detach().reshape(-1).double()
    largest = float(flat.abs().max()) if flat.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError("values contain NaN or infinity, expected finite numbers; remove them.")
    fraction_bits = min(word_bits - 1 - _ceil_log2(largest), _LARGEST_SHIFT)
    bound = 2 ** (word_bits - 1) - 1
    codes = torch.round(flat * 2.0**fraction_bits).clamp_(-bound, bound)
    return codes.to(torch.int32), fraction_bits


def from_fixed_point(
    codes: Tensor, fraction_bits: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The values of fixed-point codes: ``q * 2**-f``.

    :param codes: integer tensor of any shape.
    :param fraction_bits: f.
    :param dtype: dtype of the result; float32 holds every code exactly.
    :return: tensor of the shape and device of ``codes``.
    :raises ValueError: if ``fraction_bits`` is beyond what a float64 can scale by.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import from_fixed_point
        >>> from_fixed_point(torch.tensor([1, -3, -5, 0]), fraction_bits=2).tolist()
        [0.25, -0.75, -1.25, 0.0]
    """
    if abs(fraction_bits) > _LARGEST_SHIFT + _MOST_BITS:
        raise ValueError(
            f"there are {fraction_bits} fraction bits, expected at most "
            f"{_LARGEST_SHIFT + _MOST_BITS} either way; the number is damaged."
        )
    return (codes.double() * 2.0**-fraction_bits).to(dtype)


def _ceil_log2(value: float) -> int:
    """Exact, where a floating-point logarithm may land just above an integer; 0 for zero."""
    if value == 0.0:
        return 0
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else exponent
