"""The tables of a comparison, and the command that writes them and the pictures again.

Run ``python -m benchmarks.report results.sqlite [MORE ...] [--stream NAME ...] [--out DIR]`` to
draw them again, or for several comparisons together; ``results.json`` is read as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, Sequence

import numpy as np
from rich import box
from rich.table import Table

from benchmarks import pictures
from benchmarks.results import (
    RunResult,
    by_order,
    by_scenario,
    by_strategy,
    by_stream,
    count_orders,
    format_bytes,
    layer_name,
    order_robustness,
    read_results,
    scenario_of,
    title_of,
    write_text,
)
from benchmarks.store import Store

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
RANK_LEGEND = (
    "rank: terms that a task added to the layer, mean over tasks, with 10 or more of them over the "
    "first 5 → the last 5 learned; total: terms of all tasks"
)


def table_rows(results: Sequence[RunResult]) -> list[list[str]]:
    """One row per strategy: mean over seeds and orders, with the deviation of several.

    :param results: runs of one stream in one scenario.
    :return: a row per strategy in order of first appearance, one string per column.
    """
    names = [name for name, _ in columns(results)]
    cells = map(_cells, by_strategy(results).values())
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
        *(ORDERS if count_orders(results) > 1 else []),
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
        without = by_strategy([run for run in own if run.scenario == "class"]).values()
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
    return [("strategy", ""), *((f"order {order}", "%") for order in by_order(results))]


def order_rows(results: Sequence[RunResult]) -> list[list[str]]:
    """Mean final accuracy by order, a row per strategy.

    :param results: runs of one stream in one scenario.
    :return: one string per column of :func:`order_columns`; a dash where an order was not run.
    """
    rows = []
    for strategy, runs in by_strategy(results).items():
        own = by_order(runs)
        accuracies = [[run.accuracy for run in own.get(order, [])] for order in by_order(results)]
        rows.append([strategy, *map(_points_or_dash, accuracies)])
    return rows


RANKS = (("strategy", ""), ("layer", ""), ("rank", ""), ("total", ""))
"""Name and unit of each column of the table of ranks."""


def rank_rows(results: Sequence[RunResult]) -> list[list[str]]:
    """How many terms tasks added to each layer: mean over seeds and orders.

    :param results: runs of one stream in one scenario.
    :return: a row per strategy and layer, one string per column of :data:`RANKS`; nothing of runs
        without ranks.
    """
    rows = []
    for strategy, runs in by_strategy(run for run in results if run.ranks).items():
        for weight in runs[0].ranks:
            ranks = np.array([run.ranks[weight] for run in runs])
            total = f"{round(ranks.sum(axis=1).mean(), 1):g}"
            rows.append([strategy, layer_name(weight), _early_and_late(ranks), total])
    return rows


def _early_and_late(ranks: np.ndarray) -> str:
    """Mean rank of the first and the last five tasks, of all where that would count some twice.

    :param ranks: a row per run, a column per task.

    >>> _early_and_late(np.arange(10)[None]), _early_and_late(np.arange(9)[None])
    ('2.0 → 7.0', '4.0')
    """
    parts = [ranks] if ranks.shape[1] < 10 else [ranks[:, :5], ranks[:, -5:]]
    return " → ".join(f"{part.mean():.1f}" for part in parts)


def rich_tables(results: Sequence[RunResult]) -> list[Table]:
    """The tables of all streams for the terminal."""
    tables = []
    for stream, runs in by_stream(results):
        for same in by_scenario(runs).values():
            caption = _legend(same)
            tables.append(_rich(title_of(same, stream), columns(same), table_rows(same), caption))
        if len(by_scenario(runs)) > 1:
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

    Where there are several orders, a table with a column for each follows that of its scenario,
    where weights are kept as terms one of their ranks.
    """
    tables = []
    for runs in by_scenario(results).values():
        table = _markdown(title_of(runs, stream), columns(runs), table_rows(runs))
        tables.append(f"{table}\n\n*{_legend(runs)}*\n")
        if count_orders(runs) > 1:
            title = f"{stream}{scenario_of(runs)}: accuracy by task order"
            table = _markdown(title, order_columns(runs), order_rows(runs))
            tables.append(f"{table}\n\n*{_order_legend(runs)}*\n")
        ranks = rank_rows(runs)
        if ranks:
            table = _markdown(f"{stream}{scenario_of(runs)}: ranks of the layers", RANKS, ranks)
            tables.append(f"{table}\n\n*{RANK_LEGEND}*\n")
    if len(by_scenario(results)) > 1:
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
    if count_orders(results) > 1:
        legends.append(ORDER_LEGEND)
    if results[0].scenario == "class":
        legends.append(CLASS_LEGEND)
    return "; ".join(legends)


def _order_legend(results: Sequence[RunResult]) -> str:
    """Which task came when, in the numbers of the canonical order, from 1."""
    spelled = [
        f"order {order}: {' '.join(str(task + 1) for task in runs[0].order)}"
        for order, runs in by_order(results).items()
    ]
    return f"tasks as learned, {'; '.join(spelled)}"


def write_report(results: Sequence[RunResult], folder: Path) -> None:
    """Write the tables and the pictures of all runs together.

    :param results: all runs.
    :param folder: gets ``table.md`` and what :func:`benchmarks.pictures.draw_comparison` draws.
    """
    write_markdown(results, folder / "table.md")
    pictures.draw_comparison(results, folder)


def write_markdown(results: Sequence[RunResult], path: Path) -> None:
    """Write the tables of all streams to one file."""
    tables = [markdown_table(runs, stream) for stream, runs in by_stream(results)]
    write_text(path, "\n".join(tables))


def _cells(runs: Sequence[RunResult]) -> dict[str, str]:
    """What the table says of one strategy, by name of the column."""
    archives = [run.archive_bytes for run in runs if run.archive_bytes is not None]
    orders = count_orders(runs)
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


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the reports of stored results again.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="results.sqlite")
    parser.add_argument("--stream", nargs="+", metavar="NAME", help="default: all that were run")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    given = parser.parse_args(arguments)
    results = [result for file in given.files for result in _read(file)]
    if given.stream is not None:
        results = [result for result in results if result.stream in given.stream]
    if not results:
        parser.error(f"there are no runs of {given.stream or 'any stream'} in {given.files}.")
    write_report(results, given.out)
    for result in results:
        pictures.draw_run(result, given.out)
    print((given.out / "table.md").read_text(encoding="utf-8"))
    return 0


def _read(file: Path) -> list[RunResult]:
    return Store(file).results() if file.suffix == ".sqlite" else read_results(file)


if __name__ == "__main__":
    raise SystemExit(main())
