"""Plain networks with one head, the last ``Linear``, called ``head``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.runs.dropout import Dropout

InputShape = tuple[int, ...]


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
    """The LeNets of the public WSN code: two convolutions of 5 x 5, then two layers.

    :param input_shape: ``(channels, height, width)``.
    :param classes: outputs of the head.
    :param bias: whether the layers have biases; the public networks have none.
    :param filters: of the convolutions.
    :param units: of the layers.
    """

    def __init__(
        self,
        input_shape: InputShape,
        classes: int,
        bias: bool = False,
        filters: tuple[int, int] = (20, 50),
        units: tuple[int, int] = (800, 500),
    ) -> None:
        super().__init__()
        features = nn.Sequential(
            nn.Conv2d(input_shape[0], filters[0], 5, padding=2, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Conv2d(filters[0], filters[1], 5, padding=2, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Flatten(),
        )
        self.body = nn.Sequential(
            features,
            nn.Linear(_outputs(features, input_shape), units[0], bias=bias),
            nn.ReLU(),
            nn.Linear(units[0], units[1], bias=bias),
            nn.ReLU(),
        )
        self.head = nn.Linear(units[1], classes, bias=bias)

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
            Dropout(0.15),
            nn.Conv2d(64, 128, 3, bias=bias),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(2),
            Dropout(0.15),
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
    """The AlexNet of the public HALRP and WSN codes: three convolutions, two layers of 2,048 units.

    There, batch normalisation keeps no running statistics, so that an answer depends on the other
    images of its batch. Here it keeps them.

    :param input_shape: ``(channels, height, width)``.
    :param classes: outputs of the head.
    :param bias: whether layers have biases and norms scales and shifts: HALRP's have, WSN's not.
    """

    def __init__(self, input_shape: InputShape, classes: int, bias: bool = True) -> None:
        super().__init__()
        features = nn.Sequential(
            *_alexnet_block(input_shape[0], 64, 4, 0.2, bias),
            *_alexnet_block(64, 128, 3, 0.2, bias),
            *_alexnet_block(128, 256, 2, 0.5, bias),
            nn.Flatten(),
        )
        self.body = nn.Sequential(
            features,
            nn.Linear(_outputs(features, input_shape), 2048, bias=bias),
            nn.BatchNorm1d(2048, affine=bias),
            nn.ReLU(),
            Dropout(0.5),
            nn.Linear(2048, 2048, bias=bias),
            nn.BatchNorm1d(2048, affine=bias),
            nn.ReLU(),
            Dropout(0.5),
        )
        self.head = nn.Linear(2048, classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        return self.head(self.body(x))


def _alexnet_block(
    inputs: int, outputs: int, kernel: int, dropout: float, bias: bool
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, bias=bias),
        nn.BatchNorm2d(outputs, affine=bias),
        nn.ReLU(),
        Dropout(dropout),
        nn.MaxPool2d(2),
    ]


class TinyNet(nn.Module):
    """WSN's network for TinyImageNet: four convolutions of 160 filters, two layers of 640 units.

    2,743,520 weights before the head at 64 pixels; each convolution halves height and width.

    :param input_shape: ``(channels, height, width)``.
    :param classes: outputs of the head.
    :param bias: whether the layers have biases; the public network has none.
    """

    def __init__(self, input_shape: InputShape, classes: int, bias: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (input_shape[0], 160, 160, 160):
            layers += [nn.Conv2d(inputs, 160, 3, 2, padding=1, bias=bias), nn.ReLU()]
        features = nn.Sequential(*layers, nn.Flatten())
        self.body = nn.Sequential(
            features,
            nn.Linear(_outputs(features, input_shape), 640, bias=bias),
            nn.ReLU(),
            nn.Linear(640, 640, bias=bias),
            nn.ReLU(),
        )
        self.head = nn.Linear(640, classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        return self.head(self.body(x))


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


class TorchvisionResNet18(nn.Module):
    """torchvision's ResNet18, untrained, for images of 64 pixels and more.

    Its stem, a convolution of 7 x 7 and a pooling, leaves a quarter of the height and width. For
    images that are not of three channels the convolution is another one.

    :param input_shape: ``(channels, height, width)``.
    :param classes: outputs of the head, which has biases.
    """

    def __init__(self, input_shape: InputShape, classes: int) -> None:
        from torchvision.models import resnet18

        super().__init__()
        *layers, head = resnet18().children()
        if input_shape[0] != 3:
            layers[0] = nn.Conv2d(input_shape[0], 64, 7, 2, padding=3, bias=False)
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(head.in_features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        return self.head(self.body(x))


class ViT(nn.Module):
    """A small vision transformer: torch's encoder layers on patches of 4 x 4, mean of the patches.

    Four layers of width 128 with four heads of attention, norms first, 256 hidden units, no
    dropout. The sizes are our choice; at 3 x 32 x 32 the body has 544,640 parameters.

    :param input_shape: ``(channels, height, width)``, height and width multiples of 4.
    :param classes: outputs of the head.
    """

    def __init__(self, input_shape: InputShape, classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.patches = nn.Conv2d(channels, 128, 4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(height // 4 * (width // 4), 128))
        layers = [
            nn.TransformerEncoderLayer(128, 4, 256, 0.0, batch_first=True, norm_first=True)
            for _ in range(4)
        ]
        self.body = nn.Sequential(*layers, nn.LayerNorm(128))
        self.head = nn.Linear(128, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, channels, height, width]``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.body(tokens).mean(1))


def mlp(in_features: int, classes: int, bias: bool = False) -> nn.Module:
    """The multilayer perceptron of the Permuted MNIST comparisons, see :class:`MLP`."""
    return MLP(in_features, classes, bias)


def lenet(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    """WSN's LeNet, see :class:`LeNet`."""
    return LeNet(input_shape, classes, bias)


