"""The rule "ridge": one linear head over all classes, in the features of the first sub-network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_compress.errors import TaskInferenceError
from avalanche_compress.inference.answers import Answers
from avalanche_compress.inference.low_rank import DTYPES
from avalanche_compress.inference.rule import Classes, Kept, Rule, misfit

MEANS, NUMBERS, SCATTER, SCALE = "ridge.means", "ridge.numbers", "ridge.scatter", "ridge.scale"


class RidgeHead(NamedTuple):
    """``f -> prior + (f - middle) W`` for K classes in M features."""

    middle: Tensor
    """``(M,)``."""
    weight: Tensor
    """``(M, K)``."""
    prior: Tensor
    """``(K,)``, the classes' parts of all samples."""
    columns: list[Tensor]
    """Of each task, those of its classes."""
    width: int
    """d of the features that are asked for."""
    random: bool
    """Whether M random features are made of them."""


class RidgeRule(Rule):
    """Ridge regression on the classes as targets; it answers by itself, and runs one sub-network.

    ``W = (S + a tr(S)/M I)^-1 Q``, S the covariance of the features and Q that of features and
    one-hot targets. Kept are each class's mean and the scatter within classes, which only the
    newest task holds: ``2 M C_t`` bytes a task and ``M (M + 1)`` bytes once, in float16.
    A class in two tasks is one class. Outputs change with every task: ``unknown=`` is not for it.

    Source: RanPAC (McDonnell et al., NeurIPS 2023), here in the space of the first sub-network.

    :param strength: a.
    :param random_features: M, numbers ``relu(R f)`` with random signs R; 0 for the features as they
        are.
    :param dtype: of what is kept, ``"float16"`` or ``"float32"``.
    :raises TaskInferenceError: if an argument is outside its range.

    >>> RidgeRule(random_features=500).random_features
    500
    """

    name = "ridge"
    kept = (MEANS, NUMBERS)
    newest = (SCATTER, SCALE)
    refuses = False

    def __init__(self, strength: float = 0.01, random_features: int = 0, dtype: str = "float16"):
        if strength <= 0 or random_features < 0:
            raise TaskInferenceError(
                f"strength={strength} must be positive, random_features={random_features} 0 or "
                "more."
            )
        if dtype not in ("float16", "float32"):
            raise TaskInferenceError(f"dtype={dtype!r} must be 'float16' or 'float32'.")
        self.strength = strength
        self.random_features = random_features
        self.dtype = dtype

    def references(self, position: int) -> Sequence[int]:
        return (0,)

    def gathering(self, classes: int, width: int) -> WithinClasses:
        return WithinClasses(classes, width, self.random_features)

    def width(self, kept: Kept) -> int | None:
        return int(kept[NUMBERS][-1]) or kept[MEANS].shape[-1]

    def keep(self, gathered: Sequence[WithinClasses], earlier: Sequence[Kept]) -> Kept:
        (sums,) = gathered
        means, scatter = sums.means(), sums.scatter()
        before = 0.0
        for kept in earlier:
            if SCATTER in kept:
                total = sum(float(_counts(other).sum()) for other in earlier)
                scatter = scatter + _symmetric(kept[SCATTER], kept[SCALE]) * total
                before = total
        scatter = scatter / (sums.counts.sum() + before)
        scale = means.abs().max().clamp_min(1e-30)
        peak = scatter.abs().max().clamp_min(1e-30)
        dtype = DTYPES[self.dtype]
        upper = torch.triu_indices(len(scatter), len(scatter))
        random = torch.tensor([float(sums.width if self.random_features else 0)])
        return {
            MEANS: (means / scale).to(dtype),
            NUMBERS: torch.cat([sums.counts.float(), scale.float()[None], random]),
            SCATTER: (scatter / peak)[upper[0], upper[1]].to(dtype),
            SCALE: peak.float()[None],
        }

    def decode(self, kept: Sequence[Kept], classes: Classes, device: torch.device) -> RidgeHead:
        last = list(classes)[-1]
        newest = [
            statistics for statistics in kept if SCATTER in statistics and SCALE in statistics
        ]
        if len(newest) != 1:
            raise misfit(self.name, last, f"hold {len(newest)} scatter matrices, not one")
        means, counts = [], []
        width = kept[0][MEANS].shape[-1]
        for statistics, (task, numbers) in zip(kept, classes.items()):
            size = len(numbers)
            if statistics[MEANS].shape != (size, width) or statistics[NUMBERS].shape != (size + 2,):
                raise misfit(self.name, task, f"are not of its {size} classes")
            means.append(statistics[MEANS].double() * statistics[NUMBERS][-2].double())
            counts.append(_counts(statistics))
        random = int(kept[0][NUMBERS][-1])
        triangle, scale = newest[0][SCATTER], newest[0][SCALE]
        if triangle.shape != (width * (width + 1) // 2,) or scale.shape != (1,):
            raise misfit(self.name, last, f"are not of {width} features")
        within = _symmetric(triangle, scale)
        every = sorted({number for numbers in classes.values() for number in numbers})
        columns = [torch.tensor([every.index(c) for c in numbers]) for numbers in classes.values()]
        head = solve(within, torch.cat(means), torch.cat(counts), torch.cat(columns), self.strength)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in head):
            raise misfit(self.name, last, "hold NaN or infinite numbers")
        middle, weight, prior = (tensor.float().to(device) for tensor in head)
        columns = [column.to(device) for column in columns]
        return RidgeHead(middle, weight, prior, columns, random or width, bool(random))

    def novelty(self, answers: Answers, decoded: RidgeHead, position: int) -> Tensor:
        return -self.logits(answers, decoded, position).amax(dim=1)

    def logits(self, answers: Answers, decoded: RidgeHead, position: int) -> Tensor:
        outputs = answers.once("ridge", lambda: _outputs(answers, decoded))
        return outputs[:, decoded.columns[position]]


