"""How full the slots of a page are, and were when each of its tasks was learned."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SLOT_BITS = 32  # of a slot, B: what one weight takes in a dense model
_NEVER = np.iinfo(np.int32).max
_WIDTHS = 2  # reserved bits that a page remembers closed slots of; tasks hardly ever differ


class PageFill:
    """Bits in use in each slot of a page, after the tasks that were added so far.

    Slots only fill up, so of a slot it is enough to know the first task that finds it closed: that
    says for each task which slots were, without the masks of those before it.

    :param count: slots, n.
    :param start: position of the first task of the page in order of learning.

    >>> fill = PageFill(2, start=5)
    >>> for _ in range(8):
    ...     fill.add(4, 4, torch.tensor([True, False]))
    >>> fill.level.tolist(), fill.closed(12, 4).tolist(), fill.closed(13, 4).tolist()
    ([32, 0], [False, False], [True, False])
    """

    def __init__(self, count: int, start: int = 0):
        self.start = start
        self.level = torch.zeros(count, dtype=torch.uint8, device="cpu")
        """(n,) bits in use after the newest task that was added, not to be written to."""
        self.restart()

    def restart(self) -> None:
        """Forget all tasks."""
        self.end = self.start
        """Position after that of the newest task that was added."""
        self.level.zero_()
        self._closing: dict[int, tuple[int, np.ndarray]] = {}
        # by reserved bits: since which task it is known, and the first that finds a slot closed

    def knows(self, position: int, reserved_bits: int) -> bool:
        """Whether :meth:`closed` can tell.

        :param position: of a task of the page.
        :param reserved_bits: of its values.
        """
        since, _ = self._closing.get(reserved_bits, (self.end, None))
        return since <= position <= self.end

    def closed(self, position: int, reserved_bits: int) -> Tensor:
        """Where a slot had not the room for a value when a task was opened (bool, on the CPU).

        :param position: of the task, at most :attr:`end`.
        :param reserved_bits: of a value of the task.
        """
        if position == self.end:
            return self._over(SLOT_BITS - reserved_bits)
        _, closing = self._closing[reserved_bits]
        return torch.from_numpy(closing <= position)

    def add(self, reserved_bits: int, charge: int, mask: Tensor) -> None:
        """Add the next task.

        :param reserved_bits: of a value when it was opened.
        :param charge: bits that a value takes.
        :param mask: (n,) bool, the slots that it has values in.
        """
        if reserved_bits not in self._closing:
            if len(self._closing) == _WIDTHS:
                self._closing.pop(next(iter(self._closing)))
            never = np.full(self.level.numel(), _NEVER, dtype=np.int32)
            self._closing[reserved_bits] = self.end, never
            self._close(reserved_bits)
        if charge:
            self.level += charge * mask.view(torch.uint8)
        self.end += 1
        for known in self._closing if charge else ():
            self._close(known)

    def _close(self, reserved_bits: int) -> None:
        """Write down which slots the task at :attr:`end` is the first to find closed."""
        _, closing = self._closing[reserved_bits]
        over = self._over(SLOT_BITS - reserved_bits).numpy()
        closing[np.flatnonzero(over & (closing == _NEVER))] = self.end

    def _over(self, bits: int) -> Tensor:
        # NumPy compares bytes in a twentieth of the time that torch takes
        return torch.from_numpy(self.level.numpy() > bits)