def lenet_large(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    """WSN's LeNet for Omniglot: 64 and 128 filters, 2,500 and 1,500 units, see :class:`LeNet`."""
    return LeNet(input_shape, classes, bias, (64, 128), (2500, 1500))


def cacl_net(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    """CACL's network, see :class:`CACLNet`. Its head has biases in any case."""
    return CACLNet(input_shape, classes, bias)


def lenet_bn(input_shape: InputShape, classes: int, bias: bool = True) -> nn.Module:
    """HALRP's LeNet, see :class:`LeNetBN`. It has biases, whatever ``bias`` says."""
    return LeNetBN(input_shape, classes)


def alexnet(input_shape: InputShape, classes: int, bias: bool = True) -> nn.Module:
    """HALRP's AlexNet, see :class:`AlexNet`. It has biases, whatever ``bias`` says."""
    return AlexNet(input_shape, classes)


def alexnet_wsn(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    """WSN's AlexNet, see :class:`AlexNet`."""
    return AlexNet(input_shape, classes, bias)


def tinynet(input_shape: InputShape, classes: int, bias: bool = False) -> nn.Module:
    """WSN's network for TinyImageNet, see :class:`TinyNet`."""
    return TinyNet(input_shape, classes, bias)


def resnet18(input_shape: InputShape, classes: int, bias: bool = True) -> nn.Module:
    """HALRP's ResNet18, see :class:`ResNet18`. It has biases, whatever ``bias`` says."""
    return ResNet18(input_shape, classes)


def resnet18_torchvision(input_shape: InputShape, classes: int, bias: bool = True) -> nn.Module:
    """ResNet18 of torchvision, see :class:`TorchvisionResNet18`, whatever ``bias`` says."""
    return TorchvisionResNet18(input_shape, classes)


def vit(input_shape: InputShape, classes: int, bias: bool = True) -> nn.Module:
    """A small vision transformer, see :class:`ViT`. It has biases, whatever ``bias`` says."""
    return ViT(input_shape, classes)


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
    "lenet_large": lenet_large,
    "cacl_net": cacl_net,
    "lenet_bn": lenet_bn,
    "alexnet": alexnet,
    "alexnet_wsn": alexnet_wsn,
    "tinynet": tinynet,
    "resnet18": resnet18,
    "resnet18_torchvision": resnet18_torchvision,
    "vit": vit,
}
"""Name to builder ``(input_shape, classes, bias) -> nn.Module``; without ``bias``, as published."""


def float_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and floating point buffers, at four bytes a number."""
    numbers = sum(p.numel() for p in model.parameters())
    numbers += sum(b.numel() for b in model.buffers() if b.is_floating_point())
    return 4 * numbers
