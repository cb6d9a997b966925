"""How many bits the values take that a task newly keeps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avalanche_compress.codec import (
    Float,
    Half,
    Values,
    quantise_codebook,
    quantise_entropy,
    quantise_fixed_point,
)
from avalanche_compress.core.batches import moved_to
from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.core.options import is_count
from avalanche_compress.core.store import WeightStore
from avalanche_compress.core.substitution import evaluating
from avalanche_compress.errors import TaskStateError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.shaping.codebook_training import train_centroids
from avalanche_compress.shaping.plugin import ShapingPlugin, Stage
from avalanche_compress.shaping.task_loss import task_loss
from avalanche_compress.shaping.validation import (
    Comparison,
    Quality,
    ValidationPlugin,
    check_loss_tolerance,
    find_validation,
    validation_of,
)

_PURPOSE = "bits='auto'"
_LOST_ROW, _LOST_ROWS = 0.5, 0.1
"""Part of its square without which a row is lost, and of rows for which a layer is named."""
_RARE_CODES = 2
"""Bits that a rare code may take more than all do on average, where a store counts every one."""
_MOST_BITS = 16
_VALUES_A_CENTROID = 16
MATRIX = 2
"""Dimensions from which on a private tensor is rounded like a weight; others are halved."""


class _Quantiser(NamedTuple):
    """A way to replace values by codes.

    :param codes: makes them, of values (n,) and bits.
    :param least_bits: of a code.
    :param step: by how much the width changes that a search tries.
    """

    codes: Callable[[Tensor, Any], Values]
    least_bits: int = 1
    step: float = 1


_QUANTISERS = {
    "kmeans": _Quantiser(quantise_codebook),
    "fixed_point": _Quantiser(quantise_fixed_point, least_bits=2),
    "entropy": _Quantiser(quantise_entropy, step=0.25),
}


class QuantizationOptions(TypedDict, total=False):
    """Options of :class:`QuantizationPlugin`."""

    bits: int | str
    method: str
    tolerance: float
    loss_tolerance: float
    private_bits: int | None
    max_bits: int
    per_layer: bool
    codebook_finetune_epochs: int


@dataclass(eq=False)
class QuantizationPlugin(ShapingPlugin):
    """Replaces the values that a task newly keeps by codes of few bits, layer by layer.

    Values that the task reads from earlier tasks stay their owners'. With ``bits="auto"`` the
    smallest width is taken whose validation accuracy is within ``tolerance`` of the float
    weights' (the ascending search of Pietron et al., arXiv 2412.10869 v1, Algorithm 1), and whose
    loss on these samples and some of the training is within ``loss_tolerance`` of theirs (our
    choice: few held-out samples do not see what few bits do); if none is, ``max_bits``. A gain is
    no loss. Then, with ``per_layer``, layers give up further bits one after another, those first
    whose loss of one bit alone costs least, as long as all of it together stays within the
    tolerances (our choice; Ada-QPacknet's code measures this sensitivity and does not use it). Both
    need a :class:`ValidationPlugin`.

    At the end the centroids may be trained for ``codebook_finetune_epochs`` on the task's training
    data, the codes as they are. The loss on validation data, where there is some, says whether that
    was for the better: accuracy on few samples is too coarse for it. Inputs are transformed as for
    evaluation and the model is in evaluation mode, as the task will be used, so no random number is
    drawn that training would draw.

    :param bits: 1..16 for every layer and task, or ``"auto"``.
    :param method: ``"kmeans"``: the optimal codebook of ``2**bits`` floats a layer;
        ``"entropy"``: the codebook of least error whose codes take that many bits on average, of
        which a search tries quarters, too (where a word of several tasks' codes counts each one,
        rare ones have up to two bits more); or ``"fixed_point"``: a shared power of two, at least 2
        bits.
    :param private_bits: of the matrices that each task has for itself, such as its head, 1..16;
        its vectors (biases, norms, running statistics) are then kept as bfloat16. A matrix of less
        than 16 values a centroid is kept as fixed point, which has no codebook. None keeps all
        of them as floats.
    :param tolerance: loss of accuracy that the search accepts, in percentage points.
    :param loss_tolerance: what the search may add to the criterion's mean (of cross-entropy, nats);
        ``float("inf")`` for accuracy alone.
    :param max_bits: where the search ends.
    :param per_layer: search layer by layer after the common width is found.
    :param codebook_finetune_epochs: of training for the centroids; fixed point has none to train.
    :raises TaskStateError: if an argument is outside its range.

    >>> QuantizationPlugin(bits=4).most_bits
    4
    """

    bits: int | str = "auto"
    method: str = "kmeans"
    tolerance: float = 0.5
    loss_tolerance: float = 0.05
    private_bits: int | None = None
    max_bits: int = 8
    per_layer: bool = False
    codebook_finetune_epochs: int = 0

    stage = Stage.QUANTISE

    def __post_init__(self) -> None:
        super().__init__()
        if self.method not in _QUANTISERS:
            raise TaskStateError(f"method={self.method!r} must be one of {sorted(_QUANTISERS)}.")
        least = self._quantiser.least_bits
        for name in ("bits", "max_bits", "private_bits"):
            width = getattr(self, name)
            if (name, width) in (("bits", "auto"), ("private_bits", None)):
                continue
            if not is_count(width) or not least <= width <= _MOST_BITS:
                raise TaskStateError(
                    f"{name}={width!r} must be an int from {least} to {_MOST_BITS} for "
                    f"method={self.method!r}."
                )
        if not self.tolerance >= 0:
            raise TaskStateError(
                f"tolerance={self.tolerance} percentage points cannot be negative: it is the loss "
                "of accuracy that few bits may cost."
            )
        check_loss_tolerance(self.loss_tolerance)
        if self.codebook_finetune_epochs < 0:
            raise TaskStateError(
                f"codebook_finetune_epochs={self.codebook_finetune_epochs} cannot be negative."
            )

    @property
    def _quantiser(self) -> _Quantiser:
        return _QUANTISERS[self.method]

    @property
    def most_bits(self) -> int:
        """Bits that a value takes at most."""
        return self.bits if isinstance(self.bits, int) else self.max_bits

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        if self.bits == "auto" and not any(
            isinstance(plugin, ValidationPlugin) for plugin in strategy.plugins
        ):
            validation_of(strategy, _PURPOSE)  # raises now, not after hours of training
        rare = _RARE_CODES if self.method == "entropy" else 0
        for store in network_of(strategy).weight_stores:
            store.reserved_bits = min(self.most_bits + rare, _MOST_BITS)

    def shape(self, strategy: Strategy) -> None:
        stores = network_of(strategy).weight_stores
        if isinstance(self.bits, int):
            layers = [self._quantised(store, self.bits) for store in stores]
        else:
            layers = [Layer.of(store) for store in stores]
            self._search(layers, strategy)
            for layer in layers:
                _warn_of_lost_rows(layer, layer.original_weight())
        if self.codebook_finetune_epochs:
            self._finetune(layers, strategy)

    def finish(self, strategy: Strategy) -> None:
        if self.private_bits is not None:
            keep_private(network_of(strategy), partial(self._private_codes, bits=self.private_bits))

    def _private_codes(self, values: Tensor, bits: int) -> Values:
        # of few values a codebook takes more than their codes, and more than the values themselves
        codebook = values.numel() >= _VALUES_A_CENTROID * 2**bits
        quantiser = self._quantiser if codebook else _QUANTISERS["fixed_point"]
        return quantiser.codes(values, max(bits, 2))

    def _quantised(self, store: WeightStore, bits: int) -> Layer:
        """A weight that is quantised at once; of no other one are the floats in memory."""
        layer, weight = Layer.of(store), store.weight().detach().clone()
        self.quantise([layer], bits)
        _warn_of_lost_rows(layer, weight)
        layer.originals.clear()
        return layer

    def quantise(self, layers: Sequence[Layer], bits: float) -> None:
        """Let each layer keep codes of its float values.

        :param layers: of the open task.
        :param bits: width of a code.
        """
        for layer in layers:
            layer.keep([self._codes(layer, values, bits) for values in layer.originals])
            layer.bits = bits

    def _codes(self, layer: Layer, values: Tensor, bits: float) -> Values:
        codes = self._quantiser.codes(values, bits)
        if layer.store.counts_bits and codes.word_bits > layer.store.reserved_bits:
            return quantise_codebook(values, int(bits))
        return codes

    def _search(self, layers: Sequence[Layer], strategy: Strategy) -> None:
        comparison = Comparison(strategy, _PURPOSE, self.tolerance, self.loss_tolerance)
        if self._find_width(layers, comparison) and self.per_layer:
            self._lower_layers(layers, comparison)

    def _find_width(self, layers: Sequence[Layer], comparison: Comparison) -> bool:
        """Take the smallest common width within the tolerances, else the widest.

        :param comparison: with the float weights.
        :return: whether it is within the tolerances.
        """
        for bits in range(self._quantiser.least_bits, self.max_bits + 1):
            self.quantise(layers, bits)
            if comparison.accepts():
                self._refine(layers, bits, comparison)
                return True
        return False

    def _refine(self, layers: Sequence[Layer], bits: int, comparison: Comparison) -> None:
        """Take the smallest width within the tolerances that is less than a bit below another.

        :param bits: that are within the tolerances.
        """
        _, least, step = self._quantiser
        if bits == least or step == 1:
            return
        for part in range(1, round(1 / step)):
            self.quantise(layers, bits - 1 + part * step)
            if comparison.accepts():
                return
        self.quantise(layers, bits)

    def _lower_layers(self, layers: Sequence[Layer], comparison: Comparison) -> None:
        """Take bits from one layer after another while all of it stays within the tolerances.

        :param layers: quantised within the tolerances.
        :param comparison: with the float weights.
        """
        _, least, step = self._quantiser
        candidates = [layer for layer in layers if layer.bits > least and layer.count]
        sensitivity = [self._lost_by_a_step(layer, comparison) for layer in candidates]
        # of layers that lose the same, the larger first: its bits weigh more
        order = sorted(range(len(candidates)), key=lambda i: (sensitivity[i], -candidates[i].count))
        for layer in (candidates[i] for i in order):
            while layer.bits > least:
                self.quantise([layer], layer.bits - step)
                if not comparison.accepts():
                    self.quantise([layer], layer.bits + step)
                    break

    def _lost_by_a_step(self, layer: Layer, comparison: Comparison) -> Quality:
        """The layer's sensitivity: what is lost when it alone has a step of width less."""
        self.quantise([layer], layer.bits - self._quantiser.step)
        result = comparison.lost()
        self.quantise([layer], layer.bits + self._quantiser.step)
        return result

    def _finetune(self, layers: Sequence[Layer], strategy: Strategy) -> None:
        network, validation = network_of(strategy), find_validation(strategy)
        before = [layer.values for layer in layers]
        reference = validation.loss(strategy) if validation else 0.0
        loader, loss = _training_data(strategy), task_loss(strategy)

        def losses() -> Iterator[Tensor]:
            for _ in range(self.codebook_finetune_epochs):
                for x, y, *_ in loader:
                    network.zero_grad(set_to_none=True)
                    logits = network(moved_to(x, strategy.device), network.open_task)
                    yield loss(logits, moved_to(y, strategy.device))

        with evaluating(network), _recurrent_gradients(network):
            after = train_centroids(
                [layer.store for layer in layers],
                before,
                losses(),
                self.codebook_finetune_epochs * len(loader),
            )
        network.zero_grad(set_to_none=True)
        better = validation is None or validation.loss(strategy) <= reference
        finite = all(bool(v.decode().isfinite().all()) for values in after for v in values)
        for layer, kept in zip(layers, after if better and finite else before):
            layer.keep(kept)


@dataclass
class Layer:
    """A weight while its width is chosen.

    :param store: of the open task.
    :param originals: the float values it keeps.
    :param bits: its width so far; of codes at their entropy, on average.
    :param values: the codes it keeps so far.
    """

    store: WeightStore
    originals: list[Tensor]
    bits: float = 32
    values: list[Values] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many values it keeps."""
        return sum(values.numel() for values in self.originals)

    @classmethod
    def of(cls, store: WeightStore) -> Layer:
        """A weight that nobody has quantised yet.

        :param store: of the open task.
        """
        return cls(store, [values.clone() for values in store.kept_values()])

    @torch.no_grad()
    def original_weight(self) -> Tensor:
        """The weight with its float values, a copy; the store keeps its codes."""
        self.store.keep_values([Float(values) for values in self.originals])
        weight = self.store.weight().clone()
        self.store.keep_values(self.values)
        return weight

    def keep(self, values: list[Values]) -> None:
        """Let the store keep these values.

        :param values: one entry for each of ``originals``.
        """
        self.values = values
        self.store.keep_values(values)


@torch.no_grad()
def keep_private(network: TaskNetwork, codes: Callable[[Tensor], Values]) -> None:
    """Let the open task keep what it has for itself in few bits: vectors as bfloat16.

    :param network: with an open task.
    :param codes: what of a matrix is kept, of its values (n,).
    """
    network.private.keep_values(
        {
            number: codes(place.tensor.detach().flatten())
            if place.tensor.dim() >= MATRIX
            else Half.of(place.tensor)
            for number, place in enumerate(network.private.places)
            if place.tensor.is_floating_point() and place.tensor.numel()
        }
    )


@torch.no_grad()
def _warn_of_lost_rows(layer: Layer, weight: Tensor) -> None:
    """Name a layer whose codes are too coarse for many rows that are small beside others.

    So it is with depthwise kernels, each of which has a scale of its own.

    :param layer: quantised.
    :param weight: the layer's, before.
    """
    name = layer.store.name
    rows = weight.flatten(1) if weight.dim() > 1 else weight.reshape(-1, 1)
    error = (layer.store.weight().reshape(rows.shape) - rows).square().sum(1)
    lost = int((error > _LOST_ROW * rows.square().sum(1)).sum())
    if lost > _LOST_ROWS * len(rows):
        warnings.warn(
            f"{lost} of {len(rows)} rows of {name} lose more than half of what they are at "
            f"{layer.bits:g} bits, as they are small beside others: give more bits or "
            f"exclude={name.removesuffix('.weight')!r}.",
            stacklevel=2,
        )


def _training_data(strategy: Strategy) -> DataLoader[Any]:
    """The task's training data in an order of its own, transformed as for evaluation."""
    dataset = strategy.adapted_dataset.eval()
    return DataLoader(
        dataset,
        batch_size=strategy.train_mb_size,
        shuffle=True,
        collate_fn=getattr(dataset, "collate_fn", None),
        # drawing from torch's would change the order of the next task's training batches
        generator=torch.Generator().manual_seed(strategy.clock.train_exp_counter),
    )


def _recurrent_gradients(network: TaskNetwork) -> AbstractContextManager[None]:
    """Recurrent layers of cuDNN have no gradients in evaluation mode; those of torch have."""
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        return torch.backends.cudnn.flags(enabled=False)  # type: ignore[no-any-return]
    return nullcontext()
