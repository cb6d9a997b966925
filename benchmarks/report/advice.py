"""Which method for whom: the Pareto front of accuracy and bytes in words."""

from __future__ import annotations

from statistics import mean
from typing import NamedTuple

from benchmarks.report.groups import Group, Runs, format_bytes
from benchmarks.report.statistics import pareto_front

_FORGETS = 0.005
"""Half a percentage point: a method that loses more is said to forget."""


class Advice(NamedTuple):
    """A method that no other one beats in both accuracy and bytes.

    :param need: whom it suits.
    :param label: of the method.
    :param what: what it reaches.
    """

    need: str
    label: str
    what: str


def advice_on(group: Group) -> list[Advice]:
    """What to choose among methods that learn task by task, from the smallest to the most accurate.

    A plain network for each task is what all are compared with and is no choice here, nor is
    training on the data of all tasks at once.

    :param group: runs of one stream and scenario.
    """
    choices = {label: runs for label, runs in group.strategies.items() if _is_choice(runs)}
    points = [(_bytes(runs), mean(run.accuracy for run in runs)) for runs in choices.values()]
    front = [list(choices)[index] for index in pareto_front(points)]
    return [
        Advice(_need(place, len(front)), label, _reached(choices[label]))
        for place, label in enumerate(front)
    ]


def _is_choice(runs: Runs) -> bool:
    in_turn = all(run.forgetting is not None for run in runs)
    return in_turn and not runs[0].strategy.startswith("independent")


def _need(place: int, choices: int) -> str:
    if choices == 1:
        return "smallest and most accurate"
    if place == 0:
        return "as few bytes as possible"
    return "as accurate as possible" if place == choices - 1 else "in between"


def _reached(runs: Runs) -> str:
    lost = mean(run.forgetting or 0.0 for run in runs)
    forgets = f"forgets {100 * lost:.1f} points" if lost > _FORGETS else "forgets nothing"
    if 0 < lost <= _FORGETS:
        forgets = "forgets next to nothing"
    share = 100 * mean(run.ratio for run in runs)
    accuracy = 100 * mean(run.accuracy for run in runs)
    return (
        f"{accuracy:.1f} % in {format_bytes(_bytes(runs))}, {share:.0f} % of a network for each "
        f"task; {forgets}"
    )


def _bytes(runs: Runs) -> float:
    return mean(run.compared_bytes for run in runs)
