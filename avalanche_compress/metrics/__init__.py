"""What the network weighs and how well it tells tasks apart, as Avalanche metrics."""

from avalanche_compress.metrics.compression import (
    bits_per_weight,
    capacity,
    capacity_tinysubnets,
    capacity_wsn,
    compression_metrics,
    stored_bytes,
    task_parameters,
    union_density,
)
from avalanche_compress.metrics.task_identity import TaskIdAccuracy, task_id_metrics

__all__ = [
    "TaskIdAccuracy",
    "bits_per_weight",
    "capacity",
    "capacity_tinysubnets",
    "capacity_wsn",
    "compression_metrics",
    "stored_bytes",
    "task_id_metrics",
    "task_parameters",
    "union_density",
]
