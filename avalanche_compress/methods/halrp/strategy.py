"""HALRP: every task perturbs one frozen base by scales and a product of small factors."""

from __future__ import annotations

from functools import partial

from typing_extensions import Unpack

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.halrp.plugin import PerturbationOptions, PerturbationPlugin
from avalanche_compress.methods.halrp.reference import ReferencePerturbation
from avalanche_compress.methods.halrp.store import PerturbedStore
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.training.options import StrategyOptions, split_options, takes_over
from avalanche_compress.training.strategy import CompressedStrategy


class HALRPOptions(PerturbationOptions, StrategyOptions, total=False):
    """Options of :class:`HALRP`."""

    conv_mode: str
    base: str


class HALRP(CompressedStrategy):
    """Hessian aware low-rank perturbation (Li et al., arXiv 2311.15161, TKDE 2024).

    ``W_t = diag(r_t) W_base diag(s_t) + U_t A_t``: the first task is the base, or a pretrained
    model is. A task trains whole weights for a few epochs, whose difference from the base is then
    approximated layer by layer, at ranks chosen over all layers at once, and trained further. What
    a task has learned no other task reads, so their order matters only through the base. Factors at
    few bits: add a :class:`~avalanche_compress.QuantizationPlugin` to ``plugins``.

    Needs task labels, or ``task_inference=``. Options are those of
    :class:`~avalanche_compress.PerturbationPlugin`, :class:`~avalanche_compress.PerturbedStore` and
    :class:`CompressedStrategy`. Scales and factors join their weight's optimiser group, so
    ``weight_decay`` acts on them too.

    :param reference_compat: do as the public code does, see
        :class:`~avalanche_compress.methods.halrp.reference.ReferencePerturbation`.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = HALRP(model=model, optimizer=adam, train_epochs=2, evaluator=None)
    >>> strategy.network.weight_stores[0].break_even_rank("spatial_mean")
    1
    """

    @takes_over(PerturbationPlugin, PerturbedStore, CompressedStrategy)
    def __init__(self, *, reference_compat: bool = False, **options: Unpack[HALRPOptions]) -> None:
        (plugin, store), others = split_options(options, PerturbationPlugin, PerturbedStore)
        kind = ReferencePerturbation if reference_compat else PerturbationPlugin
        super().__init__(store=partial(PerturbedStore, **store), shaping=[kind(**plugin)], **others)


register_method(
    Method(
        "halrp",
        HALRP,
        PerturbedStore,
        variants={
            "pruned": {"prune_floor": 0.02},
            "given": {"base": "given", "conv_mode": "auto"},
            "8bit": {"conv_mode": "flatten", "plugins": [partial(QuantizationPlugin, 8)]},
        },
        recipes=["halrp_4bit", "halrp_3bit"],
    )
)
