"""The pictures of a run and of a comparison, each as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from benchmarks.choices import FEW_BITS
from benchmarks.report.advice import front_of, mean_bytes
from benchmarks.report.drawing import (
    Style,
    bare,
    new_figure,
    save,
    spread,
    stacked_figure,
    strategy_figure,
    styles_of,
    whole_numbers,
)
from benchmarks.report.groups import Group, Runs, format_bytes, groups_of, groups_with
from benchmarks.report.layer_pictures import layer_figure, rank_figure
from benchmarks.report.order_pictures import in_several_orders, order_figure
from benchmarks.runs.results import RunResult

_Groups = list[Group]

# with more strategies than these, the bars of their curves would hide each other
_FEW_CURVES = 8
# with more tasks than these, the cells of small matrices have no room for a number
_FEW_TASKS = 10
_PERFECT = 0.5
"""Points that are added to every error, so that none at all has a place on a logarithmic axis."""
_FEW_TICKS = 2
_ACCURACIES = (0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 96, 97, 98, 99, 99.5, 100)


@dataclass(frozen=True)
class Picture:
    """A figure that shows all runs of a comparison, or of a part of it.

    :param name: of the file, without its ending.
    :param subject: of the report in which it stands.
    :param title: what it shows, in a few words.
    :param caption: how to read it.
    :param draw: makes the figure, of groups of which there are some.
    :param groups: the groups that it can show; without any there is none.
    """

    name: str
    subject: str
    title: str
    caption: str
    draw: Callable[[_Groups], Figure]
    groups: Callable[[Runs], _Groups] = groups_of


def draw_run(result: RunResult, folder: Path) -> None:
    """Draw what there is to see of one run.

    :param result: the run.
    :param folder: gets ``matrix-<slug>`` and, where the run has ranks, ``ranks-<slug>``.
    """
    save(heat_map(result), folder / f"matrix-{result.key.slug}.png")
    if result.ranks:
        save(rank_figure(result), folder / f"ranks-{result.key.slug}.png")


def draw_comparison(results: Runs, folder: Path) -> dict[str, str]:
    """Draw what there is to see of all runs together.

    :param results: all runs.
    :param folder: gets those of :data:`PICTURES` for which there is something to show.
    :return: their SVGs, by name.
    """
    shown = [(picture, picture.groups(results)) for picture in PICTURES]
    return {
        picture.name: save(picture.draw(groups), folder / f"{picture.name}.png")
        for picture, groups in shown
        if groups
    }


def heat_map(result: RunResult) -> Figure:
    """The accuracy matrix of one run.

    :param result: the run; entries that are None stay blank.
    """
    tasks = len(result.accuracy_matrix)
    figure = new_figure(2.6 + 0.62 * tasks, 1.7 + 0.5 * tasks)
    axes = figure.add_subplot()
    image = _draw_matrix(axes, [result])
    _write_cells(axes, image, "{:.1f}", 9)
    _number_tasks(axes, result.order, most=20)
    axes.set_xlabel("tested on task")
    axes.set_ylabel("after learning task")
    axes.set_title(str(result.key), size=11)
    _accuracy_bar(figure, image, axes)
    return figure


def matrix_figure(groups: Sequence[Group]) -> Figure:
    """The accuracy matrices of all strategies next to each other, mean over seeds.

    Of several task orders the first is shown.
    """
    firsts = [Group(next(iter(group.orders.values()))) for group in groups]
    return strategy_figure(firsts, _matrix_title, _draw_matrices)


def _matrix_title(group: Group) -> str:
    order = group.runs[0].order_index
    return "accuracy of each task after each task" + (f", order {order}" if order else "")


def _draw_matrices(part: SubFigure, panels: np.ndarray, group: Group) -> None:
    order = group.runs[0].order
    few = len(order) <= _FEW_TASKS
    for axes, runs in zip(panels.flat, group.strategies.values()):
        image = _draw_matrix(axes, runs)
        if few:
            _write_cells(axes, image, "{:.1f}" if len(order) <= 5 else "{:.0f}", 7)
        _number_tasks(axes, order, most=_FEW_TASKS if few else 7)
    part.supxlabel("tested on task", size=10)
    part.supylabel("after learning task", size=10)
    _accuracy_bar(part, image, panels)


def _draw_matrix(axes: Axes, runs: Runs) -> AxesImage:
    """The mean of the runs' matrices in percent; what no run has stays blank."""
    matrices = np.ma.masked_invalid(np.array([run.accuracy_matrix for run in runs], dtype=float))
    # One scale for all maps of a scenario, so that they compare; with labels, what lies below 50 %
    # shares the darkest colour.
    least = 50 if runs[0].scenario == "task" else 0
    return axes.imshow(
        100 * matrices.mean(axis=0), cmap="viridis", vmin=least, vmax=100, aspect="auto"
    )


