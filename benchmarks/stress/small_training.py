"""A training of any strategy that takes a moment and checks that finished tasks never change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import Tensor, nn

from avalanche_compress import CompressedStrategy, CompressError, method_named

EPOCHS = 3
RATE = 0.05
"""Learning rate of the SGD that trains."""
INPUTS = 16
"""Numbers in a sample."""


@dataclass(frozen=True)
class Case:
    """Something of Avalanche's to use with a strategy, and how to see whether it works.

    :param name: as the page shows it.
    :param check: uses it with a registered method, by name; raises an ``AssertionError`` if it does
        not do what it is for, or if a finished task changes.
    :param note: what a user should know although it works.
    :param refused: the error that says why it cannot work, if it cannot.
    """

    name: str
    check: Callable[[str], Any]
    note: str = ""
    refused: type[CompressError] | None = None


def samples(
    count: int, classes: int = 2, seed: int = 0, draw: int = 0, shape: Sequence[int] = (INPUTS,)
) -> tuple[Tensor, Tensor]:
    """Inputs (N, *shape) around a random mean for each class, and their classes (N,).

    :param count: N.
    :param classes: how many, in turn.
    :param seed: of the means.
    :param draw: of the samples around them.
    :param shape: of an input.
    """
    means = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(100 + draw))
    y = torch.arange(count) % classes
    return means[y] + 0.5 * noise, y


def small_stream(
    tasks: int = 2,
    count: int = 24,
    shape: Sequence[int] = (INPUTS,),
    labels: Sequence[int] | None = None,
    seed: int = 0,
) -> Any:
    """A benchmark of Avalanche's with task labels, two classes a task.

    :param tasks: how many.
    :param count: samples of a task to train on, and half as many to test on.
    :param shape: of an input.
    :param labels: of the tasks; None for their positions.
    :param seed: of all samples.
    """
    generator = torch.Generator().manual_seed(seed)
    train: list[Any] = []
    test: list[Any] = []
    for _ in range(tasks):
        means = torch.randn(2, *shape, generator=generator)
        for part, size in ((train, count), (test, count // 2)):
            y = torch.arange(size) % 2
            part.append((means[y] + 0.7 * torch.randn(size, *shape, generator=generator), y))
    labels = list(range(tasks)) if labels is None else labels
    return tensors_benchmark(train, test, task_labels=labels)


def build(
    name: str, rate: float = RATE, momentum: float = 0.0, **arguments: Any
) -> CompressedStrategy:
    """A new strategy over a new model.

    :param name: of a registered method.
    :param rate: of learning.
    :param momentum: of SGD.
    :param arguments: of the strategy.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 12), nn.ReLU(), nn.Linear(12, 12), nn.Linear(12, 2))
    given = {"train_epochs": EPOCHS, "evaluator": None, **arguments}
    strategy: CompressedStrategy = method_named(name).build(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum),
        train_mb_size=8,
        eval_mb_size=12,
        **given,
    )
    return strategy


def learn(
    strategy: CompressedStrategy,
    experiences: Iterable[Any],
    then: Callable[[], Any] = lambda: None,
    **arguments: Any,
) -> None:
    """Train on one experience after the other; finished tasks must keep their logits, bit for bit.

    :param strategy: any.
    :param experiences: a stream, or some of one.
    :param then: called after each of them.
    :param arguments: of ``strategy.train``; a function is asked for each experience.
    :raises AssertionError: if logits of a finished task change, or a task is not finished.
    """
    x = torch.randn(20, INPUTS)
    known: dict[int, Tensor] = {}
    for position, experience in enumerate(experiences):
        given = {k: v(experience) if callable(v) else v for k, v in arguments.items()}
        strategy.train(experience, **given)
        then()
        now = all_logits(strategy, x)
        assert len(now) == position + 1
        assert all(torch.equal(now[task], logits) for task, logits in known.items())
        known = now


@torch.no_grad()
def all_logits(strategy: CompressedStrategy, x: Tensor) -> dict[int, Tensor]:
    """The logits of every finished task, in evaluation mode.

    :param strategy: any.
    :param x: (N, 16).
    """
    network = strategy.network.eval()
    return {task: network.own_logits(x, task) for task in network.tasks}
