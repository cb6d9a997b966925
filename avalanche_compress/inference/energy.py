"""The rule "energy": the sub-network that supports one of its classes most answers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from avalanche_compress.inference.answers import Answers
from avalanche_compress.inference.rule import Rule, of_all_logits


class EnergyRule(Rule):
    """Free energy of the task's logits, :func:`energy` (Liu et al., NeurIPS 2020).

    Nothing is kept.

    >>> EnergyRule().name
    'energy'
    """

    name = "energy"

    def novelty(self, answers: Answers, decoded: Any, position: int) -> Tensor:
        scores = energy(answers.logits(position))
        return scores.flatten(1).mean(dim=1) if scores.dim() > 1 else scores

    def scores(self, answers: Answers, decoded: Any) -> Tensor:
        return of_all_logits(energy, answers)


def energy(logits: Tensor) -> Tensor:
    """Free energy ``-log sum_c exp(z_c)``.

    :param logits: ``(..., C)``.
    :return: ``(...)``, low where some class is strongly supported.

    >>> import torch
    >>> round(energy(torch.zeros(1, 4)).item(), 4)  # -log 4
    -1.3863
    """
    return -logits.logsumexp(dim=-1)
