"""Pictures of what tasks made of each layer: its ranks, densities and bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from benchmarks.report.drawing import (
    COLOURS,
    FEW_LAYERS,
    bare,
    depth_bar,
    keep_apart,
    layer_colours,
    layer_markers,
    new_figure,
    strategy_figure,
    whole_numbers,
)
from benchmarks.report.groups import QUANTITIES, Group, layer_means, layer_name
from benchmarks.runs.results import RunResult


def layer_figure(groups: Sequence[Group], quantity: str) -> Figure:
    """A curve over the tasks for each layer, a panel per strategy, a part per group.

    A point is the mean over seeds and orders of the tasks learned at that place in the order.

    :param groups: of runs that have the quantity.
    :param quantity: of :data:`~benchmarks.report.groups.QUANTITIES`.
    """
    draw = partial(_draw_strategies, quantity=quantity)
    return strategy_figure(groups, lambda _: QUANTITIES[quantity], draw)


def _draw_strategies(part: SubFigure, panels: np.ndarray, group: Group, quantity: str) -> None:
    means = [layer_means(runs, quantity) for runs in group.strategies.values()]
    names = list(dict.fromkeys(name for layers in means for name in layers))
    colours, widths, markers = layer_colours(names), _layer_widths(names), layer_markers(names)
    curves = [curve for layers in means for curve in layers.values()]
    highest = max((float(np.nanmax(curve, initial=0)) for curve in curves), default=0.0)
    for axes, layers in zip(panels.flat, means):
        for name, curve in layers.items():
            _draw_curve(axes, curve, colours[name], widths[name], markers[name])
        axes.set_ylim(0, 1.06 * max(1e-9, highest))
        if quantity == "bits":
            axes.yaxis.set_major_locator(MultipleLocator(8))
        axes.xaxis.set_major_locator(whole_numbers())
        axes.tick_params(labelbottom=True)
        bare(axes)
    part.supxlabel("task, in order of learning", size=10)
    if len(names) > FEW_LAYERS:
        depth_bar(part, panels, names)
        return
    shown = [
        Line2D([], [], color=colours[name], marker=markers[name], markersize=5) for name in names
    ]
    part.legend(shown, names, loc="outside right center", frameon=False, fontsize=9, title="layer")


def _layer_widths(names: Sequence[str]) -> dict[str, float]:
    """The first of few layers are thicker: where curves are the same, all are seen."""
    layers = len(names)
    thicker = 2.8 if layers <= FEW_LAYERS else 0.0
    return {name: 1.2 + thicker * (1 - (i + 1) / layers) for i, name in enumerate(names)}


def _draw_curve(axes: Axes, curve: np.ndarray, colour: str, width: float, marker: str) -> None:
    axes.plot(
        np.arange(len(curve)) + 1,
        curve,
        color=colour,
        linewidth=width,
        marker=marker if len(curve) <= 20 else "",
        markersize=2.4 + width,
        markeredgecolor="white",
        markeredgewidth=0.4,
    )


def rank_figure(result: RunResult) -> Figure:
    """How many terms each task added to each layer in one run, and how they add up.

    Up to eight layers are named where their curves end; more of them are coloured by depth.

    :param result: a run with ranks.
    :raises ValueError: if the run has no ranks.
    """
    if not result.ranks:
        raise ValueError(f"There are no ranks to draw: {result.key} keeps no weights as terms.")
    names = [layer_name(weight) for weight in result.ranks]
    added = np.array(list(result.ranks.values()))
    total = added.cumsum(axis=1)
    figure = new_figure(10.4, 3.9)
    panels = figure.subplots(1, 2)
    figure.suptitle(str(result.key), x=0.01, ha="left", size=11)
    for axes, ranks, title, label in (
        (panels[0], added, "rank that each task added", "task, in order of learning"),
        (panels[1], total, "cumulative rank", "after learning task"),
    ):
        _draw_ranks(axes, ranks, names, result.order)
        axes.set_title(title, size=10, loc="left")
        axes.set_xlabel(label)
    if len(names) <= FEW_LAYERS:
        _name_curves(panels[1], names, total)
    else:
        depth_bar(figure, panels, names)
    return figure


def _draw_ranks(axes: Axes, ranks: np.ndarray, names: Sequence[str], order: Sequence[int]) -> None:
    """A curve over the tasks for each row of ``ranks``, which are the layers, the first on top."""
    layers, tasks = ranks.shape
    few = layers <= FEW_LAYERS
    colours = list(layer_colours(names).values())
    markers = list(layer_markers(names).values())
    for layer, curve in enumerate(ranks):
        axes.plot(
            curve,
            color=colours[layer],
            linewidth=1.6 if few else 1.1,
            marker=markers[layer] if tasks <= 20 else "",
            markersize=5 if few and tasks <= 10 else 3.5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            zorder=2 + (layers - layer) / layers,
            clip_on=False,
        )
    highest = max(1, ranks.max())
    axes.set_ylim(-0.03 * highest, 1.05 * highest)
    axes.set_xlim(-0.4, tasks - 0.6)
    shown = range(0, tasks, -(-tasks // 20))
    axes.set_xticks(shown, [str(order[position] + 1) for position in shown])
    axes.yaxis.set_major_locator(whole_numbers())
    bare(axes)


def _name_curves(axes: Axes, names: Sequence[str], ranks: np.ndarray) -> None:
    """Write its name and last value behind each curve, no text over another."""
    last, ends = ranks.shape[1] - 1, ranks[:, -1]
    low, high = axes.get_ylim()
    heights = keep_apart([(end - low) / (high - low) for end in ends], 0.07)
    for name, end, height, colour in zip(names, ends, heights, COLOURS):
        axes.annotate(
            f"{name}  {end}",
            (last, end),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            size=9,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1, "shrinkB": 4},
        )
