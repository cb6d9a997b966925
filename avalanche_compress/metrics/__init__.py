"""What the network weighs, how well it tells tasks apart, what their order does: as metrics."""

from avalanche_compress.metrics.compression import (
    bits_per_weight,
    capacity,
    capacity_tinysubnets,
    capacity_wsn,
    compression_metrics,
    layer_bits,
    layer_densities,
    layer_ranks,
    stored_bytes,
    task_parameters,
    union_density,
)
from avalanche_compress.metrics.order import (
    OrderRobustness,
    OrderRobustnessError,
    OrderRobustnessResult,
    order_robustness,
)
from avalanche_compress.metrics.series import (
    AccuracySeries,
    LayerSeries,
    TrainingCurves,
    task_series,
)
from avalanche_compress.metrics.task_identity import RefusedSamples, TaskIdAccuracy, task_id_metrics

__all__ = [
    "AccuracySeries",
    "LayerSeries",
    "OrderRobustness",
    "OrderRobustnessError",
    "OrderRobustnessResult",
    "RefusedSamples",
    "TaskIdAccuracy",
    "TrainingCurves",
    "bits_per_weight",
    "capacity",
    "capacity_tinysubnets",
    "capacity_wsn",
    "compression_metrics",
    "layer_bits",
    "layer_densities",
    "layer_ranks",
    "order_robustness",
    "stored_bytes",
    "task_id_metrics",
    "task_parameters",
    "task_series",
    "union_density",
]
