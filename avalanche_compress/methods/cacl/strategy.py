"""CACL: each layer is trained as few rank-one terms; later tasks add terms to frozen ones."""

from __future__ import annotations

from functools import partial

from typing_extensions import Unpack

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.cacl.plugin import FactorizationOptions, FactorizationPlugin
from avalanche_compress.methods.cacl.store import FactoredStore
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.shaping.sharing import SharingPlugin
from avalanche_compress.training.options import StrategyOptions, split_options, takes_over
from avalanche_compress.training.strategy import CompressedStrategy


class CACLOptions(FactorizationOptions, StrategyOptions, total=False):
    """Options of :class:`CACL`."""

    decomposition: str
    storage: str


class CACL(CompressedStrategy):
    """Compression-aware continual learning by SVD (Teja and Panda, arXiv 2009.01956).

    ``W_t = sum_{s <= t} U_s diag|sigma_s| V_s``: a task trains a residual of few terms on top of
    the frozen sum of all earlier ones, with penalties for orthonormal rows and few large sigma,
    and is truncated when its training ends. Factors at few bits: add a
    :class:`~avalanche_compress.QuantizationPlugin` to ``plugins``.

    Needs task labels, or ``task_inference=``. Options are those of
    :class:`~avalanche_compress.FactorizationPlugin`, :class:`~avalanche_compress.FactoredStore` and
    :class:`CompressedStrategy`. The factors join their weight's optimiser group, so
    ``weight_decay`` acts on them too.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = CACL(model=model, optimizer=adam, lambda_sparse=0.4, evaluator=None)
    >>> strategy.network.weight_stores[0].initial_rank
    2
    """

    @takes_over(FactorizationPlugin, FactoredStore, CompressedStrategy)
    def __init__(self, **options: Unpack[CACLOptions]) -> None:
        (plugin, store), others = split_options(options, FactorizationPlugin, FactoredStore)
        super().__init__(
            store=partial(FactoredStore, **store),
            shaping=[FactorizationPlugin(**plugin)],
            **others,
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
        recipes=["cacl_8bit", "cacl_4bit", "cacl_small"],
    )
)
