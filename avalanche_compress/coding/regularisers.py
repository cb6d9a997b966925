"""Penalties on the terms of a factorised weight: few of them, and close to orthonormal."""

from __future__ import annotations

import copy
from typing import Any, Sequence

import torch
from torch import Tensor

SPARSITY = ("hoyer", "hoyer_square", "l1")


def differentiable(value: Tensor, parameters: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """A value whose gradients are known, so that no graph of how it came about is needed.

    :param value: scalar.
    :param parameters: what it depends on.
    :param slopes: its gradient with respect to each of them.
    :return: the value, which passes the slopes back.

    >>> weight = torch.tensor([3.0], requires_grad=True)
    >>> differentiable(torch.tensor(9.0), [weight], [torch.tensor([6.0])]).backward()
    >>> weight.grad
    tensor([6.])
    """
    joined: Tensor = _Differentiable.apply(value, list(slopes), *parameters)
    return joined


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, slopes: list[Tensor], *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*slopes)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return None, None, *(gradient * slope for slope in ctx.saved_tensors)


@torch.no_grad()
def sparsity(
    scale: Tensor, kind: str = "hoyer", earlier: tuple[float, float] = (0.0, 0.0)
) -> tuple[Tensor, Tensor]:
    """How far the scales are from having one non-zero.

    ``"hoyer"``: ``||s||_1 / ||s||_2 - 1``; ``"hoyer_square"``: ``||s||_1^2 / ||s||_2^2 - 1``;
    ``"l1"``: ``||s||_1``. All-zero scales give 0.

    With a = ||s||_1 and q = ||s||_2^2 the gradients are ``(sign(s) - s a / q) / sqrt(q)``,
    ``2 a / q (sign(s) - s a / q)`` and ``sign(s)``.

    :param scale: ``(R,)``.
    :param kind: one of :data:`SPARSITY`.
    :param earlier: L1 norm and squared L2 norm of further scales that are constant.
    :return: scalar, and its gradient ``(R,)``.

    >>> value, slope = sparsity(torch.tensor([1.0, -2.0, 3.0, 4.0]))
    >>> round(value.item(), 6)
    0.825742
    """
    sign = scale.sign()
    l1 = scale.dot(sign) + earlier[0]
    if kind == "l1":
        return l1, sign
    # the least normal number keeps 0 / 0 away and changes nothing else
    squared = (scale.dot(scale) + earlier[1]).clamp_min_(torch.finfo(scale.dtype).tiny)
    slope = torch.addcmul(sign, scale, l1 / squared, value=-1)
    if kind == "hoyer":
        root = squared.sqrt_()
        return l1 / root - l1.sign(), slope.div_(root)
    ratio = l1 / squared
    return l1 * ratio - l1.sign(), slope.mul_(2 * ratio)


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

    def add_overlap(self, rows: Tensor, out: Tensor, factor: float) -> None:
        """Add ``factor rows A^T A`` to a tensor, A these rows.

        :param rows: ``(r, w)``.
        :param out: ``(r, w)``, changed in place.
        :param factor: any.
        """
        if self.rows is None:
            assert self.gram is not None
            out.addmm_(rows, self.gram, alpha=factor)
        else:
            out.addmm_(rows @ self.rows.t(), self.rows, alpha=factor)


@torch.no_grad()
def orthogonality(rows: Tensor, frozen: FrozenRows | None = None) -> tuple[Tensor, Tensor]:
    """``||G - I||_F^2 / d^2``, G the smaller Gram matrix of all rows A = [frozen; rows], (d, d).

    Computed as ``(||A A^T||^2 - 2 ||A||^2 + d) / d^2``, which is the same for either Gram matrix,
    with all that is constant taken from ``frozen``. With B the rows and F the frozen ones the
    gradient is ``4 S / d^2``, ``S = B B^T B - B + B F^T F``, and all but the constant part of the
    value is ``(2 <B, S> - ||B B^T||^2) / d^2``: each product serves both. That costs
    ``O(r w min(R, w))`` however many frozen rows R there are.

    :param rows: ``(r, w)``.
    :param frozen: rows that get no gradient, of the same width.
    :return: scalar, and its gradient ``(r, w)``.

    >>> orthogonality(torch.eye(3))[0].item()
    0.0
    >>> round(orthogonality(torch.tensor([[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]]))[0].item(), 6)
    0.250825
    """
    count, width = rows.shape
    count += 0 if frozen is None else frozen.count
    d = min(count, width)
    constant = d + (0.0 if frozen is None else frozen.constant)
    scale = 1 / max(1, d) ** 2
    own = rows @ rows.t()
    slope = torch.addmm(rows, own, rows, beta=-4 * scale, alpha=4 * scale)
    if frozen is not None and frozen.count:
        frozen.add_overlap(rows, slope, 4 * scale)
    aligned = torch.dot(rows.flatten(), slope.flatten())
    value = aligned / 2 - scale * torch.dot(own.flatten(), own.flatten())
    return value + scale * constant, slope
