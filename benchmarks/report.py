"""The table and the pictures of a comparison.

Run ``python -m benchmarks.report results.json [MORE ...] [--out DIR]`` to draw them again, or for
several comparisons together.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from rich import box
from rich.table import Table

from benchmarks.results import (
    RunResult,
    accuracy_by_order,
    order_robustness,
    read_results,
    write_text,
)

COLUMNS = (
    ("strategy", ""),
    ("accuracy", "%"),
    ("forgetting", "pp"),
    ("BWT", "pp"),
    ("archive", ""),
    ("stored", ""),
    ("ratio", ""),
    ("time", "s"),
)
"""Name and unit of each column of the table."""

TASK_ID = ("task id", "%")
"""A further column, behind accuracy, where tasks were inferred."""

ORDERS = (("R", ""), ("AOPD", "pp"), ("MOPD", "pp"))
"""Further columns, behind BWT, where tasks were learned in several orders."""

LEGEND = (
    "accuracy: mean over tasks at the end; BWT: backward transfer; archive: file on disk; "
    "stored: what the method keeps; ratio: archive, or stored where there is none, "
    "to independent networks"
)
CLASS_LEGEND = (
    "class scenario: no task labels at test, all classes in one head; task id: part of the test "
    "samples whose task was inferred rightly"
)
ORDER_LEGEND = (
    "AOPD, MOPD: mean and maximum over tasks of a task's best minus worst final accuracy in R "
    "task orders, which grows with R"
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


def table_rows(results: Sequence[RunResult]) -> list[list[str]]:
    """One row per strategy: mean over seeds and orders, with the deviation of several.

    :param results: runs of one stream in one scenario.
    :return: a row per strategy in order of first appearance, one string per column.
    """
    names = [name for name, _ in columns(results)]
    cells = map(_cells, _by_strategy(results).values())
    return [[cell[name] for name in names] for cell in cells]


def columns(results: Sequence[RunResult]) -> list[tuple[str, str]]:
    """Name and unit of each column of these runs' table.

    :param results: runs of one stream in one scenario.
    """
    inferred = any(run.task_inference is not None for run in results)
    return [
        *COLUMNS[:2],
        *([TASK_ID] if inferred else []),
        *COLUMNS[2:4],
        *(ORDERS if _orders(results) > 1 else []),
        *COLUMNS[4:],
    ]


SIDES = (
    ("strategy", ""),
    ("with task labels", "%"),
    ("without, tasks inferred by", ""),
    ("accuracy", "%"),
    ("task id", "%"),
)
"""Name and unit of each column of the table that puts both scenarios side by side."""


def side_by_side(results: Sequence[RunResult]) -> list[list[str]]:
    """Accuracy with task labels at test beside accuracy without, a row per strategy and rule.

    :param results: runs of one stream in both scenarios.
    :return: one string per column of :data:`SIDES`; a dash where something was not run.
    """
    rows = []
    for strategy in dict.fromkeys(run.strategy for run in results):
        own = [run for run in results if run.strategy == strategy]
        labelled = [run.accuracy for run in own if run.scenario == "task"]
        without = _by_strategy([run for run in own if run.scenario == "class"]).values()
        for runs in without or [[]]:
            rows.append(
                [
                    strategy,
                    _points_or_dash(labelled),
                    (runs[0].task_inference if runs else None) or "-",
                    _points_or_dash([run.accuracy for run in runs]),
                    _points_or_dash([run.task_id_accuracy for run in runs]),
                ]
            )
    return rows


def order_columns(results: Sequence[RunResult]) -> list[tuple[str, str]]:
    """Name and unit of each column of the table with an order a column.

    :param results: runs of one stream in one scenario.
    """
    return [("strategy", ""), *((f"order {order}", "%") for order in _by_order(results))]


def order_rows(results: Sequence[RunResult]) -> list[list[str]]:
    """Mean final accuracy by order, a row per strategy.

    :param results: runs of one stream in one scenario.
    :return: one string per column of :func:`order_columns`; a dash where an order was not run.
    """
    rows = []
    for strategy, runs in _by_strategy(results).items():
        own = _by_order(runs)
        accuracies = [[run.accuracy for run in own.get(order, [])] for order in _by_order(results)]
        rows.append([strategy, *map(_points_or_dash, accuracies)])
    return rows


def rich_tables(results: Sequence[RunResult]) -> list[Table]:
    """The tables of all streams for the terminal."""
    tables = []
    for stream, runs in by_stream(results).items():
        for same in _by_scenario(runs).values():
            caption = _legend(same)
            tables.append(_rich(_title(same, stream), columns(same), table_rows(same), caption))
        if len(_by_scenario(runs)) > 1:
            tables.append(_rich(f"{stream}: both scenarios", SIDES, side_by_side(runs), ""))
    return tables


def _rich(
    title: str, heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], caption: str
) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for name, unit in heads:
        justify: Literal["left", "right"] = "left" if name == "strategy" else "right"
        table.add_column(f"{name}\n{unit}", justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(results: Sequence[RunResult], stream: str) -> str:
    """The tables of one stream in Markdown, one per scenario and one for both side by side.

    Where there are several orders, a table with a column for each follows that of its scenario.
    """
    tables = []
    for runs in _by_scenario(results).values():
        table = _markdown(_title(runs, stream), columns(runs), table_rows(runs))
        tables.append(f"{table}\n\n*{_legend(runs)}*\n")
        if _orders(runs) > 1:
            title = f"{stream}{_scenario(runs)}: accuracy by task order"
            table = _markdown(title, order_columns(runs), order_rows(runs))
            tables.append(f"{table}\n\n*{_order_legend(runs)}*\n")
    if len(_by_scenario(results)) > 1:
        tables.append(_markdown(f"{stream}: both scenarios", SIDES, side_by_side(results)) + "\n")
    return "\n".join(tables)


def _markdown(title: str, heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        f"### {title}",
        "",
        _markdown_row([f"{name} {unit}".strip() for name, unit in heads]),
        _markdown_row([":--", *["--:"] * (len(heads) - 1)]),
        *map(_markdown_row, rows),
    ]
    return "\n".join(lines)


def _legend(results: Sequence[RunResult]) -> str:
    legends = [LEGEND]
    if _orders(results) > 1:
        legends.append(ORDER_LEGEND)
    if results[0].scenario == "class":
        legends.append(CLASS_LEGEND)
    return "; ".join(legends)


def _order_legend(results: Sequence[RunResult]) -> str:
    """Which task came when, in the numbers of the canonical order, from 1."""
    spelled = [
        f"order {order}: {' '.join(str(task + 1) for task in runs[0].order)}"
        for order, runs in _by_order(results).items()
    ]
    return f"tasks as learned, {'; '.join(spelled)}"


def write_report(results: Sequence[RunResult], folder: Path) -> None:
    """Write the tables and the pictures of all runs together.

    :param results: all runs.
    :param folder: gets ``table.md``, ``accuracy_against_bytes.png`` and, where there are several
        task orders, ``order_robustness.png``.
    """
    write_markdown(results, folder / "table.md")
    bytes_plot(results, folder / "accuracy_against_bytes.png")
    if _in_several_orders(results):
        order_plot(results, folder / "order_robustness.png")


def write_markdown(results: Sequence[RunResult], path: Path) -> None:
    """Write the tables of all streams to one file."""
    tables = [markdown_table(runs, stream) for stream, runs in by_stream(results).items()]
    write_text(path, "\n".join(tables))


def by_stream(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Runs grouped by stream, in order of first appearance."""
    grouped: dict[str, list[RunResult]] = {}
    for result in results:
        grouped.setdefault(result.stream, []).append(result)
    return grouped


