"""Samples of no task that was learned: refused when they are newer than most known ones."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_compress.errors import TaskInferenceError

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Parts of a task's own samples that the thresholds which are kept refuse."""


def check_rate(rate: float | None) -> None:
    """Refuse a rate for which no threshold is kept.

    :param rate: part of the known samples that may be refused; None for no refusal.
    :raises TaskInferenceError: if it is outside the range of :data:`RATES`.
    """
    if rate is not None and not RATES[0] <= rate <= RATES[-1]:
        raise TaskInferenceError(
            f"unknown={rate} is the part of known samples that may be refused: give a number from "
            f"{RATES[0]} to {RATES[-1]}, such as 0.05."
        )


def thresholds(novelty: Tensor) -> Tensor:
    """The novelty that so many of a task's own samples exceed.

    :param novelty: ``(n,)``, of samples that nothing was fitted to.
    :return: one for each of :data:`RATES`, float32.

    >>> thresholds(torch.arange(1001.0))[-2:]  # 20 % and 50 % of them are above
    tensor([800., 500.])
    """
    levels = 1 - torch.tensor(RATES, dtype=torch.float64)
    return torch.quantile(novelty.double().cpu(), levels).float()


def threshold_at(kept: Tensor, rate: float) -> float:
    """The threshold of a rate, between those that are kept.

    :param kept: of :func:`thresholds`.
    :param rate: in the range of :data:`RATES`.

    >>> round(threshold_at(thresholds(torch.arange(1001.0)), 0.35))
    650
    """
    above = next(place for place, other in enumerate(RATES) if rate <= other)
    if rate == RATES[above]:
        return float(kept[above])
    low, high = RATES[above - 1], RATES[above]
    part = (rate - low) / (high - low)
    return float((1 - part) * kept[above - 1] + part * kept[above])
