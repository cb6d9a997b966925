"""How fast: epochs and steps against Naive's and plain ones, task inference, k-means, masks.

Run ``python -m benchmarks.speed``; every figure is a median over repetitions of this process's CPU
time, and ratios compare runs that took turns in it, so that they hold when the machine's speed
drifts or others use it too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark, tensors_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.models import as_multitask
from avalanche.training import Naive
from rich.console import Console
from rich.table import Table
from torch import nn

from avalanche_compress import (
    MaskedStore,
    TaskInference,
    TaskNetwork,
    TensorDataPlugin,
    registered_methods,
)
from avalanche_compress.codec import decode_mask, encode_mask, kmeans_1d, kth_smallest
from avalanche_compress.methods.halrp.maths import (
    leading_svd,
    least_squares_scalings,
    scale_weight,
)
from avalanche_compress.methods.halrp.rank_selection import select_ranks
from benchmarks.data.images import Images, load_mnist, value_table
from benchmarks.data.splits import PixelDataset
from benchmarks.runs.backbones import BACKBONES

ROUNDS = 9
TASKS = ROUNDS + 1
SHAPES = {
    "mlp": (1, 28, 28),
    "lenet": (3, 32, 32),
    "alexnet": (3, 32, 32),
    "cacl_net": (3, 32, 32),
    "resnet18": (3, 32, 32),
}
CLASSES = 10
OURS: dict[str, Callable[..., Any]] = {method.name: method.build for method in registered_methods()}


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    :param what: what was timed.
    :param milliseconds: median.
    :param reference: what it is compared with.
    :param reference_milliseconds: its median.
    :param ratio: median of the ratios of neighbouring runs.
    """

    what: str
    milliseconds: float
    reference: str
    reference_milliseconds: float
    ratio: float


class EpochTimer(SupervisedPlugin):
    """Remembers how long the epochs of the last experience took.

    :param now: gives seconds.
    """

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        super().__init__()
        self.epochs: list[float] = []
        self._now = now
        self._start = 0.0
        self._part = 1.0

    @property
    def seconds(self) -> float:
        """Seconds an epoch of all samples, on average, whatever part of them is held out."""
        return statistics.mean(self.epochs) / self._part

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.epochs = []
        self._part = len(strategy.adapted_dataset) / len(strategy.experience.dataset)

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._start = self._now()

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.epochs.append(self._now() - self._start)


def clock_of(device: str) -> Callable[[], float]:
    """What tells the seconds that work on a device has taken.

    :param device: ``"cpu"``, where other processes' time does not count, or ``"cuda"``, where all
        that was queued has to be done.
    """
    if device == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table.

    :param arguments: command line without the program's name.
    :return: exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="epochs on the MNIST in this folder, not random"
    )
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    images = random_images() if given.data is None else load_mnist(given.data)
    figures = [
        *epochs(images, "random" if given.data is None else "MNIST"),
        evaluation("mlp", 1),
        evaluation("mlp", 256),
        *training_steps("mlp", 10, 200),
        *training_steps("mlp", 256, 20),
        *training_steps("lenet", 64, 16, tasks=4),
        *training_steps("alexnet", 64, 16, tasks=4),
        *training_steps("resnet18", 64, 16, tasks=4),
        *training_steps("cacl_net", 64, 16, ("cacl",), tasks=4),
        growing(),
        *task_inference("mlp", 256),
        *task_inference("lenet", 64),
        threshold(),
        *kmeans(),
        mask_coding(),
        *rank_estimation(),
        *on_gpu(),
    ]
    Console().print(table_of(figures))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2))
    return 0


def random_images(count: int = 60_000) -> Images:
    """Random bytes in the form of MNIST, so that no files are needed.

    :param count: how many; there are none to test on.
    """
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, 784), dtype=np.uint8)
    train = pixels, draw.integers(0, CLASSES, count)
    test = pixels[:0], train[1][:0]
    return Images(train, test, value_table(255, 0.1307, 0.3081), SHAPES["mlp"])


