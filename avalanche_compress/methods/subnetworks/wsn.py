"""WSN: learn a score for every weight; the best-scored sub-network is the task's."""

from __future__ import annotations

from functools import partial
from typing import Any

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.subnetworks.plugin import Density, MaskingPlugin, start_scores
from avalanche_compress.methods.subnetworks.store import MaskedStore
from avalanche_compress.training.strategy import CompressedStrategy


class WSN(CompressedStrategy):
    """Winning SubNetworks (Kang et al., "Forget-free Continual Learning", ICML 2022).

    ``W_t = M_t * V`` with ``M_t`` the weights of largest ``|score|``; scores and free weights are
    trained together, weights of earlier tasks can be chosen but not changed.

    Needs task labels, or ``task_inference=``. All other arguments as in
    :class:`CompressedStrategy`. The scores join their weight's optimiser group.

    :param density: part of each layer's weights that a task uses, 0..1: a float, a list by
        position of the task, a function of it, or a mapping from a weight's name.
    :param post_prune_epochs: last epochs in which the mask is fixed and only weights train. 0 is
        the paper's way; 1 spares the weights the noise of a mask that changes with every step.

    :param score_init: how scores start, ``"magnitude"`` or ``"random"``; see
        :func:`~avalanche_compress.methods.subnetworks.plugin.start_scores`.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = WSN(model=model, optimizer=adam, density=0.5, evaluator=None)
    >>> len(adam.param_groups[0]["params"])
    5
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: Any,
        density: Density = 0.5,
        post_prune_epochs: int = 0,
        score_init: str = "magnitude",
        **base_kwargs: Any,
    ):
        super().__init__(
            model=model,
            optimizer=optimizer,
            store=partial(MaskedStore, scored=True),
            shaping=[MaskingPlugin(density, post_prune_epochs=post_prune_epochs)],
            **base_kwargs,
        )
        start_scores(self.network, score_init)


register_method(
    Method(
        "wsn",
        WSN,
        partial(MaskedStore, scored=True),
        small={"density": 0.5},
        variants={"wide": {"density": 0.4}, "prototype": {"task_inference": "prototype"}},
    )
)
