"""What the plugins that shape a task have in common."""

from __future__ import annotations

from typing import Any

from avalanche.core import SupervisedPlugin

from avalanche_compress.network import network_of


class ShapingPlugin(SupervisedPlugin):
    """Prunes, truncates or quantises a task when its training is over.

    When the experience ends, the shaping plugins of the strategy run in the order of their
    :attr:`turn` and the task is committed, once, whichever of them Avalanche calls first. So each
    works alone on any Avalanche strategy, and together wherever they stand in its list.
    """

    turn = 0
    """Restore the best epoch (0), prune (1), quantise (2)."""

    def shape(self, strategy: Any) -> None:
        """Change the open task's weights, after its last training step.

        :param strategy: its model has an open task.
        """

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        shape_and_commit(strategy)


def shape_and_commit(strategy: Any) -> None:
    """Run the strategy's shaping plugins in turn and commit the task; nothing if that was done.

    :param strategy: an Avalanche strategy.
    """
    network = network_of(strategy)
    if network.open_task is None:
        return
    shaping = [plugin for plugin in strategy.plugins if isinstance(plugin, ShapingPlugin)]
    for plugin in sorted(shaping, key=lambda plugin: plugin.turn):
        plugin.shape(strategy)
    network.commit()
