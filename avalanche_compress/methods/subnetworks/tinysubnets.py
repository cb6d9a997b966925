"""TinySubNets: WSN's sub-networks, pruned further, at few bits, shared by tasks that are alike."""

from __future__ import annotations

from functools import partial
from typing import Any

from avalanche.core import SupervisedPlugin

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.subnetworks.plugin import Density, MaskingPlugin, start_scores
from avalanche_compress.methods.subnetworks.store import MaskedStore
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.shaping.sharing import SharingPlugin
from avalanche_compress.shaping.validation import validation_unless_given
from avalanche_compress.training.strategy import CompressedStrategy


class TinySubNets(CompressedStrategy):
    """TinySubNets (Pietron et al., AAAI 2025, arXiv 2412.10869), on WSN's learned masks.

    After training, a task gives up own weights as long as validation accuracy allows
    (``prune_rounds``), then the values it newly keeps are quantised to the fewest bits within
    ``tolerance``. Weights of earlier tasks are read as they are, so nothing is forgotten: the
    public code quantises them again, which this does not.

    Needs task labels, or ``task_inference=``. All other arguments as in
    :class:`CompressedStrategy`.

    :param density: as in :class:`WSN`.
    :param post_prune_epochs: as in :class:`WSN`.
    :param score_init: as in :class:`WSN`.
    :param bits: bits of a value, or ``"auto"``; see :class:`QuantizationPlugin`.
    :param tolerance: accuracy that quantisation may cost, in percentage points.
    :param prune_rounds: rounds of post-training pruning, see :class:`MaskingPlugin`.
    :param prune_fraction: part of a layer's own weights that a round drops.
    :param prune_tolerance: accuracy that a round may cost, in percentage points.
    :param sharing: ``"all"``, ``"similar"`` or ``"none"``; see :class:`SharingPlugin`.
    :param similarity_threshold: least similarity for ``"similar"``.
    :param validation_fraction: training data set aside for these decisions, unless ``plugins``
        holds a :class:`ValidationPlugin`.
    :param seed: of the split and of the choice of layers.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = TinySubNets(model=model, optimizer=adam, bits=4, evaluator=None)
    >>> strategy.network.tasks
    []
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: Any,
        density: Density = 0.5,
        post_prune_epochs: int = 0,
        score_init: str = "magnitude",
        bits: int | str = "auto",
        tolerance: float = 0.5,
        prune_rounds: int = 20,
        prune_fraction: float = 0.2,
        prune_tolerance: float = 0.2,
        sharing: str = "all",
        similarity_threshold: float = 0.5,
        validation_fraction: float = 0.1,
        seed: int = 0,
        plugins: list[SupervisedPlugin] | None = None,
        **base_kwargs: Any,
    ):
        shaping: list[SupervisedPlugin] = [
            *validation_unless_given(plugins, validation_fraction, seed),
            SharingPlugin(sharing, threshold=similarity_threshold),
            MaskingPlugin(
                density,
                post_prune_epochs=post_prune_epochs,
                prune_rounds=prune_rounds,
                prune_fraction=prune_fraction,
                prune_tolerance=prune_tolerance,
                seed=seed,
            ),
            QuantizationPlugin(bits, tolerance=tolerance),
        ]
        super().__init__(
            model=model,
            optimizer=optimizer,
            store=partial(MaskedStore, scored=True),
            shaping=shaping,
            plugins=plugins,
            **base_kwargs,
        )
        start_scores(self.network, score_init)


register_method(
    Method(
        "tinysubnets",
        TinySubNets,
        partial(MaskedStore, scored=True),
        small={"density": 0.5, "bits": 4},
        variants={"similar": {"sharing": "similar", "prune_rounds": 1}},
    )
)
