"""The pictures of a run and of a comparison, each as PNG and as SVG."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Callable, List, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report.drawing import (
    COLOURS,
    Style,
    bare,
    new_figure,
    panels_of,
    rows_of,
    save,
    spread,
    styles_of,
    subplots,
    whole_numbers,
)
from benchmarks.report.layer_pictures import groups_with, layer_figure, rank_figure
from benchmarks.report.order_pictures import in_several_orders, order_figure
from benchmarks.report.statistics import pareto_front
from benchmarks.runs.results import (
    RunResult,
    by_order,
    by_strategy,
    format_bytes,
    learned_in_turn,
    scenario_of,
    title_of,
)

_Groups = List[Tuple[str, List[RunResult]]]

# matrices beside each other
_ACROSS = 4
# with more strategies than these, the bars of their curves would hide each other
_FEW_CURVES = 8
# with more tasks than these, the cells of small matrices have no room for a number
_FEW_TASKS = 10


@dataclass(frozen=True)
class Picture:
    """A figure that shows all runs of a comparison, or of a part of it.

    :param name: of the file, without its ending.
    :param title: what it shows, in a few words.
    :param caption: how to read it.
    :param groups: the runs that it can show, by stream and scenario; without any there is none.
    :param draw: makes the figure, of runs of which there are some to show.
    """

    name: str
    title: str
    caption: str
    groups: Callable[[Sequence[RunResult]], _Groups]
    draw: Callable[[Sequence[RunResult]], Figure]


def draw_run(result: RunResult, folder: Path) -> None:
    """Draw what there is to see of one run.

    :param result: the run.
    :param folder: gets ``matrix-<slug>`` and, where the run has ranks, ``ranks-<slug>``.
    """
    save(heat_map(result), folder / f"matrix-{result.key.slug}.png")
    if result.ranks:
        save(rank_figure(result), folder / f"ranks-{result.key.slug}.png")


def draw_comparison(results: Sequence[RunResult], folder: Path) -> dict[str, str]:
    """Draw what there is to see of all runs together.

    :param results: all runs.
    :param folder: gets those of :data:`PICTURES` for which there is something to show.
    :return: their SVGs, by name.
    """
    return {
        picture.name: save(picture.draw(results), folder / f"{picture.name}.png")
        for picture in PICTURES
        if picture.groups(results)
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


def matrix_figure(results: Sequence[RunResult]) -> Figure:
    """The accuracy matrices of all strategies beside each other, mean over seeds.

    Of several task orders the first is shown.

    :param results: all runs.
    """
    groups = [(stream, by_strategy(_of_first_order(runs))) for stream, runs in panels_of(results)]
    across = min(_ACROSS, max(len(strategies) for _, strategies in groups))
    heights = [1.0 + 2.1 * rows_of(len(strategies), across) for _, strategies in groups]
    figure = new_figure(max(6.4, 1.4 + 2.2 * across), sum(heights))
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)
    for part, (stream, strategies) in zip(parts[:, 0], groups):
        _draw_matrices(part, stream, strategies, across)
    return figure


def _of_first_order(runs: Sequence[RunResult]) -> list[RunResult]:
    return next(iter(by_order(runs).values()))


def _draw_matrices(
    part: SubFigure, stream: str, strategies: dict[str, list[RunResult]], across: int
) -> None:
    first, *_ = next(iter(strategies.values()))
    order = f", order {first.order_index}" if first.order_index else ""
    title = f"{stream}{scenario_of([first])}: accuracy of each task after each task{order}"
    part.suptitle(title, x=0.01, ha="left", size=10)
    panels = subplots(part, len(strategies), across)
    tasks = len(first.order)
    for axes, (label, runs) in zip(panels.flat, strategies.items()):
        image = _draw_matrix(axes, runs)
        if tasks <= _FEW_TASKS:
            _write_cells(axes, image, "{:.1f}" if tasks <= 5 else "{:.0f}", 7)
        _number_tasks(axes, first.order, most=_FEW_TASKS if tasks <= _FEW_TASKS else 7)
        axes.set_title(label, size=10, loc="left")
    part.supxlabel("tested on task", size=10)
    part.supylabel("after learning task", size=10)
    _accuracy_bar(part, image, panels)


def _draw_matrix(axes: Axes, runs: Sequence[RunResult]) -> AxesImage:
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


def curve_figure(results: Sequence[RunResult]) -> Figure:
    """Mean accuracy over the tasks seen so far, as tasks go on: a panel per stream and scenario.

    A point is the mean over seeds and orders, its bar one standard deviation, drawn of up to eight
    strategies.

    :param results: all runs.
    """
    styles = styles_of(results)
    return _stacked(results, lambda _: 4.0, lambda axes, runs: _draw_curves(axes, runs, styles))


def _stacked(
    results: Sequence[RunResult],
    height: Callable[[Sequence[RunResult]], float],
    draw: Callable[[Axes, Sequence[RunResult]], None],
) -> Figure:
    """A panel per stream and scenario, one above the other, each as high as its runs need."""
    groups = panels_of(results)
    heights = [height(runs) for _, runs in groups]
    figure = new_figure(8.6, sum(heights))
    grid = {"height_ratios": heights}
    panels = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw=grid)[:, 0]
    for axes, (stream, runs) in zip(panels, groups):
        draw(axes, runs)
        axes.set_title(title_of(runs, stream), size=11, loc="left")
    return figure


def _draw_curves(axes: Axes, runs: Sequence[RunResult], styles: dict[str, Style]) -> None:
    grouped = _best_first(runs)
    # beside each other, not over each other
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


def bytes_figure(results: Sequence[RunResult]) -> Figure:
    """Accuracy against bytes, on a logarithmic axis: a panel per stream and scenario.

    A point is the mean over seeds and orders, its bar one standard deviation. The line goes along
    the strategies that no other one beats in both.

    :param results: all runs.
    """
    styles = styles_of(results)
    return _stacked(results, lambda _: 4.4, lambda axes, runs: _draw_sizes(axes, runs, styles))


def _draw_sizes(axes: Axes, runs: Sequence[RunResult], styles: dict[str, Style]) -> None:
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
    _draw_front(axes, runs)
    for strategy, same in _best_first(runs):
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
    axes.set_ylabel("mean final accuracy (%)")
    bare(axes, "both")
    _legend(axes)


def _draw_front(axes: Axes, runs: Sequence[RunResult]) -> None:
    """Steps along the best accuracy that so many bytes reach."""
    in_turn = [_points(same) for same in by_strategy(runs).values() if learned_in_turn(same)]
    points = [(float(mean(sizes)), mean(accuracies)) for sizes, accuracies in in_turn]
    front = [points[index] for index in pareto_front(points)]
    if front:
        sizes, accuracies = zip(*front)
        axes.step(
            sizes, accuracies, where="post", color="0.55", linewidth=1.2, label="Pareto front"
        )


def time_figure(results: Sequence[RunResult]) -> Figure:
    """Seconds of training and of evaluation, a bar per strategy, a panel per stream and scenario.

    A bar is the mean over seeds and orders, its line one standard deviation of the sum.

    :param results: all runs.
    """
    return _stacked(
        results,
        lambda runs: 1.1 + 0.3 * len(by_strategy(runs)),
        lambda axes, runs: _draw_times(axes, by_strategy(runs)),
    )


def _draw_times(axes: Axes, strategies: dict[str, list[RunResult]]) -> None:
    train = [mean(run.train_seconds for run in runs) for runs in strategies.values()]
    test = [mean(run.eval_seconds for run in runs) for runs in strategies.values()]
    totals = [[run.seconds for run in runs] for runs in strategies.values()]
    places = np.arange(len(strategies))
    axes.barh(places, train, 0.66, color=COLOURS[0], label="training")
    axes.barh(places, test, 0.66, train, color="0.75", label="evaluation")
    for place, seconds in enumerate(totals):
        width = spread(seconds) or 0.0
        axes.errorbar(mean(seconds), place, xerr=width or None, color="0.2", capsize=2, linewidth=1)
        axes.annotate(
            f"{mean(seconds):.1f} s",
            (mean(seconds) + width, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            size=9,
        )
    axes.set_yticks(places, list(strategies))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds a run")
    axes.tick_params(axis="y", length=0)
    bare(axes, "x")
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)


def _best_first(runs: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    grouped = by_strategy(runs).items()
    return sorted(grouped, key=lambda item: -mean(run.accuracy for run in item[1]))


def _points(runs: Sequence[RunResult]) -> tuple[list[int], list[float]]:
    return [run.compared_bytes for run in runs], [100 * run.accuracy for run in runs]


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


def _of_layers(quantity: str, title: str, caption: str) -> Picture:
    return Picture(
        quantity,
        title,
        caption,
        partial(groups_with, quantity=quantity),
        partial(layer_figure, quantity=quantity),
    )


PICTURES = (
    Picture(
        "accuracy_over_tasks",
        "Accuracy over tasks",
        "Mean test accuracy over the tasks seen so far, after each task. A point is the mean over "
        "seeds and orders, its bar one standard deviation (drawn of up to eight strategies); the "
        "points of one task stand beside each other. In the legend: after the last task.",
        panels_of,
        curve_figure,
    ),
    Picture(
        "accuracy_matrices",
        "Accuracy matrices",
        "Test accuracy of each task (columns) after learning each task (rows), mean over seeds, in "
        "the first task order. A column that darkens downwards is a task being forgotten.",
        panels_of,
        matrix_figure,
    ),
    Picture(
        "accuracy_against_bytes",
        "Accuracy against bytes",
        "Mean final accuracy against the bytes that the method keeps; bars are one standard "
        "deviation. The grey line is the Pareto front: for its bytes, no strategy that learns "
        "task by task is more accurate.",
        panels_of,
        bytes_figure,
    ),
    Picture(
        "order_robustness",
        "Order robustness",
        "Final accuracy of each task in each task order, by the place at which it was learned. "
        "Grey bars go from the worst order to the best: the task's OPD.",
        in_several_orders,
        order_figure,
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
    Picture(
        "time",
        "Time",
        "Wall-clock seconds of training and of evaluation after every task; lines are one "
        "standard deviation of their sum. Other programs may have used the machine as well.",
        panels_of,
        time_figure,
    ),
)
"""What is drawn of a comparison, in this order."""
