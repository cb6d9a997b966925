"""WSN: learn a score for every weight; the best-scored sub-network is the task's."""

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
from avalanche_compress.training.options import StrategyOptions, split_options, takes_over
from avalanche_compress.training.strategy import CompressedStrategy


class WSNOptions(MaskingOptions, StrategyOptions, total=False):
    """Options of :class:`WSN` that are those of its parts."""


class WSN(CompressedStrategy):
    """Winning SubNetworks (Kang et al., "Forget-free Continual Learning", ICML 2022).

    ``W_t = M_t * V`` with ``M_t`` the weights of largest ``|score|``; scores and free weights are
    trained together, weights of earlier tasks can be chosen but not changed.

    Needs task labels, or ``task_inference=``. Options are those of
    :class:`~avalanche_compress.MaskingPlugin` and :class:`CompressedStrategy`; ``density`` is the
    part of each layer's weights that a task uses, and ``post_prune_epochs=0`` the paper's way: 1
    spares the weights the noise of a mask that changes with every step. The scores join their
    weight's optimiser group.

    :param score_init: how scores start, ``"magnitude"`` or ``"random"``; see
        :func:`~avalanche_compress.methods.subnetworks.plugin.start_scores`.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = WSN(model=model, optimizer=adam, density=0.5, evaluator=None)
    >>> len(adam.param_groups[0]["params"])
    5
    """

    @takes_over(MaskingPlugin, CompressedStrategy)
    def __init__(self, *, score_init: str = "magnitude", **options: Unpack[WSNOptions]) -> None:
        (masking,), others = split_options(options, MaskingPlugin)
        super().__init__(
            store=partial(MaskedStore, scored=True), shaping=[MaskingPlugin(**masking)], **others
        )
        start_scores(self.network, score_init)


register_method(
    Method(
        "wsn",
        WSN,
        partial(MaskedStore, scored=True),
        small={"density": 0.5},
        variants={"wide": {"density": 0.4}, "prototype": {"task_inference": "prototype"}},
        recipes=["wsn_4bit", "wsn_sparse"],
    )
)
