"""Which method for whom: the Pareto front of accuracy and bytes in words."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean
from typing import NamedTuple

from benchmarks.report.groups import Group, Runs, format_bytes
from benchmarks.report.statistics import pareto_front
from benchmarks.runs.results import RunResult

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
    front = front_of(group)
    return [
        Advice(_need(place, len(front)), label, _reached(runs))
        for place, (label, runs) in enumerate(front.items())
    ]


def budgets_on(group: Group) -> list[str]:
    """What to choose for so many bytes, a sentence a choice.

    :param group: runs of one stream and scenario.
    """
    front = front_of(group)
    least = [format_bytes(mean_bytes(runs)) for runs in front.values()]
    spans = [f"{low} to {high}" for low, high in pairwise(least)]
    spans += [f"{low} or more" for low in least[-1:]]
    return [
        f"{span}: {label}, {_reached(runs)}" for span, (label, runs) in zip(spans, front.items())
    ]


def front_of(group: Group) -> dict[str, list[RunResult]]:
    """The choices that no other one beats in both accuracy and bytes, by ascending bytes.

    :param group: runs of one stream and scenario.
    """
    choices = {label: runs for label, runs in group.strategies.items() if is_choice(runs)}
    points = [(mean_bytes(runs), mean(run.accuracy for run in runs)) for runs in choices.values()]
    labels = list(choices)
    return {labels[index]: choices[labels[index]] for index in pareto_front(points)}


def is_choice(runs: Runs) -> bool:
    """Whether a strategy learns task by task in one network.

    :param runs: of the strategy.
    """
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
    size = format_bytes(mean_bytes(runs))
    return f"{accuracy:.1f} % in {size}, {share:.0f} % of a network for each task; {forgets}"


def mean_bytes(runs: Runs) -> float:
    """Bytes of a strategy's archive, or of what it keeps where it writes none.

    :param runs: of the strategy.
    """
    return mean(run.compared_bytes for run in runs)
