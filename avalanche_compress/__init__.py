"""Continual learning methods that learn compressed, as drop-in Avalanche strategies."""

from avalanche_compress.archive import load_archive, save_archive
from avalanche_compress.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from avalanche_compress.errors import (
    ArchiveError,
    CapacityExhaustedError,
    CompressError,
    NonFiniteError,
    TaskAlreadyLearnedError,
    TaskLabelError,
    TaskStateError,
    UnsupportedModuleError,
    ValidationDataError,
)
from avalanche_compress.loggers import WandBLogger
from avalanche_compress.metrics import compression_metrics
from avalanche_compress.network import TaskNetwork
from avalanche_compress.plugins import (
    MaskingPlugin,
    QuantizationPlugin,
    ShapingPlugin,
    SharingPlugin,
    ValidationPlugin,
)
from avalanche_compress.stores import MaskedStore
from avalanche_compress.strategies import WSN, CompressedStrategy, PackNet, TinySubNets

__version__ = "0.1.0"

__all__ = [
    "WSN",
    "ArchiveError",
    "CapacityExhaustedError",
    "CheckpointError",
    "CompressError",
    "CompressedStrategy",
    "MaskedStore",
    "MaskingPlugin",
    "NonFiniteError",
    "PackNet",
    "QuantizationPlugin",
    "ShapingPlugin",
    "SharingPlugin",
    "TaskAlreadyLearnedError",
    "TaskLabelError",
    "TaskNetwork",
    "TaskStateError",
    "TinySubNets",
    "UnsupportedModuleError",
    "ValidationDataError",
    "ValidationPlugin",
    "WandBLogger",
    "compression_metrics",
    "load_archive",
    "load_checkpoint",
    "save_archive",
    "save_checkpoint",
]
