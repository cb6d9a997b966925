"""How many tasks a model has room for, said before the first one is trained."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Mapping

from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.methods.subnetworks.plugin import Density, DensityRange, subnetwork_stores


def constant_density(density: Density, name: str) -> float | None:
    """The largest fraction that a layer keeps of any task.

    :param density: as :class:`~avalanche_compress.MaskingPlugin` takes it.
    :param name: the weight's dotted name.
    :return: None where it is given by position of the task.

    >>> constant_density({"a": DensityRange(0.2, 0.4)}, "a"), constant_density([0.5, 1.0], "a")
    (0.4, None)
    """
    given = density.get(name, 1.0) if isinstance(density, Mapping) else density
    if isinstance(given, DensityRange):
        return given.high
    return float(given) if isinstance(given, (int, float)) else None


def count_kept(writable: int, density: float) -> int:
    """How many of so many weights a task keeps, by the rounding of pruning by magnitude.

    :param writable: weights that it may write.
    :param density: fraction kept, 0..1.
    """
    return writable - round((1 - density) * writable)


def tasks_until_full(network: TaskNetwork, density: Density) -> int | None:
    """How many tasks find a free weight somewhere, if each keeps a fraction of the free ones.

    There may be more: of weights of equal magnitude at the threshold all are dropped.

    :param network: of :class:`~avalanche_compress.MaskedStore` without scores.
    :param density: as :class:`~avalanche_compress.MaskingPlugin` takes it.
    :return: None where it is given by position of the task, or nothing is ever kept.
    """
    most = 0
    for store in subnetwork_stores(network):
        kept = constant_density(density, store.name)
        if not kept:
            return None
        most = max(most, _tasks_until_nothing_is_kept(store.free_weights or 0, kept))
    return most or None


def _tasks_until_nothing_is_kept(free: int, density: float) -> int:
    """How many tasks keep a fraction of the free weights, if what they keep is free no more.

    Tasks that keep equally many are counted at once, so that a density of a millionth takes no
    longer than others.

    :param free: weights at first.
    :param density: fraction kept, above 0 and at most 1.

    >>> _tasks_until_nothing_is_kept(1000, 0.5), _tasks_until_nothing_is_kept(10**7, 1e-6)
    (11, 2878967)
    """
    tasks = 0
    while free and (taken := count_kept(free, density)):
        fewest = bisect_left(range(free), taken, key=lambda count: count_kept(count, density))
        equal = (free - fewest) // taken + 1
        free -= equal * taken
        tasks += equal
    return tasks


def fewest_tasks(network: TaskNetwork, density: Density, bits: int, slot_bits: int) -> int | None:
    """How many tasks find room in slots for certain, if each keeps a fraction of all weights.

    A layer of n weights has room for ``n floor(slot_bits / bits)`` codes; the layer that is full
    first decides.

    :param network: of :class:`~avalanche_compress.SlottedStore`, without finished tasks.
    :param density: as :class:`~avalanche_compress.MaskingPlugin` takes it.
    :param bits: of a code, at most.
    :param slot_bits: of a slot.
    :return: None where the density is given by position of the task, or nothing is ever kept.
    """
    fewest: int | None = None
    for store in subnetwork_stores(network):
        density_of_layer = constant_density(density, store.name)
        kept = count_kept(store.shape.numel(), density_of_layer or 0.0)
        if not kept:
            return None
        tasks = store.shape.numel() * (slot_bits // bits) // kept
        fewest = tasks if fewest is None else min(fewest, tasks)
    return fewest


def warn_of_room(method: str, tasks: int, advice: str) -> None:
    """Say how long a stream may be.

    :param method: whose.
    :param tasks: that find room for certain.
    :param advice: what to do for more.
    """
    room = f"{method} has room for at least {tasks} tasks in this model."
    warnings.warn(f"{room} {advice}", stacklevel=4)
