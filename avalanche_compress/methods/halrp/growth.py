"""How many numbers tasks add to the network that they perturb, and how many a limit leaves them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Context

from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.options import check_types
from avalanche_compress.errors import CapacityExhaustedError, TaskStateError
from avalanche_compress.methods.halrp.budget import growth_bound_count
from avalanche_compress.methods.halrp.store import PerturbedStore
from avalanche_compress.shaping.from_base import base_is_given
from avalanche_compress.shaping.plugin import stores_of


def growth(network: TaskNetwork) -> dict[str, float]:
    """What all finished tasks add to the base, as parts of the base's parameters.

    ``"reference"`` counts as the public code of HALRP does: scales, factors without their pruned
    entries, norms and heads, but neither the biases of the layers that are perturbed nor running
    statistics. ``"scalars"`` counts all numbers. What neither counts (masks, codes) is in the bytes
    of the archive.

    :param network: of :class:`~avalanche_compress.PerturbedStore`.
    :return: both; 0 before a task is finished.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> network = TaskNetwork(model, PerturbedStore)
    >>> for task in range(2):
    ...     network.open(task, [0, 1])
    ...     network.commit()
    >>> growth(network)  # (72 + 18) / 98, and 8 biases more
    {'reference': 0.9183673469387755, 'scalars': 1.0}
    """
    base = base_parameters(network)
    stores = perturbed_stores(network)
    tasks = adding_tasks(network)
    values = sum(store.added_values(task) for store in stores for task in tasks)
    private = sum(network.private.stored_values(task) for task in tasks)
    added = sum(added_parameters(network, task) for task in tasks)
    return {"reference": added / base, "scalars": (values + private) / base}


def base_parameters(network: TaskNetwork, classes: int | None = None) -> int:
    """Parameters of the network that tasks perturb, all of them, with the first task's head.

    :param network: any.
    :param classes: of the first task, if it is not finished.
    """
    if network.tasks:
        classes = len(network.classes_of(network.tasks[0]))
    head = _head_parameters(network, 0 if classes is None else classes)
    in_heads = {id(parameter) for head in network.heads for parameter in head.parameters()}
    return head + sum(p.numel() for p in network.backbone.parameters() if id(p) not in in_heads)


def added_parameters(network: TaskNetwork, task: int) -> int:
    """What a finished task adds to the base, as the public code counts it.

    :param network: of perturbed weights.
    :param task: its label.
    """
    if task not in adding_tasks(network):
        return 0
    values = sum(store.added_values(task) for store in perturbed_stores(network))
    return values + _counted_private(network, len(network.classes_of(task)))


def fixed_parameters(network: TaskNetwork, classes: int) -> int:
    """What a task adds to the base before it has a single entry of a factor.

    :param network: of perturbed weights.
    :param classes: of the task.
    """
    scales = sum(
        store.scales if store.factored else store.shape.numel()
        for store in perturbed_stores(network)
    )
    return scales + _counted_private(network, classes)


def adding_tasks(network: TaskNetwork) -> list[int]:
    """The finished tasks that perturb the base: all but the one that is the base.

    :param network: of perturbed weights.
    """
    return network.tasks if base_is_given(network) else network.tasks[1:]


def perturbed_stores(network: TaskNetwork) -> list[PerturbedStore]:
    """The weights of a network whose tasks perturb a base; none where nothing is compressed.

    :param network: any.
    :raises TaskStateError: if its weights are kept in another way.
    """
    return stores_of(network, PerturbedStore, "PerturbationPlugin", "perturbed", "PerturbedStore")


@dataclass(frozen=True)
class GrowthLimit:
    """How many parameters tasks may add, as :func:`growth` counts for reference.

    :param bound: what all of them may add, as a part of the base's parameters.
    :param tasks: how many there will be, the base's included; each then has an equal share of what
        is left. If None, whichever comes next may take it all.
    :param per_task: what a single one may add.
    :raises TaskStateError: if one of them is not positive, or ``tasks`` has nothing to share.

    >>> GrowthLimit(bound=0.2, tasks=10).given
    True
    """

    bound: float | None = None
    tasks: int | None = None
    per_task: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.tasks is not None and self.bound is None:
            raise TaskStateError(
                f"tasks={self.tasks} share what growth_bound= leaves, and there is none: give "
                "growth_bound=0.2, say."
            )
        for name, value in (
            ("growth_bound", self.bound),
            ("tasks", self.tasks),
            ("per_task_budget", self.per_task),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise TaskStateError(f"{name}={value} must be a number above 0.")

    @property
    def given(self) -> bool:
        """Whether there is any limit."""
        return self.bound is not None or self.per_task is not None

    def entries(self, network: TaskNetwork, classes: int, least: int = 0) -> int:
        """Entries of factors that the open or next task may keep.

        :param network: of perturbed weights.
        :param classes: of the task.
        :param least: entries that it needs.
        :raises CapacityExhaustedError: if there are less than it needs.
        """
        fixed = fixed_parameters(network, classes)
        needed = fixed + least
        shares = []
        if self.per_task is not None:
            shares.append(self.per_task)
            if self.per_task < needed:
                limit = f"per_task_budget={self.per_task} is less"
                raise CapacityExhaustedError(_too_small(network, limit, needed, needed))
        if self.bound is not None:
            shares.append(self._share(network, classes, needed))
        return min(shares) - fixed

    def _share(self, network: TaskNetwork, classes: int, needed: int) -> int:
        """The task's equal share of what the bound leaves."""
        assert self.bound is not None
        number = len(network.tasks) + 1
        waiting = 1 if self.tasks is None else self.tasks + 1 - number
        if waiting < 1:
            raise CapacityExhaustedError(
                f"tasks={self.tasks} were to share the growth and this is number {number}: give "
                f"tasks={number} at least."
            )
        base = base_parameters(network, classes)
        used = sum(added_parameters(network, task) for task in network.tasks)
        share = max(0, (growth_bound_count(base, self.bound, 0) - used) // waiting)
        if share < needed:
            up = Context(prec=4, rounding=ROUND_CEILING)
            limit = f"growth_bound={self.bound} leaves {share} of {base} parameters, less"
            least = up.divide(used + needed * waiting, base)
            raise CapacityExhaustedError(_too_small(network, limit, needed, least))
        return share


def _too_small(network: TaskNetwork, limit: str, needed: int, least: object) -> str:
    return (
        f"{limit} than the {needed} that task number {len(network.tasks) + 1} needs for its "
        f"scales, norms, head and smallest ranks: give {least} at least."
    )


def _counted_private(network: TaskNetwork, classes: int) -> int:
    """Norms, heads and parameters without a module: not the biases of perturbed layers."""
    layers = {id(store.place.module) for store in network.weight_stores} | {
        id(head) for head in network.heads
    }
    return _head_parameters(network, classes) + sum(
        place.tensor.numel()
        for place in network.private.places
        if place.name in place.module._parameters and id(place.module) not in layers
    )


def _head_parameters(network: TaskNetwork, classes: int) -> int:
    return classes * sum(p.shape[1:].numel() for head in network.heads for p in head.parameters())