def epochs(images: Images, kind: str, batch: int = 256, rounds: int = 3) -> list[Figure]:
    """An epoch on permuted pixels, against a plain loop over tensors and against Naive's.

    Of two epochs a task the mean counts; decoding the bytes is part of the first. The plain loop
    has floats.

    :param images: whose training set each task has, under a permutation of its own.
    :param kind: what they are, in a word.
    :param batch: samples in a step.
    :param rounds: tasks, beside one to warm up.
    """
    draw = np.random.default_rng(0)
    pixels, labels = images.train
    rows = np.arange(len(pixels))
    tasks = [
        PixelDataset(pixels, rows, labels, task, images.values, images.shape, draw.permutation(784))
        for task in range(rounds + 1)
    ]
    stream = dataset_benchmark(tasks, tasks)
    own_loader, plain = "naive on its own loader", "plain loop"
    runs = {own_loader: _trainer("naive", "mlp", batch, epochs=2, tensor_data=False)}
    runs.update({name: _trainer(name, "mlp", batch, epochs=2) for name in ("naive", *OURS)})
    x = torch.from_numpy(images.values[pixels]).view(-1, *images.shape)
    y = torch.tensor(labels)
    plain_epoch = _plain_loop(x, y, batch)
    seconds: dict[str, list[float]] = {name: [] for name in (plain, *runs)}
    for experience in stream.train_stream:
        seconds[plain].append(seconds_of(plain_epoch))
        for name, (strategy, timer) in runs.items():
            strategy.train(experience)
            seconds[name].append(timer.seconds)
    seconds = {name: own[1:] for name, own in seconds.items()}
    what = f"epoch of {len(pixels):,} {kind} images, mlp, batch {batch}"
    against = [(name, plain) for name in runs] + [(name, own_loader) for name in ("naive", *OURS)]
    return [
        figure_of(f"{name}, {what}", seconds[name], reference, seconds[reference])
        for name, reference in against
    ]


def _plain_loop(
    x: torch.Tensor, y: torch.Tensor, batch: int, backbone: str = "mlp"
) -> Callable[[], None]:
    """An epoch as one writes it without a framework."""
    model = BACKBONES[backbone](SHAPES[backbone], CLASSES, False).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch() -> None:
        for index in torch.randperm(len(x)).to(x.device).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()

    return epoch


@torch.no_grad()
def evaluation(backbone: str, batch: int, passes: int = 40) -> Figure:
    """Answers to samples of the task that is active, against the plain backbone.

    Each is called a number of times before it is the other's turn, as in an evaluation: whoever
    runs once finds the processor's caches as the other one has left them.

    :param backbone: name of the backbone.
    :param batch: samples in a mini-batch.
    :param passes: of one and then of the other.
    """
    network = TaskNetwork(BACKBONES[backbone](SHAPES[backbone], CLASSES, False)).eval()
    network.open(0, range(CLASSES))
    network.commit()
    plain, x = network.materialise(0), torch.randn(batch, *SHAPES[backbone])
    own, reference = [], []
    for _ in range(10 * ROUNDS):
        own.append(seconds_of(lambda: [network(x, 0) for _ in range(passes)]) / passes)
        reference.append(seconds_of(lambda: [plain(x) for _ in range(passes)]) / passes)
    what = f"evaluation of an active task, {backbone}, batch {batch}"
    return figure_of(what, own, "plain backbone", reference)


