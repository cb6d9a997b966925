"""One layer of few terms as two thin ones, which is less work where the terms are few enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from inspect import unwrap
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from avalanche_compress.codec import LowRankWeight

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NOT_OF_TWO = frozenset(
    (*nn.Linear.__constants__, *nn.Conv2d.__constants__, "weight", "bias", "transposed")
)
"""Attributes of a layer that two thin ones do not have."""
_BUILDING = ("__init__", "_init_weights", "init_weights", "reset_parameters")
"""Methods that no forward pass calls."""


def thin_layers(layer: nn.Module, weight: LowRankWeight) -> nn.Sequential | None:
    """Two layers that compute what ``layer`` computes with this weight, up to rounding.

    A Linear becomes two; a convolution one to R channels and then one of 1 x 1, or, where the
    factors are spatial, one of kh x 1 and then one of 1 x kw.

    :param layer: a Linear or a convolution; its own weight does not matter, its bias does.
    :param weight: what to compute with.
    :return: None for other layers, subclasses and grouped convolutions.

    >>> import torch
    >>> from avalanche_compress.codec import Factors
    >>> one = Factors(torch.ones(1, 3), torch.ones(1), torch.ones(1, 5))
    >>> thin_layers(nn.Linear(5, 3), LowRankWeight(one, spatial=False))
    Sequential(
      (0): Linear(in_features=5, out_features=1, bias=False)
      (1): Linear(in_features=1, out_features=3, bias=True)
    )
    """
    layer_type: Any = type(layer)
    if layer_type is nn.Linear:
        pair = _linear_pair(layer, weight)  # type: ignore[arg-type]
    elif layer_type in _CONVOLUTIONS and layer.groups == 1:
        pair = (_spatial_pair if weight.spatial else _channel_pair)(layer, weight)
    else:
        return None
    return nn.Sequential(*pair).train(layer.training)


def work_of(layer: nn.Module, weight: LowRankWeight) -> tuple[int, int]:
    """Multiplications for each position of the output: by one dense layer, by two thin ones.

    :param layer: a Linear or a convolution.
    :param weight: its factors.

    >>> import torch
    >>> from avalanche_compress.codec import Factors
    >>> two = Factors(torch.ones(2, 8), torch.ones(2), torch.ones(2, 6))
    >>> work_of(nn.Linear(6, 8), LowRankWeight(two, spatial=False))
    (48, 28)
    """
    left, scale, right = weight.factors
    dense = int(layer.weight.numel())  # type: ignore[operator,union-attr]
    if not weight.spatial:
        return dense, scale.numel() * (left.shape[1] + right.shape[1])
    # the first layer works at every column, before the second one's stride
    columns = layer.stride[1]  # type: ignore[index]
    return dense, scale.numel() * (left.shape[1] * int(columns) + right.shape[1])


def _linear_pair(layer: nn.Linear, weight: LowRankWeight) -> tuple[nn.Module, nn.Module]:
    left, scale, right = weight.factors
    first = nn.Linear(layer.in_features, scale.numel(), bias=False, device="meta")
    second = nn.Linear(scale.numel(), layer.out_features, device="meta")
    _fill(first, scale.abs().unsqueeze(1) * right, None)
    _fill(second, left.t(), layer.bias)
    return first, second


def _channel_pair(layer: Any, weight: LowRankWeight) -> tuple[nn.Module, nn.Module]:
    left, scale, right = weight.factors
    kernel = layer.kernel_size
    first = _convolution(layer, layer.in_channels, scale.numel(), [0, 1, 2][: len(kernel)])
    second = _convolution(layer, scale.numel(), layer.out_channels, [])
    scaled = scale.abs().unsqueeze(1) * right
    _fill(first, scaled.view(-1, layer.in_channels, *kernel), None)
    _fill(second, left.t().reshape(layer.out_channels, -1, *(1 for _ in kernel)), layer.bias)
    return first, second


def _spatial_pair(layer: Any, weight: LowRankWeight) -> tuple[nn.Module, nn.Module]:
    left, scale, right = weight.factors
    high, wide = layer.kernel_size
    first = _convolution(layer, layer.in_channels, scale.numel(), [0])
    second = _convolution(layer, scale.numel(), layer.out_channels, [1])
    scaled = scale.abs().unsqueeze(1) * right
    _fill(first, left.view(-1, layer.in_channels, high, 1), None)
    _fill(second, scaled.view(-1, layer.out_channels, 1, wide).transpose(0, 1), layer.bias)
    return first, second


def _convolution(layer: Any, channels: int, filters: int, axes: list[int]) -> nn.Module:
    """A convolution with the layer's geometry along some axes and none along the others."""

    def along(values: Any, neutral: int) -> tuple[int, ...]:
        return tuple(v if axis in axes else neutral for axis, v in enumerate(values))

    text = isinstance(layer.padding, str)
    layer_type: Any = type(layer)
    convolution: nn.Module = layer_type(
        channels,
        filters,
        along(layer.kernel_size, 1),
        stride=along(layer.stride, 1),
        padding=layer.padding if text else along(layer.padding, 0),
        dilation=along(layer.dilation, 1),
        padding_mode=layer.padding_mode,
        device="meta",
    )
    return convolution


def _fill(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer its tensors, as Parameters that require no gradient."""
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)


def thin_out(
    model: nn.Module, weights: Sequence[tuple[nn.Module, LowRankWeight | None]], always: bool
) -> None:
    """Put two thin layers where a layer's weight has few terms.

    A layer stays whose weight, bias or sizes the model's code reads, as torch's
    ``TransformerEncoderLayer`` does: two have no such attributes.

    :param model: changed in place.
    :param weights: its layers, and the weight of each; None where that is not of few terms.
    :param always: also where two thin layers are more work than the dense one.
    """
    thin: dict[int, nn.Module] = {}
    read = _read_layers(model)
    for layer, weight in weights:
        if weight is None or not weight.factors.rank or id(layer) in read:
            continue
        pair = thin_layers(layer, weight)
        if pair is not None:
            dense, factored = work_of(layer, weight)
            if always or factored < dense:
                thin[id(layer)] = pair
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in thin:
                parent._modules[name] = thin[id(child)]


def _read_layers(model: nn.Module) -> set[int]:
    """Layers that the model's code may read attributes of, by id.

    A function reads a layer if it has all the names that lead there and one of the attributes:
    this takes some for read that are not, and those stay whole.
    """
    functions = {kind: list(_names_in(kind)) for kind in {type(m) for m in model.modules()}}
    found = set()
    for ancestor in model.modules():
        reading = [names for names in functions[type(ancestor)] if names & _NOT_OF_TWO]
        for path, layer in ancestor.named_modules(remove_duplicate=False) if reading else ():
            way = {name for name in path.split(".") if not name.isdigit()} - {""}
            if way and any(way <= names for names in reading):
                found.add(id(layer))
    return found


def _names_in(kind: type[nn.Module]) -> Iterator[set[str]]:
    """The names in each function of a class, and of the files that it and its bases are from.

    torch's own base classes, which read no layer of a model, are left out.
    """
    for base in kind.__mro__:
        if base in (nn.Module, object):
            break
        functions = {**vars(sys.modules[base.__module__]), **vars(base)}
        for name, function in functions.items():
            function = unwrap(function) if isinstance(function, FunctionType) else function
            own = isinstance(function, FunctionType) and function.__module__ == base.__module__
            if own and name not in _BUILDING:
                yield set(_names_of(function.__code__))


def _names_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of(constant)
