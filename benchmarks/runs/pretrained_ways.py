"""What a task may train of a pretrained network, and how it keeps that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from avalanche_compress import QuantizationPlugin

TRAINED: dict[str, Callable[[nn.Module, str], bool]] = {
    "head": lambda module, name: False,
    "biases": lambda module, name: name == "bias",
    "norms": lambda module, name: isinstance(module, nn.BatchNorm2d),
    "all": lambda module, name: True,
}
"""Whether a parameter of the body is trained, by its module and its name in that."""


@dataclass(frozen=True)
class Way:
    """What a task trains, and with which method.

    :param method: name of a registered method.
    :param trains: parameters of the body, a key of :data:`TRAINED`; the others are frozen, and all
        tasks share them.
    :param options: of the strategy.
    :param bits: of values, heads included, by a :class:`QuantizationPlugin`; None for none.
    :param norms: whether each task has norms of its own, statistics included; else they stay as
        they were pretrained.
    """

    method: str
    trains: str
    options: Mapping[str, Any] = field(default_factory=dict)
    bits: int | None = 8
    norms: bool = True

    def freeze(self, body: nn.Module) -> None:
        """Leave what a task trains to the optimiser.

        :param body: of the network, without its head.
        """
        chosen = TRAINED[self.trains]
        for module in body.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(chosen(module, name))
        if not self.norms:
            for place, layer in list(body.named_children()):
                if isinstance(layer, nn.BatchNorm2d):
                    setattr(body, place, _frozen(layer))

    def plugins(self) -> list[QuantizationPlugin]:
        """Those of the user."""
        if self.bits is None:
            return []
        return [QuantizationPlugin(self.bits, private_bits=max(self.bits, 8))]


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    """A norm that computes with given statistics in training, too, and has no parameters."""
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen


def _given(trains: str, bits: int | None, norms: bool = True, **options: Any) -> Way:
    """LoRA over the given weights; where it has no weight to adapt, what is trained is copied."""
    return Way("lora", trains, {"base": "given", **options}, bits, norms)


WAYS: dict[str, Way] = {
    "head": _given("head", None),
    "head, 8 bits": _given("head", 8),
    "head and biases (BitFit), 8 bits": _given("biases", 8),
    "head and norms, 8 bits": _given("norms", 8),
    "LoRA rank 2, 8 bits": _given("all", 8, norms=False, rank=2),
    "LoRA rank 8, 4 bits": _given("all", 4, norms=False, rank=8),
    "LoRA rank 8, 8 bits": _given("all", 8, norms=False, rank=8),
    "LoRA rank 8, 8 bits, and norms": _given("all", 8, rank=8),
    "LoRA rank 32, 8 bits": _given("all", 8, norms=False, rank=32),
    "HALRP, 8 bits": Way("halrp", "all", {"base": "given"}, norms=False),
    "CACL, 8 bits": Way("cacl", "all", norms=False),
    "PackNet, 8 bits": Way("packnet", "all"),
    "WSN, 8 bits": Way("wsn", "all"),
    "WSN, 8 bits, without norms": Way("wsn", "all", norms=False),
    "TinySubNets": Way("tinysubnets", "all", {"private_bits": 8}, None),
    "AdaQPackNet": Way(
        "ada_qpacknet", "all", {"private_bits": 8, "capacity_policy": "grow_copy"}, None
    ),
    "everything": _given("all", None, exclude=("0",)),
    "everything, 8 bits": _given("all", 8, exclude=("0",)),
    "everything but norms, 8 bits": _given("all", 8, norms=False, exclude=("0",)),
}
"""By name."""
