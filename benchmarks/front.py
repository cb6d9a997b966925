"""Accuracy against bytes: what a stream's runs reach, and which choice fits which budget.

Run ``python -m benchmarks.front [results.sqlite ...] [--streams NAME ...] [--out DIR]``. Without
stores the runs are those of ``benchmarks/records.jsonl``. Dense networks of their own at 32 to 2
bits are the reference curve, where they were run:
``--strategies independent independent_8bit independent_4bit independent_3bit independent_2bit``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import RECORDS, RecordsError, read_records
from benchmarks.report.advice import budgets_on, front_of
from benchmarks.report.command import read_runs
from benchmarks.report.drawing import save
from benchmarks.report.groups import Group, groups_of
from benchmarks.report.pictures import bytes_figure
from benchmarks.runs.reading import ResultsError, check_together


def fronts(groups: Sequence[Group], out: Path) -> list[str]:
    """Draw each group, and say what to choose.

    :param groups: of runs; those without a choice are left out.
    :param out: gets ``front-NAME.png`` and ``.svg``.
    :return: a paragraph a group.
    """
    out.mkdir(parents=True, exist_ok=True)
    paragraphs = []
    for group in groups:
        if not front_of(group):
            continue
        first = group.runs[0]
        parts = (first.stream, first.scenario, first.backbone, str(first.epochs))
        save(bytes_figure([group]), out / f"front-{'-'.join(parts)}.png")
        paragraphs.append("\n".join([group.title, *(f"- {line}" for line in budgets_on(group))]))
    return paragraphs


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw accuracy against bytes, and print which choice fits which budget.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="results.sqlite")
    parser.add_argument("--streams", nargs="+", metavar="NAME", help="default: all that were run")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    given = parser.parse_args(arguments)
    try:
        stored = [run for file in given.files for run in read_runs(file)]
        runs = stored if given.files else read_records(RECORDS)
        runs = [run for run in runs if not run.variant]
        runs = [run for run in runs if given.streams is None or run.stream in given.streams]
        check_together(runs)
        paragraphs = fronts(groups_of(runs), given.out)
        if not paragraphs:
            named = " ".join(given.streams or ["any stream"])
            raise RecordsError(f"there are no runs of {named} to choose from.")
    except (ResultsError, OSError) as error:
        parser.error(str(error))
    print("\n\n".join(paragraphs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
