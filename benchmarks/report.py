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
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich import box
from rich.table import Table

from benchmarks.results import RunResult, read_results, write_text

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

LEGEND = (
    "accuracy: mean over tasks at the end; BWT: backward transfer; archive: file on disk; "
    "stored: what the method keeps; ratio: archive, or stored where there is none, "
    "to independent networks"
)
CLASS_LEGEND = (
    "class scenario: no task labels at test, all classes in one head; task id: part of the test "
    "samples whose task was inferred rightly"
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


def table_rows(results: Sequence[RunResult]) -> list[list[str]]:
    """One row per strategy: mean over seeds, with the standard deviation where there are several.

    :param results: runs of one stream in one scenario.
    :return: a row per strategy in order of first appearance, one string per column.
    """
    rows = [_row(runs) for runs in _by_strategy(results).values()]
    if TASK_ID in columns(results):
        for row, runs in zip(rows, _by_strategy(results).values()):
            row.insert(2, _points_or_dash([run.task_id_accuracy for run in runs]))
    return rows


def columns(results: Sequence[RunResult]) -> list[tuple[str, str]]:
    """Name and unit of each column of these runs' table.

    :param results: runs of one stream in one scenario.
    """
    inferred = any(run.task_inference is not None for run in results)
    return [*COLUMNS[:2], *([TASK_ID] if inferred else []), *COLUMNS[2:]]


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
    """The tables of one stream in Markdown, one per scenario and one for both side by side."""
    tables = []
    for runs in _by_scenario(results).values():
        table = _markdown(_title(runs, stream), columns(runs), table_rows(runs))
        tables.append(f"{table}\n\n*{_legend(runs)}*\n")
    if len(tables) > 1:
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
    return LEGEND if results[0].scenario == "task" else f"{LEGEND}; {CLASS_LEGEND}"


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
    _number_tasks(axes, tasks)
    axes.set_title(str(result.key), size=11)
    extend = "min" if least else "neither"
    bar = figure.colorbar(image, ax=axes, label="test accuracy (%)", extend=extend)
    bar.outline.set_visible(False)
    _save(figure, path)


def bytes_plot(results: Sequence[RunResult], path: Path) -> None:
    """Draw accuracy against bytes as a PNG, bytes on a logarithmic axis.

    There is one panel per stream and scenario.

    A point is the mean over seeds, its bar one standard deviation.

    :param results: all runs.
    :param path: the file to write.
    """
    groups = [
        (stream, same)
        for stream, runs in by_stream(results).items()
        for same in _by_scenario(runs).values()
    ]
    figure = _figure(8.6, 4.4 * len(groups))
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    styles = _styles(results)
    for axes, (stream, runs) in zip(panels, groups):
        _draw_panel(axes, runs, styles)
        axes.set_title(_title(runs, stream), size=11, loc="left")
    _save(figure, path)


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


def _row(runs: Sequence[RunResult]) -> list[str]:
    first = runs[0]
    archives = [run.archive_bytes for run in runs if run.archive_bytes is not None]
    return [
        first.key.label,
        _with_spread([100 * run.accuracy for run in runs]),
        _points_or_dash([run.forgetting for run in runs]),
        _points_or_dash([run.bwt for run in runs]),
        format_bytes(mean(archives)) if archives else "-",
        format_bytes(mean(run.stored_bytes for run in runs)),
        f"{mean(run.ratio for run in runs):.3f}",
        f"{mean(run.train_seconds + run.eval_seconds for run in runs):.1f}",
    ]


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
    seeds = len({result.seed for result in results})
    epochs = "1 epoch" if first.epochs == 1 else f"{first.epochs} epochs"
    many = f"mean ± deviation of {seeds} seeds" if seeds > 1 else f"seed {first.seed}"
    scenario = "" if first.scenario == "task" else f" ({first.scenario} scenario)"
    return f"{stream}{scenario}: {len(first.order)} tasks, {first.backbone}, {epochs}, {many}"


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


def _number_tasks(axes: Axes, tasks: int) -> None:
    axes.set_xticks(range(tasks), [str(task + 1) for task in range(tasks)])
    axes.set_yticks(range(tasks), [str(task + 1) for task in range(tasks)])
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
    write_markdown(results, given.out / "table.md")
    bytes_plot(results, given.out / "accuracy_against_bytes.png")
    for result in results:
        heat_map(result, given.out / f"matrix-{result.key.slug}.png")
    print((given.out / "table.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
