"""What the network weighs, as Avalanche metrics after each experience."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue

from avalanche_compress.archive import archive_bytes
from avalanche_compress.codec import fused_mask_bits
from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.core.store import Store, WeightStore
from avalanche_compress.host.strategy import Strategy


def stored_bytes(network: TaskNetwork) -> int:
    """Bytes of the archive of all finished tasks.

    :param network: any.
    """
    return len(archive_bytes(network))


def bits_per_weight(network: TaskNetwork) -> float:
    """Bits of the archive per weight and finished task; 32 or more for separate float networks.

    :param network: any; 0 before a task is finished.
    """
    weights = sum(store.shape.numel() for store in network.weight_stores)
    return 8 * stored_bytes(network) / (weights * max(1, len(network.tasks)))


def capacity(network: TaskNetwork) -> float:
    """Percent of the dense float weights that the values kept by all tasks take.

    ``100 sum_t sum_l b_tl |O_tl| / (32 N)``: masks, codebooks, heads and norms are not in it, a
    base that all tasks share is.

    :param network: any.
    """
    weights = sum(store.shape.numel() for store in network.weight_stores)
    bits = sum(s.value_bits(task) for s in network.weight_stores for task in network.tasks)
    bits += sum(store.shared_bits for store in network.weight_stores)
    return 100 * bits / (32 * weights)


def union_density(network: TaskNetwork) -> float:
    """Percent of the masked weights that any task uses, ``100 |U_T| / N``.

    :param network: any; 0 without masked weights.
    """
    stores = _masked(network)
    for store in stores:
        store.read_on()
    used = sum(int((store.free == 0).sum()) for store in stores)
    return 100 * used / max(1, _weights_in(stores))


def capacity_tinysubnets(network: TaskNetwork, bits: int) -> float:
    """Capacity as the public TinySubNets code prints it: union density times bits / 32.

    Masks, codebooks, heads and norms are not in it.

    :param network: with masked weights.
    :param bits: of every value, one number for all tasks and layers.
    """
    return union_density(network) * bits / 32


def capacity_wsn(network: TaskNetwork) -> float:
    """Capacity as WSN counts it: union density plus Huffman-coded masks, in percent of the weights.

    The masks of seven tasks at a time are fused to one symbol a weight, as in its public code.
    Heads and norms are not in it; :func:`stored_bytes` has everything.

    :param network: with masked weights.
    """
    stores = _masked(network)
    if not network.tasks or not stores:
        return 0.0
    bits = sum(
        fused_mask_bits(torch.stack([s.mask_of(task).flatten() for task in network.tasks]).cpu())
        for s in stores
    )
    return union_density(network) + 100 * bits / (32 * _weights_in(stores))


def layer_ranks(network: TaskNetwork) -> dict[str, list[int]]:
    """How many terms each finished task added to each weight that is kept as terms.

    :param network: any.
    :return: by dotted name of the weight, in order of learning; empty without such weights.
    """
    ranks = {s.name: [s.rank_of(task) for task in network.tasks] for s in network.weight_stores}
    return {
        name: [rank for rank in of_tasks if rank is not None]
        for name, of_tasks in ranks.items()
        if None not in of_tasks
    }


def layer_densities(network: TaskNetwork) -> dict[str, list[float]]:
    """The part of each masked weight that each finished task computes with, ``|M_t| / n``, 0 to 1.

    :param network: any.
    :return: by dotted name of the weight, in order of learning; empty without masked weights.
    """
    densities = {
        store.name: [store.density_of(task) for task in network.tasks]
        for store in network.weight_stores
    }
    return {
        name: [density for density in of_tasks if density is not None]
        for name, of_tasks in densities.items()
        if None not in of_tasks
    }


def layer_bits(network: TaskNetwork) -> dict[str, list[float | None]]:
    """Mean bits of the numbers that each finished task added to each weight.

    Masks and codebooks are not in it, as in :func:`capacity`.

    :param network: any.
    :return: by dotted name of the weight, in order of learning; None where a task added nothing.
    """
    return {
        store.name: [mean_bits(store, task) for task in network.tasks]
        for store in network.weight_stores
    }


def mean_bits(store: WeightStore, task: int) -> float | None:
    """Bits of each number that a finished task added to a weight; None if it added none.

    :param store: the weight's.
    :param task: its label.
    """
    added = store.stored_values(task)
    return store.value_bits(task) / added if added else None


def task_parameters(network: TaskNetwork) -> int:
    """Numbers that the newest finished task added, its head, biases and norms included.

    :param network: any; 0 before a task is finished.
    """
    if not network.tasks:
        return 0
    task = network.tasks[-1]
    stores: list[Store] = [network.private, *network.weight_stores]
    return sum(store.stored_values(task) for store in stores)


def _masked(network: TaskNetwork) -> list[Any]:
    return [store for store in network.weight_stores if store.kind == "masked"]


def _weights_in(stores: Iterable[WeightStore]) -> int:
    return sum(store.scratch.numel() for store in stores)


class NetworkMetric(PluginMetric[float]):
    """A number read off the network each time a task is finished: a series over the tasks.

    :param name: as loggers show it, the same for all tasks.
    :param measure: a function of the network.
    """

    axis = "task"
    """``x_plot`` is the place of the task in the stream."""

    def __init__(self, name: str, measure: Callable[[TaskNetwork], float]):
        super().__init__()
        self.summarised = (name,)
        self._name = name
        self._measure = measure
        self._last = 0.0

    def result(self, **kwargs: Any) -> float:
        """The number after the newest task."""
        return self._last

    def reset(self, **kwargs: Any) -> None:
        """Forget it."""
        self._last = 0.0

    def after_training_exp(self, strategy: Strategy) -> list[MetricValue]:
        """Measure the network."""
        self._last = float(self._measure(network_of(strategy)))
        task = strategy.experience.current_experience
        return [MetricValue(self, self._name, self._last, task)]

    def __str__(self) -> str:
        return self._name


def compression_metrics() -> list[NetworkMetric]:
    """Metrics for an ``EvaluationPlugin``: bytes, bits a weight, capacity, parameters a task.

    :return: ``size/archive_bytes``, ``size/bits_per_weight``, ``size/capacity`` (percent) and
        ``size/task_parameters``, and for masked weights ``size/union_density`` and
        ``size/capacity_wsn`` (percent, 0 without), each emitted when a task is finished.

    >>> [str(metric) for metric in compression_metrics()][:2]
    ['size/archive_bytes', 'size/bits_per_weight']
    """
    return [
        NetworkMetric("size/archive_bytes", stored_bytes),
        NetworkMetric("size/bits_per_weight", bits_per_weight),
        NetworkMetric("size/capacity", capacity),
        NetworkMetric("size/union_density", union_density),
        NetworkMetric("size/capacity_wsn", capacity_wsn),
        NetworkMetric("size/task_parameters", task_parameters),
    ]
