"""Values that are one of few centroids each, their codes packed or at their entropy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from avalanche_compress.codec.bits import pack_bits
from avalanche_compress.codec.codes import code_width, decode_codes, encode_codes
from avalanche_compress.codec.errors import CorruptStreamError
from avalanche_compress.codec.stream import ByteReader, ByteWriter
from avalanche_compress.codec.values import (
    Float,
    Values,
    built,
    check_flat,
    check_span,
    packed_size,
    read_codes,
    size_of,
)

_MOST_CENTROIDS = 1 << 16


@dataclass(frozen=True, eq=False)
class Codebook(Values):
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
        >>> book.parameter_gradient(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [1.0, 5.0]
    """

    codes: Tensor
    centroids: Tensor

    def __post_init__(self) -> None:
        check_flat("codes", self.codes)
        check_flat("centroids", self.centroids)
        check_span(self.codes, 0, self.centroids.numel() - 1)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits per code: max(1, ceil(log2 K))."""
        return code_width(self.centroids.numel())

    def decode(self) -> Tensor:
        """The values, shape (n,), in the dtype of the centroids; the same bits every time."""
        return self.centroids.index_select(0, self.codes)  # a third of the time indexing takes

    def words(self) -> Tensor:
        return self.codes.long()

    def write(self, writer: ByteWriter) -> None:
        writer.write_uint(self.centroids.numel())
        writer.write_tensor(self.centroids)
        writer.write_raw(self._coded)

    @cached_property
    def _coded(self) -> bytes:
        """The codes as they are written: they are asked for their length first."""
        return pack_bits(self.codes, self.bits).numpy().tobytes()

    @classmethod
    def read(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> Codebook:
        centroids = cls._read_centroids(reader, count, dtype)
        codes = read_codes(reader, count, code_width(centroids.numel()))
        return built(lambda: cls(codes, centroids))

    @classmethod
    def skip(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> int:
        bits = code_width(cls._read_centroids(reader, count, dtype).numel())
        reader.read_raw(packed_size(bits, count))
        return bits

    @staticmethod
    def _read_centroids(reader: ByteReader, count: int, dtype: torch.dtype) -> Tensor:
        size = reader.read_uint()
        if not (size <= _MOST_CENTROIDS and (size > 0 or count == 0)):
            raise CorruptStreamError(f"a codebook of {size} centroids for {count} values")
        return reader.read_tensor(dtype, (size,))

    @property
    def parameter(self) -> Tensor | None:
        """The centroids."""
        return self.centroids

    def parameter_gradient(self, gradients: Tensor) -> Tensor:
        """``dL/dc_k``, the sum of ``dL/dw_i`` over all i with code k, shape (K,).

        :param gradients: dL/dw, (n,).
        """
        sums = gradients.new_zeros(self.centroids.numel())
        return sums.index_add_(0, self.codes.long(), gradients)

    def copy(self) -> Codebook:
        return Codebook(self.codes, self.centroids.detach().clone())

    def shortest(self) -> Values:
        """Codes of equal length or at their entropy."""
        ways = [kind(self.codes, self.centroids) for kind in (Codebook, EntropyCoded)]
        return min(ways, key=size_of)

    def smallest(self) -> Values:
        """Floats, where they take no more bytes than codes and codebook.

        >>> Codebook(torch.arange(2).int(), torch.tensor([1.5, 2.0])).smallest()
        Float(values=tensor([1.5000, 2.0000]))
        """
        return min(Float(self.decode()), self.shortest(), key=size_of)


class EntropyCoded(Codebook):
    """A codebook whose codes are written at their entropy."""

    @cached_property
    def _coded(self) -> bytes:
        writer = ByteWriter()
        writer.write_bytes(encode_codes(self.codes, self.centroids.numel()))
        return writer.getvalue()

    @classmethod
    def read(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> EntropyCoded:
        centroids = cls._read_centroids(reader, count, dtype)
        codes = decode_codes(reader.read_bytes(), count, centroids.numel())
        return built(lambda: cls(codes, centroids))

    @classmethod
    def skip(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> int:
        bits = code_width(cls._read_centroids(reader, count, dtype).numel())
        reader.read_bytes()
        return bits