class WithinClasses:
    """Class means and the scatter within classes that all share; samples are not kept.

    :param classes: C.
    :param width: d of the features.
    :param random: M, random features to make of them; 0 for none.
    """

    def __init__(self, classes: int, width: int, random: int = 0):
        size = random or width
        self.width, self._random = width, random
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self._sums = torch.zeros(classes, size, dtype=torch.float64)
        self._squares = torch.zeros(size, size, dtype=torch.float64)
        self._origin: Tensor | None = None

    def add(self, features: Tensor, positions: Tensor) -> None:
        """Count samples ``(N, d)`` of the classes ``(N,)`` in."""
        if self._random:
            features = random_features(features, self._random)
        features = features.detach().cpu().double()
        if self._origin is None:
            self._origin = features.mean(dim=0)
        moved = features - self._origin
        self.counts += torch.bincount(positions, minlength=len(self.counts))
        self._sums.index_add_(0, positions, moved)
        self._squares.addmm_(moved.T, moved)

    def means(self) -> Tensor:
        """Class means ``(C, M)``; a class without samples has the mean of all."""
        counts = self.counts[:, None]
        overall = self._sums.sum(dim=0) / counts.sum().clamp_min(1)
        moved = torch.where(counts > 0, self._sums / counts.clamp_min(1), overall)
        return moved if self._origin is None else moved + self._origin

    def scatter(self) -> Tensor:
        """Sum over samples of ``(f - m_c)(f - m_c)'``, ``(M, M)``."""
        means = self._sums / self.counts[:, None].clamp_min(1)
        return self._squares - (means.T * self.counts) @ means


def solve(
    within: Tensor, means: Tensor, counts: Tensor, columns: Tensor, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The ridge regression of one-hot targets on features, from sums.

    :param within: covariance within groups, ``(M, M)``.
    :param means: of G groups, ``(G, M)``.
    :param counts: samples of each, ``(G,)``.
    :param columns: the class of each, ``(G,)``.
    :param strength: a, in parts of the mean variance.
    :return: middle ``(M,)``, weight ``(M, K)``, prior ``(K,)``.
    """
    parts = counts / counts.sum().clamp_min(1)
    middle = parts @ means
    moved = means - middle
    covariance = within + (moved.T * parts) @ moved
    classes = int(columns.max()) + 1
    targets = torch.zeros(len(counts), classes, dtype=means.dtype)
    targets[torch.arange(len(counts)), columns] = parts
    penalty = strength * covariance.diagonal().mean().clamp_min(1e-30)
    covariance = covariance + penalty * torch.eye(len(covariance), dtype=means.dtype)
    weight = torch.linalg.solve(covariance, moved.T @ targets)
    return middle, weight, targets.sum(dim=0)


def random_features(features: Tensor, count: int) -> Tensor:
    """``relu(R f)`` with random signs R, which are hashed from their place and kept nowhere.

    :param features: f, ``(N, d)``.
    :param count: M.
    :return: ``(N, M)``.

    >>> random_features(torch.randn(3, 10), 50).shape
    torch.Size([3, 50])
    """
    width = features.shape[1]
    place = torch.arange(width * count, device=features.device)
    mixed = place * 2654435761 % 4294967296
    mixed = (mixed ^ (mixed >> 15)) * 2246822519 % 4294967296
    mixed = (mixed ^ (mixed >> 13)) * 3266489917 % 4294967296
    signs = ((mixed >> 16) % 2 * 2 - 1).view(width, count).to(features.dtype)
    return torch.relu(features @ signs / width**0.5)


def _outputs(answers: Answers, head: RidgeHead) -> Tensor:
    features = answers.features(0)
    if features.shape[1] != head.width:
        reason = f"are of {head.width} features and the model has {features.shape[1]}"
        raise misfit("ridge", answers.tasks[0], reason)
    if head.random:
        features = random_features(features, len(head.middle))
    return head.prior + (features - head.middle) @ head.weight


def _counts(kept: Kept) -> Tensor:
    """Samples of each class of a task."""
    return kept[NUMBERS][:-2].double()


def _symmetric(upper: Tensor, scale: Tensor) -> Tensor:
    """A matrix from its upper triangle and its largest entry, float64."""
    size = int((2 * upper.numel()) ** 0.5)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size)
    matrix[rows, columns] = upper.double() * scale.double()
    return torch.triu(matrix) + torch.triu(matrix, 1).T
