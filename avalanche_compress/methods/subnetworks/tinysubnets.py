"""TinySubNets: WSN's sub-networks, pruned further, at few bits, shared by tasks that are alike."""

from __future__ import annotations

from functools import partial

from typing_extensions import Unpack

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.subnetworks.plugin import (
    MaskingOptions,
    MaskingPlugin,
    start_scores,
)
from avalanche_compress.methods.subnetworks.store import MaskedStore
from avalanche_compress.shaping.quantization import QuantizationOptions, QuantizationPlugin
from avalanche_compress.shaping.sharing import SharingPlugin
from avalanche_compress.shaping.validation import validation_unless_given
from avalanche_compress.training.options import StrategyOptions, split_options, takes_over
from avalanche_compress.training.strategy import CompressedStrategy


class TinySubNetsOptions(MaskingOptions, QuantizationOptions, StrategyOptions, total=False):
    """Options of :class:`TinySubNets` that are those of its parts."""


class TinySubNets(CompressedStrategy):
    """TinySubNets (Pietron et al., AAAI 2025, arXiv 2412.10869), on WSN's learned masks.

    After training, a task gives up own weights as long as validation accuracy allows
    (``prune_rounds``), then the values it newly keeps are quantised to the fewest bits within
    ``tolerance``. Weights of earlier tasks are read as they are, so nothing is forgotten: the
    public code quantises them again, which this does not.

    Needs task labels, or ``task_inference=``. All other options are those of
    :class:`~avalanche_compress.MaskingPlugin`, whose ``seed`` is also that of the split,
    :class:`~avalanche_compress.QuantizationPlugin` and :class:`CompressedStrategy`.

    :param score_init: as in :class:`WSN`.
    :param sharing: ``"all"``, ``"similar"`` or ``"none"``; see :class:`SharingPlugin`.
    :param similarity_threshold: least similarity for ``"similar"``.
    :param validation_fraction: training data set aside for these decisions, unless ``plugins``
        holds a :class:`ValidationPlugin`.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = TinySubNets(model=model, optimizer=adam, bits=4, evaluator=None)
    >>> strategy.network.tasks
    []
    """

    @takes_over(MaskingPlugin, QuantizationPlugin, CompressedStrategy, prune_rounds=20)
    def __init__(
        self,
        *,
        score_init: str = "magnitude",
        sharing: str = "all",
        similarity_threshold: float = 0.95,
        validation_fraction: float = 0.1,
        **options: Unpack[TinySubNetsOptions],
    ) -> None:
        (masking, bits), others = split_options(options, MaskingPlugin, QuantizationPlugin)
        super().__init__(
            store=partial(MaskedStore, scored=True),
            shaping=[
                *validation_unless_given(
                    options.get("plugins"), validation_fraction, options.get("seed", 0)
                ),
                SharingPlugin(sharing, threshold=similarity_threshold),
                MaskingPlugin(**masking),
                QuantizationPlugin(**bits),
            ],
            **others,
        )
        start_scores(self.network, score_init)


register_method(
    Method(
        "tinysubnets",
        TinySubNets,
        partial(MaskedStore, scored=True),
        small={"density": 0.5, "bits": 4},
        variants={"similar": {"sharing": "similar", "density": 0.3, "prune_rounds": 1}},
        recipes=["tinysubnets_small"],
    )
)