def _by_scenario(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    grouped: dict[str, list[RunResult]] = {}
    for result in results:
        grouped.setdefault(result.scenario, []).append(result)
    return grouped


def _by_order(results: Sequence[RunResult]) -> dict[int, list[RunResult]]:
    orders = sorted({result.order_index for result in results})
    return {order: [run for run in results if run.order_index == order] for order in orders}


def _orders(results: Sequence[RunResult]) -> int:
    return len(_by_order(results))


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
        axes.set_title(_title(runs, stream), size=11, loc="left")
    _save(figure, path)


def _panels(results: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    """The runs of each stream and scenario, with the stream's name."""
    return [
        (stream, same)
        for stream, runs in by_stream(results).items()
        for same in _by_scenario(runs).values()
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
    for strategy, same in _ranked(runs):
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
    strategies = [len(_by_strategy(runs)) for _, runs in groups]
    across = min(_ACROSS, max(strategies))
    rows = [-(-count // across) for count in strategies]
    heights = [1.1 + 2.1 * count for count in rows]
    figure = _figure(max(6.4, 1.2 + 2.3 * across), sum(heights))
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)
    for part, (stream, runs), count in zip(parts[:, 0], groups, rows):
        title = f"{stream}{_scenario(runs)}: final accuracy of each task in each of R orders"
        hint = "grey: from the worst order to the best; AOPD, MOPD in percentage points"
        part.suptitle(f"{title}\n{hint}", x=0.01, ha="left", size=10)
        _draw_orders(part, runs, count, across)
    _save(figure, path)


def _in_several_orders(results: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    """The runs of each stream and scenario, of those strategies that have several orders."""
    found = []
    for stream, runs in _panels(results):
        several = [same for same in _by_strategy(runs).values() if _orders(same) > 1]
        if several:
            found.append((stream, [run for same in several for run in same]))
    return found


def _draw_orders(part: SubFigure, runs: Sequence[RunResult], rows: int, across: int) -> None:
    """One panel per strategy, all on one scale."""
    grouped = _by_strategy(runs)
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
    learned = [np.argsort(same[0].order) + 1 for same in _by_order(runs).values()]
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


def format_bytes(count: float) -> str:
    """Bytes with a decimal unit.

    >>> format_bytes(812), format_bytes(81_600), format_bytes(4_536_000)
    ('812 B', '81.6 kB', '4.54 MB')
    """
    if count < 1e3:
        return f"{count:.0f} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB"


def _cells(runs: Sequence[RunResult]) -> dict[str, str]:
    """What the table says of one strategy, by name of the column."""
    archives = [run.archive_bytes for run in runs if run.archive_bytes is not None]
    orders = _orders(runs)
    spread = order_robustness(runs) if orders > 1 else None
    return {
        "strategy": runs[0].key.label,
        "accuracy": _points_or_dash([run.accuracy for run in runs]),
        "task id": _points_or_dash([run.task_id_accuracy for run in runs]),
        "forgetting": _points_or_dash([run.forgetting for run in runs]),
        "BWT": _points_or_dash([run.bwt for run in runs]),
        "R": str(orders),
        "AOPD": _points_or_dash([spread.aopd if spread else None]),
        "MOPD": _points_or_dash([spread.mopd if spread else None]),
        "archive": format_bytes(mean(archives)) if archives else "-",
        "stored": format_bytes(mean(run.stored_bytes for run in runs)),
        "ratio": f"{mean(run.ratio for run in runs):.3f}",
        "time": f"{mean(run.train_seconds + run.eval_seconds for run in runs):.1f}",
    }


def _points_or_dash(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    return _with_spread(known) if known else "-"


def _with_spread(values: Sequence[float]) -> str:
    # Adding 0 turns a rounded -0.00 into 0.00.
    middle = f"{round(mean(values), 2) + 0.0:.2f}"
    return middle if len(values) == 1 else f"{middle} ± {stdev(values):.2f}"


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _title(results: Sequence[RunResult], stream: str) -> str:
    first = results[0]
    epochs = "1 epoch" if first.epochs == 1 else f"{first.epochs} epochs"
    tasks = f"{len(first.order)} tasks, {first.backbone}"
    return f"{stream}{_scenario(results)}: {tasks}, {epochs}, {_repetitions(results)}"


def _scenario(results: Sequence[RunResult]) -> str:
    scenario = results[0].scenario
    return "" if scenario == "task" else f" ({scenario} scenario)"


def _repetitions(results: Sequence[RunResult]) -> str:
    """How often each strategy was run.

    With several orders the deviation is over all runs, whichever seed and order they had.
    """
    seeds, orders = len({result.seed for result in results}), _orders(results)
    if seeds > 1 and orders > 1:
        return f"mean ± deviation of {seeds} seeds in {orders} task orders"
    if orders > 1:
        return f"seed {results[0].seed}, mean ± deviation of {orders} task orders"
    return f"mean ± deviation of {seeds} seeds" if seeds > 1 else f"seed {results[0].seed}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _by_strategy(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    grouped: dict[str, list[RunResult]] = {}
    for result in results:
        grouped.setdefault(result.key.label, []).append(result)
    return grouped


def _ranked(runs: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    grouped = _by_strategy(runs).items()
    return sorted(grouped, key=lambda item: -mean(run.accuracy for run in item[1]))


def _points(runs: Sequence[RunResult]) -> tuple[list[int], list[float]]:
    return [run.compared_bytes for run in runs], [100 * run.accuracy for run in runs]


def _styles(results: Sequence[RunResult]) -> dict[str, tuple[str, str]]:
    names = list(_by_strategy(results))
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the reports of stored results again.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="results.json")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    given = parser.parse_args(arguments)
    results = [result for file in given.files for result in read_results(file)]
    write_report(results, given.out)
    for result in results:
        heat_map(result, given.out / f"matrix-{result.key.slug}.png")
    print((given.out / "table.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
