"""Answers to a mini-batch, compared: of a model and a copy, of a task and what its bytes say."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from avalanche_compress.errors import NonFiniteError, TaskStateError

ROUNDING = 0.75
"""This part of a type's digits must agree where one weight is evaluated twice: sums of some
thousand terms may have been added up in another order (6e-6 of the largest logit in float32)."""
Run = Callable[[nn.Module], Tensor]


def check_answers(
    task: int,
    expected: Tensor,
    logits: Tensor,
    logits_nearby: Callable[[], Tensor],
    found_outside: Callable[[], str],
) -> None:
    """Refuse a task whose bytes do not answer as the network does.

    They may differ by rounding, which deep models with norms of little variance make larger (3e-5
    of logits below 1 was seen): by ten times as much as the last bits of the weights decide.

    :param task: about to be finished.
    :param expected: logits of the network.
    :param logits: of the task as its bytes are read.
    :param logits_nearby: gives those of the task with weights that are :func:`nudged`.
    :param found_outside: says what of the network no bytes hold, if that is known.
    :raises NonFiniteError: if the network's are NaN or infinite.
    :raises TaskStateError: if they differ.
    """
    if not bool(expected.isfinite().all()):
        raise NonFiniteError(
            f"task {task} is not finished: in evaluation the model answers the last training "
            "mini-batch with NaN or infinite logits. Its training has diverged, or its norms' "
            "statistics are of too few values: lower the learning rate, clip gradients, or take "
            "larger mini-batches, and train the task again."
        )
    gap = _gap(logits, expected)
    if gap > _rounding(expected) and not gap <= 10 * _gap(logits_nearby(), logits) < math.inf:
        raise TaskStateError(
            f"task {task} is not finished: read back from its bytes it answers the last training "
            f"mini-batch otherwise than the model does (logits differ by up to {gap:.3g}): "
            + (
                found_outside()
                or "something that the model computes with is outside its "
                "parameters and buffers, or was changed after its store had kept it"
            )
            + "."
        )


def nudged(weight: Tensor) -> Tensor:
    """A weight whose entries are off by the rounding of their mean magnitude, up or down.

    :param weight: any; the signs are the same each time.

    >>> 0 < (nudged(torch.ones(100)) - 1).abs().max() < 2e-7
    tensor(True)
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1
    return weight + signs * weight.abs().mean() * torch.finfo(weight.dtype).eps


def _rounding(logits: Tensor) -> float:
    """By how much two evaluations of one task may differ."""
    scale = float(logits.abs().max()) if logits.numel() else 0.0
    digits: float = torch.finfo(logits.dtype).eps ** ROUNDING
    return digits * scale


def alike(logits: Tensor, others: Tensor) -> bool:
    """Whether two evaluations of one task are equal but for roundings; NaN is as NaN.

    :param logits: of one.
    :param others: of the other.
    """
    gap = _gap(logits, others)
    return gap == 0 or gap <= _rounding(logits)


def differ(one: nn.Module, other: nn.Module, run: Run) -> bool:
    """Whether two models answer a mini-batch differently.

    A model that does not answer twice alike is given ten times its own deviation.

    :param one: any.
    :param other: one that answers by other attributes.
    :param run: has a model answer it.
    """
    first, second = answer(one, run), answer(other, run)
    if first is None or second is None:
        return first is not second
    if _gap(first, second) == 0:
        return False
    again = answer(one, run)
    return again is None or not _gap(first, second) <= 10 * _gap(first, again)


def answer(model: nn.Module, run: Run) -> Tensor | None:
    """What a model answers to a mini-batch; None if it raises.

    :param model: any.
    :param run: has it answer.
    """
    try:
        return run(model)
    except Exception:  # whatever the model raises: it may lack what another one has
        return None


def _gap(logits: Tensor, expected: Tensor) -> float:
    """The largest difference of two answers; infinite where they cannot be compared."""
    if logits.shape != expected.shape or logits.dtype != expected.dtype:
        return math.inf
    unequal = (logits != expected) & ~(logits.isnan() & expected.isnan())
    if not bool(unequal.any()):
        return 0.0
    gap = float((logits - expected)[unequal].abs().max())
    return math.inf if math.isnan(gap) else gap
