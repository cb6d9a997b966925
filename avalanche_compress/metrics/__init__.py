"""What a compressed network weighs, as Avalanche metrics."""

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

__all__ = [
    "bits_per_weight",
    "capacity",
    "capacity_tinysubnets",
    "capacity_wsn",
    "compression_metrics",
    "stored_bytes",
    "task_parameters",
    "union_density",
]
