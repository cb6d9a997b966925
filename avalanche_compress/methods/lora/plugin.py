"""How many terms each task may add to the weights of a base, and from where it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.errors import CapacityExhaustedError, TaskStateError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.methods.lora.maths import largest_rank
from avalanche_compress.methods.lora.store import AdaptedStore
from avalanche_compress.shaping.from_base import FromBasePlugin, trains_base
from avalanche_compress.shaping.plugin import Stage, stores_of
from avalanche_compress.shaping.quantization import QuantizationPlugin


class AdaptationOptions(TypedDict, total=False):
    """Options of :class:`AdaptationPlugin`."""

    rank: int
    budget: int | None


@dataclass(eq=False)
class AdaptationPlugin(FromBasePlugin):
    """Gives each task a rank, the same for all layers, and lets it start from the base.

    It needs a network of :class:`~avalanche_compress.AdaptedStore`. A layer takes no higher rank
    than that at which its whole weight has fewer numbers.

    :param rank: of every task; with a budget, the largest that is taken.
    :param budget: bytes of all compressed weights that a task may add to the archive, None for no
        limit: its rank is the largest that fits, in floats, or at the bits of the strategy's
        :class:`~avalanche_compress.QuantizationPlugin`. A task that becomes the base has no limit,
        nor have heads, biases and norms.
    :raises TaskStateError: if an argument is outside its range.

    >>> AdaptationPlugin(rank=8).rank
    8
    """

    rank: int = 4
    budget: int | None = None

    stage = Stage.PRUNE  # nothing is pruned, but what was trained is checked before it is kept

    def __post_init__(self) -> None:
        super().__init__()
        rank, budget = self.rank, self.budget
        if not (isinstance(rank, int) and rank >= 1):
            raise TaskStateError(f"rank={rank!r} must be an int of at least 1.")
        if budget is not None and not (isinstance(budget, int) and budget >= 1):
            raise TaskStateError(f"budget={budget!r} bytes must be an int of at least 1, or None.")

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        network = network_of(strategy)
        quantised = [p for p in strategy.plugins if isinstance(p, QuantizationPlugin)]
        bits = quantised[0].most_bits if quantised else None
        stores = adapted_stores(network)
        rank = self.rank if trains_base(network) else self.rank_within_budget(stores, bits)
        for store in stores:
            store.rank = rank

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, *args, **kwargs)
        network = network_of(strategy)
        if not trains_base(network):
            self.start_from_base(network)

    def shape(self, strategy: Strategy) -> None:
        for store in adapted_stores(network_of(strategy)):
            store.compact_rows()

    def rank_within_budget(self, stores: Sequence[AdaptedStore], bits: int | None = None) -> int:
        """The rank of the next task.

        :param stores: of all layers.
        :param bits: of a value; None for floats.
        :raises CapacityExhaustedError: if the budget is too small for rank 1.
        """
        if self.budget is None or not stores:
            return self.rank
        sizes = [
            [s.section_bytes(rank, bits) for rank in range(min(self.rank, s.break_even_rank) + 1)]
            for s in stores
        ]
        rank = largest_rank(sizes, self.budget)
        if not rank:
            least = sum(layer[min(1, len(layer) - 1)] for layer in sizes)
            raise CapacityExhaustedError(
                f"budget={self.budget} bytes is less than the {least} that a task of rank 1 takes: "
                f"give budget={least} at least, fewer bits, or leave layers out with exclude=."
            )
        return rank


def adapted_stores(network: TaskNetwork) -> list[AdaptedStore]:
    """The weights of a network to which tasks add products of low rank.

    :param network: any.
    :raises TaskStateError: if its weights are kept in another way.
    """
    return stores_of(network, AdaptedStore, "AdaptationPlugin", "adapted", "AdaptedStore")
