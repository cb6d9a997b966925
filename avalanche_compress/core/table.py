"""Whole numbers about each of many tasks, at eight bytes a number."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence


class Table:
    """Rows of whole numbers, one for each finished task in order of learning.

    A dictionary of tuples would hold the same in twenty times the memory, which is as much as the
    section of a small layer takes.

    :param width: numbers in a row.

    >>> table = Table(2)
    >>> table.append(78400, 4)
    >>> table[0], len(table)
    ((78400, 4), 1)
    """

    def __init__(self, width: int):
        self._width = width
        self._numbers = array("q")

    def __len__(self) -> int:
        return len(self._numbers) // self._width

    def __getitem__(self, position: int) -> tuple[int, ...]:
        if not 0 <= position < len(self):
            raise IndexError(f"row {position} of {len(self)}")
        start = position * self._width
        return tuple(self._numbers[start : start + self._width])

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[position] for position in range(len(self)))

    def __repr__(self) -> str:
        return f"Table{list(self)}"

    def append(self, *row: int) -> None:
        """Add the newest task's row.

        :param row: as many numbers as the table is wide.
        """
        self._numbers.extend(row)

    def column(self, number: int) -> Sequence[int]:
        """One number of every task, in order of learning.

        :param number: which of a row's.
        """
        return self._numbers[number :: self._width]

    def clear(self) -> None:
        """Forget all tasks."""
        del self._numbers[:]
