"""Sums that are kept so that a late task need not be added up from the first one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_SHARE = 11
"""One part in so many of what the sections take may be sums."""


class PrefixSums:
    """What the first so many tasks add up to, in an eleventh of what memory their sections take.

    A sum takes a weight's memory and a task, which keeps few terms, often much less. Sums lie as
    many tasks apart as take eleven times a sum's memory, rounded up to a power of two or half as
    much again: 12 where a task keeps as many numbers as the weight has.

    >>> import torch
    >>> sums = PrefixSums()
    >>> for count in range(1, 31):
    ...     _ = sums.add(count, torch.zeros(10), task_bytes=40)
    >>> sums.before(30)[0], sums.before(23)[0], sums.before(11)[0]
    (24, 12, 0)
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._spacing = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_sums": {}, "_spacing": 0}  # they can be added up again

    def add(self, count: int, total: Tensor, task_bytes: float) -> bool:
        """Keep a sum, if it is one of those that lie evenly.

        :param count: of how many tasks, the first ones in order of learning.
        :param total: their sum, which nobody changes.
        :param task_bytes: that a task's section takes, the mean over all there are.
        :return: whether it is kept, and must not be changed any more.
        """
        spacing = _rounded_up(_SHARE * total.numel() * total.element_size() / max(1, task_bytes))
        if spacing != self._spacing:
            self._spacing = spacing
            self._sums = {known: t for known, t in self._sums.items() if known % spacing == 0}
        is_kept = count % spacing == 0
        if is_kept:
            self._sums[count] = total
        return is_kept

    def before(self, count: int) -> tuple[int, Tensor | None]:
        """The sum of the most tasks up to some number, and of how many it is.

        :param count: of tasks.
        """
        known = max((known for known in self._sums if known <= count), default=0)
        return known, self._sums.get(known)

    def clear(self) -> None:
        """Forget all sums."""
        self._sums.clear()


def _rounded_up(number: float) -> int:
    """A power of two or three halves of one, so that it changes seldom."""
    power = 1
    while power * 3 / 2 < number:
        power *= 2
    return power if power >= number else (power * 3 + 1) // 2
