"""Archives of small networks to be damaged: of every registered method and its variants."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_compress import registered_methods, save_archive
from benchmarks.stress.small_training import small_stream

SHAPE = (1, 6, 6)
TASKS = 3


class SmallNet(nn.Module):
    """A convolution, a grouped one, BatchNorm, a layer, a head, and what all tasks share.

    ``(N, 1, 6, 6) -> (N, 2)``

    :param width: of the hidden layer.
    """

    offset: Tensor

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, groups=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(96, width, bias=False)
        self.head = nn.Linear(width, 2)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("offset", torch.arange(36.0).view(SHAPE) / 36)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(self.features(x * self.scale + self.offset)))
        logits: Tensor = self.head(hidden)
        return logits


def inputs() -> Tensor:
    """What logits are compared with: ``(4, 1, 6, 6)``, always the same."""
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(7))


EXAMPLES: dict[str, Callable[..., Any]] = {
    name: partial(method.build, settings)
    for method in registered_methods()
    for name, settings in method.examples.items()
}
"""Builders of the strategies, to be given model, optimiser and the settings of training."""


def build_model(name: str) -> SmallNet:
    """The model of an example: long masks are coded in other ways than short ones.

    :param name: one of :data:`EXAMPLES`.

    >>> [build_model(name).hidden.weight.numel() for name in ("wsn", "wsn_wide")]
    [960, 4608]
    """
    return SmallNet(48) if name.endswith("_wide") else SmallNet()


def train(name: str) -> bytes:
    """The archive of three tasks.

    :param name: one of :data:`EXAMPLES`.
    """
    torch.manual_seed(0)
    model = build_model(name)
    strategy = EXAMPLES[name](
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=10,
        train_epochs=2,
        evaluator=None,
    )
    for experience in stream(TASKS).train_stream:
        strategy.train(experience)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        save_archive(strategy.model, path)
        return path.read_bytes()


def stream(tasks: int) -> Any:
    """A benchmark of small images, with two classes a task.

    :param tasks: how many.
    """
    return small_stream(tasks, 30, SHAPE)
