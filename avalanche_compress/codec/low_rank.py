"""Weights as sums of rank-one terms, and layers that compute from the terms."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Factors(NamedTuple):
    """R rank-one terms of an (n, m) matrix, ``sum_i |scale_i| left_i right_i^T``.

    Rows are terms, so that taking some of them is a contiguous slice.
    """

    left: Tensor
    """``(R, n)``"""
    scale: Tensor
    """``(R,)``; only its magnitude matters."""
    right: Tensor
    """``(R, m)``"""

    @property
    def rank(self) -> int:
        """The number of terms, R."""
        return self.scale.numel()

    def compose(self) -> Tensor:
        """The matrix (n, m).

        >>> Factors(torch.ones(1, 2), torch.tensor([-2.0]), torch.ones(1, 3)).compose().tolist()
        [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
        """
        return self.left.t() @ (self.scale.abs().unsqueeze(1) * self.right)

    def take(self, chosen: Tensor) -> Factors:
        """Some of the terms, in their order.

        :param chosen: bool (R,).
        """
        return Factors(self.left[chosen], self.scale[chosen], self.right[chosen])


class LowRankWeight(NamedTuple):
    """A weight that is the sum of few terms."""

    factors: Factors
    spatial: bool
    """Whether the terms span (channels x height, filters x width) of a convolution, and not
    (filters, channels x height x width)."""


def break_even_rank(rows: int, columns: int) -> int:
    """The largest rank whose factors have no more entries than the matrix, ``floor(nm / (n+m))``.

    :param rows: n.
    :param columns: m.
    :return: 0 where even one term has more.

    >>> break_even_rank(64, 27), break_even_rank(128, 1152)
    (18, 115)
    """
    return rows * columns // (rows + columns)


def factored_linear(
    x: Tensor, shared: Tensor, terms: Factors, bias: Tensor | None = None
) -> Tensor:
    r"""``W x + U^T |sigma| (V x) + b``.

    :param x: (..., m).
    :param shared: W, (n, m), which gets no gradient.
    :param terms: R of them.
    :param bias: b, (n,).
    :return: (..., n).

    >>> one = torch.ones(1)
    >>> terms = Factors(torch.full((1, 1), 2.0), -one, torch.full((1, 1), 3.0))
    >>> factored_linear(one, torch.full((1, 1), 5.0), terms)
    tensor([11.])
    """
    rows = x.reshape(-1, x.shape[-1])
    left = terms.scale.abs().unsqueeze(1) * terms.left
    out = torch.addmm(F.linear(rows, shared, bias), F.linear(rows, terms.right), left)
    return out.view(*x.shape[:-1], len(shared))


def truncate_product(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the matrix of a rank that is nearest to a product, for each of G groups.

    The singular values are shared out evenly between both factors. No (n, m) matrix is computed.

    :param left: (G, n, k).
    :param right: (G, k, m).
    :param rank: r, at most k.
    :return: (G, n, r) and (G, r, m), in the type of ``left``.

    >>> left, right = truncate_product(torch.ones(1, 3, 2), torch.ones(1, 2, 4), rank=1)
    >>> (left @ right).round(decimals=4).unique()
    tensor([2.])
    """
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().mT)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    root = s[:, :rank].sqrt()
    parts = (
        (q_left @ u[:, :, :rank]) * root.unsqueeze(1),
        root.unsqueeze(2) * (vh[:, :rank] @ q_right.mT),
    )
    return tuple(part.to(left.dtype).contiguous() for part in parts)  # type: ignore[return-value]


def saves_work(rows: int, columns: int, rank: int, samples: int) -> bool:
    """Whether a training step of :func:`factored_linear` has fewer products than composing W.

    With each sample it takes three products with the factors, forward and back, and saves the one
    of the whole weight's gradient. Composing takes three products of the factors with each other.

    :param rows: n.
    :param columns: m.
    :param rank: R.
    :param samples: inputs, all dimensions but the last.

    >>> saves_work(100, 784, 88, 32), saves_work(100, 784, 88, 256)
    (True, False)
    """
    weight = rows * columns
    return (3 * rank * (rows + columns) - weight) * samples <= 3 * rank * weight
