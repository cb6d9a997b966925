"""What needs no decoding: the state after some of many tasks, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from avalanche_compress.codec import pack_mask, unpack_mask

_FEWEST, _MOST = 32, 256
_SMALL = 1 << 22
"""Bytes of a weight's masks within which more than the fewest are cached."""


class RowCache:
    """Rows of bytes of some tasks, evenly spread over all there are.

    Memory for all rows is taken with the first of them and for good: what a further task adds is
    then its section and nothing else.

    :param length: bytes of a row.
    :param evenly_spaced: rows that lie evenly, at most.
    :param recent: further rows: the newest one, and those that were asked for last.

    >>> rows = RowCache(1, evenly_spaced=4)
    >>> for task in range(40):
    ...     rows.add(task, torch.tensor([task], dtype=torch.uint8))
    >>> [task for task in range(30) if rows.get(task) is not None], rows.nearest(20)
    ([0, 16], 16)
    """

    def __init__(self, length: int, *, evenly_spaced: int, recent: int = 4):
        self._length = length
        self._evenly_spaced = evenly_spaced
        self._most = evenly_spaced + recent
        self._rows: Tensor | None = None
        self._row_of: dict[int, int] = {}
        self._spacing = 1
        self._newest = -1

    def add(self, position: int, row: Tensor) -> None:
        """Keep a row.

        :param position: of its task in order of learning.
        :param row: (length,) uint8.
        """
        if self._rows is None:
            # filled, or the system would give the memory page by page as rows come
            self._rows = torch.empty(
                self._most, self._length, dtype=torch.uint8, device="cpu"
            ).fill_(0)
        self._newest = max(self._newest, position)
        if position not in self._row_of:
            self._row_of[position] = self._free_row()
        self._rows[self._row_of[position]] = row

    def get(self, position: int) -> Tensor | None:
        """A row (length,), not to be written to, or None if it is not cached.

        :param position: of its task.
        """
        if self._rows is None or position not in self._row_of:
            return None
        return self._rows[self._row_of[position]]

    def nearest(self, position: int) -> int:
        """The last task up to a position whose row is cached; -1 if there is none.

        :param position: of a task.
        """
        return max((cached for cached in self._row_of if cached <= position), default=-1)

    def lies_evenly(self, position: int, count: int) -> bool:
        """Whether a row is one of those that stay, so that whoever passes by may add it.

        :param position: of its task.
        :param count: of all tasks.
        """
        spacing = 1
        while (count - 1) // spacing >= self._evenly_spaced:
            spacing *= 2
        return position % spacing == 0

    def clear(self) -> None:
        """Forget all rows; the memory stays."""
        self._row_of.clear()
        self._spacing = 1
        self._newest = -1

    def _free_row(self) -> int:
        if len(self._row_of) < self._most:
            return len(self._row_of)
        while self._newest // self._spacing >= self._evenly_spaced:
            self._spacing *= 2
        uneven = (task for task in self._row_of if task % self._spacing and task != self._newest)
        return self._row_of.pop(next(uneven))


class MaskCache:
    """Of a weight's masks up to 256, and of more than that evenly spread ones.

    A mask is coded given one before it, so that others are decoded by way of those that are cached.
    256 masks take eight times a weight's memory in single precision. Of a weight of more than
    131,072 elements there are fewer, as many as 4 MiB have room for, and never less than 32.

    :param count: elements of a mask.
    :param evenly_spaced: masks that lie evenly, at most; None for as many as said above.
    :param recent: further masks: the newest one, and those that were asked for last.

    >>> masks = MaskCache(10, evenly_spaced=32)
    >>> for task in range(40):
    ...     masks.add(task, torch.arange(10) == task % 10)
    >>> masks.get(3) is None, masks.get(39).nonzero().item()
    (True, 9)
    """

    def __init__(self, count: int, *, evenly_spaced: int | None = None, recent: int = 4):
        self._count = count
        length = (count + 7) // 8
        if evenly_spaced is None:
            evenly_spaced = min(_MOST, max(_FEWEST, _SMALL // max(1, length)))
        self._rows = RowCache(length, evenly_spaced=evenly_spaced, recent=recent)

    def add(self, position: int, mask: Tensor) -> None:
        """Keep a mask.

        :param position: of its task in order of learning.
        :param mask: bool, any shape.
        """
        self._rows.add(position, pack_mask(mask))

    def get(self, position: int) -> Tensor | None:
        """A mask, bool (count,), or None if it is not cached.

        :param position: of its task.
        """
        row = self._rows.get(position)
        return None if row is None else unpack_mask(row, self._count)

    def nearest(self, position: int) -> int:
        """The last task up to a position whose mask is cached; -1 if there is none.

        :param position: of a task.
        """
        return self._rows.nearest(position)

    def lies_evenly(self, position: int, count: int) -> bool:
        """Whether a mask is one of those that stay, see :meth:`RowCache.lies_evenly`.

        :param position: of its task.
        :param count: of all tasks.
        """
        return self._rows.lies_evenly(position, count)

    def clear(self) -> None:
        """Forget all masks; the memory stays."""
        self._rows.clear()


class PassedMasks:
    """Masks that some later step of a walk asks for, a bit an element, as long as one does.

    :param count: elements of a mask.
    :param last_use: by position of a mask, the last step that asks for it.

    >>> masks = PassedMasks(3, {0: 5})
    >>> masks.keep(0, torch.tensor([True, False, True]))
    >>> masks.keep(1, torch.ones(3, dtype=torch.bool))  # nobody asks for it
    >>> masks.take(0, step=4).tolist(), masks.take(0, step=5).tolist(), len(masks)
    ([True, False, True], [True, False, True], 0)
    """

    def __init__(self, count: int, last_use: Mapping[int, int]):
        self._count = count
        self._last_use = last_use
        self._rows: dict[int, Tensor] = {}
        self._newest: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def keep(self, position: int, mask: Tensor) -> None:
        """Keep a mask, if somebody is to ask for it.

        :param position: of its task.
        :param mask: bool (count,).
        """
        if position not in self._last_use:
            return
        row = pack_mask(mask)
        if self._newest is not None and torch.equal(row, self._newest):
            row = self._newest  # tasks in a row that keep the same weights share one
        self._rows[position] = self._newest = row

    def take(self, position: int, step: int) -> Tensor:
        """A mask, bool (count,).

        :param position: of its task.
        :param step: that asks for it.
        """
        row = self._rows[position]
        if self._last_use[position] == step:
            del self._rows[position]
        return unpack_mask(row, self._count)
