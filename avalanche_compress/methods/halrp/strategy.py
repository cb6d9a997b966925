"""HALRP: every task perturbs one frozen base by scales and a product of small factors."""

from __future__ import annotations

from functools import partial
from typing import Any

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.halrp.plugin import PerturbationPlugin
from avalanche_compress.methods.halrp.reference import ReferencePerturbation
from avalanche_compress.methods.halrp.store import PerturbedStore
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.training.strategy import CompressedStrategy


class HALRP(CompressedStrategy):
    """Hessian aware low-rank perturbation (Li et al., arXiv 2311.15161, TKDE 2024).

    ``W_t = diag(r_t) W_base diag(s_t) + U_t A_t``: the first task is the base, or a pretrained
    model is. A task trains whole weights for a few epochs, whose difference from the base is then
    approximated layer by layer, at ranks chosen over all layers at once, and trained further. What
    a task has learned no other task reads, so their order matters only through the base. Factors at
    few bits: add a :class:`~avalanche_compress.QuantizationPlugin` to ``plugins``.

    Needs task labels, or ``task_inference=``. Arguments not named here as in
    :class:`~avalanche_compress.PerturbationPlugin` and :class:`CompressedStrategy`. Scales and
    factors join their weight's optimiser group, so ``weight_decay`` acts on them too.

    :param approx_rate: part of what the components are worth that is kept, 0..1; 1 keeps all.
    :param warmup_epochs: with whole weights, of the ``train_epochs``: an int, or a part.
    :param max_rank: of any layer.
    :param min_rank: of any layer.
    :param rank_method: ``"importance"``, ``"flat"`` or ``"budget"``.
    :param importance: ``"mean_sq"``, ``"sum"``, ``"fisher_diag"`` or ``"uniform"``.
    :param importance_data: ``"train"`` or ``"validation"``.
    :param l1: weight of the factors' absolute values in the loss.
    :param l2: weight of the squares in the loss.
    :param scale_center: what ``l2`` draws r and s to.
    :param growth_bound: parameters that all tasks may add, as a part of the base's.
    :param tasks: how many share the bound, the base's included.
    :param per_task_budget: parameters that one task may add.
    :param prune_floor: entries of the factors of this magnitude or less are pruned.
    :param post_prune_epochs: epochs left for training when factors are pruned.
    :param svd: ``"auto"``, ``"gram"``, ``"randomised"`` or ``"exact"``.
    :param als_iters: how many times r and s are solved for in turn.
    :param reference_compat: do as the public code does, see
        :class:`~avalanche_compress.methods.halrp.reference.ReferencePerturbation`.
    :param conv_mode: ``"spatial_mean"``, ``"flatten"`` or ``"auto"``, see
        :class:`~avalanche_compress.PerturbedStore`.
    :param base: ``"first"`` task, or ``"given"``: the model as it is, for pretrained ones.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = HALRP(model=model, optimizer=adam, train_epochs=2, evaluator=None)
    >>> strategy.network.weight_stores[0].break_even_rank("spatial_mean")
    1
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: Any,
        approx_rate: float = 0.9,
        warmup_epochs: int | float = 1,
        max_rank: int = 100,
        min_rank: int = 1,
        rank_method: str = "importance",
        importance: str = "mean_sq",
        importance_data: str = "train",
        l1: float = 1e-4,
        l2: float = 1e-4,
        scale_center: float = 1.0,
        growth_bound: float | None = None,
        tasks: int | None = None,
        per_task_budget: int | None = None,
        prune_floor: float = 1e-5,
        post_prune_epochs: int = 0,
        svd: str = "auto",
        als_iters: int = 1,
        reference_compat: bool = False,
        conv_mode: str = "spatial_mean",
        base: str = "first",
        **base_kwargs: Any,
    ):
        plugin = ReferencePerturbation if reference_compat else PerturbationPlugin
        perturbation = plugin(
            approx_rate,
            warmup_epochs=warmup_epochs,
            max_rank=max_rank,
            min_rank=min_rank,
            rank_method=rank_method,
            importance=importance,
            importance_data=importance_data,
            l1=l1,
            l2=l2,
            scale_center=scale_center,
            growth_bound=growth_bound,
            tasks=tasks,
            per_task_budget=per_task_budget,
            prune_floor=prune_floor,
            post_prune_epochs=post_prune_epochs,
            svd=svd,
            als_iters=als_iters,
        )
        super().__init__(
            model=model,
            optimizer=optimizer,
            store=partial(PerturbedStore, conv_mode=conv_mode, base=base),
            shaping=[perturbation],
            **base_kwargs,
        )


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
    )
)
