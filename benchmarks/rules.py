"""Choose the rule by which tasks are inferred, and its layer, on held-out data.

Run ``python -m benchmarks.rules --streams split_digits permuted_digits --seeds 0 1 2``. A network
is trained on four fifths of its stream's training data; all ways of inferring tasks are tried on
the last fifth by :func:`avalanche_compress.select_inference`. The test data are not looked at.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from avalanche_compress import (
    ChannelsLastPlugin,
    GaussianRule,
    RidgeRule,
    TaskInference,
    TensorDataPlugin,
    TriangularRule,
    load_archive,
    select_inference,
)
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream
from benchmarks.report.groups import format_bytes
from benchmarks.runs import recipe
from benchmarks.runs.settings import RunSettings
from benchmarks.tune import TUNING

_RULES: dict[str, Callable[[], Any]] = {
    "gaussian": GaussianRule,
    "triangular": TriangularRule,
    "triangular, rank 10": partial(TriangularRule, rank=10),
    "triangular, 2 references of rank 10": partial(TriangularRule, references=2, rank=10),
    "triangular, all references": partial(TriangularRule, references=None),
    "ridge": RidgeRule,
    "ridge, 500 random features": partial(RidgeRule, random_features=500),
}

LAYERS = ("first", "head")
KINDS = ("gaussian", "triangular", "ridge")


def candidates(
    layers: Sequence[str] = LAYERS, kinds: Sequence[str] = KINDS
) -> dict[str, TaskInference]:
    """Ways of inferring tasks that are tried, by how the table calls them.

    :param layers: that features are read of.
    :param kinds: of rules, some of :data:`KINDS`.

    >>> len(candidates())
    14
    """
    return {
        f"{name} @{layer}": TaskInference(rule(), features=layer)
        for layer in layers
        for name, rule in _RULES.items()
        if name.split(",")[0] in kinds
    }


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a way of inferring tasks came to.

    :param accuracy: percent of the held-out samples whose class was answered.
    :param bytes: that its statistics take.
    """

    accuracy: float
    bytes: int


def try_rules(
    stream: str,
    seed: int,
    data: Path,
    tried: dict[str, TaskInference],
    strategy: str = "ada_qpacknet",
    backbone: str | None = None,
    epochs: int | None = None,
) -> dict[str, Choice]:
    """Train a network and try ways of inferring tasks on held-out data.

    :param stream: name in the registry.
    :param seed: of the run.
    :param data: folder of the data sets.
    :param tried: of :func:`candidates`.
    :param strategy: name in the registry, one of ours.
    :param backbone: name in the registry; None: the stream's.
    :param epochs: per task; None: the stream's.
    """
    entry = STREAMS[stream]
    budget = dataclasses.replace(entry.budget, epochs=epochs or entry.budget.epochs)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    built = build_stream(StreamRequest(stream, data, seed, scenario="class", tuning=TUNING))
    plugins = [TensorDataPlugin(), ChannelsLastPlugin()]
    name = backbone or entry.backbone
    settings = RunSettings(built, name, budget, seed, plugins, inference="gaussian")
    learner = recipe.build(strategy, settings)
    assert learner.save_archive is not None
    for experience in built.benchmark.train_stream:
        learner.train(experience)
    with tempfile.TemporaryDirectory() as folder:
        learner.save_archive(Path(folder) / "archive")
        network = load_archive(Path(folder) / "archive", settings.model)
    parts = built.benchmark.train_stream, built.benchmark.test_stream
    training, held_out = ([list(_batches(e, budget.eval_mb_size)) for e in p] for p in parts)
    trials = select_inference(network, training, held_out, list(tried.values()))
    found = {id(trial.inference): Choice(trial.accuracy, trial.bytes) for trial in trials}
    return {name: found[id(inference)] for name, inference in tried.items()}


def _batches(experience: Any, size: int) -> Iterator[Any]:
    return iter(DataLoader(experience.dataset.eval(), batch_size=size))


def table(found: dict[str, list[dict[str, Choice]]]) -> str:
    """Markdown, a row a candidate, the best mean over streams first.

    :param found: of each stream the choices of its runs.
    """
    means = {
        name: [mean(run[name].accuracy for run in runs) for runs in found.values()]
        for name in next(iter(found.values()))[0]
    }
    lines = [
        f"| rule and layer | {' | '.join(found)} | mean | bytes of statistics |",
        f"| :-- |{' --: |' * (len(found) + 2)}",
    ]
    for name in sorted(means, key=lambda name: -mean(means[name])):
        sizes = [format_bytes(mean(r[name].bytes for r in runs)) for runs in found.values()]
        cells = [f"{value:.2f}" for value in [*means[name], mean(means[name])]]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(sizes)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the rules and print the table.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rules", description=__doc__.splitlines()[0]
    )
    known = [name for name, entry in STREAMS.items() if "class" in entry.scenarios]
    parser.add_argument("--streams", nargs="+", required=True, choices=known, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--strategy", default="ada_qpacknet", metavar="NAME")
    parser.add_argument("--backbone", metavar="NAME", help="default: each stream's own")
    parser.add_argument(
        "--layers",
        nargs="+",
        default=LAYERS,
        metavar="LAYER",
        help=f"that features are read of (default: {' '.join(LAYERS)})",
    )
    parser.add_argument(
        "--rules",
        nargs="+",
        default=KINDS,
        choices=KINDS,
        metavar="KIND",
        help="that are tried; triangular ones ask many networks (default: all)",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the stream's")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    given = parser.parse_args(arguments)
    found = {}
    for stream in given.streams:
        found[stream] = [
            try_rules(
                stream,
                seed,
                given.data,
                candidates(given.layers, given.rules),
                given.strategy,
                given.backbone,
                given.epochs,
            )
            for seed in given.seeds
        ]
        print(table({stream: found[stream]}), end="\n\n", flush=True)
    print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
