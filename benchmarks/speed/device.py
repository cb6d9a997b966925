"""What a device takes, method by method: steps, ends of tasks, answers, waits and memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.figures import Clock, clock_of, seconds_of
from benchmarks.speed.training import (
    EPOCHS,
    NAIVE,
    OURS,
    PLAIN,
    SHAPES,
    learner,
    plain_task,
    random_samples,
    stream_of,
    take_turns,
)

BATCHES = {"mlp": 256, "resnet18": 64, "alexnet": 64, "lenet": 64}
"""Samples in a step, by backbone, in the order in which they are measured."""
_WAITS = {
    "cuda": {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"},
    "cpu": {"aten::_local_scalar_dense"},
}


@dataclass(frozen=True)
class Row:
    """What was measured of one method on one backbone.

    :param batch: samples in a step and in a mini-batch of the answers.
    :param step: milliseconds of a training step with callbacks, median over tasks.
    :param epoch: milliseconds of an epoch of ``steps`` steps.
    :param times_plain: median ratio to the plain loop next to it.
    :param times_naive: the same to Naive on tensors; None of the plain loop.
    :param ending: milliseconds from a task's last epoch until it is shaped and committed.
    :param answer: milliseconds of an evaluation of a mini-batch of the task that is active.
    :param answer_times_plain: that over the same task's as a plain model.
    :param switch: milliseconds of one of a task that is not active.
    :param waits: how often a step waits for the device; on the CPU, which has nothing to wait for,
        how often one reads a number out of a tensor.
    :param megabytes: peak memory of two tasks on the GPU; None on the CPU.
    """

    method: str
    backbone: str
    batch: int
    steps: int
    step: float
    epoch: float
    times_plain: float
    times_naive: float | None = None
    ending: float | None = None
    answer: float | None = None
    answer_times_plain: float | None = None
    switch: float | None = None
    waits: float | None = None
    megabytes: float | None = None


def section(
    device: str,
    seconds: float,
    backbones: Sequence[str] = tuple(BATCHES),
    names: Sequence[str] = tuple(OURS),
    steps: int = 40,
    rounds: int = 3,
) -> Iterator[list[Row]]:
    """The rows of one backbone after another, until the time is over.

    :param device: ``"cpu"`` or ``"cuda"``.
    :param seconds: after which no further backbone is begun.
    :param backbones: names.
    :param names: of ours.
    :param steps: in an epoch.
    :param rounds: tasks that are timed.
    """
    end = time.monotonic() + seconds
    for backbone in backbones:
        if time.monotonic() >= end:
            return
        yield rows_of(backbone, device, names, steps, rounds)


def rows_of(backbone: str, device: str, names: Sequence[str], steps: int, rounds: int) -> list[Row]:
    """The plain loop's row, Naive's, and those of methods.

    :param backbone: name of the backbone.
    :param device: ``"cpu"`` or ``"cuda"``.
    :param names: of ours.
    :param steps: in an epoch.
    :param rounds: tasks that are timed.
    """
    batch = BATCHES[backbone]
    x, y = random_samples(SHAPES[backbone], batch * steps)
    stream = stream_of(x, y, rounds + 1)
    seconds = take_turns(stream, x, y, batch, [NAIVE, *names], backbone, device)
    rows = []
    for name, times in seconds.items():
        epoch = 1e3 * statistics.median(times)
        rows.append(
            Row(
                name,
                backbone,
                batch,
                steps,
                epoch / steps,
                epoch,
                _ratio(times, seconds[PLAIN]),
                None if name == PLAIN else _ratio(times, seconds[NAIVE]),
                **_costs(name, backbone, x, y, batch, device),
            )
        )
    return rows


def _ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, others))


def _costs(
    name: str, backbone: str, x: Tensor, y: Tensor, batch: int, device: str
) -> dict[str, float | None]:
    """What two tasks of a new learner take besides time: fields of :class:`Row`."""
    gc.collect()
    before = _allocated(device)
    if name == PLAIN:
        task = plain_task(x.to(device), y.to(device), batch, backbone)
        waits = _waits_in(task, device) / (EPOCHS * -(-len(x) // batch))
        return {"waits": waits, "megabytes": _peak(device, before)}
    strategy, timer = learner(name, backbone, batch, device)
    counter = WaitCounter(device)
    first, second = stream_of(x, y, 2).train_stream
    strategy.train(first)
    strategy.plugins.append(counter)
    strategy.train(second)
    costs: dict[str, float | None] = {
        "waits": counter.waits / counter.steps,
        "megabytes": _peak(device, before),
    }
    if name in OURS:
        costs["ending"] = 1e3 * timer.ending
        costs.update(_answers(strategy.network, x[:batch].to(device), clock_of(device)))
    return costs


class WaitCounter(SupervisedPlugin):
    """Counts, by torch's profiler, how often the steps of epochs wait for the device.

    :param device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.waits = self.steps = 0
        self._device = device
        self._profile = profile()

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._profile = _profile(self._device)
        self._profile.start()

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.steps += 1

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._profile.stop()
        self.waits += _count(self._profile, self._device)


def _profile(device: str) -> profile:
    activities = [ProfilerActivity.CPU]
    return profile(activities=activities + [ProfilerActivity.CUDA] * (device == "cuda"))


def _count(done: profile, device: str) -> int:
    return sum(event.count for event in done.key_averages() if event.key in _WAITS[device])


def _waits_in(work: Callable[[], None], device: str) -> int:
    with _profile(device) as done:
        work()
    return _count(done, device)


@torch.no_grad()
def _answers(network: Any, x: Tensor, now: Clock, passes: int = 20) -> dict[str, float | None]:
    """A mini-batch of the active task, beside the plain model's, and of a task that is not."""
    network.eval()
    *_, other, active = network.tasks
    plain: nn.Module = network.materialise(active).eval()
    answer, reference, switch = [], [], []
    for _ in range(10):
        network(x, active)
        answer.append(seconds_of(lambda: [network(x, active) for _ in range(passes)], now))
        reference.append(seconds_of(lambda: [plain(x) for _ in range(passes)], now))
        switch.append(seconds_of(lambda: network(x, other), now))
    return {
        "answer": 1e3 * statistics.median(answer) / passes,
        "answer_times_plain": _ratio(answer, reference),
        "switch": 1e3 * statistics.median(switch),
    }


def _allocated(device: str) -> int:
    """Bytes on the GPU now; the peak is counted from here on."""
    if device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: str, before: int) -> float | None:
    return (torch.cuda.max_memory_allocated() - before) / 1e6 if device == "cuda" else None


def table_of_rows(rows: Sequence[Row]) -> Table:
    """Rows as lines to print.

    :param rows: of one backbone.
    """
    title = f"{rows[0].backbone}, batch {rows[0].batch}, torch {torch.__version__}"
    table = Table(title=title)
    table.add_column("")
    headings = (
        "step ms|epoch ms|x plain|x Naive|end of task ms|answer ms|x plain|switch ms|waits|MB"
    )
    for heading in headings.split("|"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (
            row.step,
            row.epoch,
            row.times_plain,
            row.times_naive,
            row.ending,
            row.answer,
            row.answer_times_plain,
            row.switch,
            row.waits,
            row.megabytes,
        )
        table.add_row(row.method, *("-" if n is None else f"{n:.3g}" for n in numbers))
    return table
