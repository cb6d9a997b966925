"""Values that are multiples of one step, at their entropy: any length that is asked for, nearly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_compress.codec.codes import code_width, decode_codes, encode_codes
from avalanche_compress.codec.errors import CorruptStreamError
from avalanche_compress.codec.stream import ByteReader, ByteWriter
from avalanche_compress.codec.values import Float, Values, size_of

_MOST_KINDS = 1 << 16
_LARGEST_CODE = 1 << 30
_LONGEST_HEAD = 24
"""Bytes that are written before the codes, at most."""
_PARTS = 64
"""Of a step, as whose multiple the shift is kept."""


@dataclass(frozen=True, eq=False)
class Steps(Values):
    """Values that are multiples of a step, all but zero moved: ``(c_i - f sign(c_i)) step``.

    There is no codebook, so that few values can have few bits, too, and the length follows the step
    without gaps. The move f stands for that: where large values are rarer than small ones, the mean
    of those that are rounded to a code is nearer to zero.

    :param codes: c, signed int32 tensor, shape (n,).
    :param step: floating-point tensor, shape (1,).
    :param shift: 64 f, -32 to 32.

    >>> Steps(torch.tensor([0, -3], dtype=torch.int32), torch.tensor([0.25]), shift=16).decode()
    tensor([ 0.0000, -0.6875])
    """

    codes: Tensor
    step: Tensor
    shift: int = 0

    @property
    def lowest(self) -> int:
        """The least code; 0 if there is none."""
        return int(self.codes.min()) if self.codes.numel() else 0

    @property
    def kinds(self) -> int:
        """How many codes there are from the least to the largest one."""
        return int(self.codes.max()) - self.lowest + 1 if self.codes.numel() else 1

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Of a code if all were equally long."""
        return code_width(self.kinds)

    def decode(self) -> Tensor:
        codes = self.codes.to(self.step.dtype)
        return (codes - codes.sign() * (self.shift / _PARTS)) * self.step

    def words(self) -> Tensor:
        """Codes that count from the least one."""
        return self.codes.long() - self.lowest

    def write(self, writer: ByteWriter) -> None:
        writer.write_tensor(self.step)
        for number in (_zigzag(self.shift), _zigzag(self.lowest), self.kinds):
            writer.write_uint(number)
        writer.write_bytes(encode_codes(self.words(), self.kinds))

    @classmethod
    def read(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> Steps:
        step, shift, lowest, kinds = cls._read_head(reader, dtype)
        codes = decode_codes(reader.read_bytes(), count, kinds)
        return cls(codes + lowest, step, shift)

    @classmethod
    def skip(cls, reader: ByteReader, count: int, dtype: torch.dtype) -> int:
        *_, kinds = cls._read_head(reader, dtype)
        reader.read_bytes()
        return code_width(kinds)

    @staticmethod
    def _read_head(reader: ByteReader, dtype: torch.dtype) -> tuple[Tensor, int, int, int]:
        step = reader.read_tensor(dtype, (1,))
        shift, lowest, kinds = (reader.read_uint() for _ in range(3))
        fits = shift <= _PARTS and lowest <= _LARGEST_CODE and 0 < kinds <= _MOST_KINDS
        if not (fits and bool(step.isfinite())):
            raise CorruptStreamError(f"{kinds} steps of {float(step)}, from number {lowest} on")
        return step, _from_zigzag(shift), _from_zigzag(lowest), kinds

    def smallest(self) -> Values:
        """Floats, where they take no more bytes."""
        count, element = self.codes.numel(), self.step.element_size()
        if _LONGEST_HEAD + 2 * count < element * count:  # codes have 16 bits at most
            return self
        return min(Float(self.decode()), self, key=size_of)


def _zigzag(number: int) -> int:
    """Signed numbers as unsigned ones, small where they are, as in protocol buffers."""
    return 2 * number if number >= 0 else -2 * number - 1


def _from_zigzag(number: int) -> int:
    return number // 2 if number % 2 == 0 else -(number + 1) // 2


def quantise_steps(values: Tensor, bits: float, most_bits: int = 16) -> Steps:
    r"""Round values to multiples of a step, at about so many bits a value.

    Of normally distributed values multiples of :math:`\Delta = 2^{-b} \sqrt{2 \pi e \sigma^2}` have
    an entropy of about b bits, and an error that is about a quarter of a bit from what any code of
    that length has (Gish and Pierce, IEEE Trans. Inf. Theory 1968). It takes a hundredth of the
    time of :func:`~avalanche_compress.codec.quantise_entropy`, so that many lengths can be tried.

    :param values: floating-point tensor of any shape, n elements.
    :param bits: b, above 0.
    :param most_bits: of a code if all were equally long, 1 to 16; the step is the larger for it.
    :raises ValueError: if a value is not finite, or ``most_bits`` outside its range.

    >>> values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    >>> [size_of(quantise_steps(values, bits)) * 8 // 500 for bits in (2, 3, 4)]
    [20, 30, 40]
    """
    flat = values.detach().flatten()
    if not 1 <= most_bits <= 16 or not bool(flat.isfinite().all()):
        raise ValueError(f"finite values and 1 to 16 bits were expected, not {most_bits}.")
    if not flat.numel():
        return Steps(flat.int(), flat.new_ones(1))
    exact = flat.double()
    low, high = (float(bound) for bound in exact.aminmax())
    step = 4.1327 * 2**-bits * float(exact.square().mean() ** 0.5)
    # between the ends there are one code less than kinds, and both ends may be rounded outwards
    step = max(step, (high - low) / max(1, 2**most_bits - 2), max(-low, high) * 2**-24)
    chosen = flat.new_tensor([step])
    if not float(chosen) > 0:
        return Steps(torch.zeros_like(flat, dtype=torch.int32), flat.new_ones(1))
    codes = (exact / float(chosen)).round()
    while float(codes.max() - codes.min()) >= 2**most_bits:
        chosen = chosen * 2
        codes = (exact / float(chosen)).round()
    away = codes.abs().mul_(float(chosen)) - exact.abs()  # of each value from its code, to zero
    moved = float(away[codes != 0].mean()) / float(chosen) if bool(codes.any()) else 0.0
    return Steps(codes.int(), chosen, max(-32, min(32, round(_PARTS * moved))))
