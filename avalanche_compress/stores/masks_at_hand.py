"""Masks that need no decoding: some of many, in memory that does not grow with their number."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_compress.coding import pack_mask, unpack_mask

MOST = 32
"""Masks at hand: together they take as much memory as the weight in single precision."""


class MasksAtHand:
    """Of a weight's masks up to 32, and of more than that evenly spread ones.

    A mask is coded given the one before it, so that the others are decoded from the nearest one at
    hand. Memory for 32 packed masks is taken with the first of them and for good: what a further
    task adds is then its section and nothing else.

    :param count: elements of a mask.

    >>> masks = MasksAtHand(10)
    >>> for task in range(40):
    ...     masks.add(task, torch.arange(10) == task % 10, anchor=task)
    >>> masks.get(3) is None, masks.nearest(3), masks.get(39).nonzero().item()
    (True, 2, 9)
    """

    def __init__(self, count: int):
        self._count = count
        self._rows: Tensor | None = None
        self._row_of: dict[int, int] = {}
        self._anchors: dict[int, int] = {}
        self._spacing = 1
        self._newest = -1

    def add(self, position: int, mask: Tensor, anchor: int | None = None) -> None:
        """Have a mask at hand.

        :param position: of its task in order of learning.
        :param mask: bool, any shape.
        :param anchor: number by which masks are spread evenly; one without goes first when room is
            needed, unless it is the newest.
        """
        self._newest = max(self._newest, position)
        if self._rows is None:
            # filled, or the system would give the memory page by page as masks come
            size = (self._count + 7) // 8
            self._rows = torch.empty(MOST, size, dtype=torch.uint8).fill_(0)
        if position not in self._row_of:
            self._row_of[position] = self._free_row()
        self._rows[self._row_of[position]] = pack_mask(mask)
        if anchor is not None:
            self.make_anchor(position, anchor)

    def make_anchor(self, position: int, anchor: int) -> None:
        """Keep a mask at hand, if its number is one of those that are kept.

        :param position: of a mask at hand.
        :param anchor: see :meth:`add`.
        """
        if anchor % self._spacing == 0:
            self._anchors[position] = anchor

    def get(self, position: int) -> Tensor | None:
        """A mask, bool (count,), or None if it is not at hand.

        :param position: of its task.
        """
        if self._rows is None or position not in self._row_of:
            return None
        return unpack_mask(self._rows[self._row_of[position]], self._count)

    def nearest(self, position: int) -> int:
        """The last mask at hand up to a position; -1 if there is none.

        :param position: of a task.
        """
        return max((own for own in self._row_of if own <= position), default=-1)

    def clear(self) -> None:
        """Forget all masks; the memory stays."""
        self._row_of.clear()
        self._anchors.clear()
        self._spacing = 1
        self._newest = -1

    def _free_row(self) -> int:
        if len(self._row_of) < MOST:
            return len(self._row_of)
        loose = self._oldest_loose()
        while loose is None:
            self._spacing *= 2
            self._anchors = {p: n for p, n in self._anchors.items() if n % self._spacing == 0}
            loose = self._oldest_loose()
        return self._row_of.pop(loose)

    def _oldest_loose(self) -> int | None:
        """What came first of the masks that need not stay."""
        kept = {self._newest, *self._anchors}
        return next((position for position in self._row_of if position not in kept), None)
