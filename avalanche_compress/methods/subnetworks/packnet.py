"""PackNet: prune by magnitude, keep what is left, train the next task on the free weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any

from typing_extensions import Unpack

from avalanche_compress.core.options import plain
from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.errors import TaskStateError
from avalanche_compress.methods.subnetworks.capacity import tasks_until_full, warn_of_room
from avalanche_compress.methods.subnetworks.plugin import Density, DensityRange, MaskingPlugin
from avalanche_compress.methods.subnetworks.store import MaskedStore
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.training.options import StrategyOptions, takes_over
from avalanche_compress.training.strategy import CompressedStrategy


class PackNet(CompressedStrategy):
    """PackNet (Mallya and Lazebnik, CVPR 2018), ``W_t = U_t * V``.

    A task trains all free weights, drops the smallest ``prune_proportion`` of them, trains on what
    it keeps, and freezes it. Later tasks read all frozen weights. In comparison with
    ``avalanche.training.PackNet``: any module converts (BatchNorm, biases, ResNets), every task
    has its own head, biases and norms, weight decay and any optimiser leave frozen weights alone,
    and the user's plugins, periodic evaluation and checkpoints work.

    Needs task labels, or ``task_inference=``. All other options are those of
    :class:`CompressedStrategy`.

    :param prune_proportion: part of the free weights that a task gives up, 0..1: a float, a list by
        position of the task, a function of it, or a mapping from a weight's name to one of these.
    :param post_prune_epochs: epochs of ``train_epochs`` that come after pruning.
    :ivar room: how many tasks find free weights, which a warning says on construction; None where
        proportions are given by position of the task.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> strategy = PackNet(model=model, optimizer=sgd, prune_proportion=0.5, evaluator=None)
    >>> strategy.network.tasks
    []
    """

    @takes_over(CompressedStrategy)
    def __init__(
        self,
        *,
        prune_proportion: Density = 0.5,
        post_prune_epochs: int = 0,
        **options: Unpack[StrategyOptions],
    ) -> None:
        masking = MaskingPlugin(complement(prune_proportion), post_prune_epochs=post_prune_epochs)
        super().__init__(store=MaskedStore, shaping=[masking], **options)
        self.room = tasks_until_full(self.network, masking.density)
        if self.room is not None:
            warn_of_room(
                "PackNet",
                self.room,
                "For n tasks give prune_proportion= a list of n numbers, for equal shares "
                "[1 - 1 / (n - i) for i in range(n)].",
            )


class _Complement:
    """``position -> 1 - function(position)``; a class, because checkpoints pickle it."""

    def __init__(self, function: Any):
        self.function = function

    def __call__(self, position: int) -> float:
        return 1 - float(self.function(position))


def complement(proportion: Density) -> Density:
    """The density that a pruned proportion leaves.

    :param proportion: what :class:`PackNet` takes.

    >>> complement([0.25, 0.5])
    [0.75, 0.5]
    """
    if isinstance(proportion, DensityRange):  # a search, too
        return replace(proportion, low=1 - proportion.high, high=1 - proportion.low)
    if isinstance(proportion, Mapping):
        return {name: complement(value) for name, value in proportion.items()}  # type: ignore[misc]
    if callable(proportion):
        return _Complement(proportion)
    proportion = plain(proportion)
    if isinstance(proportion, Sequence) and not isinstance(proportion, str):
        return [complement(p) for p in proportion]  # type: ignore[misc]
    if not isinstance(proportion, Real) or not 0 <= float(proportion) <= 1:
        raise TaskStateError(
            f"prune_proportion={proportion!r} must be a number between 0 and 1, or some by layer "
            "or task."
        )
    return 1 - proportion


register_method(
    Method(
        "packnet",
        PackNet,
        MaskedStore,
        small={"prune_proportion": 0.6, "post_prune_epochs": 1},
        long={"prune_proportion": 0.98},
        variants={
            "wide": {"prune_proportion": 0.97},
            "8bit": {"plugins": [partial(QuantizationPlugin, 8)]},
        },
        recipes=["packnet_4bit"],
    )
)
