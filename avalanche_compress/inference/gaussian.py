"""The rule "gaussian": the task whose classes are likeliest, by its own sub-network, answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_compress.errors import TaskInferenceError
from avalanche_compress.inference.answers import Answers
from avalanche_compress.inference.low_rank import (
    DTYPES,
    Gaussians,
    StoredGaussians,
    fit,
    load,
    log_density,
    store,
)
from avalanche_compress.inference.moments import Moments
from avalanche_compress.inference.rule import Classes, Kept, Rule, misfit


class Space(NamedTuple):
    """A task's classes in the features of one sub-network."""

    gaussians: Gaussians
    mean: Tensor
    """Of the log-density of the task's own samples under their likeliest class."""
    deviation: Tensor


Spaces = list[list[Space]]
"""Of every task, by sub-network."""


class GaussianRule(Rule):
    """Each class is a low-rank Gaussian in the features of its task's sub-network.

    ``s_t(x) = -(max_{c in C_t} log p_t(x|c) - m_t) / sd_t`` with mean and deviation over samples of
    the task that the Gaussians were not fitted to: densities of different sub-networks compare on
    no other scale. Bytes a class, with int8 vectors: ``(r + 1) d + 4 (r + 2)``.

    Sources: Mahalanobis distance as a score (Lee et al., NeurIPS 2018), class-wise covariances in
    continual learning (FeCAM; Goswami et al., NeurIPS 2023), low-rank Gaussians (Tipping and
    Bishop, 1999); the scale is our choice.

    :param rank: r, directions a class.
    :param dtype: of the vectors that are kept, ``"int8"``, ``"float16"`` or ``"float32"``.
    :raises TaskInferenceError: if an argument is outside its range.

    >>> GaussianRule(rank=10).rank
    10
    """

    name = "gaussian"

    def __init__(self, rank: int = 20, dtype: str = "int8"):
        if rank < 0:
            raise TaskInferenceError(f"rank={rank} directions a class: give 0 or more.")
        if dtype not in DTYPES:
            raise TaskInferenceError(f"dtype={dtype!r} must be one of {sorted(DTYPES)}.")
        self.rank = rank
        self.dtype = dtype

    @property
    def kept(self) -> tuple[str, ...]:  # type: ignore[override]
        """Vectors ``(R, C, r + 1, d)``, numbers ``(R, C, r + 2)``, scale ``(R, 2)``."""
        return f"{self.name}.numbers", f"{self.name}.scale", f"{self.name}.vectors"

    def references(self, position: int) -> Sequence[int]:
        return (position,)

    def gathering(self, classes: int, width: int) -> Moments:
        return Moments(classes, width)

    def width(self, kept: Kept) -> int | None:
        return kept[f"{self.name}.vectors"].shape[-1]

    def keep(self, gathered: Sequence[Moments], earlier: Sequence[Kept]) -> Kept:
        stored = [store(fit(sums, self.rank), DTYPES[self.dtype]) for sums in gathered]
        numbers, _, vectors = self.kept
        return {
            numbers: torch.stack([gaussian.numbers for gaussian in stored]),
            vectors: torch.stack([gaussian.vectors for gaussian in stored]),
        }

    def calibrate(self, answers: Answers, kept: Sequence[Kept]) -> Kept:
        position = len(kept) - 1
        numbers, scale, vectors = self.kept
        moments = []
        for reference, vector, number in zip(
            self.references(position), kept[-1][vectors], kept[-1][numbers]
        ):
            gaussians = load(StoredGaussians(vector, number))
            best = log_density(answers.features(reference).cpu(), gaussians).amax(dim=1)
            deviation = best.std(unbiased=False).clamp_min(1e-6 + 1e-3 * best.mean().abs())
            moments.append(torch.stack([best.mean(), deviation]))
        return {scale: torch.stack(moments)}

    def decode(self, kept: Sequence[Kept], classes: Classes, device: torch.device) -> Any:
        return self.spaces(kept, classes, device)

    def spaces(self, kept: Sequence[Kept], classes: Classes, device: torch.device) -> Spaces:
        """The Gaussians of every task under the sub-networks that it was gathered in.

        :param kept: of T tasks.
        :param classes: class numbers of each, by label.
        :param device: to compute on.
        :raises TaskInferenceError: if what is kept is not of these tasks.
        """
        found = []
        for position, (statistics, (task, of_task)) in enumerate(zip(kept, classes.items())):
            numbers, scale, vectors = (statistics[name] for name in self.kept)
            reason = self._misfit(position, len(of_task), numbers, scale, vectors)
            if reason is not None:
                raise misfit(self.name, task, reason)
            spaces = []
            for vector, number, (mean, deviation) in zip(vectors, numbers, scale.float()):
                gaussians = Gaussians(
                    *(t.to(device) for t in load(StoredGaussians(vector, number)))
                )
                spaces.append(Space(gaussians, mean.to(device), deviation.to(device)))
            found.append(spaces)
        return found

    def _misfit(
        self, position: int, classes: int, numbers: Tensor, scale: Tensor, vectors: Tensor
    ) -> str | None:
        """Why these are not of a task's classes and sub-networks; None if they are."""
        shape = vectors.shape
        if vectors.dim() != 4 or shape[1] != classes or not shape[2] * shape[3]:
            return f"are not of its {classes} classes"
        spaces = shape[0]
        expected = (spaces, classes, shape[2] + 1), (spaces, 2)
        if (numbers.shape, scale.shape) != expected or not self._fits(position, spaces):
            return f"are not of {spaces} sub-networks"
        if not bool(torch.isfinite(scale).all()) or bool((scale[:, 1] <= 0).any()):
            return "hold a scale that is not positive, or NaN"
        return None

    def _fits(self, position: int, spaces: int) -> bool:
        return spaces == 1

    def novelty(self, answers: Answers, decoded: Any, position: int) -> Tensor:
        space: Space = decoded[position][0]
        features = answers.features(position)
        self.check_width(answers.tasks[position], space.gaussians, features)
        best = log_density(features, space.gaussians).amax(dim=1)
        return (space.mean - best) / space.deviation

    def check_width(self, task: int, gaussians: Gaussians, features: Tensor) -> None:
        """Refuse features of another model or layer.

        :param task: label.
        :param gaussians: of the task.
        :param features: ``(N, d)``.
        :raises TaskInferenceError: if d differs.
        """
        width = gaussians.means.shape[1]
        if features.shape[1] != width:
            reason = f"are of {width} features and the model has {features.shape[1]} here"
            raise misfit(self.name, task, reason)
