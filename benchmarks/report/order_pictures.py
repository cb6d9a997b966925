"""The picture of what the order of the tasks decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure

from benchmarks.report.drawing import bare, strategy_figure, whole_numbers
from benchmarks.report.groups import (
    Group,
    Runs,
    accuracy_by_order,
    by_order,
    groups_of,
    order_robustness,
)


def in_several_orders(results: Runs) -> list[Group]:
    """The groups of those strategies that have several orders."""
    several = []
    for group in groups_of(results):
        for runs in group.strategies.values():
            several += runs if len(by_order(runs)) > 1 else []
    return groups_of(several)


def order_figure(groups: Sequence[Group]) -> Figure:
    """The final accuracy of every task in every order, a panel per strategy.

    A point is one order, its colour the position at which the task was learned in it; the bar
    behind the points is the task's OPD. Several seeds of one order are averaged.

    :param groups: as of :func:`in_several_orders`.
    """
    hint = "grey: from the worst order to the best; AOPD, MOPD in percentage points"
    title = f"final accuracy of each task in each of R orders\n{hint}"
    return strategy_figure(groups, lambda _: title, _draw_orders)


def _draw_orders(part: SubFigure, panels: np.ndarray, group: Group) -> None:
    for axes, runs in zip(panels.flat, group.strategies.values()):
        points = _draw_spread(axes, runs)
        _caption_spread(axes, runs)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy (%)")
    part.supxlabel("task", size=10)
    bar = part.colorbar(points, ax=panels, aspect=12 * len(panels), pad=0.02, ticks=whole_numbers())
    bar.set_label("place in the order")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _draw_spread(axes: Axes, runs: Runs) -> PathCollection:
    """A bar per task from its worst to its best order, and next to each other a point per order."""
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


def _caption_spread(axes: Axes, runs: Runs) -> None:
    spread = order_robustness(runs)
    axes.set_title(axes.get_title("left"), size=10, loc="left", pad=16)
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
