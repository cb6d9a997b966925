"""What values take at few bits, and how far that is from the best scalar quantiser.

``python -m benchmarks.source`` quantises normally distributed values, encodes them as an archive
does, and prints a table. At high rates the best scalar quantiser with entropy-coded cells takes
.2546 bits more than the rate-distortion function of the source (Gish and Pierce 1968).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_compress.codec import (
    ByteWriter,
    Codebook,
    quantise_codebook,
    quantise_entropy,
    write_values,
)

SHAPED = 0.2546
"""Bits between the best scalar quantiser and the rate-distortion function, at high rates."""


def row(name: str, values: Tensor, coded: Codebook) -> str:
    """A line of the table.

    :param name: of the way of quantising.
    :param values: the source, (n,).
    :param coded: them quantised, their codes and centroids.
    """
    error = float((values - coded.decode()).square().mean() / values.var())
    share = torch.bincount(coded.codes.flatten().long()).double() / len(values)
    entropy = -float((share * share.clamp_min(1e-300).log2()).sum())
    writer = ByteWriter()
    write_values(coded.smallest(), writer)
    bits = 8 * len(writer.getvalue()) / len(values)
    bound = 0.5 * math.log2(1 / error)
    return (
        f"| {name} | {error:.5f} | {entropy:.3f} | {bits:.3f} | {bound:.3f} | {bound + SHAPED:.3f} "
        f"| {bits - bound - SHAPED:+.3f} |"
    )


def table(count: int = 100_000, seed: int = 0) -> str:
    """Markdown: bits a value and the bounds at the same error, at 2, 3 and 4 bits.

    :param count: of values.
    :param seed: of them.
    """
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    lines = [
        "| values | error | entropy of the codes | bits in the file | least of any code "
        "| of a scalar one | above |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for bits in (2, 3, 4):
        at_rate, means = quantise_entropy(values, bits), quantise_codebook(values, bits)
        lines.append(row(f"least error at a rate of {bits} bits", values, at_rate))
        lines.append(row(f"k-means, {2**bits} centroids", values, means))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.source", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--count", type=int, default=100_000, metavar="N", help="of values")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    given = parser.parse_args(arguments)
    print(table(given.count, given.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
