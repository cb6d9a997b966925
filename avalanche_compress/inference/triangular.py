"""The rule "triangular": tasks are compared in pairs, in features that both were gathered in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_compress.errors import TaskInferenceError
from avalanche_compress.inference.answers import Answers
from avalanche_compress.inference.gaussian import GaussianRule, Spaces
from avalanche_compress.inference.low_rank import Gaussians, joined, log_density
from avalanche_compress.inference.rule import Classes, Kept, misfit


class Triangle(NamedTuple):
    """What tasks are compared by."""

    spaces: Spaces
    """Of each task i, by sub-network t <= i."""
    columns: list[Gaussians]
    """Of each sub-network t, the classes of all tasks from t on, task after task."""


class TriangularRule(GaussianRule):
    """Each class is a low-rank Gaussian in the features of earlier sub-networks too.

    When task u is finished, its samples are gathered under the first R sub-networks up to its own;
    those are frozen, so nothing of that ever changes and no old sample is needed. With
    ``S_t[i] = max_{c in C_i} log p_t(x|c)``, tasks i < j are compared where both were gathered:

        D_ij(x) = sum_{t <= i, t < R} (S_t[i] - S_t[j]) / sd_t,  D_ji = -D_ij

    and the score of task i is ``-min_j D_ij``. Bytes a class are at most R times those of
    :class:`GaussianRule`. Only R sub-networks and those that answer are run. Our choice of a rule.

    :param references: R, the number of sub-networks; None for all, whose bytes grow with the square
        of the number of tasks.
    :param rank: directions a class.
    :param dtype: of the vectors that are kept.
    :raises TaskInferenceError: if an argument is outside its range.

    >>> list(TriangularRule(references=2).references(position=5))
    [0, 1]
    """

    name = "triangular"

    def __init__(self, references: int | None = 1, rank: int = 20, dtype: str = "int8"):
        super().__init__(rank, dtype)
        if references is not None and references < 1:
            raise TaskInferenceError(f"references={references} sub-networks: give 1 or more.")
        self.most = references

    def references(self, position: int) -> Sequence[int]:
        return range(position + 1 if self.most is None else min(self.most, position + 1))

    def _fits(self, position: int, spaces: int) -> bool:
        return 1 <= spaces <= position + 1

    def decode(self, kept: Sequence[Kept], classes: Classes, device: torch.device) -> Triangle:
        spaces = self.spaces(kept, classes, device)
        columns = []
        for reference in range(_common(spaces)):
            column = [of_task[reference] for of_task in spaces[reference:]]
            if len({space.gaussians.means.shape[1] for space in column}) > 1:
                task = list(classes)[reference]
                raise misfit(self.name, task, "are of other features than those of later tasks")
            columns.append(joined([space.gaussians for space in column]))
        return Triangle(spaces, columns)

    def novelty(self, answers: Answers, decoded: Triangle, position: int) -> Tensor:
        distances = [
            (space.mean - self._densities(answers, decoded, t)[:, position - t]) / space.deviation
            for t, space in enumerate(decoded.spaces[position][: len(decoded.columns)])
        ]
        return torch.stack(distances).mean(dim=0)

    def scores(self, answers: Answers, decoded: Triangle) -> Tensor:
        deviations = [
            of_task[t].deviation for t, of_task in enumerate(decoded.spaces[: len(decoded.columns)])
        ]
        densities = [
            self._densities(answers, decoded, t) / deviation
            for t, deviation in enumerate(deviations)
        ]
        sums = torch.zeros_like(densities[0])
        worst = torch.full_like(sums, float("inf"))
        for position in range(sums.shape[1] - 1):
            if position < len(densities):
                sums[:, position:] += densities[position]
            advantage = sums[:, position : position + 1] - sums[:, position + 1 :]
            worst[:, position] = torch.minimum(worst[:, position], advantage.amin(dim=1))
            worst[:, position + 1 :] = torch.minimum(worst[:, position + 1 :], -advantage)
        return -worst if sums.shape[1] > 1 else sums

    def _densities(self, answers: Answers, decoded: Triangle, reference: int) -> Tensor:
        """Log-density of the likeliest class of each task from sub-network t on, ``(N, T - t)``."""

        def compute() -> Tensor:
            features = answers.features(reference)
            gaussians = decoded.columns[reference]
            self.check_width(answers.tasks[reference], gaussians, features)
            sizes = [
                len(of_task[reference].gaussians.means) for of_task in decoded.spaces[reference:]
            ]
            parts = log_density(features, gaussians).split(sizes, dim=1)
            return torch.stack([part.amax(dim=1) for part in parts], dim=1)

        return answers.once(("densities", reference), compute)


def _common(spaces: Spaces) -> int:
    """How many sub-networks there are under which all tasks from theirs on were gathered."""
    for reference in range(len(spaces)):
        if any(len(of_task) <= reference for of_task in spaces[reference:]):
            return reference
    return len(spaces)
