"""The stores of the registered methods, for tests of what every store promises."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from avalanche_compress import registered_methods
from avalanche_compress.core.registry import Method
from avalanche_compress.core.store import WeightStore
from avalanche_compress.methods.subnetworks.subnetwork import SubnetworkStore

Build = Callable[..., WeightStore]


def of_methods() -> dict[str, Build]:
    """The store of each method that another one does not have as well, by the method's name."""
    return _told_apart(
        (method.name, _built(method, method.name)) for method in registered_methods()
    )


def of_variants() -> dict[str, Build]:
    """Those of the methods' variants too, as far as they differ, by the variant's name."""
    return _told_apart(
        (name, _built(method, name)) for method in registered_methods() for name in method.examples
    )


def get_ready(store: WeightStore, density: float = 0.4) -> None:
    """Before a task opens: floats find room in a slot, and scores keep a part."""
    store.reserved_bits = 32
    store.density = density


def prune(store: WeightStore, fraction: float = 0.5) -> None:
    """After a task is trained: what learns no scores is pruned, so that others find room."""
    if isinstance(store, SubnetworkStore) and not store.scored:
        store.prune(fraction)


def _built(method: Method, name: str) -> WeightStore:
    layer, head = nn.Conv2d(4, 6, 3), nn.Linear(6, 2)
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = method.examples[name]
    with warnings.catch_warnings():  # of how many tasks find room
        warnings.simplefilter("ignore")
        strategy = method.build(settings, model=model, optimizer=optimizer, evaluator=None)
    return strategy.network.weight_stores[0]


def _told_apart(stores: Iterable[tuple[str, WeightStore]]) -> dict[str, Build]:
    found: dict[tuple[type[WeightStore], str], tuple[str, Build]] = {}
    for name, store in stores:
        build = partial(type(store), **store.config())
        found.setdefault((type(store), repr(store.config())), (name, build))
    return dict(found.values())
