"""What needs no decoding: the state after some of many tasks, in memory that does not grow."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_compress.codec import pack_mask, unpack_mask

SPREAD = 32
"""Masks at hand that lie evenly: together they take as much memory as the weight in single
precision."""
LOOSE = 4
"""Rows at hand besides: the newest one, and those that were asked for last."""


class RowsAtHand:
    """Rows of bytes of some tasks, evenly spread over all there are.

    Memory for all rows is taken with the first of them and for good: what a further task adds is
    then its section and nothing else.

    :param length: bytes of a row.
    :param spread: rows that lie evenly, at most.

    >>> rows = RowsAtHand(1, spread=4)
    >>> for task in range(40):
    ...     rows.add(task, torch.tensor([task], dtype=torch.uint8))
    >>> [task for task in range(30) if rows.get(task) is not None], rows.nearest(20)
    ([0, 16], 16)
    """

    def __init__(self, length: int, spread: int):
        self._length = length
        self._most = spread + LOOSE
        self._rows: Tensor | None = None
        self._row_of: dict[int, int] = {}
        self._spacing = 1
        self._newest = -1

    def add(self, position: int, row: Tensor) -> None:
        """Have a row at hand.

        :param position: of its task in order of learning.
        :param row: (length,) uint8.
        """
        if self._rows is None:
            # filled, or the system would give the memory page by page as rows come
            self._rows = torch.empty(self._most, self._length, dtype=torch.uint8).fill_(0)
        self._newest = max(self._newest, position)
        if position not in self._row_of:
            self._row_of[position] = self._free_row()
        self._rows[self._row_of[position]] = row

    def get(self, position: int) -> Tensor | None:
        """A row (length,), not to be written to, or None if it is not at hand.

        :param position: of its task.
        """
        if self._rows is None or position not in self._row_of:
            return None
        return self._rows[self._row_of[position]]

    def nearest(self, position: int) -> int:
        """The last task up to a position whose row is at hand; -1 if there is none.

        :param position: of a task.
        """
        return max((own for own in self._row_of if own <= position), default=-1)

    def clear(self) -> None:
        """Forget all rows; the memory stays."""
        self._row_of.clear()
        self._spacing = 1
        self._newest = -1

    def _free_row(self) -> int:
        if len(self._row_of) < self._most:
            return len(self._row_of)
        while self._newest // self._spacing >= self._most - LOOSE:
            self._spacing *= 2
        loose = (own for own in self._row_of if own % self._spacing and own != self._newest)
        return self._row_of.pop(next(loose))


class MasksAtHand:
    """Of a weight's masks up to 32, and of more than that evenly spread ones.

    A mask is coded given one before it, so that others are decoded by way of those at hand.

    :param count: elements of a mask.

    >>> masks = MasksAtHand(10)
    >>> for task in range(40):
    ...     masks.add(task, torch.arange(10) == task % 10)
    >>> masks.get(3) is None, masks.get(39).nonzero().item()
    (True, 9)
    """

    def __init__(self, count: int):
        self._count = count
        self._rows = RowsAtHand((count + 7) // 8, SPREAD)

    def add(self, position: int, mask: Tensor) -> None:
        """Have a mask at hand.

        :param position: of its task in order of learning.
        :param mask: bool, any shape.
        """
        self._rows.add(position, pack_mask(mask))

    def get(self, position: int) -> Tensor | None:
        """A mask, bool (count,), or None if it is not at hand.

        :param position: of its task.
        """
        row = self._rows.get(position)
        return None if row is None else unpack_mask(row, self._count)

    def clear(self) -> None:
        """Forget all masks; the memory stays."""
        self._rows.clear()
