"""Figures of runs that took turns, and the clock that they are taken by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

Clock = Callable[[], float]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    :param what: what was timed.
    :param milliseconds: median.
    :param reference: what it is compared with.
    :param reference_milliseconds: its median.
    :param ratio: median of the ratios of neighbouring runs.
    """

    what: str
    milliseconds: float
    reference: str
    reference_milliseconds: float
    ratio: float


def figure_of(
    what: str, seconds: Sequence[float], reference: str, reference_seconds: Sequence[float]
) -> Figure:
    """A line of the table.

    :param what: what was timed.
    :param seconds: of each run.
    :param reference: what it is compared with.
    :param reference_seconds: of the run next to each.

    >>> figure_of("ours", [0.1, 0.4, 0.2], "theirs", [0.1, 0.1, 0.1]).ratio
    2.0
    """
    ratio = statistics.median([a / b for a, b in zip(seconds, reference_seconds)])
    milliseconds, reference_milliseconds = (
        1e3 * statistics.median(times) for times in (seconds, reference_seconds)
    )
    return Figure(what, milliseconds, reference, reference_milliseconds, ratio)


def table_of(figures: Sequence[Figure]) -> Table:
    """Figures as lines to print.

    :param figures: any number.
    """
    table = Table(title=f"medians, {torch.get_num_threads()} thread, torch {torch.__version__}")
    for heading in ("", "ms", "compared with", "ms", "ratio"):
        table.add_column(heading, justify="left" if heading in ("", "compared with") else "right")
    for figure in figures:
        table.add_row(
            figure.what,
            f"{figure.milliseconds:.3g}",
            figure.reference,
            f"{figure.reference_milliseconds:.3g}",
            f"{figure.ratio:.3g}",
        )
    return table


def clock_of(device: str) -> Clock:
    """What tells the seconds that work on a device has taken.

    :param device: ``"cpu"``, where other processes' time does not count, or ``"cuda"``, where all
        that was queued has to be done.
    """
    if device == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def seconds_of(work: Callable[[], Any], now: Clock = time.process_time) -> float:
    """How long something takes.

    :param work: does it.
    :param now: the clock.
    """
    start = now()
    work()
    return now() - start
