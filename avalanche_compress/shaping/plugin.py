"""What the plugins that shape a task have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from enum import IntEnum
from typing import Any, TypeVar

from avalanche.core import SupervisedPlugin

from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.core.options import check_types
from avalanche_compress.core.store import WeightStore
from avalanche_compress.errors import TaskStateError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.shaping.task_loss import check_plain_loss

S = TypeVar("S", bound=WeightStore)


class Stage(IntEnum):
    """The stages of shaping a task, in their order.

    >>> sorted([Stage.QUANTISE, Stage.RESTORE, Stage.PRUNE])[0].name
    'RESTORE'
    """

    RESTORE = 0
    """Go back to the best epoch."""
    PRUNE = 1
    """Drop weights, or terms."""
    QUANTISE = 2
    """Round what is left to few bits."""
    ESTIMATE_NORMS = 3
    """Measure the statistics of norms under what is left."""


class ShapingPlugin(SupervisedPlugin):
    """Prunes, truncates or quantises a task when its training is over.

    When the experience ends, the shaping plugins of the strategy run in the order of their
    :attr:`stage` and the task is committed, once, whichever of them Avalanche calls first. So each
    works alone on any Avalanche strategy, and together wherever they stand in its list.
    """

    stage: Stage = Stage.RESTORE
    """When it runs; plugins of one stage run in the order of the strategy's list."""
    state_attributes: tuple[str, ...] = ()
    """The attributes that a training state has to keep: those that change from epoch to epoch, or
    from task to task, and are not set when a task begins."""

    def __init__(self) -> None:
        super().__init__()
        if is_dataclass(self):
            check_types(self)

    def state_examples(self, network: TaskNetwork) -> dict[str, Any]:
        """What :attr:`state_attributes` that may be None hold otherwise: kinds, lengths, shapes.

        :param network: that goes on from the state.
        """
        return {}

    def plan(self, strategy: Strategy) -> None:
        """Say how much the task may keep, as far as its training has told.

        Under a ``size_budget`` it is asked twice an epoch, else only by the plugin itself.

        :param strategy: its model has an open task, or is about to.
        """

    def prepare(self, strategy: Strategy) -> None:
        """Get the task of the best epoch ready to be judged, before anything is pruned.

        :param strategy: its model has an open task.
        """

    def shape(self, strategy: Strategy) -> None:
        """Change the open task's weights, after its last training step.

        :param strategy: its model has an open task.
        """

    def finish(self, strategy: Strategy) -> None:
        """Change what the task has for itself, when all plugins have shaped its weights.

        :param strategy: its model has an open task.
        """

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        check_plain_loss(strategy)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        shape_and_commit(strategy)


def shaping_plugins(strategy: Strategy) -> list[ShapingPlugin]:
    """The strategy's plugins that shape a task, in its list's order.

    :param strategy: an Avalanche strategy.
    """
    return [plugin for plugin in strategy.plugins if isinstance(plugin, ShapingPlugin)]


def shape_and_commit(strategy: Strategy) -> None:
    """Run the strategy's shaping plugins by stage and commit the task; nothing if that was done.

    :param strategy: an Avalanche strategy.
    """
    network = network_of(strategy)
    if network.open_task is None:
        return
    shaping = sorted(shaping_plugins(strategy), key=lambda plugin: plugin.stage)
    for plugin in shaping:
        if plugin.stage == Stage.RESTORE:
            plugin.shape(strategy)
    network.check_finite()  # the best epoch is back, and may be finite where the last is not
    for plugin in shaping:
        plugin.prepare(strategy)
    for plugin in shaping:
        if plugin.stage > Stage.RESTORE:
            plugin.shape(strategy)
            network.check_finite()
    for plugin in shaping:
        plugin.finish(strategy)
    network.commit()


def check_known(**options: tuple[str, Sequence[str]]) -> None:
    """Refuse an option that is none of those there are.

    :param options: by name, the value and those that are known.
    :raises TaskStateError: for the first that is unknown.

    >>> check_known(grow=("avg", ["avg", "none"]))
    """
    for name, (value, known) in options.items():
        if value not in known:
            raise TaskStateError(f"{name}={value!r} must be one of {known}.")


def stores_of(network: TaskNetwork, kind: type[S], plugin: str, what: str, needed: str) -> list[S]:
    """The stores of one kind behind a network's weights; none where nothing is compressed.

    :param network: any.
    :param kind: their class.
    :param plugin: that needs them, for the message.
    :param what: they are, for the message.
    :param needed: the store to build the network with, for the message.
    :raises TaskStateError: if there are stores, and none of that kind.
    """
    stores = [store for store in network.weight_stores if isinstance(store, kind)]
    if network.weight_stores and not stores:
        raise TaskStateError(
            f"a {plugin} needs {what} weights and the network has none: build it with "
            f"TaskNetwork(model, store={needed})."
        )
    return stores
