"""How fast: epochs and steps against Naive's and plain ones, task inference, k-means, masks.

Run ``python -m benchmarks.speed``, or with ``--quick``, which takes two or three minutes, for the
epochs alone, or with ``--device cuda`` for what a GPU takes, or with ``--large`` for the ends of
tasks, archives and memory of networks of 25 million parameters. Every other figure is a median over
repetitions of this process's CPU time (on a GPU: of the time until it has done what was queued),
and ratios compare runs that took turns in it, so that they hold when the machine's speed drifts or
others use it too.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data.images import Images, load_mnist
from benchmarks.speed import device, large
from benchmarks.speed.arithmetic import (
    kmeans,
    mask_coding,
    rank_estimation,
    task_inference,
    threshold,
)
from benchmarks.speed.bare import bare_steps
from benchmarks.speed.figures import Figure, table_of
from benchmarks.speed.training import (
    epochs,
    evaluation,
    growing,
    random_images,
    steps,
)

WIDTH = 160
"""Of tables, in characters."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="epochs and evaluations of the MLP")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="epochs on the MNIST in this folder, not random"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="steps, evaluations, switches of tasks, waits and memory on it, and nothing else",
    )
    parser.add_argument(
        "--minutes", type=float, default=4.0, metavar="N", help="of --device, about (default: 4)"
    )
    parser.add_argument("--large", action="store_true", help="large networks, and nothing else")
    for name, known in (("methods", large.METHODS), ("models", list(large.MODELS))):
        what = f"{name} of --large (default: all)"
        parser.add_argument(f"--{name}", nargs="+", choices=known, default=known, help=what)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use: --device cpu rehearses.")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.device is not None:
        found = device.section(given.device, 60 * given.minutes)
        _print_rows(found, device.table_of_rows, given.json)
        return 0
    if given.large:
        _print_rows(large.section(given.methods, given.models), large.table_of_rows, given.json)
        return 0
    images = random_images() if given.data is None else load_mnist(given.data)
    kind = "random" if given.data is None else "MNIST"
    figures = quick(images, kind) if given.quick else everything(images, kind)
    Console(width=WIDTH).print(table_of(figures))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2))
    return 0


def _print_rows(
    found: Iterable[list[Any]], table: Callable[[list[Any]], Table], file: Path | None
) -> None:
    """Print and write rows as they are found: whoever is stopped has some."""
    rows = []
    for more in found:
        rows += more
        Console(width=WIDTH).print(table(more))
        if file is not None:
            file.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def quick(images: Images, kind: str) -> list[Figure]:
    """Epochs at batch 10, the papers', and at batch 256, evaluations, and steps of bare loops.

    :param images: to train on.
    :param kind: what they are, in a word.
    """
    return [
        *epochs(images, kind, batch=10, rounds=5, count=3_000),
        *epochs(images, kind, batch=256, rounds=5, count=20_000),
        evaluation("mlp", 1),
        evaluation("mlp", 256),
        *bare_steps(batch=10, batches=200, rounds=7),
        *bare_steps(batch=256, batches=20, rounds=7),
    ]


def everything(images: Images, kind: str) -> list[Figure]:
    """All that there is.

    :param images: to train on.
    :param kind: what they are, in a word.
    """
    return [
        *epochs(images, kind, own_loader=True),
        *epochs(images, kind, batch=10, rounds=5, count=6_000),
        evaluation("mlp", 1),
        evaluation("mlp", 256),
        *steps("mlp", 10, 200),
        *steps("mlp", 256, 20),
        *steps("lenet", 64, 16, rounds=3),
        *steps("alexnet", 64, 16, rounds=3),
        *steps("resnet18", 64, 16, rounds=3),
        *steps("cacl_net", 64, 16, ["cacl"], rounds=3),
        growing(),
        *task_inference("mlp", 256),
        *task_inference("lenet", 64),
        threshold(),
        *kmeans(),
        mask_coding(),
        *rank_estimation(),
    ]
