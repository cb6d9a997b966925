"""Budgets in bytes: what each task adds under ``size_budget=``, and how right it is.

Run ``python -m benchmarks.budgets [--streams NAME ...] [--methods NAME ...] [--kilobytes N ...]``.
A row has the bytes that a task added to the archive, the fewest and the most of all tasks with a
budget, measured on the archive itself, and the mean accuracy over all tasks in the end. A budget is
met where no task is above it, nor more than 1 % below. With ``--of-archive`` a budget is that of
the whole archive, after the last task.
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from avalanche_compress import ArchiveBudget, method_named, registered_methods, save_archive
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream
from benchmarks.runs.accuracies import accuracy_on
from benchmarks.runs.backbones import BACKBONES

FIVE = ("split_digits", "permuted_digits", "split_mnist", "permuted_mnist", "cifar100_superclasses")
OPTIONS: dict[str, Any] = {
    "packnet": {"prune_proportion": 0.7},
    "ada_qpacknet": {"bits": 10},
    "wsn": {"density": 0.9},
    "tinysubnets": {"density": 0.9},
    "lora": {"rank": 64},
}
"""Room for later tasks, and densities, ranks and bits that leave the choice to the budget."""


@dataclass(frozen=True)
class Row:
    """A stream that was learned under a budget.

    :param stream: its name.
    :param method: its name.
    :param budget: bytes a task, or of the archive.
    :param sizes: bytes that each task with a budget added to the archive; or those of the archive.
    :param accuracy: percent, mean over all tasks in the end.
    """

    stream: str
    method: str
    budget: int
    sizes: list[int]
    accuracy: float

    @property
    def met(self) -> bool:
        """Whether each size is within 1 % of the budget, from below."""
        return all(0.99 * self.budget <= size <= self.budget for size in self.sizes)


def learn(
    stream: str,
    method: str,
    budget: int,
    *,
    tasks: int,
    epochs: int,
    seed: int,
    data: Path,
    backbone: str | None = None,
    of_archive: bool = False,
) -> Row:
    """Learn the first tasks of a stream under a budget.

    :param stream: its name.
    :param method: its name.
    :param budget: bytes a task, or of the archive.
    :param tasks: how many.
    :param epochs: of each.
    :param seed: of the stream, the model and the training.
    :param data: folder of the data.
    :param backbone: its name; None for the stream's own.
    :param of_archive: whether the budget is that of all tasks together.
    """
    entry = STREAMS[stream]
    built = build_stream(StreamRequest(stream, data, seed))
    torch.manual_seed(seed)
    model = BACKBONES[backbone or entry.backbone](built.input_shape, built.max_classes)
    with warnings.catch_warnings():  # of how many tasks find room
        warnings.simplefilter("ignore")
        strategy = method_named(method).strategy(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=entry.budget.lr),
            train_mb_size=max(64, entry.budget.train_mb_size),
            train_epochs=epochs,
            eval_mb_size=entry.budget.eval_mb_size,
            evaluator=None,
            size_budget=ArchiveBudget(budget, tasks) if of_archive else budget,
            **OPTIONS.get(method, {}),
        )
    stores = strategy.network.weight_stores
    # the first task of some methods is the base of the others and has no budget
    first = any(getattr(store, "trains_base", False) for store in stores)
    lengths = [save_archive(strategy.network, io.BytesIO())]
    for experience in built.benchmark.train_stream[:tasks]:
        strategy.train(experience)
        lengths.append(save_archive(strategy.network, io.BytesIO()))
    added = [after - before for before, after in pairwise(lengths)]
    right = [
        accuracy_on(strategy.network, experience)
        for experience in built.benchmark.test_stream[:tasks]
    ]
    sizes = lengths[-1:] if of_archive else added[first:]
    return Row(stream, method, budget, sizes, 100 * sum(right) / len(right))


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table.

    :param rows: any.
    """
    lines = [
        "| stream | method | budget | bytes | met | accuracy % |",
        "| :-- | :-- | --: | --: | :-- | --: |",
    ]
    for row in rows:
        sizes = " to ".join(f"{size:,}" for size in sorted({min(row.sizes), max(row.sizes)}))
        lines.append(
            f"| {row.stream} | {row.method} | {row.budget:,} | {sizes} | "
            f"{'yes' if row.met else 'no'} | {row.accuracy:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn streams under budgets and print what came of it.

    :param arguments: command line without the program's name.
    :return: exit code, 1 if a budget was not met.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    methods = [method.name for method in registered_methods()]
    parser.add_argument("--streams", nargs="+", default=FIVE, choices=STREAMS, metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods, metavar="NAME")
    parser.add_argument("--backbone", choices=BACKBONES, help="default: each stream's own")
    parser.add_argument("--kilobytes", nargs="+", type=float, default=[6.0], metavar="N")
    parser.add_argument("--tasks", type=int, default=3, metavar="N")
    parser.add_argument("--epochs", type=int, default=2, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--of-archive", action="store_true", help="budgets are of all tasks")
    given = parser.parse_args(arguments)
    names = ("tasks", "epochs", "seed", "data", "backbone", "of_archive")
    sizes = {name: getattr(given, name) for name in names}
    rows = []
    for stream in given.streams:
        for method in given.methods:
            for kilobytes in given.kilobytes:
                rows.append(learn(stream, method, round(1000 * kilobytes), **sizes))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
