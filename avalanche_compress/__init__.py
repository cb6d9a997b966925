"""Continual learning methods that learn compressed, as drop-in Avalanche strategies."""

from typing import TYPE_CHECKING, Any

from avalanche_compress.archive import load_archive, save_archive
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.registry import (
    Method,
    method_named,
    register_method,
    register_store,
    registered_methods,
    store_kinds,
    unregister_method,
)
from avalanche_compress.errors import (
    ArchiveError,
    CapacityExhaustedError,
    CompressError,
    ExportError,
    NonFiniteError,
    TaskAlreadyLearnedError,
    TaskInferenceError,
    TaskLabelError,
    TaskStateError,
    TrainingDataError,
    TrainingStateError,
    UnsupportedModuleError,
    UnsupportedPluginError,
    ValidationDataError,
)
from avalanche_compress.export import export_task
from avalanche_compress.host.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from avalanche_compress.host.series_csv import SeriesCSVLogger
from avalanche_compress.host.tensor_data import ByteValues, NoTensorsError, TensorSamples
from avalanche_compress.host.tensor_data.plugin import TensorDataPlugin
from avalanche_compress.inference.energy import EnergyRule
from avalanche_compress.inference.entropy import EntropyRule
from avalanche_compress.inference.gaussian import GaussianRule
from avalanche_compress.inference.prototype import PrototypeRule
from avalanche_compress.inference.ridge import RidgeRule
from avalanche_compress.inference.selection import select_inference
from avalanche_compress.inference.task_inference import TaskInference, infer
from avalanche_compress.inference.triangular import TriangularRule
from avalanche_compress.methods.ada_qpacknet.store import SlottedStore
from avalanche_compress.methods.ada_qpacknet.strategy import AdaQPackNet
from avalanche_compress.methods.cacl.plugin import FactorizationPlugin
from avalanche_compress.methods.cacl.store import FactoredStore
from avalanche_compress.methods.cacl.strategy import CACL
from avalanche_compress.methods.halrp.growth import growth
from avalanche_compress.methods.halrp.plugin import PerturbationPlugin
from avalanche_compress.methods.halrp.store import PerturbedStore
from avalanche_compress.methods.halrp.strategy import HALRP
from avalanche_compress.methods.lora.plugin import AdaptationPlugin
from avalanche_compress.methods.lora.store import AdaptedStore
from avalanche_compress.methods.lora.strategy import LoRA
from avalanche_compress.methods.subnetworks.packnet import PackNet
from avalanche_compress.methods.subnetworks.plugin import (
    DensityRange,
    DensitySearch,
    MaskingPlugin,
)
from avalanche_compress.methods.subnetworks.store import MaskedStore
from avalanche_compress.methods.subnetworks.tinysubnets import TinySubNets
from avalanche_compress.methods.subnetworks.wsn import WSN
from avalanche_compress.metrics import (
    AccuracySeries,
    LayerSeries,
    OrderRobustness,
    OrderRobustnessError,
    OrderRobustnessResult,
    RefusedSamples,
    TaskIdAccuracy,
    TrainingCurves,
    compression_metrics,
    layer_bits,
    layer_densities,
    layer_ranks,
    task_id_metrics,
    task_series,
)
from avalanche_compress.shaping.norms import NormPlugin
from avalanche_compress.shaping.plugin import ShapingPlugin, Stage
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.shaping.sharing import SharingPlugin
from avalanche_compress.shaping.size_budget import ArchiveBudget, SizeBudgetPlugin
from avalanche_compress.shaping.validation import ValidationPlugin
from avalanche_compress.training.autocast import AutocastPlugin
from avalanche_compress.training.channels_last import ChannelsLastPlugin
from avalanche_compress.training.features import precompute_features
from avalanche_compress.training.state import (
    Position,
    TrainingStatePlugin,
    load_training_state,
    save_training_state,
)
from avalanche_compress.training.strategy import CompressedStrategy

if TYPE_CHECKING:
    from avalanche_compress.host.wandb_logger import WandBLogger

__version__ = "0.2.0"

__all__ = [
    "CACL",
    "HALRP",
    "WSN",
    "AccuracySeries",
    "AdaQPackNet",
    "AdaptationPlugin",
    "AdaptedStore",
    "ArchiveBudget",
    "ArchiveError",
    "AutocastPlugin",
    "ByteValues",
    "CapacityExhaustedError",
    "ChannelsLastPlugin",
    "CheckpointError",
    "CompressError",
    "CompressedStrategy",
    "DensityRange",
    "DensitySearch",
    "EnergyRule",
    "EntropyRule",
    "ExportError",
    "FactoredStore",
    "FactorizationPlugin",
    "GaussianRule",
    "LayerSeries",
    "LoRA",
    "MaskedStore",
    "MaskingPlugin",
    "Method",
    "NoTensorsError",
    "NonFiniteError",
    "NormPlugin",
    "OrderRobustness",
    "OrderRobustnessError",
    "OrderRobustnessResult",
    "PackNet",
    "PerturbationPlugin",
    "PerturbedStore",
    "Position",
    "PrototypeRule",
    "QuantizationPlugin",
    "RefusedSamples",
    "RidgeRule",
    "SeriesCSVLogger",
    "ShapingPlugin",
    "SharingPlugin",
    "SizeBudgetPlugin",
    "SlottedStore",
    "Stage",
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
    "TrainingCurves",
    "TrainingDataError",
    "TrainingStateError",
    "TrainingStatePlugin",
    "TriangularRule",
    "UnsupportedModuleError",
    "UnsupportedPluginError",
    "ValidationDataError",
    "ValidationPlugin",
    "WandBLogger",
    "compression_metrics",
    "export_task",
    "growth",
    "infer",
    "layer_bits",
    "layer_densities",
    "layer_ranks",
    "load_archive",
    "load_checkpoint",
    "load_training_state",
    "method_named",
    "precompute_features",
    "register_method",
    "register_store",
    "registered_methods",
    "save_archive",
    "save_checkpoint",
    "save_training_state",
    "select_inference",
    "store_kinds",
    "task_id_metrics",
    "task_series",
    "unregister_method",
]


def __getattr__(name: str) -> Any:
    """``WandBLogger``, which imports wandb and is therefore imported when it is asked for."""
    if name == "WandBLogger":
        from avalanche_compress.host.wandb_logger import WandBLogger

        return WandBLogger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
