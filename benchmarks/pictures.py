"""The pictures of a run and of a comparison.

Each is a PNG; a run has its accuracy matrix and, where weights are kept as terms, their ranks.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.results import (
    RunResult,
    accuracy_by_order,
    by_order,
    by_scenario,
    by_strategy,
    by_stream,
    count_orders,
    format_bytes,
    layer_name,
    order_robustness,
    scenario_of,
    title_of,
)

# one fewer than the colours: the pairs repeat after 132 rows, not after 12
_MARKERS = "osD^vPhX<>d"
_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ee7733",
    "#009988",
    "#555555",
    "#882255",
    "#117733",
    "#332288",
)
# panels beside each other in the picture of task orders
_ACROSS = 4
# with more layers than these, ranks have colours by depth
_NAMED_LAYERS = 8


def draw_run(result: RunResult, folder: Path) -> None:
    """Draw what there is to see of one run.

    :param result: the run.
    :param folder: gets ``matrix-<slug>.png`` and, where the run has ranks, ``ranks-<slug>.png``.
    """
    heat_map(result, folder / f"matrix-{result.key.slug}.png")
    if result.ranks:
        rank_plot(result, folder / f"ranks-{result.key.slug}.png")


def draw_comparison(results: Sequence[RunResult], folder: Path) -> None:
    """Draw what there is to see of all runs together.

    :param results: all runs.
    :param folder: gets ``accuracy_against_bytes.png`` and, where there are several task orders,
        ``order_robustness.png``.
    """
    bytes_plot(results, folder / "accuracy_against_bytes.png")
    if _in_several_orders(results):
        order_plot(results, folder / "order_robustness.png")


def heat_map(result: RunResult, path: Path) -> None:
    """Draw the accuracy matrix of one run as a PNG.

    :param result: the run; entries that are None stay blank.
    :param path: the file to write.
    """
    matrix = np.array(
        [[np.nan if a is None else 100 * a for a in row] for row in result.accuracy_matrix]
    )
    tasks = len(matrix)
    figure = _figure(2.6 + 0.62 * tasks, 1.7 + 0.5 * tasks)
    axes = figure.add_subplot()
    # One scale for all maps of a scenario, so that they compare; with labels, what lies below 50 %
    # shares the darkest colour.
    least = 50 if result.scenario == "task" else 0
    image = axes.imshow(matrix, cmap="viridis", vmin=least, vmax=100, aspect="auto")
    for (after, task), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            ink = "black" if value > least + 0.6 * (100 - least) else "white"
            axes.text(task, after, f"{value:.1f}", ha="center", va="center", color=ink, size=9)
    _number_tasks(axes, result.order)
    axes.set_title(str(result.key), size=11)
    extend = "min" if least else "neither"
    bar = figure.colorbar(image, ax=axes, label="test accuracy (%)", extend=extend)
    bar.outline.set_visible(False)
    _save(figure, path)


def rank_plot(result: RunResult, path: Path) -> None:
    """Draw how many terms each task added to each layer as a PNG, and how they add up.

    Up to eight layers are named where their curves end; more of them are coloured by depth.

    :param result: a run with ranks.
    :param path: the file to write.
    :raises ValueError: if the run has no ranks.
    """
    if not result.ranks:
        raise ValueError(f"There are no ranks to draw: {result.key} keeps no weights as terms.")
    names = [layer_name(weight) for weight in result.ranks]
    own = np.array(list(result.ranks.values()))
    total = own.cumsum(axis=1)
    figure = _figure(10.4, 3.9)
    panels = figure.subplots(1, 2)
    figure.suptitle(str(result.key), x=0.01, ha="left", size=11)
    for axes, ranks, title, label in (
        (panels[0], own, "rank that each task added", "task, in order of learning"),
        (panels[1], total, "cumulative rank", "after learning task"),
    ):
        _draw_ranks(axes, ranks, result.order)
        axes.set_title(title, size=10, loc="left")
        axes.set_xlabel(label)
    if len(names) <= _NAMED_LAYERS:
        _name_curves(panels[1], names, total)
    else:
        _depth_bar(figure, panels, names)
    _save(figure, path)


def _draw_ranks(axes: Axes, ranks: np.ndarray, order: Sequence[int]) -> None:
    """A curve over the tasks for each row of ``ranks``, which are the layers, the first on top."""
    layers, tasks = ranks.shape
    few = layers <= _NAMED_LAYERS
    colours = _COLOURS if few else _depth_map(layers).colors
    for layer, curve in enumerate(ranks):
        axes.plot(
            curve,
            color=colours[layer],
            linewidth=1.6 if few else 1.1,
            marker="o" if tasks <= 20 else "",
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
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(True, axis="y", color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name_curves(axes: Axes, names: Sequence[str], ranks: np.ndarray) -> None:
    """Write its name and last value behind each curve, no text over another."""
    last, ends = ranks.shape[1] - 1, ranks[:, -1]
    low, high = axes.get_ylim()
    heights = _keep_apart([(end - low) / (high - low) for end in ends], 0.07)
    for name, end, height, colour in zip(names, ends, heights, _COLOURS):
        axes.annotate(
            f"{name}  {end}",
            (last, end),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            size=9,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1, "shrinkB": 4},
        )


def _keep_apart(places: Sequence[float], gap: float) -> list[float]:
    """Move places between 0 and 1 until no two are nearer than ``gap``, in the order they have.

    >>> [round(place, 2) for place in _keep_apart([0.5, 0.98, 0.97, 0.0], 0.1)]
    [0.5, 1.0, 0.9, 0.0]
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for below, above in zip(order, order[1:]):
        moved[above] = max(moved[above], moved[below] + gap)
    ceiling = 1.0
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _depth_map(layers: int) -> ListedColormap:
    """A colour per layer, dark at the input; without the palest end, which is lost on white."""
    return ListedColormap(colormaps["viridis"](np.linspace(0, 0.93, layers)))


