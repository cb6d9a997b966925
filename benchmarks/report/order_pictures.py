"""The picture of what the order of the tasks decides."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure

from benchmarks.report.drawing import bare, new_figure, panels_of, rows_of, subplots, whole_numbers
from benchmarks.runs.results import (
    RunResult,
    accuracy_by_order,
    by_order,
    by_strategy,
    count_orders,
    order_robustness,
    scenario_of,
)

# panels beside each other
_ACROSS = 4


def order_figure(results: Sequence[RunResult]) -> Figure:
    """The final accuracy of every task in every order, a panel per strategy.

    A point is one order, its colour the position at which the task was learned in it; the bar
    behind the points is the task's OPD. Several seeds of one order are averaged. Strategies that
    were run in one order only are left out.

    :param results: all runs, some strategy of which in several orders.
    """
    groups = in_several_orders(results)
    strategies = [len(by_strategy(runs)) for _, runs in groups]
    across = min(_ACROSS, max(strategies))
    rows = [rows_of(count, across) for count in strategies]
    heights = [1.1 + 2.1 * count for count in rows]
    figure = new_figure(max(6.4, 1.2 + 2.3 * across), sum(heights))
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)
    for part, (stream, runs) in zip(parts[:, 0], groups):
        title = f"{stream}{scenario_of(runs)}: final accuracy of each task in each of R orders"
        hint = "grey: from the worst order to the best; AOPD, MOPD in percentage points"
        part.suptitle(f"{title}\n{hint}", x=0.01, ha="left", size=10)
        _draw_orders(part, runs, across)
    return figure


def in_several_orders(results: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    """The runs of each stream and scenario, of those strategies that have several orders."""
    found = []
    for stream, runs in panels_of(results):
        several = [same for same in by_strategy(runs).values() if count_orders(same) > 1]
        if several:
            found.append((stream, [run for same in several for run in same]))
    return found


def _draw_orders(part: SubFigure, runs: Sequence[RunResult], across: int) -> None:
    """One panel per strategy, all on one scale."""
    grouped = by_strategy(runs)
    panels = subplots(part, len(grouped), across)
    for axes, same in zip(panels.flat, grouped.values()):
        points = _draw_spread(axes, same)
        _caption_spread(axes, same)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy (%)")
    part.supxlabel("task", size=10)
    bar = part.colorbar(points, ax=panels, aspect=12 * len(panels), pad=0.02, ticks=whole_numbers())
    bar.set_label("place in the order")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _draw_spread(axes: Axes, runs: Sequence[RunResult]) -> PathCollection:
    """A bar per task from its worst to its best order, and a point per order beside each other."""
    accuracies = accuracy_by_order(runs)
    matrix = 100 * np.array([list(tasks.values()) for tasks in accuracies.values()])
    learned = [np.argsort(same[0].order) + 1 for same in by_order(runs).values()]
    orders, tasks = matrix.shape
    numbers = np.arange(tasks) + 1
    axes.bar(numbers, np.ptp(matrix, axis=0), 0.8, matrix.min(axis=0), color="0.88", zorder=1)
    # the palest end of the colour map is lost on the bars
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.08, 1, tasks)))
    return axes.scatter(
        numbers + np.linspace(-0.25, 0.25, orders)[:, None],
        matrix,
        s=24 if tasks <= 10 else 12,
        c=learned,
        cmap=colours,
        vmin=0.5,
        vmax=tasks + 0.5,
        edgecolors="white",
        linewidths=0.3,
        zorder=2,
    )


def _caption_spread(axes: Axes, runs: Sequence[RunResult]) -> None:
    spread = order_robustness(runs)
    axes.set_title(runs[0].key.label, size=10, loc="left", pad=16)
    axes.annotate(
        f"AOPD {100 * spread.aopd:.1f}, MOPD {100 * spread.mopd:.1f} (R = {spread.orders})",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        size=8.5,
        color="0.4",
    )
    # without this the bar of the worst task ends on the axis and its points are cut
    axes.use_sticky_edges = False
    axes.set_xlim(0.4, len(runs[0].order) + 0.6)
    axes.xaxis.set_major_locator(whole_numbers())
    axes.tick_params(labelbottom=True)
    bare(axes)
