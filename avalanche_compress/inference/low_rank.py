"""Low-rank Gaussians: a mean, a few directions with their variances, one variance for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_compress.errors import TaskInferenceError
from avalanche_compress.inference.moments import Moments

DTYPES = {"int8": torch.int8, "float16": torch.float16, "float32": torch.float32}
"""How the vectors of Gaussians may be stored."""

FLOOR = 0.01
"""Part of the mean variance that every direction's is raised by: dead features have none."""

SAMPLES_A_DIRECTION = 10
"""A class of n samples gets n / 10 directions at most: of more, the last are noise."""

_AT_A_TIME = 1 << 22
"""Projections (of a sample on a direction of a class) in memory at a time."""


class Gaussians(NamedTuple):
    """K Gaussians in d dimensions, as of probabilistic PCA (Tipping and Bishop, 1999).

    ``S = U' diag(l) U + s^2 (I - U' U)`` with orthonormal rows U.
    """

    means: Tensor
    """``(K, d)``."""
    directions: Tensor
    """U, ``(K, r, d)``; rows of zeros where a class has fewer than r."""
    variances: Tensor
    """l, ``(K, r)``; s^2 where the row is 0."""
    rest: Tensor
    """s^2, ``(K,)``."""


def fit(moments: Moments, rank: int) -> Gaussians:
    """A Gaussian a class: the likeliest of its rank, with a floor under all variances.

    :param moments: of C classes in d features.
    :param rank: r; fewer are taken of few features, and of classes of few samples
        (:data:`SAMPLES_A_DIRECTION`).
    :return: C Gaussians, float64.

    >>> moments = Moments(1, 2)
    >>> moments.add(torch.tensor([[3.0, 0.0], [-3.0, 0.0]] * 10), torch.zeros(20).long())
    >>> fit(moments, rank=1).variances  # 9 and 1 % of the mean of 9 and 0
    tensor([[9.0450]], dtype=torch.float64)
    """
    means, covariances = moments.means(), moments.covariances()
    classes, width = means.shape
    spread = covariances.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(0)
    # a class of one sample, or of equal ones, is taken to be as wide as the task's others
    usual = spread[spread > 0].mean() if bool((spread > 0).any()) else means.square().mean()
    spread = torch.where(spread > 0, spread, usual).clamp_min(1e-12)
    values, vectors = torch.linalg.eigh(covariances)
    rank = max(0, min(rank, width - 1))
    directions, variances = means.new_zeros(classes, rank, width), means.new_zeros(classes, rank)
    rest = torch.empty_like(spread)
    for position, count in enumerate(moments.counts.tolist()):
        taken = min(rank, count // SAMPLES_A_DIRECTION)
        ascending = values[position].clamp_min(0)
        left = ascending[: width - taken].mean()
        rest[position] = (left if left > 0 or taken else spread[position]) + (
            FLOOR * spread[position]
        )
        variances[position] = rest[position]
        variances[position, :taken] = ascending[width - taken :].flip(0) + FLOOR * spread[position]
        directions[position, :taken] = vectors[position, :, width - taken :].flip(1).T
    return Gaussians(means, directions, variances, rest)


def log_density(features: Tensor, gaussians: Gaussians) -> Tensor:
    """Log-densities without the constant ``-d/2 log 2 pi``.

    ``-1/2 [sum_k p_k^2 / l_k + (|h - m|^2 - |p|^2) / s^2 + sum_k log l_k + (d - r) log s^2]`` with
    ``p = U (h - m)``.

    :param features: h, ``(N, d)``.
    :param gaussians: K of them.
    :return: ``(N, K)``.
    """
    means, directions, variances, rest = gaussians
    count, rank, width = directions.shape
    # all from the middle of the means, so that squares of large numbers do not cancel
    middle = means.mean(dim=0)
    means = means - middle
    rows = torch.cat([means, directions.flatten(0, 1)])
    offsets = torch.einsum("krd,kd->kr", directions, means)
    weights = 1 / variances - 1 / rest[:, None]
    volume = variances.log().sum(dim=1) + (width - rank) * rest.log()
    parts = []
    for part in (features - middle).split(max(1, _AT_A_TIME // (count * (rank + 1)))):
        products = part @ rows.T
        squares = part.square().sum(dim=1, keepdim=True) - 2 * products[:, :count]
        squares += means.square().sum(dim=1)
        along = products[:, count:].view(len(part), count, rank) - offsets
        mahalanobis = squares / rest + (along.square() * weights).sum(dim=2)
        parts.append(-0.5 * (mahalanobis + volume))
    return torch.cat(parts) if parts else features.new_empty(0, count)


def joined(parts: Sequence[Gaussians]) -> Gaussians:
    """Several sets as one; those of fewer directions get some of length 0.

    :param parts: in the same number of dimensions.
    """
    rank = max(part.directions.shape[1] for part in parts)
    padded = []
    for means, directions, variances, rest in parts:
        missing = rank - directions.shape[1]
        more = directions.new_zeros(len(means), missing, means.shape[1])
        wider = torch.cat([variances, rest[:, None].expand(-1, missing)], dim=1)
        padded.append(Gaussians(means, torch.cat([directions, more], dim=1), wider, rest))
    return Gaussians(*(torch.cat(column) for column in zip(*padded)))


class StoredGaussians(NamedTuple):
    """Gaussians as an archive holds them.

    A class of int8 vectors takes ``(r + 1) d + 4 (r + 2)`` bytes: 2,188 for d = 100 and r = 20.
    """

    vectors: Tensor
    """``(..., r + 1, d)`` of one of :data:`DTYPES`: the mean, then the directions, each in parts
    of its largest entry."""
    numbers: Tensor
    """``(..., r + 2)`` float32: the mean's largest entry, l, s^2."""


def store(gaussians: Gaussians, dtype: torch.dtype) -> StoredGaussians:
    """Round Gaussians to what is kept of them.

    :param gaussians: K of them.
    :param dtype: one of :data:`DTYPES`.
    """
    means, directions, variances, rest = gaussians
    vectors = torch.cat([means[:, None], directions], dim=1).double()
    scale = vectors.abs().amax(dim=2, keepdim=True)
    parts = vectors / scale.clamp_min(1e-300)
    codes = (127 * parts).round() if dtype == torch.int8 else parts
    numbers = torch.cat([scale[:, 0], variances, rest[:, None]], dim=1)
    return StoredGaussians(codes.to(dtype), numbers.float())


def load(stored: StoredGaussians) -> Gaussians:
    """The Gaussians that scores are computed with, float32.

    Directions are made orthonormal again, which rounding has cost them.

    :param stored: K Gaussians.
    :raises TaskInferenceError: if the numbers are not those of Gaussians.
    """
    vectors, numbers = stored.vectors.double(), stored.numbers.double()
    scale, variances, rest = numbers[:, :1], numbers[:, 1:-1], numbers[:, -1]
    sound = bool(torch.isfinite(vectors).all()) and bool(torch.isfinite(numbers).all())
    if not sound or bool((numbers[:, 1:] <= 0).any()):
        raise TaskInferenceError(
            "the statistics hold variances that are not positive, or NaN: collect them again with "
            "TaskInference(...).collect(network, task, batches)."
        )
    means = vectors[:, 0] * scale / (127 if stored.vectors.dtype == torch.int8 else 1)
    directions = vectors[:, 1:]
    used = directions.abs().amax(dim=2, keepdim=True) > 0
    if directions.shape[1]:
        orthonormal, triangle = torch.linalg.qr(directions.transpose(1, 2))
        signs = triangle.diagonal(dim1=1, dim2=2).sign()[:, None]
        directions = (orthonormal * signs).transpose(1, 2) * used
    found = Gaussians(means, directions, variances, rest)
    return Gaussians(*(tensor.float() for tensor in found))


def stored_bytes(width: int, rank: int, dtype: torch.dtype = torch.int8) -> int:
    """Bytes of one class under one sub-network.

    :param width: d.
    :param rank: r.
    :param dtype: of the vectors.

    >>> stored_bytes(width=100, rank=20)
    2188
    """
    return (rank + 1) * width * dtype.itemsize + 4 * (rank + 2)
