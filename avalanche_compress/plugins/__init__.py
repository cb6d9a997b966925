"""When a task is shaped: plugins for any Avalanche strategy over a TaskNetwork."""

from avalanche_compress.plugins.autocast import AutocastPlugin
from avalanche_compress.plugins.base import ShapingPlugin, shape_and_commit
from avalanche_compress.plugins.channels_last import ChannelsLastPlugin
from avalanche_compress.plugins.factorization import FactorizationPlugin
from avalanche_compress.plugins.growth import growth
from avalanche_compress.plugins.masking import DensityRange, DensitySearch, MaskingPlugin
from avalanche_compress.plugins.perturbation import PerturbationPlugin
from avalanche_compress.plugins.quantization import QuantizationPlugin
from avalanche_compress.plugins.sharing import SharingPlugin
from avalanche_compress.plugins.tensor_data import TensorDataPlugin
from avalanche_compress.plugins.validation import ValidationPlugin

__all__ = [
    "AutocastPlugin",
    "ChannelsLastPlugin",
    "DensityRange",
    "DensitySearch",
    "FactorizationPlugin",
    "MaskingPlugin",
    "PerturbationPlugin",
    "QuantizationPlugin",
    "ShapingPlugin",
    "SharingPlugin",
    "TensorDataPlugin",
    "ValidationPlugin",
    "growth",
    "shape_and_commit",
]
