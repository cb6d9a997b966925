"""The kinds of data sets, and of transforms, whose samples are known as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
import torch
from avalanche.benchmarks.classic.cmnist import PixelsPermutation
from avalanche.benchmarks.datasets.external_datasets.mnist import TensorMNIST
from avalanche.benchmarks.utils.classification_dataset import (
    _TensorClassificationDataset,
    lookup,
)
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.datasets import CIFAR10, MNIST, SVHN

from avalanche_compress.host.tensor_data.samples import (
    ByteValues,
    Decode,
    NoTensorsError,
    TensorSamples,
)

_OF_A_NUMBER = ("ToTensor", "PILToTensor", "ConvertImageDtype", "ToImage", "ToDtype", "Normalize")
"""torchvision's transforms that compute each number of an image from its byte and its channel."""


def _is_torchvision(transform: Any, names: Sequence[str]) -> bool:
    """Whether a transform is of one of these classes, in the first or the second API."""
    kind = type(transform)
    return kind.__module__.startswith("torchvision.transforms.") and kind.__name__ in names


def known_samples(dataset: Any, chain: Sequence[Any]) -> TensorSamples:
    """The samples of a data set as tensors, if it is of a known kind.

    :param dataset: none of the wrappers.
    :param chain: transforms of the inputs that follow on those of its own.
    :raises NoTensorsError: if it is not, or the transforms are not known.
    """
    kind = type(dataset)
    if hasattr(dataset, "ffcv_info"):
        raise NoTensorsError("it is read by FFCV")
    if hasattr(dataset, "tensor_samples"):
        samples: TensorSamples = dataset.tensor_samples()
        return samples._replace(decode=_followed_by(samples.decode, chain))
    if kind in (TensorDataset, _TensorClassificationDataset):
        inputs, targets = _two_tensors(dataset)
        return TensorSamples(inputs, targets, _followed_by(None, chain))
    if getattr(kind, "__getitem__", None) in _BYTE_IMAGES:
        inputs, values = _byte_images(dataset, [*flat(dataset.transform), *chain])
        targets = torch.as_tensor(dataset.labels if kind is SVHN else dataset.targets).long()
        return TensorSamples(inputs, renumbered(targets, flat(dataset.target_transform)), values)
    raise NoTensorsError(f"{kind.__name__} is no data set whose samples are known as tensors")


