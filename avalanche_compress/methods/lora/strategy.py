"""LoRA: each task adds a product of low rank to every weight of one frozen base."""

from __future__ import annotations

from functools import partial

from typing_extensions import Unpack

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.lora.plugin import AdaptationOptions, AdaptationPlugin
from avalanche_compress.methods.lora.store import AdaptedStore
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.training.options import StrategyOptions, split_options, takes_over
from avalanche_compress.training.strategy import CompressedStrategy


class LoRAOptions(AdaptationOptions, StrategyOptions, total=False):
    """Options of :class:`LoRA`."""

    base: str
    alpha: float


class LoRA(CompressedStrategy):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685), one product a task and layer.

    ``W_t = W_base + (alpha / rank) B_t A_t``: the first task is the base, or the model as it is
    given, pretrained or random. What a task has learned no other task reads, so their order matters
    only through the base. Factors at few bits: add a
    :class:`~avalanche_compress.QuantizationPlugin` to ``plugins``.

    Needs task labels, or ``task_inference=``. Options are those of
    :class:`~avalanche_compress.AdaptationPlugin`, :class:`~avalanche_compress.AdaptedStore` and
    :class:`CompressedStrategy`. B and A join their weight's optimiser group.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = LoRA(model=model, optimizer=adam, rank=2, base="given", evaluator=None)
    >>> strategy.network.weight_stores[0].break_even_rank
    2
    """

    @takes_over(AdaptationPlugin, AdaptedStore, CompressedStrategy)
    def __init__(self, **options: Unpack[LoRAOptions]) -> None:
        (plugin, store), others = split_options(options, AdaptationPlugin, AdaptedStore)
        super().__init__(
            store=partial(AdaptedStore, **store), shaping=[AdaptationPlugin(**plugin)], **others
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
        recipes=["lora_4bit"],
    )
)