def _depth_bar(figure: Figure, panels: np.ndarray, names: Sequence[str]) -> None:
    """A colour bar with the layers from the input up, some of them named."""
    layers = len(names)
    scale = ScalarMappable(BoundaryNorm(np.arange(layers + 1) - 0.5, layers), _depth_map(layers))
    named = np.unique(np.linspace(0, layers - 1, 6).round().astype(int))
    bar = figure.colorbar(scale, ax=panels, pad=0.02, aspect=24, ticks=named)
    bar.ax.set_yticklabels([names[layer] for layer in named], size=8)
    bar.set_label(f"{layers} layers, by depth")
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", length=0)


def bytes_plot(results: Sequence[RunResult], path: Path) -> None:
    """Draw accuracy against bytes as a PNG, bytes on a logarithmic axis.

    There is one panel per stream and scenario.

    A point is the mean over seeds and orders, its bar one standard deviation.

    :param results: all runs.
    :param path: the file to write.
    """
    groups = _panels(results)
    figure = _figure(8.6, 4.4 * len(groups))
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    styles = _styles(results)
    for axes, (stream, runs) in zip(panels, groups):
        _draw_panel(axes, runs, styles)
        axes.set_title(title_of(runs, stream), size=11, loc="left")
    _save(figure, path)


def _panels(results: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    """The runs of each stream and scenario, with the stream's name."""
    return [
        (stream, same) for stream, runs in by_stream(results) for same in by_scenario(runs).values()
    ]


def _draw_panel(axes: Axes, runs: Sequence[RunResult], styles: dict[str, tuple[str, str]]) -> None:
    independent = mean(run.independent_bytes for run in runs)
    axes.axvline(independent, color="0.6", linewidth=1, linestyle="--", zorder=1)
    axes.annotate(
        "one network per task",
        (independent, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(-3, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        size=8,
        color="0.4",
    )
    for strategy, same in _best_first(runs):
        sizes, accuracies = _points(same)
        colour, marker = styles[strategy]
        axes.errorbar(
            mean(sizes),
            mean(accuracies),
            yerr=_spread(accuracies),
            color=colour,
            marker=marker,
            markersize=9,
            markeredgecolor="white",
            linestyle="none",
            elinewidth=1.2,
            capsize=3,
            label=f"{strategy}  {mean(accuracies):.1f} %, {format_bytes(mean(sizes))}",
            zorder=3,
        )
    _log_bytes_axis(axes, runs)
    axes.set_ylabel("mean final accuracy (%)")
    axes.grid(True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)


def order_plot(results: Sequence[RunResult], path: Path) -> None:
    """Draw the final accuracy of every task in every order as a PNG, a panel per strategy.

    A point is one order, its colour the position at which the task was learned in it; the bar
    behind the points is the task's OPD. Several seeds of one order are averaged. Strategies that
    were run in one order only are left out.

    :param results: all runs, some strategy of which in several orders.
    :param path: the file to write.
    """
    groups = _in_several_orders(results)
    strategies = [len(by_strategy(runs)) for _, runs in groups]
    across = min(_ACROSS, max(strategies))
    rows = [-(-count // across) for count in strategies]
    heights = [1.1 + 2.1 * count for count in rows]
    figure = _figure(max(6.4, 1.2 + 2.3 * across), sum(heights))
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)
    for part, (stream, runs), count in zip(parts[:, 0], groups, rows):
        title = f"{stream}{scenario_of(runs)}: final accuracy of each task in each of R orders"
        hint = "grey: from the worst order to the best; AOPD, MOPD in percentage points"
        part.suptitle(f"{title}\n{hint}", x=0.01, ha="left", size=10)
        _draw_orders(part, runs, count, across)
    _save(figure, path)


def _in_several_orders(results: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    """The runs of each stream and scenario, of those strategies that have several orders."""
    found = []
    for stream, runs in _panels(results):
        several = [same for same in by_strategy(runs).values() if count_orders(same) > 1]
        if several:
            found.append((stream, [run for same in several for run in same]))
    return found


def _draw_orders(part: SubFigure, runs: Sequence[RunResult], rows: int, across: int) -> None:
    """One panel per strategy, all on one scale."""
    grouped = by_strategy(runs)
    panels = part.subplots(rows, across, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(grouped) :]:
        axes.set_visible(False)
    for axes, same in zip(panels.flat, grouped.values()):
        points = _draw_spread(axes, same)
        _caption_spread(axes, same)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy (%)")
    part.supxlabel("task", size=10)
    whole = MaxNLocator(integer=True, steps=[1, 2, 5, 10])
    bar = part.colorbar(points, ax=panels, aspect=12 * rows, pad=0.02, ticks=whole)
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(labelbottom=True)
    axes.grid(True, axis="y", color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _best_first(runs: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    grouped = by_strategy(runs).items()
    return sorted(grouped, key=lambda item: -mean(run.accuracy for run in item[1]))


def _points(runs: Sequence[RunResult]) -> tuple[list[int], list[float]]:
    return [run.compared_bytes for run in runs], [100 * run.accuracy for run in runs]


def _styles(results: Sequence[RunResult]) -> dict[str, tuple[str, str]]:
    names = list(by_strategy(results))
    return {
        name: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, name in enumerate(names)
    }


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _number_tasks(axes: Axes, order: Sequence[int]) -> None:
    """Ticks at the positions, with the tasks' numbers in the canonical order."""
    numbers = [str(task + 1) for task in order]
    axes.set_xticks(range(len(order)), numbers)
    axes.set_yticks(range(len(order)), numbers)
    axes.set_xlabel("tested on task")
    axes.set_ylabel("after learning task")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _log_bytes_axis(axes: Axes, runs: Sequence[RunResult]) -> None:
    sizes = [run.compared_bytes for run in runs] + [run.independent_bytes for run in runs]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: _tick(count)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes: the archive on disk, or what the method keeps where it writes none")


def _tick(count: float) -> str:
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if count < limit:
            return f"{count / (limit / 1e3):g} {unit}"
    return f"{count / 1e9:g} GB"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
