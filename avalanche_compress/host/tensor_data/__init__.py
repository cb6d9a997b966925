"""Data sets whose samples are known as tensors, and need not be built one by one."""

from avalanche_compress.host.tensor_data.reading import read_samples
from avalanche_compress.host.tensor_data.samples import (
    ByteValues,
    NoTensorsError,
    Samples,
    TensorSamples,
)

__all__ = ["ByteValues", "NoTensorsError", "Samples", "TensorSamples", "read_samples"]