def changes_of(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None where torch does not count.

    :param tensor: any.
    """
    return None if tensor.is_inference() else tensor._version


def mark_of(dataset: Any) -> list[Any]:
    """What is another one once tensors and lists of a data set were changed in place, or replaced.

    Of arrays only those of one dimension are looked into; images in NumPy have no count of changes.

    :param dataset: none of the wrappers.
    """
    return [_mark(value) for value in getattr(dataset, "__dict__", {}).values()]


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), changes_of(value)
    if isinstance(value, np.ndarray):
        return id(value), crc32(value.tobytes()) if value.ndim == 1 else None
    if isinstance(value, tuple):
        return [_mark(entry) for entry in value]
    try:
        return id(value), hash(tuple(value)) if isinstance(value, list) else None
    except TypeError:  # a list of lists, say
        return id(value)


def _two_tensors(dataset: TensorDataset) -> tuple[Tensor, Tensor]:
    if len(dataset.tensors) != 2:
        raise NoTensorsError(f"its samples have {len(dataset.tensors)} parts, not two")
    inputs, targets = dataset.tensors
    plain = all(t.layout is torch.strided and not t.requires_grad for t in (inputs, targets))
    if not plain or targets.dim() != 1 or targets.is_floating_point() or targets.is_complex():
        raise NoTensorsError("its tensors are no plain inputs and class numbers")
    if type(dataset) is _TensorClassificationDataset:  # which makes a Python integer of each
        if targets.dtype is torch.bool:
            raise NoTensorsError("its targets are no class numbers")
        targets = targets.long()
    return inputs, targets


def flat(chain: Any) -> list[Any]:
    """Transforms one after another, without the objects that compose them.

    :param chain: a transform, several, or None.
    """
    if chain is None:
        return []
    if _is_torchvision(chain, ("Compose",)):
        chain = chain.transforms
    if not isinstance(chain, (list, tuple)):
        return [chain]
    return [transform for inner in chain for transform in flat(inner)]


def renumbered(targets: Tensor, chain: Sequence[Any]) -> Tensor:
    """Targets after transforms, each of which must be Avalanche's table of class numbers.

    :param targets: int64 ``(N,)``.
    :param chain: the transforms.
    :raises NoTensorsError: for any other transform.
    """
    for transform in chain:
        if not (isinstance(transform, partial) and transform.func is lookup):
            raise NoTensorsError(f"the target transform {_name(transform)} is not known")
        old, places = torch.unique(targets, return_inverse=True)
        new = [transform(number) for number in old.tolist()]
        if not all(type(number) is int for number in new):
            raise NoTensorsError("its class numbers are no integers")
        targets = torch.tensor(new)[places]
    return targets


def _followed_by(decode: Decode | None, chain: Sequence[Any]) -> Decode | None:
    """A decoder, and after it transforms of floats that work on whole batches."""
    for transform in chain:
        if not _is_torchvision(transform, ("Normalize",)) or transform.inplace:
            raise NoTensorsError(f"the transform {_name(transform)} is not known on tensors")
    if not chain:
        return decode

    def decoded(data: Tensor) -> Tensor:
        for step in ([] if decode is None else [decode]) + list(chain):
            data = step(data)
        return data

    return decoded


def _byte_images(dataset: Any, chain: list[Any]) -> tuple[Tensor, Decode]:
    """A data set of images in memory: its bytes, and the table of what the transforms make of them.

    The table is what they make of an image that has all bytes in all channels.
    """
    as_first_transform_gets_it, channels_first = _BYTE_IMAGES[type(dataset).__getitem__]
    data = torch.as_tensor(dataset.data)
    if data.dtype is not torch.uint8 or data.dim() not in (3, 4):
        raise NoTensorsError(f"its data are no images of bytes but {data.dtype}")
    shape = tuple(data.shape[1:])
    every_byte = torch.arange(256, dtype=torch.uint8).view(16, 16)
    order: Tensor | None = None
    if len(shape) == 2:
        shape, probe = (1, *shape), every_byte
    elif channels_first:
        probe = every_byte.expand(shape[0], 16, 16)
    else:
        probe = every_byte[:, :, None].expand(16, 16, shape[2])
        order = torch.arange(data[0].numel()).view(shape).permute(2, 0, 1).flatten()
        shape = (shape[2], *shape[:2])
    for transform in chain:
        if type(transform) is not PixelsPermutation and not _is_torchvision(
            transform, _OF_A_NUMBER
        ):
            raise NoTensorsError(f"the transform {_name(transform)} is not known on tensors")
    result = as_first_transform_gets_it(probe.contiguous())
    for transform in chain:
        if isinstance(transform, PixelsPermutation):
            if shape[0] != 1:
                raise NoTensorsError("a permutation of pixels in several channels is not known")
            moved = torch.as_tensor(transform.permutation)
            order = moved if order is None else order[moved]
            transform = PixelsPermutation(range(256))
        result = transform(result)
    if not isinstance(result, Tensor) or result.shape != (shape[0], 16, 16):
        raise NoTensorsError("its transforms do not give a tensor of the image's size")
    table = result.detach().as_subclass(Tensor).reshape(shape[0], 256)  # type: ignore[arg-type]
    return data, ByteValues(table[0] if shape[0] == 1 else table, shape, order)


def _name(transform: Any) -> str:
    return getattr(transform, "__name__", type(transform).__name__)


def _as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.numpy())


def _as_picture_from_channels(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def _as_fractions(image: Tensor) -> Tensor:
    return image.float().unsqueeze(0) / 255.0


_BYTE_IMAGES: dict[Any, tuple[Callable[[Tensor], Any], bool]] = {
    MNIST.__getitem__: (_as_picture, False),
    TensorMNIST.__getitem__: (_as_fractions, False),
    CIFAR10.__getitem__: (_as_picture, False),
    SVHN.__getitem__: (_as_picture_from_channels, True),
}
"""How these data sets give an image of bytes to their first transform, and whether its channels
come first; by the method, so that subclasses that build samples otherwise are not taken for them.
"""
