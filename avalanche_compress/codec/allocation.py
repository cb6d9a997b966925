"""Bytes shared out among layers: the least loss that a budget buys."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Choice(NamedTuple):
    """One way to keep a layer."""

    size: int
    """Bytes that it takes."""
    loss: float
    """What it costs in accuracy, in any unit that all layers share."""


def allocate(layers: Sequence[Sequence[Choice]], budget: int) -> list[int] | None:
    """The choice of each layer with which all together lose little and fit a budget.

    Each layer begins with its smallest choice. Then bytes go where they save most loss a byte: from
    choice to choice along each layer's lower convex hull, steepest first, over all layers (Shoham
    and Gersho, IEEE Trans. ASSP 1988). A step that does not fit is passed over for smaller ones.
    What is left buys any further choice that fits, on a hull or not, the one that saves most loss
    first.

    The result is optimal for the bytes that the first step that did not fit has found spent. So it
    loses no more than the best there is for a budget that is smaller by the largest step.

    :param layers: of each its choices, in any order, one at least.
    :param budget: in bytes.
    :return: of each layer the number of its choice; None if not even the smallest ones fit.

    >>> small, large = Choice(1, 9.0), Choice(5, 1.0)
    >>> allocate([[small, large], [small, Choice(3, 8.0)]], budget=7)
    [1, 0]
    """
    hulls = [_lower_hull(choices) for choices in layers]
    chosen = [hull[0] for hull in hulls]
    left = budget - sum(choices[number].size for choices, number in zip(layers, chosen))
    if left < 0:
        return None
    steps = [_step(choices, hull, 0, i) for i, (choices, hull) in enumerate(zip(layers, hulls))]
    queue = [step for step in steps if step is not None]
    heapq.heapify(queue)
    while queue:
        _, layer, place, size = heapq.heappop(queue)
        if size > left:
            continue
        chosen[layer] = hulls[layer][place]
        left -= size
        following = _step(layers[layer], hulls[layer], place, layer)
        if following is not None:
            heapq.heappush(queue, following)
    _spend(layers, chosen, left)
    return chosen


def smallest_total(layers: Sequence[Sequence[Choice]]) -> int:
    """Bytes of the smallest choice of each layer together.

    :param layers: of each its choices.

    >>> smallest_total([[Choice(1, 9.0), Choice(5, 1.0)], [Choice(3, 8.0)]])
    4
    """
    return sum(min(choice.size for choice in choices) for choices in layers)


def _lower_hull(choices: Sequence[Choice]) -> list[int]:
    """The numbers of the choices on the lower convex hull, sizes ascending, losses falling."""
    hull: list[int] = []
    for number in sorted(range(len(choices)), key=lambda i: choices[i]):
        point = choices[number]
        if hull and point.loss >= choices[hull[-1]].loss:
            continue
        while len(hull) > 1 and _is_above(choices[hull[-2]], choices[hull[-1]], point):
            hull.pop()
        hull.append(number)
    return hull


def _is_above(left: Choice, middle: Choice, right: Choice) -> bool:
    """Whether a point lies above the line between two others; those on it make steps smaller."""
    return (left.loss - middle.loss) * (right.size - left.size) < (left.loss - right.loss) * (
        middle.size - left.size
    )


def _step(
    choices: Sequence[Choice], hull: Sequence[int], place: int, layer: int
) -> tuple[float, int, int, int] | None:
    """From one choice of a hull to the next: loss a byte, the layer, where it leads, its bytes."""
    if place + 1 == len(hull):
        return None
    before, after = choices[hull[place]], choices[hull[place + 1]]
    size = after.size - before.size
    return (after.loss - before.loss) / size, layer, place + 1, size


def _spend(layers: Sequence[Sequence[Choice]], chosen: list[int], left: int) -> None:
    """Exchange choices for others that lose less, while some fit in what is left."""
    while True:
        better = [
            (layers[layer][now].loss - choice.loss, -choice.size, layer, number)
            for layer, now in enumerate(chosen)
            for number, choice in enumerate(layers[layer])
            if choice.size - layers[layer][now].size <= left
            and choice.loss < layers[layer][now].loss
        ]
        if not better:
            return
        *_, layer, number = max(better)
        left -= layers[layer][number].size - layers[layer][chosen[layer]].size
        chosen[layer] = number
