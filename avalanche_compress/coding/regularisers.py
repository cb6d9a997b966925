"""Penalties on the terms of a factorised weight: few of them, and close to orthonormal."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

SPARSITY = ("hoyer", "hoyer_square", "l1")


def sparsity(
    scale: Tensor, kind: str = "hoyer", earlier: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """How far the scales are from having one non-zero.

    ``"hoyer"``: ``||s||_1 / ||s||_2 - 1``; ``"hoyer_square"``: ``||s||_1^2 / ||s||_2^2 - 1``;
    ``"l1"``: ``||s||_1``. All-zero scales give 0.

    :param scale: ``(R,)``.
    :param kind: one of :data:`SPARSITY`.
    :param earlier: L1 norm and squared L2 norm of further scales that are constant.
    :return: scalar.

    >>> round(sparsity(torch.tensor([1.0, -2.0, 3.0, 4.0])).item(), 6)
    0.825742
    """
    l1 = scale.abs().sum() + earlier[0]
    if kind == "l1":
        return l1
    squared = (scale**2).sum() + earlier[1]
    # the least normal number keeps 0 / 0 away and changes nothing else
    squared = squared.clamp_min(torch.finfo(squared.dtype).tiny)
    nonzero = (l1 > 0).to(l1)
    if kind == "hoyer":
        return l1 / squared.sqrt() - nonzero
    return l1**2 / squared - nonzero


class FrozenRows:
    """Rows that stay as they are, prepared for :func:`orthogonality` of others beside them.

    :param rows: ``(R, w)``, R may be 0.
    """

    def __init__(self, rows: Tensor):
        self.count, self.width = rows.shape
        wide = 2 * self.count < self.width
        #: the rows, or their Gram matrix (w, w) where that is less work at every step
        self.rows = rows if wide else None
        self.gram = None if wide else rows.t() @ rows
        product = rows @ rows.t() if self.count <= self.width else rows.t() @ rows
        self._squared = float((rows.double() ** 2).sum())
        self.constant = float((product.double() ** 2).sum()) - 2 * self._squared

    def extended(self, rows: Tensor) -> FrozenRows:
        """These rows and more, at the cost of the new ones where there are many already.

        :param rows: ``(r, w)``.
        """
        if self.gram is None:
            assert self.rows is not None
            return FrozenRows(torch.cat([self.rows, rows]))
        longer = copy.copy(self)
        longer.count += len(rows)
        longer.gram = self.gram + rows.t() @ rows
        longer._squared += float((rows.double() ** 2).sum())
        longer.constant = float((longer.gram.double() ** 2).sum()) - 2 * longer._squared
        return longer

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        kept = self.gram if self.rows is None else self.rows
        assert kept is not None
        return kept.device

    def overlap(self, rows: Tensor) -> Tensor:
        """``rows A^T A`` with A these rows.

        :param rows: ``(r, w)``.
        :return: ``(r, w)``.
        """
        if self.rows is None:
            assert self.gram is not None
            return rows @ self.gram
        return (rows @ self.rows.t()) @ self.rows


def orthogonality(rows: Tensor, frozen: FrozenRows | None = None) -> Tensor:
    """``||G - I||_F^2 / d^2``, G the smaller Gram matrix of all rows A = [frozen; rows], (d, d).

    Computed as ``(||A A^T||^2 - 2 ||A||^2 + d) / d^2``, which is the same for either Gram matrix,
    with all that is constant taken from ``frozen``. A step costs ``O(r w min(R, w))`` however
    many frozen rows R there are, and the backward pass nothing more.

    :param rows: ``(r, w)``.
    :param frozen: rows that get no gradient, of the same width.
    :return: scalar.

    >>> orthogonality(torch.eye(3)).item()
    0.0
    >>> round(orthogonality(torch.tensor([[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]])).item(), 6)
    0.250825
    """
    value: Tensor = _Orthogonality.apply(rows, frozen)
    return value


class _Orthogonality(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, frozen: FrozenRows | None) -> Tensor:  # type: ignore[override]
        own = rows @ rows.t()
        half = (own @ rows).sub_(rows)
        value = (own**2).sum() - 2 * own.diagonal().sum()
        count, width = rows.shape
        if frozen is not None and frozen.count:
            overlap = frozen.overlap(rows)
            half.add_(overlap)
            value = value + 2 * overlap.mul_(rows).sum() + frozen.constant
            count += frozen.count
        d = min(count, width)
        ctx.save_for_backward(half.mul_(4 / max(1, d) ** 2))
        return (value + d) / max(1, d) ** 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return gradient * slope, None
