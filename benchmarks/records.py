"""Finished runs as text in the repository, and the tables of the documents made from them.

Run ``python -m benchmarks.records results/results.sqlite [MORE ...]`` to take the runs of stores
over into ``benchmarks/records.jsonl``, a line each, and to write the marked tables of RESULTS.md,
README.md and docs/choose.md again; without a store only the tables are written. A table is marked
by two comments::

    <!-- table: permuted_mnist epochs=5 strategy=packnet,wsn show=results -->
    <!-- end -->

The first names the stream, then fields of :class:`~benchmarks.runs.results.RunResult` with the
values that the table's runs may have, and the tables that are shown of them, if not all; what
stands between the two is replaced. Variants of recipes, which ``python -m benchmarks.ablations``
runs, have tables of their own, where ``show`` names the ablations::

    <!-- ablation: permuted_digits epochs=8 show=bits,ranks -->
    <!-- end -->
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
from benchmarks.report.variants import ABLATIONS, rows_of
from benchmarks.report.variants import table as ablation_table
from benchmarks.runs.reading import ResultsError, check_together, parse, result_of
from benchmarks.runs.results import RunResult, write_text
from benchmarks.runs.store import Store, in_order

RECORDS = Path(__file__).parent / "records.jsonl"
ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "RESULTS.md", ROOT / "README.md", ROOT / "docs" / "choose.md")

_TABLE = re.compile(r"<!-- (?P<kind>table|ablation): (?P<runs>.*?) -->\n.*?<!-- end -->", re.DOTALL)
_START = re.compile("<!-- (?:table|ablation):")


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
    :param new: what is to be taken over; runs that ``--quick`` cut down are not.
    """
    full = [run for run in new if not run.quick]
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
        kind, what = found["kind"], found["runs"]
        mark = f"<!-- {kind}: {what} -->"
        chosen, shown = _select(what, mark, records, kind == "ablation")
        if kind == "ablation":
            _check_names(mark, "ablations", shown, ABLATIONS)
            tables = _ablations(mark, shown, chosen)
        else:
            _check_names(mark, "tables", shown, TABLES)
            tables = markdown_tables(chosen, shown or SUBJECTS)
        return f"{mark}\n\n{tables}\n<!-- end -->"

    if len(_TABLE.findall(text)) != len(_START.findall(text)):
        raise RecordsError(
            "each <!-- table: ... --> and <!-- ablation: ... --> needs a line, and an "
            "<!-- end --> of its own."
        )
    return _TABLE.sub(table, text)


def _select(
    what: str, mark: str, records: Sequence[RunResult], variants: bool
) -> tuple[list[RunResult], Sequence[str]]:
    """What ``split_digits epochs=20 show=results`` names: runs, and what is shown of them."""
    stream, *conditions = what.split()
    shown: Sequence[str] = ()
    found = [run for run in records if run.stream == stream and bool(run.variant) == variants]
    for condition in conditions:
        name, _, values = condition.partition("=")
        chosen = tuple(values.split(","))
        if name == "show":
            shown = chosen
        else:
            _check_names(mark, "runs", [name], [field.name for field in fields(RunResult)])
            found = [run for run in found if str(getattr(run, name)) in chosen]
    if not found:
        raise RecordsError(f"{mark}: there are no such runs in the records.")
    _check_recipes(mark, found)
    return found, shown


def _ablations(mark: str, names: Sequence[str], runs: Sequence[RunResult]) -> str:
    """The table of ablations, of runs that differ in their variants and seeds alone."""
    if not names:
        raise RecordsError(f"{mark}: show= names no ablation, there are {', '.join(ABLATIONS)}.")
    groups = groups_of(runs)
    if len(groups) > 1:
        kinds = "; ".join(group.title for group in groups)
        raise RecordsError(f"{mark}: choose runs of one kind, there are {kinds}.")
    return ablation_table([row for name in names for row in rows_of(ABLATIONS[name], runs)]) + "\n"


def _check_names(mark: str, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise RecordsError(
                f"{mark}: {kind} have no {name!r}; the nearest is {nearest(name, known)!r}."
            )


def _check_recipes(mark: str, runs: Sequence[RunResult]) -> None:
    """A mean over two recipes is of neither."""
    for group in groups_of(runs):
        for label, same in group.strategies.items():
            recipes = sorted({run.recipe for run in same})
            if len(recipes) > 1:
                raise RecordsError(
                    f"{mark}: {label} on {group.name} has runs of {len(recipes)} "
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
    tables = sum(len(_START.findall(text)) for text in texts.values())
    return f"{len(records)} runs in {kept}, {tables} tables in {_names(documents)}"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


if __name__ == "__main__":
    raise SystemExit(main())