def threshold(count: int = 1_000_000) -> Figure:
    """The median of scores, as at every step of a learned mask, against torch's.

    :param count: scores.
    """
    scores = torch.rand(count, generator=torch.Generator().manual_seed(0))
    own = [seconds_of(lambda: kth_smallest(scores, count // 2)) for _ in range(ROUNDS)]
    reference = [seconds_of(lambda: scores.kthvalue(count // 2)) for _ in range(ROUNDS)]
    return figure_of(f"kth_smallest, {count:,} values", own, "torch.kthvalue", reference)


def training_steps(
    backbone: str,
    batch: int,
    batches: int,
    strategies: Sequence[str] = tuple(OURS),
    tasks: int = TASKS,
    device: str = "cpu",
) -> list[Figure]:
    """One training step with callbacks, against Naive's with a head per task and a plain loop's.

    All on tensors. Of two epochs a task the mean counts, since HALRP's have different steps, and of
    all steps of an epoch, since CACL computes a penalty at some only.

    :param backbone: name of the backbone.
    :param batch: samples in a step.
    :param batches: steps in an epoch.
    :param strategies: names of ours.
    :param tasks: rounds, of which one warms up.
    :param device: ``"cpu"`` or ``"cuda"``.
    """
    stream, now = _random_stream(SHAPES[backbone], batch, batches, tasks), clock_of(device)
    names = ("naive", *strategies)
    runs = {name: _trainer(name, backbone, batch, epochs=2, device=device) for name in names}
    x, y = (part.to(device) for part in _random_samples(SHAPES[backbone], batch * batches))
    plain_epoch = _plain_loop(x, y, batch, backbone)
    seconds: dict[str, list[float]] = {name: [] for name in ("plain loop", *runs)}
    for experience in stream.train_stream:
        seconds["plain loop"].append(seconds_of(plain_epoch, now) / batches)
        for name, (strategy, timer) in runs.items():
            strategy.train(experience)
            seconds[name].append(timer.seconds / batches)
    seconds = {name: own[1:] for name, own in seconds.items()}
    where = "" if device == "cpu" else f", {device}"
    return [
        figure_of(
            f"{name} step, {backbone}, batch {batch}{where}",
            seconds[name],
            reference,
            seconds[reference],
        )
        for name in runs
        for reference in ("naive", "plain loop")
        if name != reference
    ]


def on_gpu() -> list[Figure]:
    """The steps again where there is a GPU: what was queued is waited for at an epoch's ends."""
    if not torch.cuda.is_available():
        return []
    backbones = {"mlp": 256, "lenet": 64, "alexnet": 64, "resnet18": 64}
    figures = [training_steps(own, batch, 40, device="cuda") for own, batch in backbones.items()]
    return [figure for own in figures for figure in own]


def growing(early: int = 2, late: int = 20, batch: int = 64) -> Figure:
    """CACL's step in a late task against one in an early task, with as many terms to train.

    :param early: number of the early task.
    :param late: number of the late task.
    :param batch: samples in a step.
    """
    stream = _random_stream(SHAPES["cacl_net"], batch, 4, tasks=late + 5)
    runs = {first: _trainer("cacl", "cacl_net", batch) for first in (early, late)}
    small = _random_stream(SHAPES["cacl_net"], 2, 1, tasks=late)
    for first, (strategy, _) in runs.items():
        for experience in small.train_stream[: first - 1]:
            strategy.train(experience)
    seconds: dict[int, list[float]] = {early: [], late: []}
    for turn in range(5):
        for first, (strategy, timer) in runs.items():
            strategy.train(stream.train_stream[first - 1 + turn])
            seconds[first].append(timer.seconds / 4)
    what = f"cacl step, cacl_net, batch {batch}, task {late}"
    return figure_of(what, seconds[late], f"task {early}", seconds[early])


@torch.no_grad()
def task_inference(backbone: str, batch: int) -> list[Figure]:
    """Answers to samples of unknown tasks, against a pass of each of the ten plain networks.

    :param backbone: name of the backbone.
    :param batch: samples in a mini-batch.
    """
    model = BACKBONES[backbone](SHAPES[backbone], CLASSES, False)
    network = TaskNetwork(model, partial(MaskedStore, scored=True)).eval()
    x, y = torch.randn(batch, *SHAPES[backbone]), torch.arange(batch) % CLASSES
    for task in range(TASKS):
        classes = range(CLASSES * task, CLASSES * (task + 1))
        network.open(task, classes)
        network.commit()
        TaskInference("prototype").collect(network, task, [(x, torch.tensor(classes)[y])])
    plain = [network.materialise(task) for task in network.tasks]
    ways = {rule: TaskInference(rule) for rule in ("entropy", "energy", "prototype")}
    ways["entropy, stacked"] = TaskInference("entropy", stacked=True)
    figures = []
    repeats = 3 * ROUNDS if backbone == "mlp" else ROUNDS
    for name, infer in ways.items():
        own, reference = [], []
        for _ in range(repeats):
            own.append(seconds_of(partial(infer, network, x)))
            reference.append(seconds_of(lambda: [model(x) for model in plain]))
        what = f"inference by {name}, {backbone}, batch {batch}"
        figures.append(figure_of(what, own[1:], f"{TASKS} plain passes", reference[1:]))
    return figures


def kmeans(count: int = 1_000_000) -> list[Figure]:
    """Optimal one-dimensional k-means against scikit-learn's with one start.

    :param count: normal random values.
    """
    from sklearn.cluster import KMeans

    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    column = values.numpy().reshape(-1, 1)
    figures = []
    for k in (4, 16):
        ours, theirs = [], []
        for _ in range(3):
            ours.append(seconds_of(partial(kmeans_1d, values, k)))
            theirs.append(seconds_of(partial(KMeans(k, n_init=1, random_state=0).fit, column)))
        figures.append(figure_of(f"kmeans_1d, {count:,} values, k={k}", ours, "sklearn", theirs))
    return figures


def mask_coding(count: int = 1_000_000) -> Figure:
    """Coding a mask that inherits 80 % of the last task's, against decoding it.

    :param count: weights.
    """
    generator = torch.Generator().manual_seed(0)
    last = torch.rand(count, generator=generator) < 0.5
    fresh = torch.rand(count, generator=generator) < 0.5
    mask = torch.where(torch.rand(count, generator=generator) < 0.8, last, fresh)
    context = last.to(torch.uint8)
    coded = encode_mask(mask, context)
    encode = [seconds_of(lambda: encode_mask(mask, context)) for _ in range(ROUNDS)]
    decode = [seconds_of(lambda: decode_mask(coded, count, context)) for _ in range(ROUNDS)]
    return figure_of(f"encode_mask, {count:,} weights", encode, "decode_mask", decode)


def rank_estimation(rank: int = 100) -> list[Figure]:
    """From trained weights to ranks, against the singular value decomposition of each layer.

    :param rank: the largest rank.
    """
    from torchvision.models import resnet18

    generator = torch.Generator().manual_seed(0)
    linear = [torch.randn(2048, 1024, generator=generator)]
    network = [
        torch.randn(weight.shape, generator=generator)
        for weight in resnet18().parameters()
        if weight.dim() == 4
    ]
    figures = []
    for what, tuned in (("2048 x 1024 layer", linear), ("all layers of resnet18", network)):
        base = [weight + 0.1 * torch.randn(weight.shape, generator=generator) for weight in tuned]
        ours, theirs = [], []
        for _ in range(3):
            ours.append(seconds_of(partial(_ranks, tuned, base, rank)))
            theirs.append(seconds_of(partial(_decomposed, tuned)))
        figures.append(figure_of(f"rank estimation, {what}", ours, "linalg.svd", theirs))
    return figures


def _ranks(tuned: Sequence[torch.Tensor], base: Sequence[torch.Tensor], rank: int) -> list[int]:
    found = []
    for own, frozen in zip(tuned, base):
        r, s = least_squares_scalings(own, frozen)
        found.append(leading_svd(_matrix(own - scale_weight(frozen, r, s)), rank))
    return select_ranks(
        [svd.singular_values for svd in found],
        torch.ones(len(found)),
        0.9,
        max_rank=rank,
        energies=[None if svd.exact else svd.energy for svd in found],
    ).ranks


def _decomposed(weights: Sequence[torch.Tensor]) -> list[Any]:
    return [torch.linalg.svd(_matrix(weight)) for weight in weights]


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(2).mean(2) if weight.dim() > 2 else weight


def _trainer(
    name: str,
    backbone: str,
    batch: int,
    epochs: int = 1,
    tensor_data: bool = True,
    device: str = "cpu",
) -> tuple[Any, EpochTimer]:
    model = BACKBONES[backbone](SHAPES[backbone], CLASSES, False)
    if name == "naive":
        model = as_multitask(model, "head")
    timer = EpochTimer(clock_of(device))
    strategy = {"naive": Naive, **OURS}[name](
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=batch,
        train_epochs=epochs,
        device=torch.device(device),
        evaluator=None,
        plugins=[timer, TensorDataPlugin()] if tensor_data else [timer],
    )
    return strategy, timer


def _random_stream(shape: tuple[int, ...], batch: int, batches: int, tasks: int = TASKS) -> Any:
    x, y = _random_samples(shape, batches * batch)
    return tensors_benchmark(
        train_tensors=[(x, y)] * tasks,
        test_tensors=[(x[:batch], y[:batch])] * tasks,
        task_labels=list(range(tasks)),
    )


def _random_samples(shape: tuple[int, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=generator)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def seconds_of(work: Callable[[], Any], now: Callable[[], float] = time.process_time) -> float:
    """How long something takes.

    :param work: does it.
    :param now: the clock.
    """
    start = now()
    work()
    return now() - start


def figure_of(what: str, own: Sequence[float], reference: str, other: Sequence[float]) -> Figure:
    """A line of the table.

    :param what: what was timed.
    :param own: seconds of each run.
    :param reference: what it is compared with.
    :param other: seconds of the run next to each.

    >>> figure_of("ours", [0.1, 0.4, 0.2], "theirs", [0.1, 0.1, 0.1]).ratio
    2.0
    """
    ratio = statistics.median([a / b for a, b in zip(own, other)])
    return Figure(
        what, 1e3 * statistics.median(own), reference, 1e3 * statistics.median(other), ratio
    )


def table_of(figures: Sequence[Figure]) -> Table:
    """Figures as lines to print.

    :param figures: any number.
    """
    table = Table(title=f"medians, {torch.get_num_threads()} thread, torch {torch.__version__}")
    for heading in ("", "ms", "compared with", "ms", "ratio"):
        table.add_column(heading, justify="left" if heading in ("", "compared with") else "right")
    for figure in figures:
        table.add_row(
            figure.what,
            f"{figure.milliseconds:.3g}",
            figure.reference,
            f"{figure.reference_milliseconds:.3g}",
            f"{figure.ratio:.3g}",
        )
    return table
