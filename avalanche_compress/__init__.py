"""Continual learning methods that learn compressed, as drop-in Avalanche strategies."""

from avalanche_compress.archive import load_archive, save_archive
from avalanche_compress.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from avalanche_compress.errors import (
    ArchiveError,
    CapacityExhaustedError,
    CompressError,
    NonFiniteError,
    TaskAlreadyLearnedError,
    TaskInferenceError,
    TaskLabelError,
    TaskStateError,
    TrainingStateError,
    UnsupportedModuleError,
    ValidationDataError,
)
from avalanche_compress.loggers import WandBLogger
from avalanche_compress.metrics import (
    OrderRobustness,
    OrderRobustnessError,
    OrderRobustnessResult,
    TaskIdAccuracy,
    compression_metrics,
    layer_bits,
    layer_densities,
    layer_ranks,
    task_id_metrics,
)
from avalanche_compress.network import TaskNetwork
from avalanche_compress.plugins import (
    DensityRange,
    DensitySearch,
    FactorizationPlugin,
    MaskingPlugin,
    PerturbationPlugin,
    QuantizationPlugin,
    ShapingPlugin,
    SharingPlugin,
    TensorDataPlugin,
    ValidationPlugin,
    growth,
)
from avalanche_compress.stores import FactoredStore, MaskedStore, PerturbedStore, SlottedStore
from avalanche_compress.strategies import (
    CACL,
    HALRP,
    WSN,
    AdaQPackNet,
    CompressedStrategy,
    PackNet,
    TinySubNets,
)
from avalanche_compress.task_inference import TaskInference, infer
from avalanche_compress.tensor_data import ByteValues, NoTensorsError, TensorSamples
from avalanche_compress.training_state import (
    Position,
    TrainingStatePlugin,
    load_training_state,
    save_training_state,
)

__version__ = "0.1.0"

__all__ = [
    "CACL",
    "HALRP",
    "WSN",
    "AdaQPackNet",
    "ArchiveError",
    "ByteValues",
    "CapacityExhaustedError",
    "CheckpointError",
    "CompressError",
    "CompressedStrategy",
    "DensityRange",
    "DensitySearch",
    "FactoredStore",
    "FactorizationPlugin",
    "MaskedStore",
    "MaskingPlugin",
    "NoTensorsError",
    "NonFiniteError",
    "OrderRobustness",
    "OrderRobustnessError",
    "OrderRobustnessResult",
    "PackNet",
    "PerturbationPlugin",
    "PerturbedStore",
    "Position",
    "QuantizationPlugin",
    "ShapingPlugin",
    "SharingPlugin",
    "SlottedStore",
    "TaskAlreadyLearnedError",
    "TaskIdAccuracy",
    "TaskInference",
    "TaskInferenceError",
    "TaskLabelError",
    "TaskNetwork",
    "TaskStateError",
    "TensorDataPlugin",
    "TensorSamples",
    "TinySubNets",
    "TrainingStateError",
    "TrainingStatePlugin",
    "UnsupportedModuleError",
    "ValidationDataError",
    "ValidationPlugin",
    "WandBLogger",
    "compression_metrics",
    "growth",
    "infer",
    "layer_bits",
    "layer_densities",
    "layer_ranks",
    "load_archive",
    "load_checkpoint",
    "load_training_state",
    "save_archive",
    "save_checkpoint",
    "save_training_state",
    "task_id_metrics",
]
