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
    value: Tensor = _Sparsity.apply(scale, kind, earlier)
    return value


class _Sparsity(torch.autograd.Function):
    """The gradient is worked out along with the value: a training step has no time for its graph.

    With the norms a = ||s||_1 and q = ||s||_2^2: sign(s) for L1,
    ``(sign(s) - s a / q) / sqrt(q)`` for Hoyer and ``2 a / q (sign(s) - s a / q)`` for its square.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, scale: Tensor, kind: str, earlier: tuple[float, float]
    ) -> Tensor:
        l1, sign = scale.abs().sum() + earlier[0], scale.sign()
        if kind == "l1":
            ctx.save_for_backward(sign)
            return l1
        # the least normal number keeps 0 / 0 away and changes nothing else
        squared = (scale.dot(scale) + earlier[1]).clamp_min_(torch.finfo(scale.dtype).tiny)
        slope = torch.addcmul(sign, scale, l1 / squared, value=-1)
        nonzero = (l1 > 0).to(l1)
        if kind == "hoyer":
            root = squared.sqrt()
            ctx.save_for_backward(slope.div_(root))
            return l1 / root - nonzero
        ratio = l1 / squared
        ctx.save_for_backward(slope.mul_(2 * ratio))
        return l1 * ratio - nonzero

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None


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

    def add_overlap(self, rows: Tensor, out: Tensor, factor: float) -> Tensor:
        """Add ``factor rows A^T A`` to a tensor, A these rows.

        :param rows: ``(r, w)``.
        :param out: ``(r, w)``, changed in place.
        :param factor: any.
        :return: ``||rows A^T||^2``, scalar.
        """
        if self.rows is None:
            assert self.gram is not None
            overlap = rows @ self.gram
            out.add_(overlap, alpha=factor)
            return torch.dot(overlap.flatten(), rows.flatten())
        products = rows @ self.rows.t()
        out.addmm_(products, self.rows, alpha=factor)
        return torch.dot(products.flatten(), products.flatten())


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
        count, width = rows.shape
        count += 0 if frozen is None else frozen.count
        d = max(1, min(count, width))
        own, factor = rows @ rows.t(), 4 / d**2
        slope = torch.addmm(rows, own, rows, beta=-factor, alpha=factor)
        value = torch.dot(own.flatten(), own.flatten()) - 2 * own.trace()
        if frozen is not None and frozen.count:
            value = value + 2 * frozen.add_overlap(rows, slope, factor) + frozen.constant
        ctx.save_for_backward(slope)
        return (value + min(count, width)) / d**2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return gradient * slope, None
