"""How many terms each task may add to the weights of a base, and from where it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.errors import TaskStateError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.methods.lora.store import AdaptedStore
from avalanche_compress.shaping.from_base import FromBasePlugin, trains_base
from avalanche_compress.shaping.plugin import Stage, stores_of
from avalanche_compress.shaping.size_budget import planned_part


class AdaptationOptions(TypedDict, total=False):
    """Options of :class:`AdaptationPlugin`."""

    rank: int


@dataclass(eq=False)
class AdaptationPlugin(FromBasePlugin):
    """Gives each task a rank, the same for all layers, and lets it start from the base.

    It needs a network of :class:`~avalanche_compress.AdaptedStore`. A layer takes no higher rank
    than that at which its whole weight has fewer numbers.

    :param rank: of every task; under a ``size_budget``, the largest of any layer.
    :raises TaskStateError: if an argument is outside its range.

    >>> AdaptationPlugin(rank=8).rank
    8
    """

    rank: int = 4

    stage = Stage.PRUNE  # nothing is pruned, but what was trained is checked before it is kept

    def __post_init__(self) -> None:
        super().__init__()
        if self.rank < 1:
            raise TaskStateError(f"rank={self.rank} must be an int of at least 1.")

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        stores = adapted_stores(network_of(strategy))
        most = [min(self.rank, store.break_even_rank) for store in stores]
        part = planned_part(
            strategy,
            lambda part, bits: sum(
                store.planned_bytes(round(part * rank), bits) for store, rank in zip(stores, most)
            ),
        )
        for store, rank in zip(stores, most):
            store.rank = max(1, round(part * rank))

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, *args, **kwargs)
        network = network_of(strategy)
        if not trains_base(network):
            self.start_from_base(network)

    def shape(self, strategy: Strategy) -> None:
        for store in adapted_stores(network_of(strategy)):
            store.compact_rows()


def adapted_stores(network: TaskNetwork) -> list[AdaptedStore]:
    """The weights of a network to which tasks add products of low rank.

    :param network: any.
    :raises TaskStateError: if its weights are kept in another way.
    """
    return stores_of(network, AdaptedStore, "AdaptationPlugin", "adapted", "AdaptedStore")
