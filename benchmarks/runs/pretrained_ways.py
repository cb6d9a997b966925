"""What a task may train of a pretrained network, and how it keeps that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from avalanche_compress import QuantizationPlugin
from benchmarks.runs.recipe import Shares

TRAINED: dict[str, Callable[[nn.Module, str], bool]] = {
    "head": lambda module, name: False,
    "biases": lambda module, name: name == "bias",
    "norms": lambda module, name: isinstance(module, nn.BatchNorm2d),
    "all": lambda module, name: True,
}
"""Whether a parameter of the body is trained, by its module and its name in that."""


class GivenStatistics(nn.BatchNorm2d):
    """A norm that stays in evaluation mode: its affine is trained, its statistics are given."""

    def train(self, mode: bool = True) -> GivenStatistics:
        """Stay in evaluation mode, whatever the mode."""
        return super().train(False)


def _with_given_statistics(norm: nn.BatchNorm2d) -> nn.Module:
    given = GivenStatistics(norm.num_features, norm.eps)
    given.load_state_dict(norm.state_dict())
    for name, parameter in norm.named_parameters():
        given.get_parameter(name).requires_grad_(parameter.requires_grad)
    return given.eval()


def _frozen(norm: nn.BatchNorm2d) -> nn.Module:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen


NORMS: dict[str, Callable[[nn.BatchNorm2d], nn.Module]] = {
    "statistics": lambda norm: norm,
    "affine": _with_given_statistics,
    "nothing": _frozen,
}
"""What each task has of a norm: all of it, its affine alone, or nothing: all tasks share it."""


@dataclass(frozen=True)
class Way:
    """What a task trains, and with which method.

    :param method: name of a registered method.
    :param trains: parameters of the body, a key of :data:`TRAINED`; the others are frozen, and all
        tasks share them.
    :param options: of the strategy.
    :param bits: of values, heads included, by a :class:`QuantizationPlugin`; None for none.
    :param norms: what of a norm each task has for itself, a key of :data:`NORMS`.
    """

    method: str
    trains: str
    options: Mapping[str, Any] = field(default_factory=dict)
    bits: int | None = 8
    norms: str = "statistics"

    @property
    def key(self) -> str:
        """A name for all that the way says: rows of another way do not pass for its own."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    def freeze(self, body: nn.Module) -> None:
        """Leave what a task trains to the optimiser.

        :param body: of the network, without its head.
        """
        chosen = TRAINED[self.trains]
        for module in body.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(chosen(module, name))
        for place, layer in list(body.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(body, place, NORMS[self.norms](layer))

    def plugins(self) -> list[QuantizationPlugin]:
        """Those of the user."""
        if self.bits is None:
            return []
        return [QuantizationPlugin(self.bits, private_bits=max(self.bits, 8))]


def _given(trains: str, bits: int | None, norms: str = "statistics", **options: Any) -> Way:
    """LoRA over the given weights; where it has no weight to adapt, what is trained is copied."""
    return Way("lora", trains, {"base": "given", **options}, bits, norms)


TASKS, EPOCHS = 20, 5
"""How many tasks are learned, and for how long each, unless something else is asked for."""
_EQUAL_SHARES = {
    "prune_proportion": Shares(shares=[1.0, 1.0]).resolve(EPOCHS, TASKS),
    "post_prune_epochs": EPOCHS - 1,
}
"""Each task has as many weights, with which it trains on when it has been pruned."""
_CHOSEN_BITS = {"private_bits": 8}
_IN_PAGES = {**_CHOSEN_BITS, "capacity_policy": "grow_copy"}

WAYS: dict[str, Way] = {
    "head": _given("head", None),
    "head, 8 bits": _given("head", 8),
    "head and biases (BitFit), 8 bits": _given("biases", 8),
    "head and norms, 8 bits": _given("norms", 8),
    "head and norms but for statistics, 8 bits": _given("norms", 8, norms="affine"),
    "LoRA rank 2, 8 bits": _given("all", 8, norms="nothing", rank=2),
    "LoRA rank 8, 4 bits": _given("all", 4, norms="nothing", rank=8),
    "LoRA rank 8, 8 bits": _given("all", 8, norms="nothing", rank=8),
    "LoRA rank 8, 8 bits, and norms": _given("all", 8, rank=8),
    "LoRA rank 32, 8 bits": _given("all", 8, norms="nothing", rank=32),
    "HALRP, 8 bits": Way("halrp", "all", {"base": "given"}, norms="nothing"),
    "CACL, 8 bits": Way("cacl", "all", norms="nothing"),
    "PackNet, 8 bits": Way("packnet", "all", _EQUAL_SHARES),
    "PackNet, 8 bits, without norms": Way("packnet", "all", _EQUAL_SHARES, norms="nothing"),
    "WSN, 8 bits": Way("wsn", "all"),
    "WSN, 8 bits, without norms": Way("wsn", "all", norms="nothing"),
    "WSN, 4 bits, without norms": Way("wsn", "all", bits=4, norms="nothing"),
    "TinySubNets": Way("tinysubnets", "all", _CHOSEN_BITS, None),
    "TinySubNets, without norms": Way("tinysubnets", "all", _CHOSEN_BITS, None, "nothing"),
    "AdaQPackNet": Way("ada_qpacknet", "all", _IN_PAGES, None),
    "AdaQPackNet, without norms": Way("ada_qpacknet", "all", _IN_PAGES, None, "nothing"),
    "everything": _given("all", None, exclude=("0",)),
    "everything, 8 bits": _given("all", 8, exclude=("0",)),
    "everything but norms, 8 bits": _given("all", 8, norms="nothing", exclude=("0",)),
}
"""By name."""
