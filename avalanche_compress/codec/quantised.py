"""What a quantised tensor is: codes, and the little that turns them back into values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from avalanche_compress.codec.fixed_point import fixed_point, from_fixed_point
from avalanche_compress.codec.kmeans import kmeans_1d

_MOST_BITS = 16


@dataclass(frozen=True, eq=False)
class Codebook:
    """Values that are one of K centroids each: ``value_i = centroids[codes_i]``.

    :param codes: int32 tensor, shape (n,), in ``0 .. K - 1``.
    :param centroids: floating-point tensor, shape (K,).
    :raises ValueError: if a shape is not flat or a code has no centroid.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import Codebook
        >>> book = Codebook(torch.tensor([0, 1, 1], dtype=torch.int32), torch.tensor([-1.0, 2.0]))
        >>> book.bits, book.decode().tolist()
        (1, [-1.0, 2.0, 2.0])
    """

    codes: Tensor
    centroids: Tensor

    def __post_init__(self) -> None:
        _check_flat("codes", self.codes)
        _check_flat("centroids", self.centroids)
        _check_span(self.codes, 0, self.centroids.numel() - 1)

    @property
    def bits(self) -> int:
        """Bits per code: max(1, ceil(log2 K))."""
        return max(1, (self.centroids.numel() - 1).bit_length())

    def decode(self) -> Tensor:
        """The values, shape (n,), in the dtype of the centroids; the same bits every time."""
        return self.centroids.index_select(0, self.codes)  # a third of the time indexing takes


@dataclass(frozen=True, eq=False)
class FixedPoint:
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
        _check_flat("codes", self.codes)
        if not 2 <= self.bits <= _MOST_BITS:
            raise ValueError(f"the word has {self.bits} bits, expected 2 to {_MOST_BITS}.")
        bound = 2 ** (self.bits - 1) - 1
        _check_span(self.codes, -bound, bound)

    def decode(self) -> Tensor:
        """The values, shape (n,), float32; the same bits every time."""
        return from_fixed_point(self.codes, self.fraction_bits)


Quantised = Union[Codebook, FixedPoint]


def quantise_codebook(values: Tensor, bits: int) -> Codebook:
    """Replace values by at most ``2**bits`` centroids with the least squared error.

    :param values: floating-point tensor, n elements; pass kept weights only, zeros are the mask's.
    :param bits: the most bits per code, 1 to 16; fewer are used if there are fewer values.
    :return: the codes and centroids of :func:`kmeans_1d`.
    :raises ValueError: if ``bits`` is outside its range or a value is not finite.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import quantise_codebook
        >>> quantise_codebook(torch.tensor([0.1, 0.3, -1.0, -1.5]), bits=1).decode()
        tensor([ 0.2000,  0.2000, -1.2500, -1.2500])
    """
    if not 1 <= bits <= _MOST_BITS:
        raise ValueError(f"a code has {bits} bits, expected 1 to {_MOST_BITS}; choose one of them.")
    centroids, codes = kmeans_1d(values, 2**bits)
    return Codebook(codes, centroids)


def quantise_fixed_point(values: Tensor, bits: int) -> FixedPoint:
    """Replace values by fixed-point words.

    :param values: floating-point tensor, n elements.
    :param bits: word length in bits, sign included, 2 to 16.
    :return: the codes of :func:`fixed_point`.
    :raises ValueError: if ``bits`` is outside its range or a value is not finite.

    Example::

        >>> import torch
        >>> from avalanche_compress.codec import quantise_fixed_point
        >>> quantise_fixed_point(torch.tensor([0.3, -0.7]), bits=4).decode()
        tensor([ 0.2500, -0.7500])
    """
    codes, fraction_bits = fixed_point(values, bits)
    return FixedPoint(codes, bits, fraction_bits)


def _check_flat(name: str, tensor: Tensor) -> None:
    if tensor.dim() != 1:
        raise ValueError(
            f"{name} have shape {tuple(tensor.shape)}, expected one dimension; flatten them."
        )


def _check_span(codes: Tensor, lowest: int, highest: int) -> None:
    if codes.dtype != torch.int32:
        raise ValueError(f"codes are {codes.dtype}, expected torch.int32; convert them.")
    if not codes.numel():
        return
    least, most = (int(own) for own in codes.aminmax())
    if not lowest <= least <= most <= highest:
        raise ValueError(
            f"codes span {least}..{most}, expected {lowest}..{highest}; the data is damaged."
        )
