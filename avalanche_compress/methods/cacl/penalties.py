"""Penalties on the terms of a factorised weight: few of them, and close to orthonormal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SPARSITY = ("hoyer", "hoyer_square", "l1")
_POWER_STEPS = 20
"""Of the power method, whose result only has to be near."""


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
        return None, None, *torch._foreach_mul(ctx.saved_tensors, gradient)


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
        self._largest: Tensor | None = None

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
        longer._largest = None
        return longer

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        kept = self.gram if self.rows is None else self.rows
        assert kept is not None
        return kept.device

    @property
    def largest(self) -> Tensor:
        """The largest eigenvalue of ``A^T A``, A these rows, scalar; found when first asked for."""
        if self._largest is None:
            kept = self.gram if self.rows is None else self.rows
            assert kept is not None
            self._largest = _largest_eigenvalue(self._overlap, kept)
        return self._largest

    def _overlap(self, rows: Tensor) -> Tensor:
        out = torch.zeros_like(rows)
        self.add_overlap(rows, out, 1.0)
        return out

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


def _largest_eigenvalue(product: Callable[[Tensor], Tensor], starts: Tensor) -> Tensor:
    """That of a positive semi-definite matrix, by the power method from the longest of some rows.

    :param product: a row ``(1, w)`` times the matrix.
    :param starts: ``(n, w)``, n may be 0.
    :return: scalar, which nobody has waited for.
    """
    if not starts.numel():
        return starts.new_zeros(())
    row = starts.index_select(0, starts.norm(dim=1).argmax(dim=0, keepdim=True))
    for _ in range(_POWER_STEPS):
        row = product(row / row.norm().clamp_min(torch.finfo(row.dtype).tiny))
    length: Tensor = row.norm()
    return length


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
    d = _smaller_side(rows, frozen)
    constant = d + (0.0 if frozen is None else frozen.constant)
    scale = 1 / max(1, d) ** 2
    products = rows @ rows.t()
    slope = torch.addmm(rows, products, rows, beta=-4 * scale, alpha=4 * scale)
    if frozen is not None and frozen.count:
        frozen.add_overlap(rows, slope, 4 * scale)
    aligned = torch.dot(rows.flatten(), slope.flatten())
    value = aligned / 2 - scale * torch.dot(products.flatten(), products.flatten())
    return value + scale * constant, slope


def _smaller_side(rows: Tensor, frozen: FrozenRows | None) -> int:
    count, width = rows.shape
    return min(count + (0 if frozen is None else frozen.count), width)


class OrthogonalityBound:
    """A quadratic that stands for :func:`orthogonality` while the rows move on from where they are.

    ``f(A) + <f'(A), B - A> + m/2 ||B - A||^2`` with ``m = 4/d^2 (3 s^2 + 1 + t^2)``, s and t the
    largest singular values of A and of the frozen rows (majorisation; Hunter and Lange, 2004).
    f's curvature stays below m, and f below this, until a singular value of B is above
    ``sqrt(s^2 + 2/3)``, so whoever goes down here goes down f. An old gradient would go on beyond;
    this one fades, and any number of steps ends where one step of length 1/m from A does. Value
    and gradient are exact at A, and cost no product anywhere.

    :param rows: A, ``(r, w)``.
    :param frozen: rows of the same width that get no gradient.
    :param weight: that multiplies f.

    >>> bound = OrthogonalityBound(torch.tensor([[2.0, 0.0]]))
    >>> [own.tolist() for own in bound.at(torch.tensor([[1.0, 0.0]]))]
    [11.0, [[-28.0, 0.0]]]
    """

    @torch.no_grad()
    def __init__(self, rows: Tensor, frozen: FrozenRows | None = None, weight: float = 1.0):
        self._rows = rows.clone()
        value, slope = orthogonality(rows, frozen)
        self._value, self._slope = weight * value, slope.mul_(weight)
        products = rows @ rows.t()
        square = _largest_eigenvalue(lambda row: row @ products, products)
        beside = 0 if frozen is None else frozen.largest
        d = max(1, _smaller_side(rows, frozen))
        self._curvature = weight * 4 / d**2 * (3 * square + 1 + beside)

    @torch.no_grad()
    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The value for B, and its gradient ``(r, w)``.

        :param rows: B, ``(r, w)``.
        """
        moved = rows - self._rows
        slope = torch.addcmul(self._slope, moved, self._curvature)
        moved = moved.flatten()
        rise = torch.dot(moved, self._slope.flatten()) + torch.dot(moved, slope.flatten())
        return self._value + rise / 2, slope
