"""Products of two small matrices: composed with a weight, in layers, and their size in bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def adapt_weight(base: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """``W + scale B A``, for each of G groups.

    :param base: W, (G, n, m).
    :param left: B, (G, n, r).
    :param right: A, (G, r, m).
    :param scale: of the product.
    :return: (G, n, m).

    >>> one = torch.ones(1, 1, 1)
    >>> adapt_weight(one, 2 * one, 3 * one, scale=0.5)
    tensor([[[4.]]])
    """
    return torch.baddbmm(base, left, scale * right)


def adapted_linear(
    x: Tensor, base: Tensor, left: Tensor, right: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """``W x + scale B (A x) + b``.

    :param x: (..., m).
    :param base: W, (n, m), which gets no gradient.
    :param left: B, (n, r).
    :param right: A, (r, m).
    :param scale: of the product.
    :param bias: b, (n,).
    :return: (..., n).

    >>> one = torch.ones(1, 1)
    >>> adapted_linear(one, 5 * one, 2 * one, 3 * one, 0.5)
    tensor([[8.]])
    """
    return F.linear(x, base, bias) + F.linear(F.linear(x, scale * right), left)


def adapted_embedding(
    x: Tensor, base: Tensor, left: Tensor, right: Tensor, scale: float, padding: int | None = None
) -> Tensor:
    """``W_x + scale B_x A``: rows of the table are looked up, the table is not put together.

    :param x: indices, any shape.
    :param base: W, (n, m), which gets no gradient.
    :param left: B, (n, r).
    :param right: A, (r, m).
    :param scale: of the product.
    :param padding: the row that is not trained.
    :return: (..., m).

    >>> one = torch.ones(1, 1)
    >>> adapted_embedding(torch.tensor([0]), 5 * one, 2 * one, 3 * one, 0.5)
    tensor([[8.]])
    """
    rows = F.embedding(x, left, padding) @ (scale * right)
    return F.embedding(x, base) + rows


def part_bytes(count: int, bits: int | None, element: int) -> int:
    """The most bytes that a part of a section takes.

    :param count: its numbers.
    :param bits: of a code; None for floats.
    :param element: bytes of a float.

    >>> part_bytes(1000, None, 4), part_bytes(1000, 4, 4)
    (4001, 567)
    """
    floats = 1 + element * count
    if bits is None:
        return floats
    codebook = 1 + 2 + element * min(1 << bits, max(1, count)) + (count * bits + 7) // 8
    return min(floats, codebook)


def largest_rank(sizes: Sequence[Sequence[int]], budget: int) -> int | None:
    """The largest rank at which all layers together take no more than a budget.

    :param sizes: of each layer, its bytes at the ranks 0, 1, 2, and so on, not falling; a layer
        keeps its last one at higher ranks.
    :param budget: in bytes.
    :return: None if not even rank 0 fits.

    >>> largest_rank([[1, 5, 9, 13], [1, 11]], budget=20)
    2
    """
    best = None
    for rank in range(max(map(len, sizes), default=1)):
        if sum(layer[min(rank, len(layer) - 1)] for layer in sizes) > budget:
            break
        best = rank
    return best
