"""Finished runs as text in the repository, and the tables of the documents made from them.

Run ``python -m benchmarks.records results/results.sqlite [MORE ...]`` to take the runs of stores
over into ``benchmarks/records.jsonl``, a line each, and to write the marked tables of RESULTS.md,
README.md and docs/choose.md again; without a store only the tables are written. A table is marked
by two comments::

    <!-- table: permuted_mnist epochs=5 strategy=packnet,wsn show=results -->
    <!-- end -->

The first names the stream, then fields of :class:`~benchmarks.runs.results.RunResult` with the
values that the table's runs may have, and the tables that are shown of them, if not all; what
stands between the two is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from benchmarks.data.streams import nearest
from benchmarks.report.command import SUBJECTS, markdown_tables
from benchmarks.report.groups import groups_of
from benchmarks.report.tables import TABLES
from benchmarks.runs.reading import ResultsError, check_together, parse, result_of
from benchmarks.runs.results import RunResult, write_text
from benchmarks.runs.store import Store, in_order

RECORDS = Path(__file__).parent / "records.jsonl"
ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "RESULTS.md", ROOT / "README.md", ROOT / "docs" / "choose.md")

_TABLE = re.compile(r"<!-- table: (?P<runs>.*?) -->\n.*?<!-- end -->", re.DOTALL)
_START = "<!-- table:"


class RecordsError(ResultsError):
    """Records or marks that cannot be understood; the message says where and what to do."""


def read_records(path: Path) -> list[RunResult]:
    """The runs that are kept, in the registries' order.

    :param path: the file; without one there are none.
    :raises RecordsError: if a line is no run.
    """
    if not path.exists():
        return []
    lines = enumerate(_lines(path), start=1)
    return in_order([_run_in(line, f"{path}, line {number}") for number, line in lines])


def _run_in(line: str, place: str) -> RunResult:
    try:
        return result_of(parse(line, "it"), "it")
    except ResultsError as error:
        raise RecordsError(f"{place} is no run: {error}") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordsError(f"{path} cannot be read: {error}.") from error


def write_records(runs: Iterable[RunResult], path: Path) -> None:
    """Write a line per run, in the registries' order: whatever changes changes its own line.

    :param runs: all that are to be kept.
    :param path: the file.
    """
    lines = [json.dumps(asdict(run)) + "\n" for run in in_order(runs)]
    write_text(path, "".join(lines))


def merge(kept: Iterable[RunResult], new: Iterable[RunResult]) -> list[RunResult]:
    """The runs of both; of one run with the same epochs the new result, whatever its recipe.

    :param kept: earlier records.
    :param new: what is to be taken over; runs that ``--quick`` cut down are not, and neither are
        variants of recipes.
    """
    full = [run for run in new if not run.quick and not run.variant]
    return in_order({(run.key, run.epochs): run for run in [*kept, *full]}.values())


def write_tables(text: str, records: Sequence[RunResult]) -> str:
    """A document with its marked tables made from records.

    :param text: Markdown.
    :param records: the runs to choose from.
    :raises RecordsError: if a mark has no end, names no runs or a field that there is not.

    >>> write_tables("Nothing is marked.", [])
    'Nothing is marked.'
    """

    def table(found: re.Match[str]) -> str:
        chosen, subjects = _select(found["runs"], records)
        tables = markdown_tables(chosen, subjects)
        return f"{_START} {found['runs']} -->\n\n{tables}\n<!-- end -->"

    if len(_TABLE.findall(text)) != text.count(_START):
        raise RecordsError(f"each {_START} ... --> needs a line, and an <!-- end --> of its own.")
    return _TABLE.sub(table, text)


def _select(what: str, records: Sequence[RunResult]) -> tuple[list[RunResult], Sequence[str]]:
    """What a mark such as ``split_digits epochs=20 show=results`` names: runs, and tables."""
    stream, *conditions = what.split()
    subjects: Sequence[str] = SUBJECTS
    found = [run for run in records if run.stream == stream]
    for condition in conditions:
        name, _, values = condition.partition("=")
        chosen = tuple(values.split(","))
        if name == "show":
            _check_names(what, "tables", chosen, TABLES)
            subjects = chosen
        else:
            _check_names(what, "runs", [name], [field.name for field in fields(RunResult)])
            found = [run for run in found if str(getattr(run, name)) in chosen]
    if not found:
        raise RecordsError(f"{_START} {what} -->: there are no such runs in the records.")
    _check_recipes(what, found)
    return found, subjects


def _check_names(what: str, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise RecordsError(
                f"{_START} {what} -->: {kind} have no {name!r}; the nearest is "
                f"{nearest(name, known)!r}."
            )


def _check_recipes(what: str, runs: Sequence[RunResult]) -> None:
    """A mean over two recipes is of neither."""
    for group in groups_of(runs):
        for label, same in group.strategies.items():
            recipes = sorted({run.recipe for run in same})
            if len(recipes) > 1:
                raise RecordsError(
                    f"{_START} {what} -->: {label} on {group.name} has runs of {len(recipes)} "
                    f"recipes: choose with recipe={','.join(recipes)}, or run all with one."
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Take runs over and write the tables.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.records", description=__doc__.splitlines()[0]
    )
    parser.add_argument("stores", nargs="*", type=Path, metavar="results.sqlite")
    parser.add_argument("--streams", nargs="+", metavar="NAME", help="default: all that were run")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="FILE")
    parser.add_argument("--documents", nargs="+", type=Path, default=DOCUMENTS, metavar="FILE")
    given = parser.parse_args(arguments)
    try:
        print(_take_over(given.stores, given.streams, given.records, given.documents))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


def _take_over(
    stores: Sequence[Path], streams: Sequence[str] | None, kept: Path, documents: Sequence[Path]
) -> str:
    """Write records and tables; what was done, in words."""
    new = [run for store in stores for run in Store(store).results()]
    if streams is not None:
        new = [run for run in new if run.stream in streams]
    if stores and not new:
        raise RecordsError(f"no runs of {streams or 'any stream'} in {_names(stores)}.")
    records = merge(read_records(kept), new)
    check_together(records)
    # all are made before any is written
    texts = {path: write_tables(path.read_text(encoding="utf-8"), records) for path in documents}
    if new:
        write_records(records, kept)
    for path, text in texts.items():
        write_text(path, text)
    tables = sum(text.count(_START) for text in texts.values())
    return f"{len(records)} runs in {kept}, {tables} tables in {_names(documents)}"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


if __name__ == "__main__":
    raise SystemExit(main())
