"""Mechanisms of the methods on and off: variants of recipes, and what each gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.report.statistics import sign_flip_p
from benchmarks.report.tables import number_cell
from benchmarks.runs.recipe import Changes, variant_of
from benchmarks.runs.results import RunResult


@dataclass(frozen=True)
class Ablation:
    """A mechanism of a method.

    :param strategy: the method, as its recipe says.
    :param variants: changes of the recipe; the others are compared with the first.
    """

    strategy: str
    variants: Sequence[Changes]


ESTIMATED: list[Changes] = [{"estimate_norms": True}, {"estimate_norms": False}]
OPTIMIZERS: list[Changes] = [
    {"optimizer.name": "adam"},
    {"optimizer.name": "sgd", "optimizer.lr": 0.01},
    {"optimizer.name": "sgd", "optimizer.lr": 0.1},
]

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
    "sgd": Ablation("naive", OPTIMIZERS),
    "sgd-joint": Ablation("joint", OPTIMIZERS),
    "sgd-ewc": Ablation("ewc", OPTIMIZERS),
}
"""Ablations by name; those of ``norms`` are for networks that have some. A first variant says what
its recipe says, so that its runs stand beside those of the recipe and not in their place."""


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
            name,
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
