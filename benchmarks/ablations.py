"""Named mechanisms of the methods on and off: what each gives, in accuracy and in bytes.

Run ``python -m benchmarks.ablations [--ablations NAME ...] [--streams NAME ...] [--seeds N ...]``.
A variant is a recipe with other values. Its runs are those of the comparison: they are kept in the
store, none is repeated, and a command that was stopped goes on. Each row is compared with the first
one of its ablation, seed by seed: mean difference, and the p-value of the exact test that flips the
signs of the differences.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.choices import FIRST_STREAMS, RULES
from benchmarks.data.streams import STREAMS
from benchmarks.report.variants import ABLATIONS, rows_of, table
from benchmarks.runs.backbones import BACKBONES
from benchmarks.runs.comparison import Options, compare
from benchmarks.runs.engines import calm
from benchmarks.runs.recipe import Changes
from benchmarks.runs.store import NAME, Store

_DEFAULT = ["sharing", "densities", "bits", "sparsity", "ranks"]


def options_of(given: argparse.Namespace) -> Options:
    """The comparison that has all variants' runs.

    :param given: the command line.
    """
    variants: dict[str, list[Changes]] = {}
    for name in given.ablations:
        known = variants.setdefault(ABLATIONS[name].strategy, [])
        known += [changes for changes in ABLATIONS[name].variants if changes not in known]
    return Options(
        strategies=list(variants),
        streams=given.streams,
        seeds=given.seeds,
        epochs=given.epochs,
        data=given.data,
        out=given.out,
        wandb="off",
        scenarios=["task"],
        inference=list(RULES),
        workers=given.workers,
        backbone=given.backbone,
        variants=variants,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are missing, and print a table for each ablation and stream.

    :param arguments: command line without the program's name.
    :return: exit code, 0 only when every run finished.
    """
    given = parse(arguments)
    calm()
    options = options_of(given)
    code = compare(options)
    if code == 2:
        return code
    store = Store(options.out / NAME)
    found = [store.find(job.key, job.budget.epochs, job.recipe) for job in options.jobs()]
    for stream in given.streams:
        runs = [run for run in found if run is not None and run.stream == stream]
        for name in given.ablations:
            print(f"\n{stream}: {name}\n\n{table(list(rows_of(ABLATIONS[name], runs)))}")
    return code


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; an unknown name ends the program with exit code 2.

    :param arguments: command line without the program's name.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablations", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--ablations", nargs="+", default=_DEFAULT, choices=ABLATIONS, metavar="NAME"
    )
    parser.add_argument(
        "--streams", nargs="+", default=list(FIRST_STREAMS), choices=STREAMS, metavar="NAME"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument(
        "--backbone", choices=BACKBONES, metavar="NAME", help="default: each stream's own"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="default: each stream's")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
