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
        self.body = nn.Sequential(
            features,
            nn.Linear(_outputs(features, input_shape), 800, bias=bias),
            nn.ReLU(),
            nn.Linear(800, 500, bias=bias),
            nn.ReLU(),
        )
        self.head = nn.Linear(500, classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        return self.head(self.body(x))


class CACLNet(nn.Module):
    """The network of the public CACL code: five convolutions without padding, ReLU after each.

    390,848 weights in the convolutions, for three channels; a head of 1,024 numbers at 32 pixels.

    :param input_shape: ``(channels, height, width)``.
    :param classes: outputs of the head, which has biases.
    :param bias: whether the convolutions have biases; the public network's have none.
    """

    def __init__(self, input_shape: InputShape, classes: int, bias: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(input_shape[0], 64, 3, bias=bias),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.15),
            nn.Conv2d(64, 128, 3, bias=bias),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.15),
            nn.Conv2d(128, 256, 2, bias=bias),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(_outputs(self.body, input_shape), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        return self.head(self.body(x))


class LeNetBN(nn.Module):
    """The LeNet of the public HALRP code: WSN's sizes, batch normalisation, pooling of 2 x 2.

    :param input_shape: ``(channels, height, width)``.
    :param classes: outputs of the head.
    """

    def __init__(self, input_shape: InputShape, classes: int) -> None:
        super().__init__()
        features = nn.Sequential(
            nn.Conv2d(input_shape[0], 20, 5, padding=2),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5, padding=2),
            nn.BatchNorm2d(50),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.body = nn.Sequential(
            features,
            nn.Linear(_outputs(features, input_shape), 800),
            nn.BatchNorm1d(800),
            nn.ReLU(),
            nn.Linear(800, 500),
            nn.BatchNorm1d(500),
            nn.ReLU(),
        )
        self.head = nn.Linear(500, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        return self.head(self.body(x))


class AlexNet(nn.Module):
    """The AlexNet of the public HALRP code: three convolutions, two layers of 2,048 units.

    There, batch normalisation keeps no running statistics, so that an answer depends on the other
    images of its batch. Here it keeps them.

    :param input_shape: ``(channels, height, width)``.
    :param classes: outputs of the head.
    """

    def __init__(self, input_shape: InputShape, classes: int) -> None:
        super().__init__()
        features = nn.Sequential(
            *_alexnet_block(input_shape[0], 64, 4, 0.2),
            *_alexnet_block(64, 128, 3, 0.2),
            *_alexnet_block(128, 256, 2, 0.5),
            nn.Flatten(),
        )
        self.body = nn.Sequential(
            features,
            nn.Linear(_outputs(features, input_shape), 2048),
            nn.BatchNorm1d(2048),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(2048, 2048),
            nn.BatchNorm1d(2048),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.head = nn.Linear(2048, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        return self.head(self.body(x))


def _alexnet_block(inputs: int, outputs: int, kernel: int, dropout: float) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.MaxPool2d(2),
    ]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input goes as it is, or through a 1 x 1 convolution.

    :param inputs: channels that come in.
    :param outputs: channels that go out.
    :param stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, outputs, height / stride, width / stride]`` of ``x``."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """The ResNet18 of the public HALRP code: 32 to 256 channels, mean of 2 x 2 before the head.

    :param input_shape: ``(channels, height, width)``.
    :param classes: outputs of the head.
    """

    def __init__(self, input_shape: InputShape, classes: int) -> None:
        super().__init__()
        blocks, inputs = [], 32
        for outputs, stride in ((32, 1), (64, 2), (128, 2), (256, 2)):
            blocks += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
            inputs = outputs
        self.body = nn.Sequential(
            nn.Conv2d(input_shape[0], 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            *blocks,
            nn.AvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(_outputs(self.body, input_shape), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        return self.head(self.body(x))


def mlp(in_features: int, classes: int, bias: bool = False) -> nn.Module:
    """The multilayer perceptron of the Permuted MNIST comparisons, see :class:`MLP`."""
    return MLP(in_features, classes, bias)


def lenet(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    """WSN's LeNet, see :class:`LeNet`."""
    return LeNet(input_shape, classes, bias)


def cacl_net(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    """CACL's network, see :class:`CACLNet`. Its head has biases in any case."""
    return CACLNet(input_shape, classes, bias)


def lenet_bn(input_shape: InputShape, classes: int, bias: bool = True) -> nn.Module:
    """HALRP's LeNet, see :class:`LeNetBN`. It has biases, whatever ``bias`` says."""
    return LeNetBN(input_shape, classes)


def alexnet(input_shape: InputShape, classes: int, bias: bool = True) -> nn.Module:
    """HALRP's AlexNet, see :class:`AlexNet`. It has biases, whatever ``bias`` says."""
    return AlexNet(input_shape, classes)


def resnet18(input_shape: InputShape, classes: int, bias: bool = True) -> nn.Module:
    """HALRP's ResNet18, see :class:`ResNet18`. It has biases, whatever ``bias`` says."""
    return ResNet18(input_shape, classes)


def _outputs(features: nn.Module, input_shape: InputShape) -> int:
    """Numbers per example that come out; leaves the module's statistics as they are."""
    training = features.training
    with torch.no_grad():
        numbers = features.eval()(torch.zeros(1, *input_shape)).shape[1]
    features.train(training)
    return numbers


def _mlp_for(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    return mlp(int(torch.Size(input_shape).numel()), classes, bias)


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp_for,
    "lenet": lenet,
    "cacl_net": cacl_net,
    "lenet_bn": lenet_bn,
    "alexnet": alexnet,
    "resnet18": resnet18,
}
"""Name to builder ``(input_shape, classes, bias) -> nn.Module``; without ``bias``, as published."""


def float_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and floating point buffers, at four bytes a number."""
    numbers = sum(p.numel() for p in model.parameters())
    numbers += sum(b.numel() for b in model.buffers() if b.is_floating_point())
    return 4 * numbers
