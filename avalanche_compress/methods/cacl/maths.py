"""The terms that a task of CACL starts from, those that it keeps, and how many the next one has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_compress.codec import Factors

GROWTH = ("avg", "r0", "mean_task", "fixed", "none")
TRUNCATION = ("raw", "exact")


def random_terms(rows: int, columns: int, rank: int) -> Factors:
    """Terms to start from as in the public code of CACL: normal, of variance 2/R, 1 and 2/m.

    The matrix's entries then have the variance 4/m.

    :param rows: n.
    :param columns: m.
    :param rank: R.
    """
    return Factors(
        torch.randn(rank, rows) * (2 / max(rank, 1)) ** 0.5,
        torch.randn(rank),
        torch.randn(rank, columns) * (2 / columns) ** 0.5,
    )


def orthogonal_terms(rows: int, columns: int, rank: int) -> Factors:
    """Terms to start from with orthonormal rows (columns, if there are more rows) on both sides.

    All scales are the same, such that the matrix's entries have the variance 2/m, as in Kaiming's
    initialisation for ReLU: no term starts out stronger than another.

    :param rows: n.
    :param columns: m.
    :param rank: R.

    >>> terms = orthogonal_terms(6, 8, 4)
    >>> torch.allclose(terms.left @ terms.left.t(), torch.eye(4), atol=1e-6)
    True
    """
    left, right = torch.empty(rank, rows), torch.empty(rank, columns)
    for part in (left, right):
        if rank:
            torch.nn.init.orthogonal_(part)
    norm = (left.t() @ right).norm() if rank else torch.ones(())
    return Factors(left, torch.full((rank,), float((2 * rows) ** 0.5 / norm)), right)


def svd_factors(matrix: Tensor, rank: int) -> Factors:
    """The best approximation of a rank, by singular value decomposition in float64.

    :param matrix: ``(n, m)``.
    :param rank: terms; at most ``min(n, m)`` are there.
    :return: factors of the matrix's type, ``scale`` the singular values in descending order.

    >>> svd_factors(torch.diag(torch.tensor([3.0, 5.0])), 1).scale
    tensor([5.])
    """
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    factors = u[:, :rank].t(), s[:rank], vh[:rank]
    return Factors(*(part.to(matrix.dtype).contiguous() for part in factors))


def orthogonal_factors(factors: Factors) -> Factors:
    """The same matrix with orthonormal rows on both sides, by QR of both and SVD of the core.

    Costs ``O((n + m) R^2)`` in float64, not an SVD of the matrix.

    :param factors: any.
    :return: at most ``min(R, n, m)`` terms in descending order of singular value.

    >>> double = Factors(torch.ones(2, 1), torch.ones(2), torch.eye(2))
    >>> orthogonal_factors(double).scale
    tensor([1.4142])
    """
    left, scale, right = (part.double() for part in factors)
    q_left, r_left = torch.linalg.qr(left.t())
    q_right, r_right = torch.linalg.qr(right.t())
    u, s, vh = torch.linalg.svd((r_left * scale.abs()) @ r_right.t(), full_matrices=False)
    parts = (q_left @ u).t(), s, vh @ q_right.t()
    return Factors(*(part.to(factors.scale.dtype).contiguous() for part in parts))


def kept_terms(scale: Tensor, energy: float, earlier: float = 0.0) -> Tensor:
    """Which terms hold all but a fraction of the energy, ``sum scale^2``.

    The k largest, k the smallest number that reaches ``1 - energy`` of it; ties with the k-th are
    kept too (Teja and Panda, arXiv 2009.01956).

    :param scale: ``(R,)``.
    :param energy: the fraction that may be lost, 0 <= energy < 1.
    :param earlier: energy of terms that are kept in any case; it counts on both sides.
    :return: bool (R,); none where all are zero or the earlier energy is enough.

    >>> kept_terms(torch.tensor([3.0, -0.001, 0.02, 1.0]), 3e-5).tolist()
    [True, False, True, True]
    """
    squares = scale.double() ** 2
    total = float(squares.sum())
    needed = (1 - energy) * (total + earlier) - earlier
    if total == 0 or needed <= 0:
        return torch.zeros_like(scale, dtype=torch.bool)
    ranked = squares.sort(descending=True).values
    reached = ranked.cumsum(0) >= needed
    # rounding may leave the whole sum a hair short of itself
    last = int(reached.int().argmax()) if bool(reached.any()) else len(ranked) - 1
    return (squares >= ranked[last]) & (squares > 0)


def truncate(factors: Factors, energy: float, mode: str = "raw", earlier: float = 0.0) -> Factors:
    """Drop the terms of least energy (see :func:`kept_terms`).

    :param factors: any.
    :param energy: the fraction of energy that may be lost, 0 <= energy < 1.
    :param mode: ``"raw"`` goes by the scales as they were trained, ``"exact"`` by true singular
        values (:func:`orthogonal_factors`).
    :param earlier: energy of earlier terms, see :func:`kept_terms`.

    >>> terms = Factors(torch.eye(3), torch.tensor([1.0, 0.001, 2.0]), torch.eye(3))
    >>> truncate(terms, 1e-5).scale
    tensor([1., 2.])
    """
    if mode == "exact" and factors.rank:
        factors = orthogonal_factors(factors)
    return factors.take(kept_terms(factors.scale, energy, earlier))


def free_rank(
    kept: Sequence[int],
    initial: int,
    policy: str = "avg",
    *,
    fixed: int = 0,
    grow_from: int = 2,
) -> int:
    """How many terms the next task may train.

    A layer starts with a total of ``initial``; tasks keep some of what is free. After a task the
    total grows so that the next one finds at least as many free as it wants:

    - ``"avg"``: the mean over all earlier tasks but the last of the *cumulative* rank, at most
      ``initial`` (the public code; Teja and Panda, arXiv 2009.01956);
    - ``"r0"``: ``initial``;
    - ``"mean_task"``: the mean of what the tasks kept each, at most ``initial``;
    - ``"none"``: nothing, the total stays.

    With ``"fixed"`` each task has ``fixed`` terms and there is no total.

    :param kept: terms that each finished task kept.
    :param initial: total before the first task, r0.
    :param policy: one of :data:`GROWTH`.
    :param fixed: terms of a task with ``"fixed"``.
    :param grow_from: finished tasks before the total may grow; the public code has 2.
    :return: 0 or more, also where the tasks have kept more than ``initial`` (they were trained with
        another rank, or come from a file).

    >>> free_rank([9, 5], 18), free_rank([9, 5, 9], 18)
    (9, 11)
    >>> free_rank([9, 5], 4, "none")
    0
    """
    if policy == "fixed":
        return fixed
    total, used = initial, 0
    cumulative: list[int] = []
    for count in kept:
        used += count
        cumulative.append(used)
        free = total - used
        if policy != "none" and len(cumulative) >= grow_from:
            free = max(free, int(_wanted(policy, cumulative, initial)))
        total = used + free
    return max(0, total - used)


def _wanted(policy: str, cumulative: Sequence[int], initial: int) -> float:
    if policy == "r0":
        return initial
    if policy == "mean_task":
        return min(cumulative[-1] / len(cumulative), initial)
    earlier = cumulative[:-1]
    return min(sum(earlier) / len(earlier), initial) if earlier else initial
