"""The rule "entropy": the sub-network that is surest of one of its classes answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from avalanche_compress.errors import TaskInferenceError
from avalanche_compress.inference.answers import Answers
from avalanche_compress.inference.rule import Rule, of_all_logits


class EntropyRule(Rule):
    """Entropy of the softmax over the task's own classes, :func:`entropy`.

    Source: SupSup (Wortsman et al., NeurIPS 2020); the normalisation is our choice. Nothing is
    kept. A task of one class has no entropy.

    >>> EntropyRule().name
    'entropy'
    """

    name = "entropy"

    def check_classes(self, task: int, classes: Sequence[int]) -> None:
        if len(classes) < 2:
            raise TaskInferenceError(
                f"task {task} has the one class {list(classes)}, whose entropy is always 0: infer "
                "tasks by a rule that compares features, 'triangular' or 'gaussian'."
            )

    def novelty(self, answers: Answers, decoded: Any, position: int) -> Tensor:
        scores = entropy(answers.logits(position))
        return scores.flatten(1).mean(dim=1) if scores.dim() > 1 else scores

    def scores(self, answers: Answers, decoded: Any) -> Tensor:
        return of_all_logits(entropy, answers)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax in parts of the largest one, ``-sum_c p_c log p_c / log C``.

    In parts, because heads of different size are compared.

    :param logits: ``(..., C)`` with C >= 2.
    :return: ``(...)``, 0 (certain) to 1 (no idea).

    >>> import torch
    >>> entropy(torch.zeros(1, 5)).item()
    1.0
    """
    # log s - sum_c e_c z_c / s with e = exp z and s = sum e, which takes one exponential a logit
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    exponentials = shifted.exp()
    total = exponentials.sum(dim=-1)
    nats = total.log() - (exponentials * shifted).sum(dim=-1) / total
    return nats / math.log(logits.shape[-1])
