"""Named mechanisms of the methods on and off: what each gives, in accuracy and in bytes.

Run ``python -m benchmarks.ablations [--ablations NAME ...] [--streams NAME ...] [--seeds N ...]``.
A variant is a recipe with other values. Its runs are those of the comparison: they are kept in the
store, none is repeated, and a command that was stopped goes on. Each row is compared with the first
one of its ablation, seed by seed: mean difference, and the p-value of the exact test that flips the
signs of the differences.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.choices import FIRST_STREAMS, RULES
from benchmarks.data.streams import STREAMS
from benchmarks.report.statistics import sign_flip_p
from benchmarks.report.tables import number_cell
from benchmarks.runs.backbones import BACKBONES
from benchmarks.runs.comparison import Options, compare
from benchmarks.runs.engines import calm
from benchmarks.runs.recipe import Changes, variant_of
from benchmarks.runs.results import RunResult
from benchmarks.runs.store import NAME, Store


@dataclass(frozen=True)
class Ablation:
    """A mechanism of a method.

    :param strategy: the method, as its recipe says.
    :param variants: changes of the recipe; the others are compared with the first.
    """

    strategy: str
    variants: Sequence[Changes]


ESTIMATED: list[Changes] = [{"estimate_norms": True}, {"estimate_norms": False}]

ABLATIONS: dict[str, Ablation] = {
    "sharing": Ablation(
        "tinysubnets", [{"sharing": "all"}, {"sharing": "similar"}, {"sharing": "none"}]
    ),
    "densities": Ablation(
        "ada_qpacknet",
        [
            {"density": 0.25},
            {"density": {"drawn_from": [0.15, 0.35]}},
            {"density": {"searched_in": [0.15, 0.35]}},
        ],
    ),
    "bits": Ablation("ada_qpacknet", [{"bits": "auto"}, {"bits": 2}, {"bits": 3}, {"bits": 4}]),
    "sparsity": Ablation(
        "cacl",
        [
            {"lambda_sparse": 0.1},
            {"lambda_sparse": 0.0},
            {"lambda_sparse": 0.4},
            {"lambda_sparse": 0.0, "energy": 0.05},
            {"lambda_sparse": 0.0, "energy": 0.1},
        ],
    ),
    "ranks": Ablation(
        "halrp",
        [{"importance": "mean_sq"}, {"importance": "uniform"}, {"rank_method": "flat"}],
    ),
    "norms": Ablation("tinysubnets", ESTIMATED),
    "norms-pruned": Ablation("packnet", ESTIMATED),
    "norms-2bit": Ablation("ada_qpacknet", [{"bits": 2, **norms} for norms in ESTIMATED]),
    "norms-4bit": Ablation("ada_qpacknet", [{"bits": 4, **norms} for norms in ESTIMATED]),
}
"""Ablations by name; those of ``norms`` are for networks that have some. A first variant says what
its recipe says, so that its runs stand beside those of the recipe and not in their place."""

_DEFAULT = [name for name in ABLATIONS if not name.startswith("norms")]


@dataclass(frozen=True)
class Row:
    """A variant on a stream, beside the first one of its ablation.

    :param strategy: the method.
    :param variant: what is other than in its recipe.
    :param accuracies: final mean over tasks of each seed, percent.
    :param sizes: bytes of each seed's archive.
    :param gains: percentage points above the first variant, of the seeds that both have; none of
        the first itself.
    :param sizes_changed: bytes in percent of the first variant's, less 100, of the same seeds.
    """

    strategy: str
    variant: str
    accuracies: list[float]
    sizes: list[float]
    gains: list[float]
    sizes_changed: list[float]


def rows_of(ablation: Ablation, runs: Sequence[RunResult]) -> Iterator[Row]:
    """What came of an ablation's variants on a stream.

    :param ablation: which one.
    :param runs: of the stream; those of other variants are passed over.
    :return: a row for each variant that was run.
    """
    variants = [variant_of(changes) for changes in ablation.variants]
    ours = [run for run in runs if run.strategy == ablation.strategy]
    found = {name: [run for run in ours if run.variant == name] for name in variants}
    first = {run.seed: run for run in found[variants[0]]}
    for name, same in found.items():
        if not same:
            continue
        pairs = [(run, first[run.seed]) for run in same if run.seed in first]
        if name == variants[0]:
            pairs = []
        yield Row(
            ablation.strategy,
            name or "recipe",
            [100 * run.accuracy for run in same],
            [run.compared_bytes for run in same],
            [100 * (run.accuracy - other.accuracy) for run, other in pairs],
            [100 * (run.compared_bytes / other.compared_bytes - 1) for run, other in pairs],
        )


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table.

    :param rows: the first variant of an ablation before its others.
    """
    lines = [
        "| strategy | variant | seeds | accuracy % | bytes | difference pp | p | bytes changed % |",
        "| :-- | :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        cells = [
            row.strategy,
            row.variant,
            str(len(row.accuracies)),
            number_cell(row.accuracies).text,
            f"{mean(row.sizes):,.0f}",
            *_compared(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _compared(row: Row) -> list[str]:
    if not row.gains:
        return ["-", "-", "-"]
    p = sign_flip_p(row.gains)
    said = "-" if p is None else f"{p:.3f}"
    return [number_cell(row.gains, sign="+").text, said, f"{mean(row.sizes_changed):+.1f}"]


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
