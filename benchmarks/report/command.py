"""The tables and pictures of a comparison, and the command that writes them again.

Run ``python -m benchmarks.report results.sqlite [MORE ...] [--streams NAME ...] [--out DIR]`` to
draw them again, or for several comparisons together; ``results.json`` is read as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from rich.table import Table as RichTable

from benchmarks.report import pictures
from benchmarks.report.groups import Runs, by_stream
from benchmarks.report.html_report import Links, html_report
from benchmarks.report.render import as_markdown, as_text
from benchmarks.report.tables import TABLES, Table, scenario_table
from benchmarks.runs.reading import ResultsError, check_together, read_results
from benchmarks.runs.results import PAGES, RunResult, write_text
from benchmarks.runs.store import Store

SUBJECTS = ("results", "orders", "layers")
"""What is written of each stream in Markdown."""


def text_tables(results: Runs) -> list[RichTable]:
    """The results of all streams for the terminal, of two scenarios a table for both as well."""
    return [as_text(table) for table in _tables(results, "results")]


def markdown_tables(results: Runs, subjects: Sequence[str] = SUBJECTS) -> str:
    """The tables of all streams in Markdown.

    :param results: any runs.
    :param subjects: of :data:`~benchmarks.report.tables.TABLES`.
    """
    return "\n".join(map(as_markdown, _tables(results, *subjects)))


def _tables(results: Runs, *subjects: str) -> list[Table]:
    tables = []
    for groups in by_stream(results):
        tables += [TABLES[subject](group) for group in groups for subject in subjects]
        tables += [scenario_table(groups)] if len(groups) > 1 else []
    return [table for table in tables if table.rows]


def write_report(results: Runs, folder: Path, failures: Mapping[str, str] | None = None) -> None:
    """Write the tables and the pictures of all runs together.

    :param results: all runs.
    :param folder: gets ``table.md``, ``report.html`` and what
        :func:`benchmarks.report.pictures.draw_comparison` draws.
    :param failures: by the run's slug, why it did not finish; None: those of this folder.
    """
    known = failures_in(folder) if failures is None else failures
    write_text(folder / "table.md", markdown_tables(results))
    drawn = pictures.draw_comparison(results, folder)
    links = links_in(folder, results)
    write_text(folder / "report.html", html_report(results, known, drawn, links))


def links_in(folder: Path, results: Runs) -> dict[str, Links]:
    """What there is of each run besides its numbers: its archive, and its page at W&B.

    :param folder: of everything that a comparison wrote.
    :param results: the runs.
    :return: by slug, title to address; runs of which there is nothing are left out.
    """
    found: dict[str, Links] = {}
    for slug in [result.key.slug for result in results]:
        links = (
            {"archive": f"archives/{quote(slug)}"} if (folder / "archives" / slug).exists() else {}
        )
        page = folder / PAGES / f"{slug}.txt"
        address = page.read_text(encoding="utf-8").strip() if page.is_file() else ""
        if address.startswith(("https://", "http://")):
            links["W&B"] = address
        if links:
            found[slug] = links
    return found


def failures_in(folder: Path) -> dict[str, str]:
    """The runs that did not finish, by slug, each with the last line of its traceback.

    :param folder: of everything that a comparison wrote.
    """
    found = {}
    for path in sorted((folder / "errors").glob("*.txt")):
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        found[path.stem] = next((line for line in reversed(lines) if line.strip()), "")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the reports of stored results again.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="results.sqlite")
    parser.add_argument("--streams", nargs="+", metavar="NAME", help="default: all that were run")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    given = parser.parse_args(arguments)
    try:
        _write(given.files, given.streams, given.out)
    except (ResultsError, OSError) as error:
        parser.error(str(error))
    print((given.out / "table.md").read_text(encoding="utf-8"))
    return 0


def _write(files: Sequence[Path], streams: Sequence[str] | None, out: Path) -> None:
    results = [result for file in files for result in read_runs(file)]
    failures = {slug: why for file in files for slug, why in failures_in(file.parent).items()}
    if streams is not None:
        results = [result for result in results if result.stream in streams]
        # a slug starts with its stream, whose name has no dash
        failures = {s: why for s, why in failures.items() if s.split("-")[0] in streams}
    if not results:
        named = ", ".join(map(str, files))
        raise ResultsError(f"there are no runs of {streams or 'any stream'} in {named}.")
    check_together(results)
    write_report(results, out, failures)
    for result in results:
        pictures.draw_run(result, out)


def read_runs(file: Path) -> list[RunResult]:
    """The runs of a store, or of a ``results.json``.

    :param file: its path.
    :raises ResultsError: if it is neither.
    """
    return Store(file).results() if file.suffix == ".sqlite" else read_results(file)
