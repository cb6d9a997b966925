"""Epochs and steps of every method, in turns with a plain loop's and with Naive's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark, tensors_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.models import as_multitask
from avalanche.training import Naive
from torch import Tensor, nn

from avalanche_compress import TaskNetwork, TensorDataPlugin, registered_methods
from benchmarks.data.images import Images, value_table
from benchmarks.data.splits import PixelDataset
from benchmarks.runs.backbones import BACKBONES
from benchmarks.speed.figures import Clock, Figure, clock_of, figure_of, seconds_of

SHAPES = {
    "mlp": (1, 28, 28),
    "lenet": (3, 32, 32),
    "alexnet": (3, 32, 32),
    "cacl_net": (3, 32, 32),
    "resnet18": (3, 32, 32),
}
CLASSES = 10
ROUNDS = 9
EPOCHS = 2
OURS: dict[str, Callable[..., Any]] = {method.name: method.build for method in registered_methods()}
PLAIN, NAIVE, OWN_LOADER = "plain loop", "naive", "naive on its own loader"
"""What ours are compared with."""


class EpochTimer(SupervisedPlugin):
    """Remembers how long the epochs of the last experience took.

    :param now: gives seconds.
    """

    def __init__(self, now: Clock = time.process_time) -> None:
        super().__init__()
        self.epochs: list[float] = []
        self.ending = 0.0
        """Seconds from the last epoch's end until the task is shaped and committed."""
        self._now = now
        self._start = self._end = 0.0
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
        self._end = self._now()
        self.epochs.append(self._end - self._start)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.ending = self._now() - self._end


def random_images(count: int = 60_000) -> Images:
    """Random bytes in the form of MNIST, so that no files are needed.

    :param count: how many; there are none to test on.
    """
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, 784), dtype=np.uint8)
    train = pixels, draw.integers(0, CLASSES, count)
    test = pixels[:0], train[1][:0]
    return Images(train, test, value_table(255, 0.1307, 0.3081), SHAPES["mlp"])


def epochs(
    images: Images,
    kind: str,
    batch: int = 256,
    rounds: int = 3,
    count: int | None = None,
    own_loader: bool = False,
) -> list[Figure]:
    """An epoch of the MLP on permuted pixels; decoding the bytes is part of the first of two.

    :param images: whose training set each task has, under a permutation of its own.
    :param kind: what they are, in a word.
    :param batch: samples in a step.
    :param rounds: tasks, and one more to warm up.
    :param count: images of the training set; None for all.
    :param own_loader: with Naive on Avalanche's loader as well.
    """
    draw = np.random.default_rng(0)
    pixels, labels = (part[:count] for part in images.train)
    rows = np.arange(len(pixels))
    tasks = [
        PixelDataset(pixels, rows, labels, task, images.values, images.shape, draw.permutation(784))
        for task in range(rounds + 1)
    ]
    x = torch.from_numpy(images.values[pixels]).view(-1, *images.shape)
    names = [OWN_LOADER] * own_loader + [NAIVE, *OURS]
    seconds = take_turns(dataset_benchmark(tasks, tasks), x, torch.tensor(labels), batch, names)
    return against(seconds, f"epoch of {len(pixels):,} {kind} images, mlp, batch {batch}")


def steps(
    backbone: str,
    batch: int,
    batches: int,
    names: Sequence[str] = tuple(OURS),
    rounds: int = ROUNDS,
    device: str = "cpu",
) -> list[Figure]:
    """A training step with its callbacks, as part of an epoch of random samples.

    :param backbone: name of the backbone.
    :param batch: samples in a step.
    :param batches: steps in an epoch.
    :param names: of ours.
    :param rounds: tasks, and one more to warm up.
    :param device: ``"cpu"`` or ``"cuda"``.
    """
    x, y = random_samples(SHAPES[backbone], batch * batches)
    stream = stream_of(x, y, rounds + 1)
    seconds = take_turns(stream, x, y, batch, [NAIVE, *names], backbone, device)
    each = {name: [time / batches for time in times] for name, times in seconds.items()}
    where = "" if device == "cpu" else f", {device}"
    return against(each, f"step, {backbone}, batch {batch}{where}")


