"""Small streams, models and strategies that several tests share."""

from __future__ import annotations

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_compress import (
    load_archive,
    load_checkpoint,
    registered_methods,
    save_archive,
    save_checkpoint,
)
from benchmarks.stress.small_training import small_stream

CLASSES = 2

OURS = {method.name: method.build for method in registered_methods()}


def make_stream(tasks: int = 3, samples: int = 60, shape=(1, 8, 8), labels=None, seed: int = 0):
    """``tasks`` experiences of two classes each, separable by their means, with task labels."""
    return small_stream(tasks, samples, shape, labels, seed)


def mlp(width: int = 24) -> nn.Module:
    """A bias-free perceptron on 8 x 8 images."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, CLASSES),
    )


def conv_net() -> nn.Module:
    """A small network with convolutions, BatchNorm, dropout and biases."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def inputs_of(experience) -> Tensor:
    """All inputs of an experience as one tensor."""
    return torch.stack([experience.dataset[i][0] for i in range(len(experience.dataset))])


@torch.no_grad()
def logits(network, stream, tasks) -> list[Tensor]:
    """Logits of each task's test inputs, in evaluation mode."""
    network.eval()
    return [network(inputs_of(stream[task]), stream[task].task_label) for task in tasks]


class Stop(SupervisedPlugin):
    """Ends training by an error at a step; -1 for never."""

    state_attributes = ()

    def __init__(self, step):
        super().__init__()
        self.step = step

    def before_update(self, strategy, **kwargs):
        if strategy.clock.train_iterations == self.step:
            raise KeyboardInterrupt


def check_old_logits_stay(build, stream, model, folder) -> None:
    """Train a strategy on a stream, over a checkpoint and an archive; old logits must not move.

    :param build: gives a new strategy over a new model.
    :param stream: a benchmark of three tasks or more.
    :param model: gives a new plain model.
    :param folder: for the files.
    """
    strategy, known = build(), []
    for task, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        now = logits(strategy.model, stream.test_stream, range(task + 1))
        for before, after in zip(known, now):
            assert torch.equal(before, after)
        known = now
        if task == 1:
            save_checkpoint(strategy, folder / "checkpoint")
            strategy, following = load_checkpoint(build(), folder / "checkpoint", trusted=True)
            assert following == 2
    save_archive(strategy.model, folder / "archive")
    loaded = load_archive(folder / "archive", model)
    again = logits(loaded, stream.test_stream, range(len(known)))
    for before, after in zip(known, again):
        assert torch.equal(before, after)