def _write_cells(axes: Axes, image: AxesImage, form: str, size: float) -> None:
    """Write each number into its cell, in the ink that is read on its colour."""
    least, most = image.get_clim()
    for (after, task), value in np.ma.ndenumerate(image.get_array()):
        ink = "black" if value > least + 0.6 * (most - least) else "white"
        axes.text(task, after, form.format(value), ha="center", va="center", color=ink, size=size)


def _accuracy_bar(part: Figure | SubFigure, image: AxesImage, axes: Any) -> None:
    extend = "min" if image.get_clim()[0] else "neither"
    bar = part.colorbar(image, ax=axes, label="test accuracy (%)", extend=extend)
    bar.outline.set_visible(False)


def _number_tasks(axes: Axes, order: Sequence[int], most: int) -> None:
    """Ticks at up to ``most`` positions, with the tasks' numbers in the canonical order."""
    shown = range(0, len(order), -(-len(order) // most))
    numbers = [str(order[position] + 1) for position in shown]
    axes.set_xticks(shown, numbers)
    axes.set_yticks(shown, numbers)
    axes.tick_params(length=0, labelbottom=True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def curve_figure(groups: Sequence[Group]) -> Figure:
    """Mean accuracy over the tasks seen so far, as tasks go on: a panel per group.

    A point is the mean over seeds and orders, its bar one standard deviation, drawn of up to eight
    strategies.
    """
    styles = styles_of(groups)
    return stacked_figure(groups, _height, partial(_draw_curves, styles=styles))


def _draw_curves(axes: Axes, group: Group, styles: dict[str, Style]) -> None:
    grouped = _best_first(group)
    # next to each other, not over each other
    shifts = np.linspace(-0.12, 0.12, len(grouped)) if len(grouped) > 1 else [0.0]
    for shift, (label, same) in zip(shifts, grouped):
        colour, marker = styles[label]
        curves = 100 * np.array([run.accuracy_so_far for run in same], dtype=float)
        middle = curves.mean(axis=0)
        bars = len(same) > 1 and len(grouped) <= _FEW_CURVES
        axes.errorbar(
            np.arange(len(middle)) + 1 + shift,
            middle,
            yerr=curves.std(axis=0, ddof=1) if bars else None,
            color=colour,
            marker=marker,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linewidth=1.5,
            elinewidth=0.8,
            label=f"{label}  {middle[-1]:.1f} %",
        )
    axes.xaxis.set_major_locator(whole_numbers())
    axes.set_xlabel("tasks seen")
    axes.set_ylabel("mean accuracy over them (%)")
    bare(axes)
    _legend(axes)


def bytes_figure(groups: Sequence[Group]) -> Figure:
    """Accuracy against bytes, both on logarithmic axes (of the error): a panel per group.

    A point is the mean over seeds and orders, its bar one standard deviation. The line goes along
    the strategies that no other one beats in both.
    """
    styles = styles_of(groups)
    return stacked_figure(groups, _height, partial(_draw_sizes, styles=styles))


def _draw_sizes(axes: Axes, group: Group, styles: dict[str, Style]) -> None:
    runs = group.runs
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
    _draw_front(axes, group)
    _draw_reference(axes, group)
    for strategy, same in _best_first(group):
        sizes, accuracies = _points(same)
        colour, marker = styles[strategy]
        axes.errorbar(
            mean(sizes),
            mean(accuracies),
            yerr=spread(accuracies),
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
    _log_error_axis(axes)
    bare(axes, "both")
    _legend(axes)


def _draw_front(axes: Axes, group: Group) -> None:
    """Steps along the best accuracy that so many bytes reach."""
    points = [(mean_bytes(runs), _mean_accuracy(runs)) for runs in front_of(group).values()]
    if points:
        sizes, accuracies = zip(*points)
        axes.step(
            sizes, accuracies, where="post", color="0.55", linewidth=1.2, label="Pareto front"
        )


def _draw_reference(axes: Axes, group: Group) -> None:
    """A line through dense networks of their own at fewer and fewer bits."""
    found = group.strategies
    runs = [found[name] for name in ("independent", *FEW_BITS) if name in found]
    if len(runs) > 1:
        axes.plot(
            [mean_bytes(same) for same in runs],
            [_mean_accuracy(same) for same in runs],
            color="0.55",
            linewidth=1.2,
            linestyle=":",
            label="a network per task, 32 to 2 bits",
        )


def _mean_accuracy(runs: Runs) -> float:
    return 100 * mean(run.accuracy for run in runs)


def _height(group: Group) -> float:
    """Inches of a panel beside whose legend each strategy has a line."""
    return max(4.2, 0.8 + 0.21 * (len(group.strategies) + 2))


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)


def _best_first(group: Group) -> list[tuple[str, list[RunResult]]]:
    return sorted(group.strategies.items(), key=lambda item: -mean(run.accuracy for run in item[1]))


def _points(runs: Runs) -> tuple[list[int], list[float]]:
    return [run.compared_bytes for run in runs], [100 * run.accuracy for run in runs]


def _log_bytes_axis(axes: Axes, runs: Runs) -> None:
    sizes = [run.compared_bytes for run in runs] + [run.independent_bytes for run in runs]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: _tick(count)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes: the archive on disk, or what the method keeps where it writes none")


def _log_error_axis(axes: Axes) -> None:
    """Accuracies in percent, those close to 100 as far apart as their errors are in proportion."""
    low, high = _by_error(axes.dataLim.intervaly)
    pad = 0.05 * (high - low) or 0.1
    axes.set_yscale("function", functions=(_by_error, _of_error))
    limits = _of_error(np.array([low - pad, high + pad]))
    axes.set_ylim(*limits)
    ticks = [tick for tick in _ACCURACIES if limits[0] <= tick <= limits[1]]
    if len(ticks) > _FEW_TICKS:
        axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda accuracy, _: f"{accuracy:g}"))
    axes.set_ylabel("mean final accuracy (%), by the logarithm of the error")


def _by_error(accuracy: Any) -> Any:
    return -np.log(100 + _PERFECT - np.minimum(accuracy, 100 + 0.9 * _PERFECT))


def _of_error(height: Any) -> Any:
    return 100 + _PERFECT - np.exp(-np.asarray(height))


def _tick(count: float) -> str:
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if count < limit:
            return f"{count / (limit / 1e3):g} {unit}"
    return f"{count / 1e9:g} GB"


def _of_layers(quantity: str, title: str, caption: str) -> Picture:
    draw = partial(layer_figure, quantity=quantity)
    return Picture(
        quantity, "layers", title, caption, draw, partial(groups_with, quantity=quantity)
    )


PICTURES = (
    Picture(
        "accuracy_over_tasks",
        "curves",
        "Accuracy over tasks",
        "Mean test accuracy over the tasks seen so far, after each task. A point is the mean over "
        "seeds and orders, its bar one standard deviation (drawn of up to eight strategies). In "
        "the legend: after the last task.",
        curve_figure,
    ),
    Picture(
        "accuracy_matrices",
        "matrices",
        "Accuracy matrices",
        "Test accuracy of each task (columns) after learning each task (rows), mean over seeds, in "
        "the first task order. A column that darkens downwards is a task being forgotten.",
        matrix_figure,
    ),
    Picture(
        "accuracy_against_bytes",
        "bytes",
        "Accuracy against bytes",
        "Mean final accuracy against the bytes that the method keeps; bars are one standard "
        "deviation. The grey line is the Pareto front: for its bytes, no strategy that learns "
        "task by task in one network is more accurate. Dotted: networks of their own at 32 to 2 "
        "bits.",
        bytes_figure,
    ),
    Picture(
        "order_robustness",
        "orders",
        "Order robustness",
        "Final accuracy of each task in each task order, by the place at which it was learned. "
        "Grey bars go from the worst order to the best: the task's OPD.",
        order_figure,
        in_several_orders,
    ),
    _of_layers(
        "ranks",
        "Ranks of the layers",
        "Terms that each task added to each layer, mean over seeds and orders.",
    ),
    _of_layers(
        "densities",
        "Densities of the layers",
        "Part of each layer's weights that each task computes with, its own and those it shares, "
        "mean over seeds and orders.",
    ),
    _of_layers(
        "bits",
        "Bits of the layers",
        "Bits of a number that each task added to each layer, mean over its numbers, seeds and "
        "orders; masks and codebooks not counted.",
    ),
)
"""What is drawn of a comparison, in this order."""
