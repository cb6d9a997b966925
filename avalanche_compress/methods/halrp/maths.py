"""What a task changes about a base weight: two scalings and a product of small factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avalanche_compress.core.deferred import full_precision
from avalanche_compress.errors import NonFiniteError, nearest

EPS = 1e-20
"""The least denominator of a scale: rows and columns of zeros get the scale zero."""
_LARGEST_GRAM = 1024
_METHODS = ("auto", "gram", "randomised", "exact")


@dataclass(frozen=True, eq=False)
class LeadingSVD:
    r"""The leading components of a matrix, :math:`M \approx P_q \, diag(\sigma_q) \, Q_q^T`.

    :param u: left singular vectors P, shape (m, q), orthonormal columns.
    :param singular_values: at least the q that belong to the vectors, descending, shape (p,) with
        q <= p; all min(m, n) of them if ``exact``.
    :param v: right singular vectors Q^T, shape (q, n), orthonormal rows.
    :param energy: squared Frobenius norm of M, the sum of all squared singular values.
    :param exact: whether the singular values are all there and exact to rounding. If not, there
        are q of them and each is a lower bound.
    """

    u: Tensor
    singular_values: Tensor
    v: Tensor
    energy: float
    exact: bool


def least_squares_scalings(tuned: Tensor, base: Tensor, sweeps: int = 1) -> tuple[Tensor, Tensor]:
    r"""Scale the outputs and inputs of a base weight so that it comes near a tuned one.

    .. math:: \min_{r, s} \| W - diag(r) \, W_{base} \, diag(s) \|_F^2

    Each sweep solves for r with s held (all ones at first), then for s with r held. No sweep makes
    the error larger. A row or column of the base that is zero gets the scale 0 (Li et al., HALRP,
    TKDE 2024).

    :param tuned: weight W, shape (O, I) or (O, I, ...) with kernel positions last.
    :param base: weight W_base, same shape.
    :param sweeps: how many times r and s are solved for; the paper does it once.
    :return: ``(r, s)`` of shapes (O,) and (I,), float64 for float64 weights, else float32.
    :raises ValueError: if the shapes differ or have no input dimension, or ``sweeps < 1``.

    Example::

        >>> import torch
        >>> from avalanche_compress.methods.halrp.maths import least_squares_scalings
        >>> tuned = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> least_squares_scalings(tuned, torch.ones(2, 2))
        (tensor([1.5000, 4.5000]), tensor([0.6667, 1.3333]))
    """
    products, powers = scaling_products(tuned, base)
    if sweeps < 1:
        raise ValueError(f"sweeps is {sweeps}, but r and s must be solved for: give sweeps >= 1.")
    s = torch.ones_like(powers[0])
    for _ in range(sweeps):
        r = (products @ s) / (powers @ s.square()).clamp(min=EPS)
        s = (r @ products) / (r.square() @ powers).clamp(min=EPS)
    return r, s


def scaling_products(tuned: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """What scales are solved for from: ``<W_oi, W_base_oi>`` and ``||W_base_oi||^2``.

    :param tuned: weight W, shape (O, I) or (O, I, ...) with kernel positions last.
    :param base: weight W_base, same shape.
    :return: both (O, I), float64 for float64 weights, else float32.
    :raises ValueError: if the shapes differ or have no input dimension.

    >>> scaling_products(torch.full((1, 1), 3.0), torch.full((1, 1), 2.0))
    (tensor([[6.]]), tensor([[4.]]))
    """
    if tuned.shape != base.shape or base.dim() < 2:
        raise ValueError(
            f"the tuned weight has shape {tuple(tuned.shape)} and the base {tuple(base.shape)}, "
            "expected one shape (O, I) or (O, I, ...) for both."
        )
    tuned, base = _working(tuned), _working(base)
    return _sum_positions(tuned * base), _sum_positions(base.square())


def scale_weight(base: Tensor, r: Tensor, s: Tensor) -> Tensor:
    """The scaled base weight ``diag(r) W_base diag(s)``.

    :param base: shape (O, I) or (O, I, ...) with kernel positions last.
    :param r: scales of the outputs, shape (O,).
    :param s: scales of the inputs, shape (I,).
    :return: shape of ``base``.

    >>> scale_weight(torch.ones(2, 2), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor([[3., 4.],
            [6., 8.]])
    """
    scales = r[:, None] * s
    return base * scales.reshape(scales.shape + (1,) * (base.dim() - 2))


def perturb_weight(base: Tensor, r: Tensor, s: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""The weight of a task, :math:`diag(r) \, W_{base} \, diag(s) + U A`, for each of G groups.

    Differentiable in all but the base, once; a step passes over the base twice, however it is
    scaled.

    :param base: shape (G, n, m, K), K kernel positions.
    :param r: scales of the rows, shape (G, n).
    :param s: scales of the columns, shape (G, m).
    :param left: U, shape (G, n, k).
    :param right: A, shape (G, k, m) to add the product to all kernel positions alike, or
        (G, k, m K) to add it to the flattened kernel.
    :return: shape of ``base``.

    >>> column, row = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0, 4.0]]])
    >>> ones = torch.ones(1, 2)
    >>> perturb_weight(torch.ones(1, 2, 2, 1), 10 * ones, ones, column, row).flatten().tolist()
    [13.0, 14.0, 16.0, 18.0]
    """
    weight: Tensor = _Perturbation.apply(base, r, s, left, right)
    return weight


def spatial_mean(weight: Tensor) -> Tensor:
    """The mean over kernel positions, which is nearest to the weight of all constant kernels.

    :param weight: shape (O, I) or (O, I, ...) with K kernel positions last.
    :return: shape (O, I). What it holds of the weight's squared norm is K times its own.

    >>> spatial_mean(torch.tensor([[[1.0, 2.0, 6.0]]]))
    tensor([[3.]])
    """
    return weight if weight.dim() == 2 else weight.flatten(2).mean(2)


def leading_svd(
    matrix: Tensor,
    rank: int,
    *,
    method: str = "auto",
    oversampling: int | None = None,
    power_iterations: int = 4,
    seed: int = 0,
) -> LeadingSVD:
    """The ``rank`` leading components of a matrix, and of its singular values all that come free.

    ``"exact"`` is a full decomposition. ``"gram"`` finds the vectors as eigenvectors of the
    smaller Gram matrix in float64, which is exact to the rounding of float32. ``"randomised"`` is
    the range finder of Halko, Martinsson and Tropp (SIAM Review 2011) with a QR decomposition at
    every half step. ``"auto"`` takes what was the fastest on one core: exact if more than a third
    of the components is wanted, else gram up to 1,024 rows or columns, else randomised.

    :param matrix: shape (m, n), floating point.
    :param rank: number of components q; more than min(m, n) means all.
    :param method: ``"auto"``, ``"gram"``, ``"randomised"`` or ``"exact"``.
    :param oversampling: components that the randomised method finds beyond ``rank`` and drops;
        max(10, rank // 2) by default.
    :param power_iterations: of the randomised method; more are slower and more accurate.
    :param seed: of the randomised method, whose result depends on nothing else. The global
        generator is left alone.
    :return: the components, float64 for a float64 matrix, else float32.
    :raises ValueError: if it is not a matrix, ``rank < 1``, the method is unknown, or
        ``oversampling`` or ``power_iterations`` is negative.
    :raises NonFiniteError: if the matrix holds NaN or infinity.

    Example::

        >>> import torch
        >>> from avalanche_compress.methods.halrp.maths import leading_svd
        >>> svd = leading_svd(torch.diag(torch.tensor([1.0, 3.0, 2.0, 0.0, 0.0, 0.0])), rank=2)
        >>> svd.u.shape, svd.v.shape, svd.energy, svd.exact
        (torch.Size([6, 2]), torch.Size([2, 6]), 14.0, True)
        >>> svd.singular_values
        tensor([3., 2., 1., 0., 0., 0.])
    """
    extra = max(10, rank // 2) if oversampling is None else oversampling
    _check_svd(matrix, rank, method, extra, power_iterations)
    matrix = _working(matrix)
    energy = _energy(matrix)
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    size = tall.shape[1]
    rank = min(rank, size)
    if method == "auto":
        method = _fastest(size, rank)
    if method == "exact":
        u, values, v = torch.linalg.svd(tall, full_matrices=False)
    elif method == "gram":
        u, values, v = _gram_svd(tall, rank)
    else:
        u, values, v = _randomised_svd(tall, min(rank + extra, size), power_iterations, seed)
        values = values if len(values) == size else values[:rank]
    u, v = u[:, :rank], v[:rank]
    if wide:
        u, v = v.T, u.T
    return LeadingSVD(u, values, v, energy, exact=len(values) == size)


def balanced_factors(svd: LeadingSVD, rank: int) -> tuple[Tensor, Tensor]:
    r"""Two factors of equal norm whose product is the best approximation of that rank.

    .. math:: U = P_k \, diag(\sqrt{\sigma_k}), \quad A = diag(\sqrt{\sigma_k}) \, Q_k^T

    :param svd: of the matrix, with at least ``rank`` components.
    :param rank: number of components k.
    :return: ``(U, A)`` of shapes (m, k) and (k, n), with ``U^T U = A A^T = diag(sigma_k)``.
    :raises ValueError: if ``rank`` is negative or larger than the number of components.

    >>> U, A = balanced_factors(leading_svd(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 1), 1)
    >>> U @ A
    tensor([[4., 0.],
            [0., 0.]])
    """
    if not 0 <= rank <= svd.v.shape[0]:
        raise ValueError(
            f"rank is {rank}, but {svd.v.shape[0]} components were computed: give 0 to "
            f"{svd.v.shape[0]}, or compute more."
        )
    root = svd.singular_values[:rank].sqrt()
    return svd.u[:, :rank] * root, root[:, None] * svd.v[:rank]


class _Perturbation(torch.autograd.Function):
    """Autograd alone would keep and fill four more tensors of the weight's size."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, base: Tensor, r: Tensor, s: Tensor, left: Tensor, right: Tensor
    ) -> Tensor:
        ctx.save_for_backward(base, r, s, left, right)
        product = (left @ right).view(*base.shape[:3], -1)
        scales = r.unsqueeze(2) * s.unsqueeze(1)
        return torch.addcmul(product, base, scales.unsqueeze(3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        base, r, s, left, right = ctx.saved_tensors
        with full_precision(base.device):
            weighted = _over_positions(gradient * base)
            constant = right.shape[2] == base.shape[2]
            spread = _over_positions(gradient) if constant else gradient.flatten(2)
            return (
                None,
                (weighted @ s.unsqueeze(2)).squeeze(2),
                (r.unsqueeze(1) @ weighted).squeeze(1),
                spread @ right.transpose(1, 2),
                left.transpose(1, 2) @ spread,
            )


def _over_positions(weight: Tensor) -> Tensor:
    """The sum over kernel positions of (G, n, m, K), by a product that is faster than ``sum``."""
    if weight.shape[3] == 1:
        return weight.squeeze(3)
    return weight @ weight.new_ones(weight.shape[3])


def _working(tensor: Tensor) -> Tensor:
    """The values without their graph, in float64 if they are, else in float32."""
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


def _sum_positions(weight: Tensor) -> Tensor:
    return weight if weight.dim() == 2 else weight.flatten(2).sum(2)


def _energy(matrix: Tensor) -> float:
    """Squared Frobenius norm, which is finite only if all elements are."""
    energy = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    if not math.isfinite(energy):
        raise NonFiniteError(
            "the matrix holds NaN or infinite values and only finite ones can be factorised: train "
            "the task again with a smaller learning rate or gradient clipping."
        )
    return energy


def _fastest(size: int, rank: int) -> str:
    if 3 * rank > size:
        return "exact"
    return "gram" if size <= _LARGEST_GRAM else "randomised"


def _gram_svd(tall: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading vectors, and the singular values of all."""
    tall64 = tall.double()
    eigenvalues, eigenvectors = torch.linalg.eigh(tall64.T @ tall64)
    basis = eigenvectors.flip(1)[:, :rank].to(tall.dtype)
    u, values, v = _project(tall, basis)
    tail = eigenvalues.flip(0)[rank:].clamp(min=0).sqrt().to(values.dtype)
    return u, torch.cat((values, tail.minimum(values[-1]))), v


def _randomised_svd(
    tall: Tensor, columns: int, power_iterations: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(tall.shape[0], columns, generator=generator, dtype=tall.dtype)
    basis = _orthonormal(tall.T @ start.to(tall.device))
    for _ in range(power_iterations):
        basis = _orthonormal(tall.T @ _orthonormal(tall @ basis))
    return _project(tall, basis)


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def _project(tall: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition within the span of orthonormal right vectors (n, q)."""
    u, values, v = torch.linalg.svd(tall @ basis, full_matrices=False)
    return u, values, v @ basis.T


def _check_svd(
    matrix: Tensor, rank: int, method: str, oversampling: int, power_iterations: int
) -> None:
    if matrix.dim() != 2:
        raise ValueError(
            f"the shape is {tuple(matrix.shape)}, expected a matrix: take the mean over kernel "
            "positions or flatten them."
        )
    if rank < 1:
        raise ValueError(f"rank is {rank}, but one component is the least: give rank >= 1.")
    if method not in _METHODS:
        raise ValueError(
            f"there is no method {method!r}{nearest(method, _METHODS)}: give one of "
            f"{', '.join(_METHODS)}."
        )
    if min(oversampling, power_iterations) < 0:
        raise ValueError(
            f"oversampling is {oversampling} and power_iterations is {power_iterations}, expected "
            "0 or more of both."
        )
