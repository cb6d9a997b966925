"""How many bits the values take that a task newly keeps."""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor

from avalanche_compress.coding import quantise_codebook, quantise_fixed_point
from avalanche_compress.errors import TaskStateError
from avalanche_compress.network import TaskNetwork, network_of
from avalanche_compress.plugins.base import ShapingPlugin
from avalanche_compress.plugins.validation import ValidationPlugin, validation_of
from avalanche_compress.stores import Values, WeightStore

_QUANTISERS: dict[str, Callable[[Tensor, int], Values]] = {
    "kmeans": quantise_codebook,
    "fixed_point": quantise_fixed_point,
}
_LEAST_BITS = {"kmeans": 1, "fixed_point": 2}


class QuantizationPlugin(ShapingPlugin):
    """Replaces the values that a task newly keeps by codes of few bits, layer by layer.

    Values that the task reads from earlier tasks stay their owners'. With ``bits="auto"`` the
    smallest width is taken whose validation accuracy is within ``tolerance`` of the float
    weights' (the ascending search of Pietron et al., arXiv 2412.10869 v1, Algorithm 1); if none is,
    ``max_bits``. That needs a :class:`ValidationPlugin`.

    :param bits: 1..16 for every layer and task, or ``"auto"``.
    :param method: ``"kmeans"``: the optimal codebook of ``2**bits`` floats a layer; or
        ``"fixed_point"``: a shared power of two, at least 2 bits.
    :param tolerance: loss of accuracy that is accepted, in percentage points.
    :param max_bits: where the search ends.
    :raises TaskStateError: if an argument is outside its range.

    >>> QuantizationPlugin(bits=4).bits
    4
    """

    turn = 2

    def __init__(
        self,
        bits: int | str = "auto",
        *,
        method: str = "kmeans",
        tolerance: float = 0.5,
        max_bits: int = 8,
    ):
        super().__init__()
        if method not in _QUANTISERS:
            raise TaskStateError(f"method={method!r} must be one of {sorted(_QUANTISERS)}.")
        least = _LEAST_BITS[method]
        for name, width in (("bits", bits), ("max_bits", max_bits)):
            if width == "auto" and name == "bits":
                continue
            if not isinstance(width, int) or not least <= width <= 16:
                raise TaskStateError(f"{name}={width!r} must be an int from {least} to 16.")
        if tolerance < 0:
            raise TaskStateError(f"tolerance={tolerance} percentage points cannot be negative.")
        self.bits = bits
        self.method = method
        self.tolerance = tolerance
        self.max_bits = max_bits

    def shape(self, strategy: Any) -> None:
        network = network_of(strategy)
        originals = [[v.clone() for v in store.kept_values()] for store in network.weight_stores]
        if isinstance(self.bits, int):
            self._quantise(network.weight_stores, originals, self.bits)
        else:
            validation = validation_of(strategy, "bits='auto'")
            self._search(network, originals, validation)

    def _search(
        self, network: TaskNetwork, originals: list[list[Tensor]], validation: ValidationPlugin
    ) -> None:
        reference = validation.accuracy(network)
        for bits in range(_LEAST_BITS[self.method], self.max_bits + 1):
            self._quantise(network.weight_stores, originals, bits)
            if reference - validation.accuracy(network) <= self.tolerance:
                return

    def _quantise(
        self, stores: list[WeightStore], originals: list[list[Tensor]], bits: int
    ) -> None:
        quantise = _QUANTISERS[self.method]
        for store, values in zip(stores, originals):
            store.keep_values([quantise(v, bits) for v in values])
