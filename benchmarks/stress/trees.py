"""Ways to change nested plain values, such as a state or a list of results consists of."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

from benchmarks.stress.mutations import HUGE, ODD

NUMBERS: list[Any] = [
    *HUGE,
    *(-number for number in HUGE),
    1 << 200,
    0.5,
    -0.5,
    1e-300,
    1e308,
    float("inf"),
    float("-inf"),
]
"""What a number may be replaced with."""
TEXTS = ["", "..", "../../x", "x/../../y", "\0", "\ud800", "\u202e<b>", "x" * 5000, "NaN", "1"]
"""What a text may be replaced with."""
CHANGES = 3
"""How many places are changed, at most."""


def change(random: Random, tree: Any) -> Any:
    """The tree with some of its values replaced, deleted, repeated or exchanged.

    :param random: decides where and how.
    :param tree: lists and dictionaries of plain values; it stays as it is.

    >>> change(Random(2), {"a": [1, 2]}) == {"a": [1, 2]}
    False
    """
    root = [copy.deepcopy(tree)]
    for _ in range(random.randint(1, CHANGES)):
        places = _places(root)
        parent, key = random.choice(places)
        kind = random.randrange(8)
        if kind < 3:
            parent[key] = _another(random, parent[key])
        elif kind == 3:
            parent[key] = copy.deepcopy(random.choice(ODD))
        elif kind == 4 and parent is not root:
            del parent[key]
        elif kind == 5 and isinstance(parent, list) and parent is not root:
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            other, place = random.choice(places)
            parent[key] = copy.deepcopy(other[place])
    return root[0]


def _another(random: Random, value: Any) -> Any:
    """A value of the same kind, mostly."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return random.choice([*NUMBERS, value + 1, -value, value * 2])
    if isinstance(value, str):
        return random.choice([*TEXTS, value[1:], value + value])
    if isinstance(value, list):
        return random.choice([value[1:], value * 2, value[::-1], [value], []])
    return random.choice([None, {}, [], 0])


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [tree]
    while waiting:
        parent = waiting.pop()
        keys = range(len(parent)) if isinstance(parent, list) else list(parent)
        for key in keys:
            found.append((parent, key))
            if isinstance(parent[key], (list, dict)):
                waiting.append(parent[key])
    return found
