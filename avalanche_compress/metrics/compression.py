"""What the network weighs, as Avalanche metrics after each experience."""

from __future__ import annotations

from typing import Any, Callable

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue

from avalanche_compress.archive import archive_bytes
from avalanche_compress.network import TaskNetwork, network_of
from avalanche_compress.stores import MaskedStore, Store


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

    ``100 sum_t sum_l b_tl |O_tl| / (32 N)``: masks, codebooks, heads and norms are not in it.

    :param network: any.
    """
    weights = sum(store.shape.numel() for store in network.weight_stores)
    bits = sum(s.value_bits(task) for s in network.weight_stores for task in network.tasks)
    return 100 * bits / (32 * weights)


def union_density(network: TaskNetwork) -> float:
    """Percent of the weights that any task uses, ``100 |U_T| / N``.

    :param network: with masked weights.
    """
    stores = [store for store in network.weight_stores if isinstance(store, MaskedStore)]
    used = sum(int((store.free == 0).sum()) for store in stores)
    return 100 * used / sum(store.shape.numel() for store in stores)


def capacity_tinysubnets(network: TaskNetwork, bits: int) -> float:
    """Capacity as the public TinySubNets code prints it: union density times bits / 32.

    Masks, codebooks, heads and norms are not in it.

    :param network: with masked weights.
    :param bits: of every value, one number for all tasks and layers.
    """
    return union_density(network) * bits / 32


def capacity_wsn(network: TaskNetwork, mask_ratio: float = 0.78) -> float:
    """Capacity as WSN counts it: union density plus compressed masks, in percent.

    ``(1 - S) + (1 - alpha) T / 32`` with S the union's sparsity and alpha the masks' mean
    compression; unlike :func:`stored_bytes`, heads and norms are not in it.

    :param network: with masked weights.
    :param mask_ratio: alpha.
    """
    return union_density(network) + 100 * (1 - mask_ratio) * len(network.tasks) / 32


def task_parameters(network: TaskNetwork) -> int:
    """Numbers that the newest finished task added, its head, biases and norms included.

    :param network: any; 0 before a task is finished.
    """
    if not network.tasks:
        return 0
    task = network.tasks[-1]
    stores: list[Store] = [network.private, *network.weight_stores]
    return sum(store.stored_values(task) for store in stores)


class NetworkMetric(PluginMetric[float]):
    """A number read off the network each time a task is finished.

    :param name: as loggers show it.
    :param measure: a function of the network.
    """

    def __init__(self, name: str, measure: Callable[[TaskNetwork], float]):
        super().__init__()
        self._name = name
        self._measure = measure
        self._last = 0.0

    def result(self, **kwargs: Any) -> float:
        return self._last

    def reset(self, **kwargs: Any) -> None:
        self._last = 0.0

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        self._last = float(self._measure(network_of(strategy)))
        experience = strategy.experience.current_experience
        name = f"{self._name}/train_phase/Exp{experience:03d}"
        return [MetricValue(self, name, self._last, strategy.clock.train_iterations)]

    def __str__(self) -> str:
        return self._name


def compression_metrics() -> list[NetworkMetric]:
    """Metrics for an ``EvaluationPlugin``: bytes, bits a weight, capacity, parameters a task.

    :return: ``StoredBytes``, ``BitsPerWeight``, ``Capacity`` and ``TaskParameters``, and for
        masked weights ``UnionDensity`` and ``CapacityWSN``, each emitted when a task is finished.

    >>> [str(metric) for metric in compression_metrics()][:2]
    ['StoredBytes', 'BitsPerWeight']
    """
    return [
        NetworkMetric("StoredBytes", stored_bytes),
        NetworkMetric("BitsPerWeight", bits_per_weight),
        NetworkMetric("Capacity", capacity),
        NetworkMetric("UnionDensity", union_density),
        NetworkMetric("CapacityWSN", capacity_wsn),
        NetworkMetric("TaskParameters", task_parameters),
    ]
