"""The rule "prototype": the task with the nearest class mean answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avalanche_compress.inference.answers import Answers
from avalanche_compress.inference.moments import Moments
from avalanche_compress.inference.rule import Classes, Kept, Rule, misfit

MEANS, VARIANCE = "prototype_means", "prototype_variance"
FLOOR = 0.1
"""Part of the mean variance that every feature's is raised by, so that dead ones count little."""


class PrototypeRule(Rule):
    """Distance to the task's nearest class mean, each sub-network in its own features.

    Keeps least, ``4 d (C_t + 1)`` bytes a task for d features, and is the least accurate of the
    rules that keep something. Our choice of a rule.

    >>> PrototypeRule().kept
    ('prototype_means', 'prototype_variance')
    """

    name = "prototype"
    kept = (MEANS, VARIANCE)
    folds = False

    def references(self, position: int) -> Sequence[int]:
        return (position,)

    def gathering(self, classes: int, width: int) -> Moments:
        return Moments(classes, width, diagonal=True)

    def width(self, kept: Kept) -> int | None:
        return kept[VARIANCE].numel()

    def keep(self, gathered: Sequence[Moments], earlier: Sequence[Kept]) -> Kept:
        means, variance = prototypes(gathered[0])
        return {MEANS: means.flatten(), VARIANCE: variance}

    def decode(
        self, kept: Sequence[Kept], classes: Classes, device: torch.device
    ) -> list[tuple[Tensor, Tensor, int]]:
        tensors = [
            [statistics[name].flatten().float().to(device) for name in self.kept]
            for statistics in kept
        ]
        sizes = [len(numbers) for numbers in classes.values()]
        return [(means, variance, size) for (means, variance), size in zip(tensors, sizes)]

    def novelty(self, answers: Answers, decoded: Any, position: int) -> Tensor:
        features, (means, variance, classes) = answers.features(position), decoded[position]
        width = features.shape[1]
        if variance.numel() != width or means.numel() != classes * width:
            reason = f"are not of its {classes} classes and the {width} features of this model"
            raise misfit(self.name, answers.tasks[position], reason)
        return prototype_distance(features, means.view(classes, width), variance)


def prototype_distance(features: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    """Distance to the nearest class mean, in units of the task's own spread.

    ``min_c mean_d (f_d - m_cd)^2 / v_d``; about 1 for the task's own training samples.

    :param features: ``(N, d)``.
    :param means: ``(C, d)``.
    :param variance: ``(d,)``, positive.
    :return: ``(N,)``.

    >>> far = prototype_distance(torch.tensor([[3.0]]), torch.tensor([[0.0], [1.0]]), torch.ones(1))
    >>> far.item()
    4.0
    """
    weight = 1 / (variance * len(variance))
    # multiplied out: matrix products, and no (N, C, d); only its last term and the cross term
    # differ between the classes
    cross = torch.addmm((means**2) @ weight, features, (means * weight).T, alpha=-2)
    return (cross.amin(dim=1) + features.square() @ weight).clamp_min(0)


def prototypes(moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean of each class and the variance that all share, of every feature.

    The variance within classes gets :data:`FLOOR` of its mean over the features added, then a
    factor that makes the mean squared distance to the own class 1.

    :param moments: variances of C classes in d features.
    :return: ``(C, d)`` and ``(d,)``, in float32.

    >>> moments = Moments(2, 1, diagonal=True)
    >>> moments.add(torch.tensor([[0.0], [2.0], [9.0]]), torch.tensor([0, 0, 1]))
    >>> prototypes(moments)[0].flatten().tolist()
    [1.0, 9.0]
    """
    parts = moments.counts / moments.counts.sum().clamp_min(1)
    within = parts.double() @ moments.covariances().clamp_min(0)
    variance = within + FLOOR * within.mean().clamp_min(1e-12)
    factor = (within / variance).mean().clamp_min(1e-6)
    return moments.means().float(), (variance * factor).float()
