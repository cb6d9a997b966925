"""What the public code of Ada-QPacknet does otherwise, for studies that compare with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avalanche_compress.codec import Codebook, Values, quantise_codebook
from avalanche_compress.core.network import network_of
from avalanche_compress.core.store import WeightStore
from avalanche_compress.errors import CapacityExhaustedError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.methods.ada_qpacknet.fill import SLOT_BITS
from avalanche_compress.methods.subnetworks.plugin import MaskingPlugin
from avalanche_compress.shaping.quantization import Layer, QuantizationPlugin
from avalanche_compress.shaping.validation import validation_of


class ReferenceMasking(MaskingPlugin):
    """B1: the mask is fixed by the magnitudes that the weights have before the first step.

    The public code looks for the smallest weights at every step, but those that it sets to zero
    stay the smallest, so its mask never changes after the first.
    """

    def before_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_epochs == 0:
            self._prune(strategy)


class ReferenceQuantization(QuantizationPlugin):
    """B12: K = 64 centroids, halved while accuracy stays within 2 percentage points either way.

    A gain of 2 points ends the search like a loss does. The search ends at K = 2, and K = 64 is
    taken when even that is out of bounds, where the public code fails. B13: the zeros of pruned
    weights take part in k-means and get centroids too; k-means is ours, the optimal one. B2: each
    task is charged for all weights, kept or not. B3: it is admitted while the sum of earlier
    widths is *less* than 32 less its own.

    :param bits: 1..16, or ``"auto"`` for the search.

    >>> ReferenceQuantization().most_bits
    6
    """

    def __init__(self, bits: int | str = "auto"):
        super().__init__(bits, tolerance=2.0, max_bits=6)

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        network = network_of(strategy)
        spent = sum(_width(network.weight_stores, task) for task in network.tasks)
        if not spent < SLOT_BITS - self.most_bits:
            raise CapacityExhaustedError(
                f"{len(network.tasks)} tasks have taken {spent} of {SLOT_BITS} bits of every "
                f"weight and the next may take {self.most_bits}, which the public code refuses: "
                "give fewer bits, or leave reference_compat off, which charges kept weights only."
            )
        super().after_train_dataset_adaptation(strategy, *args, **kwargs)

    def _codes(self, layer: Layer, values: Tensor, bits: float) -> Values:
        pruned = values.new_zeros(layer.store.shape.numel() - values.numel())
        everything = quantise_codebook(torch.cat([values, pruned]), int(bits))
        return Codebook(everything.codes[: values.numel()], everything.centroids)

    def _search(self, layers: Sequence[Layer], strategy: Strategy) -> None:
        network, validation = network_of(strategy), validation_of(strategy, "bits='auto'")
        reference = validation.accuracy(network)
        self.quantise(layers, self.max_bits)
        for bits in range(self.max_bits, 0, -1):
            accepted = [(layer.values, layer.bits) for layer in layers]
            self.quantise(layers, bits)
            if not abs(reference - validation.accuracy(network)) < self.tolerance:
                for layer, (values, width) in zip(layers, accepted):
                    layer.keep(values)
                    layer.bits = width
                return


def _width(stores: Sequence[WeightStore], task: int) -> int:
    """The widest value of a finished task, in bits."""
    counts = [(store.value_bits(task), store.stored_values(task)) for store in stores]
    return max((bits // count for bits, count in counts if count), default=0)