def take_turns(
    stream: Any,
    x: Tensor,
    y: Tensor,
    batch: int,
    names: Sequence[str],
    backbone: str = "mlp",
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Seconds of an epoch, of each task but the first, by name: the plain loop's come first.

    All train with fused Adam. Of a task's epochs the mean counts, since HALRP's differ.

    :param stream: whose tasks are learned.
    :param x: what the plain loop learns instead, floats.
    :param y: its targets.
    :param batch: samples in a step.
    :param names: of ours, :data:`NAIVE`, :data:`OWN_LOADER`.
    :param backbone: name of the backbone.
    :param device: ``"cpu"`` or ``"cuda"``.
    """
    now = clock_of(device)
    plain = plain_task(x.to(device), y.to(device), batch, backbone)
    learners = {name: learner(name, backbone, batch, device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in (PLAIN, *names)}
    for experience in stream.train_stream:
        seconds[PLAIN].append(seconds_of(plain, now) / EPOCHS)
        for name, (strategy, timer) in learners.items():
            strategy.train(experience)
            seconds[name].append(timer.seconds)
    return {name: times[1:] for name, times in seconds.items()}


def against(seconds: dict[str, list[float]], what: str) -> list[Figure]:
    """A line for each name and each reference that was timed as well.

    :param seconds: by name.
    :param what: was timed.
    """
    references = [name for name in (PLAIN, NAIVE, OWN_LOADER) if name in seconds]
    return [
        figure_of(f"{name} {what}", seconds[name], reference, seconds[reference])
        for reference in references
        for name in seconds
        if name != reference and name != PLAIN
    ]


def plain_task(x: Tensor, y: Tensor, batch: int, backbone: str) -> Callable[[], None]:
    """A task as one trains it without a framework: of a new model, so that there is a gradient.

    :param x: inputs, on the device.
    :param y: targets, there as well.
    :param batch: samples in a step.
    :param backbone: name of the backbone.
    """

    def train() -> None:
        model = BACKBONES[backbone](SHAPES[backbone], CLASSES, False).to(x.device)
        optimizer = adam(model)
        for _ in range(EPOCHS):
            for index in torch.randperm(len(x)).to(x.device).split(batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()

    return train


def learner(name: str, backbone: str, batch: int, device: str = "cpu") -> tuple[Any, EpochTimer]:
    """A strategy that has learned nothing yet, and what times it.

    :param name: of ours, :data:`NAIVE` or :data:`OWN_LOADER`.
    :param backbone: name of the backbone.
    :param batch: samples in a step.
    :param device: ``"cpu"`` or ``"cuda"``.
    """
    model = BACKBONES[backbone](SHAPES[backbone], CLASSES, False)
    if name not in OURS:
        model = as_multitask(model, "head")
    timer = EpochTimer(clock_of(device))
    strategy = OURS.get(name, Naive)(
        model=model,
        optimizer=adam(model),
        train_mb_size=batch,
        train_epochs=EPOCHS,
        device=torch.device(device),
        evaluator=None,
        plugins=[timer] if name == OWN_LOADER else [timer, TensorDataPlugin()],
    )
    return strategy, timer


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that all train with.

    :param model: what it trains.
    """
    return torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)


def growing(early: int = 2, late: int = 20, batch: int = 64) -> Figure:
    """CACL's step in a late task against one in an early task, with as many terms to train.

    :param early: number of the early task.
    :param late: number of the late task.
    :param batch: samples in a step.
    """
    shape = SHAPES["cacl_net"]
    stream = stream_of(*random_samples(shape, 4 * batch), late + 5).train_stream
    small = stream_of(*random_samples(shape, 2), late).train_stream
    learners = {first: learner("cacl", "cacl_net", batch) for first in (early, late)}
    for first, (strategy, _) in learners.items():
        for experience in small[: first - 1]:
            strategy.train(experience)
    seconds: dict[int, list[float]] = {early: [], late: []}
    for task in range(5):
        for first, (strategy, timer) in learners.items():
            strategy.train(stream[first - 1 + task])
            seconds[first].append(timer.seconds / 4)
    what = f"cacl step, cacl_net, batch {batch}, task {late}"
    return figure_of(what, seconds[late], f"task {early}", seconds[early])


@torch.no_grad()
def evaluation(backbone: str, batch: int, passes: int = 40) -> Figure:
    """Answers to samples of the task that is active, against the plain backbone.

    Each is called a number of times before the other, as in an evaluation: whoever runs once finds
    the processor's caches as the other one has left them.

    :param backbone: name of the backbone.
    :param batch: samples in a mini-batch.
    :param passes: of one and then of the other.
    """
    network = TaskNetwork(BACKBONES[backbone](SHAPES[backbone], CLASSES, False)).eval()
    network.open(0, range(CLASSES))
    network.commit()
    plain, x = network.materialise(0), torch.randn(batch, *SHAPES[backbone])
    seconds, reference = [], []
    for _ in range(10 * ROUNDS):
        seconds.append(seconds_of(lambda: [network(x, 0) for _ in range(passes)]) / passes)
        reference.append(seconds_of(lambda: [plain(x) for _ in range(passes)]) / passes)
    what = f"evaluation of an active task, {backbone}, batch {batch}"
    return figure_of(what, seconds, "plain backbone", reference)


def random_samples(shape: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, always the same.

    :param shape: of an input.
    :param count: how many.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=generator)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def stream_of(x: Tensor, y: Tensor, tasks: int) -> Any:
    """The same samples under as many labels.

    :param x: inputs.
    :param y: targets.
    :param tasks: how many labels.
    """
    pairs = [(x, y)] * tasks
    return tensors_benchmark(pairs, pairs, task_labels=list(range(tasks)))
