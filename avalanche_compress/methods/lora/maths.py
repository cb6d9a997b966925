"""Products of two small matrices: composed with a weight, and in layers."""

from __future__ import annotations

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
