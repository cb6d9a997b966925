"""Plain networks with one head, the last ``Linear``, called ``head``."""

from __future__ import annotations

from typing import Callable, Tuple

import torch
from torch import nn

InputShape = Tuple[int, ...]


class MLP(nn.Module):
    """Two hidden layers of 100 units, ReLU, on the flattened input.

    :param in_features: numbers per example.
    :param classes: outputs of the head.
    :param bias: whether the layers have biases; WSN's public network has none.

    >>> sum(p.numel() for p in MLP(784, 10).parameters())
    89400
    """

    def __init__(self, in_features: int, classes: int, bias: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_features, 100, bias=bias),
            nn.ReLU(),
            nn.Linear(100, 100, bias=bias),
            nn.ReLU(),
        )
        self.head = nn.Linear(100, classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, ...]``."""
        return self.head(self.body(x))


class LeNet(nn.Module):
    """The LeNet of the public WSN code: 20 and 50 filters of 5 x 5, then 800 and 500 units.

    :param input_shape: ``(channels, height, width)``.
    :param classes: outputs of the head.
    :param bias: whether the layers have biases; the public network has none.
    """

    def __init__(self, input_shape: InputShape, classes: int, bias: bool = False) -> None:
        super().__init__()
        features = nn.Sequential(
            nn.Conv2d(input_shape[0], 20, 5, padding=2, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Conv2d(20, 50, 5, padding=2, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Flatten(),
        )
        with torch.no_grad():
            flat = features(torch.zeros(1, *input_shape)).shape[1]
        self.body = nn.Sequential(
            features,
            nn.Linear(flat, 800, bias=bias),
            nn.ReLU(),
            nn.Linear(800, 500, bias=bias),
            nn.ReLU(),
        )
        self.head = nn.Linear(500, classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        return self.head(self.body(x))


def mlp(in_features: int, classes: int, bias: bool = False) -> nn.Module:
    """The multilayer perceptron of the Permuted MNIST comparisons, see :class:`MLP`."""
    return MLP(in_features, classes, bias)


def lenet(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    """WSN's LeNet, see :class:`LeNet`."""
    return LeNet(input_shape, classes, bias)


def _mlp_for(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    return mlp(int(torch.Size(input_shape).numel()), classes, bias)


BACKBONES: dict[str, Callable[..., nn.Module]] = {"mlp": _mlp_for, "lenet": lenet}
"""Name to builder ``(input_shape, classes, bias=False) -> nn.Module``."""


def float_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and floating point buffers, at four bytes a number."""
    numbers = sum(p.numel() for p in model.parameters())
    numbers += sum(b.numel() for b in model.buffers() if b.is_floating_point())
    return 4 * numbers
