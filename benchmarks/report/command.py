"""The tables and pictures of a comparison, and the command that writes them again.

Run ``python -m benchmarks.report results.sqlite [MORE ...] [--stream NAME ...] [--out DIR]`` to
draw them again, or for several comparisons together; ``results.json`` is read as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal, Mapping, Sequence

from rich import box
from rich.table import Table as RichTable

from benchmarks.report import pictures
from benchmarks.report.html_report import html_report
from benchmarks.report.tables import Table, layer_table, order_table, result_table, scenario_table
from benchmarks.runs.results import (
    RunResult,
    by_scenario,
    by_stream,
    count_orders,
    read_results,
    write_text,
)
from benchmarks.runs.store import Store


def rich_tables(results: Sequence[RunResult]) -> list[RichTable]:
    """The tables of all streams for the terminal."""
    tables = []
    for stream, runs in by_stream(results):
        scenarios = by_scenario(runs).values()
        tables += [_rich(result_table(same, stream)) for same in scenarios]
        if len(scenarios) > 1:
            tables.append(_rich(scenario_table(runs, stream)))
    return tables


def _rich(table: Table) -> RichTable:
    drawn = RichTable(
        title=table.title,
        title_justify="left",
        caption=table.legend,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for place, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "right" if place else "left"
        drawn.add_column(f"{column.name}\n{column.unit}", justify=justify, no_wrap=True)
    for row in table.texts():
        drawn.add_row(*row)
    return drawn


def markdown_tables(results: Sequence[RunResult], stream: str) -> str:
    """The tables of one stream in Markdown, one per scenario and one for both side by side.

    Where there are several orders, a table with a column for each follows that of its scenario,
    where something is known of the layers one of them. The best mean of a column is bold.
    """
    tables = []
    for runs in by_scenario(results).values():
        tables.append(result_table(runs, stream))
        if count_orders(runs) > 1:
            tables.append(order_table(runs, stream))
        layers = layer_table(runs, stream)
        if layers.rows:
            tables.append(layers)
    if len(by_scenario(results)) > 1:
        tables.append(scenario_table(results, stream))
    return "\n".join(map(_markdown, tables))


def _markdown(table: Table) -> str:
    heads = [f"{column.name} {column.unit}".strip() for column in table.columns]
    lines = [
        f"### {table.title}",
        "",
        _markdown_row(heads),
        _markdown_row([":--", *["--:"] * (len(heads) - 1)]),
    ]
    for row in table.rows:
        lines.append(_markdown_row([f"**{c.text}**" if c.is_best else c.text for c in row]))
    if table.caption:
        lines += ["", f"*{table.caption}*"]
    return "\n".join([*lines, ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_report(
    results: Sequence[RunResult], folder: Path, failures: Mapping[str, str] | None = None
) -> None:
    """Write the tables and the pictures of all runs together.

    :param results: all runs.
    :param folder: gets ``table.md``, ``report.html`` and what
        :func:`benchmarks.report.pictures.draw_comparison` draws.
    :param failures: by the run's slug, why it did not finish; None: those of this folder.
    """
    known = failures_in(folder) if failures is None else failures
    write_markdown(results, folder / "table.md")
    drawn = pictures.draw_comparison(results, folder)
    write_text(folder / "report.html", html_report(results, known, drawn))


def write_markdown(results: Sequence[RunResult], path: Path) -> None:
    """Write the tables of all streams to one file."""
    tables = [markdown_tables(runs, stream) for stream, runs in by_stream(results)]
    write_text(path, "\n".join(tables))


def failures_in(folder: Path) -> dict[str, str]:
    """The runs that did not finish, by slug, each with the last line of its traceback.

    :param folder: of everything that a comparison wrote.
    """
    found = {}
    for path in sorted((folder / "errors").glob("*.txt")):
        lines = path.read_text(encoding="utf-8").split("\n")
        found[path.stem] = next((line for line in reversed(lines) if line.strip()), "")
    return found


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
    failures = {slug: why for file in given.files for slug, why in failures_in(file.parent).items()}
    if given.stream is not None:
        results = [result for result in results if result.stream in given.stream]
        # a slug starts with its stream, whose name has no dash
        failures = {s: why for s, why in failures.items() if s.split("-")[0] in given.stream}
    if not results:
        parser.error(f"there are no runs of {given.stream or 'any stream'} in {given.files}.")
    write_report(results, given.out, failures)
    for result in results:
        pictures.draw_run(result, given.out)
    print((given.out / "table.md").read_text(encoding="utf-8"))
    return 0


def _read(file: Path) -> list[RunResult]:
    return Store(file).results() if file.suffix == ".sqlite" else read_results(file)
