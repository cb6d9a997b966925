"""CACL: each layer is trained as few rank-one terms; later tasks add terms to frozen ones."""

from __future__ import annotations

from functools import partial
from typing import Any

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.cacl.plugin import FactorizationPlugin
from avalanche_compress.methods.cacl.store import FactoredStore
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.shaping.sharing import SharingPlugin
from avalanche_compress.training.strategy import CompressedStrategy


class CACL(CompressedStrategy):
    """Compression-aware continual learning by SVD (Teja and Panda, arXiv 2009.01956).

    ``W_t = sum_{s <= t} U_s diag|sigma_s| V_s``: a task trains a residual of few terms on top of
    the frozen sum of all earlier ones, with penalties for orthonormal rows and few large sigma,
    and is truncated when its training ends. Factors at few bits: add a
    :class:`~avalanche_compress.QuantizationPlugin` to ``plugins``.

    Needs task labels, or ``task_inference=``. Arguments not named here as in
    :class:`~avalanche_compress.FactorizationPlugin` and :class:`CompressedStrategy`. The factors
    join their weight's optimiser group, so ``weight_decay`` acts on them too.

    :param lambda_orth: weight of the orthogonality penalty.
    :param lambda_sparse: weight of the sparsity penalty; the paper's values are 0.1 and 0.4.
    :param energy: part of a layer's energy that truncation may lose.
    :param sparsity: ``"hoyer"``, ``"hoyer_square"`` or ``"l1"``.
    :param reg_interval: steps after which the orthogonality penalty is computed anew.
    :param reg_scope: ``"all"`` or ``"new"``.
    :param truncation: ``"raw"`` or ``"exact"``.
    :param energy_scope: ``"new"`` or ``"cumulative"``.
    :param grow: ``"avg"``, ``"r0"``, ``"mean_task"``, ``"fixed"`` or ``"none"``.
    :param grow_from: finished tasks before the network may grow.
    :param rank: terms of the first task: an int, a part of the break-even rank, or ``"full"``.
    :param init: ``"svd"`` of the model's weights, which keeps a pretrained one; ``"orthogonal"``
        or, as in the public code, ``"random"``.
    :param residual: strength of a later task's new terms when it starts; 1 in the public code.
    :param decomposition: ``"channel"`` or ``"spatial"``, see
        :class:`~avalanche_compress.FactoredStore`.
    :param storage: ``"auto"`` or ``"factors"``.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = CACL(model=model, optimizer=adam, lambda_sparse=0.4, evaluator=None)
    >>> strategy.network.weight_stores[0].initial_rank
    2
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: Any,
        lambda_orth: float = 1.0,
        lambda_sparse: float = 0.1,
        energy: float = 3e-5,
        sparsity: str = "hoyer",
        reg_interval: int = 32,
        reg_scope: str = "all",
        truncation: str = "raw",
        energy_scope: str = "new",
        grow: str = "avg",
        grow_from: int = 1,
        rank: int | float | str = 1.0,
        init: str = "svd",
        residual: float = 0.0,
        decomposition: str = "channel",
        storage: str = "auto",
        **base_kwargs: Any,
    ):
        factorization = FactorizationPlugin(
            lambda_orth,
            lambda_sparse,
            energy=energy,
            sparsity=sparsity,
            reg_interval=reg_interval,
            reg_scope=reg_scope,
            truncation=truncation,
            energy_scope=energy_scope,
            grow=grow,
            grow_from=grow_from,
            rank=rank,
            init=init,
            residual=residual,
        )
        super().__init__(
            model=model,
            optimizer=optimizer,
            store=partial(FactoredStore, decomposition=decomposition, storage=storage),
            shaping=[factorization],
            **base_kwargs,
        )


register_method(
    Method(
        "cacl",
        CACL,
        FactoredStore,
        small={"energy": 0.05},
        variants={
            "spatial": {"decomposition": "spatial", "storage": "factors"},
            "unshared": {"plugins": [partial(SharingPlugin, "none")]},
            "each_step": {"reg_interval": 1},
            "4bit": {"plugins": [partial(QuantizationPlugin, 4)]},
        },
        recipes=["cacl_8bit", "cacl_sparse"],
    )
)
