"""LoRA: each task adds a product of low rank to every weight of one frozen base."""

from __future__ import annotations

from functools import partial
from typing import Any

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.lora.plugin import AdaptationPlugin
from avalanche_compress.methods.lora.store import AdaptedStore
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.training.strategy import CompressedStrategy


class LoRA(CompressedStrategy):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685), one product a task and layer.

    ``W_t = W_base + (alpha / rank) B_t A_t``: the first task is the base, or the model as it is
    given, pretrained or random. What a task has learned no other task reads, so their order matters
    only through the base. Factors at few bits: add a
    :class:`~avalanche_compress.QuantizationPlugin` to ``plugins``.

    Needs task labels, or ``task_inference=``. Arguments not named here as in
    :class:`CompressedStrategy`. B and A join their weight's optimiser group.

    :param rank: of every task, see :class:`~avalanche_compress.AdaptationPlugin`.
    :param budget: bytes of compressed weights that a task may add, None for no limit.
    :param alpha: strength of the products, and with Adam their learning rate in proportion to that
        of all else, see :class:`~avalanche_compress.AdaptedStore`.
    :param base: ``"first"`` task, or ``"given"``: the model as it is, for pretrained ones. A given
        base is stored once for all tasks.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = LoRA(model=model, optimizer=adam, rank=2, base="given", evaluator=None)
    >>> strategy.network.weight_stores[0].break_even_rank
    2
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: Any,
        rank: int = 4,
        budget: int | None = None,
        alpha: float = 8.0,
        base: str = "first",
        **base_kwargs: Any,
    ):
        super().__init__(
            model=model,
            optimizer=optimizer,
            store=partial(AdaptedStore, base=base, alpha=alpha),
            shaping=[AdaptationPlugin(rank, budget=budget)],
            **base_kwargs,
        )


register_method(
    Method(
        "lora",
        LoRA,
        AdaptedStore,
        small={"rank": 2},
        variants={
            "given": {"base": "given"},
            "4bit": {"plugins": [partial(QuantizationPlugin, 4)]},
        },
    )
)
