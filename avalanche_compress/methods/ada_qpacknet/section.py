"""What the section of a task of :class:`SlottedStore` begins with, and its checks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from avalanche_compress.codec import CorruptStreamError

NEWEST, FRESH, SOURCES = range(3)
"""Where a task's values are: on the newest page, on a fresh one, or 2 + p: they are those of p."""


class Head(NamedTuple):
    """What a section begins with."""

    reserved_bits: int
    place: int
    """:data:`NEWEST` or :data:`FRESH`, the page with its slots, or :data:`SOURCES` and more."""
    added: int
    """How many values it has of its own."""

    @property
    def source(self) -> int | None:
        """The position of the task that it computes with, if it has no values of its own."""
        return self.place - SOURCES if self.place >= SOURCES else None

    def check_mask(self, mask: Tensor, closed: Tensor) -> None:
        """Refuse a mask that keeps closed slots, or not as many as there are values."""
        if bool((mask.numpy() & closed.numpy()).any()):
            raise CorruptStreamError("a mask that keeps slots which are not open")
        kept = int(np.count_nonzero(mask.numpy()))
        if self.source is None and kept != self.added:
            raise CorruptStreamError(f"{self.added} values for a mask that keeps {kept}")

    def check_charge(self, bits: int) -> None:
        """Refuse values that take more than was reserved for them."""
        if self.added and bits > self.reserved_bits:
            raise CorruptStreamError(f"values of {bits} bits, and {self.reserved_bits} reserved")


class Section(NamedTuple):
    """What one task keeps, as its section tells; its values stay in there."""

    head: Head
    charge: int
    """Bits of a slot that each value takes."""
    mask: Tensor | None
    """(n,) bool; None as long as nobody has asked."""
