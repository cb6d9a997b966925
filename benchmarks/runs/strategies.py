"""The strategies of the comparison by name, each built from the same settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from avalanche_compress import AdaQPackNet, CompressedStrategy, MaskedStore, registered_methods
from benchmarks.choices import FEW_BITS
from benchmarks.runs.baselines import (
    agem,
    avalanche_packnet,
    der,
    er_ace,
    ewc,
    icarl,
    lwf,
    mas,
    naive,
    replay,
    si,
)
from benchmarks.runs.fixed_features import fecam, ncm, random_gaussians, random_ridge, slda
from benchmarks.runs.learners import Learner, StrategyEntry
from benchmarks.runs.ours import hyper_parameters_of, ours, packnet
from benchmarks.runs.references import (
    archived,
    independent,
    independent_warm,
    joint,
    naive_snapshots,
)

__all__ = ["FIRST_LOOK", "REFERENCES", "STRATEGIES", "Learner", "StrategyEntry", "ours"]


def _methods() -> dict[str, StrategyEntry]:
    """The registered methods, each under the names of its recipes."""
    entries = {
        name: ours(method.strategy)
        for method in registered_methods()
        for name in (method.name, *method.recipes)
    }
    entries["packnet"] = replace(entries["packnet"], build=packnet)
    return entries


_LABELLED = ("task",)
_UNLABELLED = ("class",)


def _archived(strategy_class: Callable[..., CompressedStrategy]) -> StrategyEntry:
    """Networks of their own, each made small as a strategy does."""
    build = partial(archived, strategy_class)
    known = hyper_parameters_of(strategy_class)
    return StrategyEntry(build, holds_out=True, scenarios=_LABELLED, hyper_parameters=known)


DENSE = partial(CompressedStrategy, store=MaskedStore, shaping=[])
"""Trains all weights of a network, as they are."""

_REFERENCES = {
    "independent": StrategyEntry(independent, scenarios=_LABELLED),
    "independent_warm": StrategyEntry(independent_warm, scenarios=_LABELLED),
    "independent_compressed": _archived(AdaQPackNet),
    **{name: _archived(DENSE) for name in FEW_BITS},
    "naive_snapshots": StrategyEntry(naive_snapshots, scenarios=_LABELLED),
    "random_gaussians": StrategyEntry(random_gaussians, scenarios=_UNLABELLED),
    "random_ridge": StrategyEntry(random_ridge, scenarios=_UNLABELLED),
    "joint": StrategyEntry(joint),
}

REFERENCES = tuple(_REFERENCES)
"""What methods are measured against, and do not compete with."""

STRATEGIES: dict[str, StrategyEntry] = {
    "naive": StrategyEntry(naive),
    "ewc": StrategyEntry(ewc),
    "ewc_online": StrategyEntry(ewc),
    "si": StrategyEntry(si),
    "mas": StrategyEntry(mas),
    "lwf": StrategyEntry(lwf),
    "replay": StrategyEntry(replay),
    "der": StrategyEntry(der),
    "er_ace": StrategyEntry(er_ace),
    "agem": StrategyEntry(agem),
    "icarl": StrategyEntry(icarl, scenarios=_UNLABELLED),
    "ncm": StrategyEntry(ncm, scenarios=_UNLABELLED),
    "slda": StrategyEntry(slda, scenarios=_UNLABELLED),
    "fecam": StrategyEntry(fecam, scenarios=_UNLABELLED),
    "avalanche_packnet": StrategyEntry(avalanche_packnet, scenarios=_LABELLED),
    **_methods(),
    **_REFERENCES,
}
"""Strategies by name, in the order of the table; their arguments are in recipes."""

FIRST_LOOK = [
    "naive",
    "ewc_online",
    "replay",
    "der",
    *(method.name for method in registered_methods()),
    "independent",
    "independent_compressed",
    "joint",
]
"""What is compared by default: every method, some baselines and references."""
