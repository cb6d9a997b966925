"""Tasks that change one frozen base: what is not compressed starts from the base, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_compress.core.base_store import BaseStore
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.shaping.plugin import ShapingPlugin


class FromBasePlugin(ShapingPlugin):
    """Lets biases, norms and running statistics of each task start as the base's, all but the head.

    They were trained together with the base, and those of another task fit another weight.
    """

    state_attributes: tuple[str, ...] = ("_given",)

    def __init__(self) -> None:
        super().__init__()
        self._given: list[Tensor] | None = None

    def state_examples(self, network: TaskNetwork) -> dict[str, Any]:
        places = network.private.places  # the head of the start, of which nothing is used, is any
        return {"_given": [None if p.module in network.heads else p.tensor for p in places]}

    @torch.no_grad()
    def start_from_base(self, network: TaskNetwork) -> None:
        """Fill the private tensors of a task that changes the base.

        :param network: with an open task.
        """
        if self._given is not None and base_is_given(network):
            start = self._given
        elif network.tasks:
            start = network.private.committed(network.tasks[0])
        else:
            start = self._given = [place.tensor.clone() for place in network.private.places]
        for place, tensor in zip(network.private.places, start):
            if place.module not in network.heads:
                place.tensor.copy_(tensor)


def base_is_given(network: TaskNetwork) -> bool:
    """Whether the base is the model as it was given, and not its first task.

    A model of which no weight is compressed is such a base: tasks that train norms or biases alone
    change no weight that these were trained with.

    :param network: any.
    """
    stores = [store for store in network.weight_stores if isinstance(store, BaseStore)]
    return all(store.base_is_given for store in stores)


def trains_base(network: TaskNetwork) -> bool:
    """Whether the open or next task is the one that becomes the base.

    :param network: any.
    """
    return not network.tasks and not base_is_given(network)
