"""Sharing a budget of bytes out among layers, by what a byte saves of the loss."""

from __future__ import annotations

import heapq
from typing import NamedTuple, Sequence


class Choice(NamedTuple):
    """One way to keep a layer."""

    size: float
    """What it takes, in bytes or any other unit."""
    loss: float
    """What it costs, in any unit that adds up over layers."""


class BudgetTooSmallError(ValueError):
    """Not even the smallest choices fit; :attr:`least` is what they take."""

    def __init__(self, budget: float, least: float):
        super().__init__(f"the budget is {budget:g}, and the smallest choices take {least:g}.")
        self.least = least


def allocate(layers: Sequence[Sequence[Choice]], budget: float) -> list[int]:
    r"""Choose one way for each layer so that their loss is small and their size within a budget.

    .. math:: \min \sum_l L_l(c_l) \quad \text{subject to} \quad \sum_l S_l(c_l) \le B

    First every layer takes its smallest choice; then whichever step along the lower convex hull of
    a layer's choices saves the most loss per byte is taken as long as it fits (Shoham and Gersho
    1988; optimal at the budgets where the hull has a corner). What is left is filled up with the
    single changes that save the most and still fit, choices above the hull included.

    :param layers: for each layer its choices, one at least.
    :param budget: B, in the unit of the sizes.
    :return: the index of each layer's choice.
    :raises BudgetTooSmallError: if the smallest choices are larger than the budget.

    >>> layer = [Choice(1, 8.0), Choice(2, 2.0), Choice(3, 1.0)]
    >>> allocate([layer, layer], budget=4)
    [1, 1]
    >>> allocate([layer, layer], budget=5)
    [2, 1]
    """
    hulls = [_lower_hull(choices) for choices in layers]
    chosen = [hull[0] for hull in hulls]
    spent = sum(layers[layer][index].size for layer, index in enumerate(chosen))
    if spent > budget:
        raise BudgetTooSmallError(budget, spent)
    waiting = [_step(layers, hulls, layer, 0) for layer, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(waiting)
    while waiting:
        _, layer, position = heapq.heappop(waiting)
        now, following = hulls[layer][position], hulls[layer][position + 1]
        growth = layers[layer][following].size - layers[layer][now].size
        if spent + growth > budget:
            continue
        spent += growth
        chosen[layer] = following
        if position + 2 < len(hulls[layer]):
            heapq.heappush(waiting, _step(layers, hulls, layer, position + 1))
    _fill(layers, chosen, budget - spent)
    return chosen


def _lower_hull(choices: Sequence[Choice]) -> list[int]:
    """Indices of the choices on the lower convex hull, from the smallest to the one of least loss.

    Along it sizes rise, losses fall, and each step saves less per byte than the one before.
    """
    order = sorted(
        range(len(choices)), key=lambda index: (choices[index].size, choices[index].loss)
    )
    hull: list[int] = []
    for index in order:
        if hull and choices[index].loss >= choices[hull[-1]].loss:
            continue
        while len(hull) > 1 and _is_above(choices, hull[-2], hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _is_above(choices: Sequence[Choice], first: int, middle: int, last: int) -> bool:
    """Whether the middle choice lies on or above the line from the first to the last."""
    a, b, c = choices[first], choices[middle], choices[last]
    return (b.loss - a.loss) * (c.size - a.size) >= (c.loss - a.loss) * (b.size - a.size)


def _step(
    layers: Sequence[Sequence[Choice]], hulls: Sequence[Sequence[int]], layer: int, position: int
) -> tuple[float, int, int]:
    """A layer's step along its hull, as an entry of a heap: the most saved per byte comes first."""
    now = layers[layer][hulls[layer][position]]
    following = layers[layer][hulls[layer][position + 1]]
    return (following.loss - now.loss) / (following.size - now.size), layer, position


def _fill(layers: Sequence[Sequence[Choice]], chosen: list[int], room: float) -> None:
    """Take the single changes that save the most and fit into what is left, one after another."""
    while True:
        best: tuple[float, int, int] | None = None
        for layer, choices in enumerate(layers):
            now = choices[chosen[layer]]
            for index, choice in enumerate(choices):
                saved = now.loss - choice.loss
                if saved > 0 and choice.size - now.size <= room:
                    best = max(best or (saved, layer, index), (saved, layer, index))
        if best is None:
            return
        _, layer, index = best
        room -= layers[layer][index].size - layers[layer][chosen[layer]].size
        chosen[layer] = index
