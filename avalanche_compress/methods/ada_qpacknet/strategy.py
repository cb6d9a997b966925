"""Ada-QPacknet: sub-networks of few bits, several of them in the 32 bits of every weight."""

from __future__ import annotations

from functools import partial
from typing import Any

from avalanche.core import SupervisedPlugin

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.ada_qpacknet.reference import (
    ReferenceMasking,
    ReferenceQuantization,
)
from avalanche_compress.methods.ada_qpacknet.store import SlottedStore
from avalanche_compress.methods.subnetworks.plugin import Density, MaskingPlugin
from avalanche_compress.shaping.quantization import QuantizationPlugin
from avalanche_compress.shaping.validation import validation_unless_given
from avalanche_compress.training.strategy import CompressedStrategy


class AdaQPackNet(CompressedStrategy):
    """Ada-QPacknet (Pietron et al., ECAI 2023, arXiv 2308.07939), ``W_t[i] = C_t[Z_t[i]] M_t[i]``.

    A task trains all weights that have bits left, keeps the largest of each layer, and stores for
    each a code of few bits into a codebook of its own. A weight's 32 bits hold the codes of several
    tasks, which share no values: eight tasks at 4 bits if each keeps everything, more if not, as
    only kept weights are charged.

    ``reference_compat=True`` follows the public code where that departs from the paper's idea, for
    comparison only. B1: the mask is that of the initial weights' magnitudes, fixed before the first
    step. B2, B3: all weights are charged, kept or not, and the last task that would fit exactly is
    refused. B12: 64 centroids a layer, halved while accuracy stays within 2.0 percentage points in
    either direction. B13: pruned weights' zeros take part in k-means. ``post_prune_epochs``,
    ``method``, ``tolerance``, ``max_bits``, ``per_layer`` and ``codebook_finetune_epochs`` have no
    meaning then. Its random redraw of free weights and its decisions on test data are not followed.

    Needs task labels, or ``task_inference=``. All other arguments as in
    :class:`CompressedStrategy`.

    :param density: part of each layer's open weights that a task keeps, a :class:`DensityRange` it
        is drawn from, or a :class:`DensitySearch`; see :class:`MaskingPlugin`.
    :param post_prune_epochs: last epochs of ``train_epochs``, in which only kept weights train.
    :param bits: bits of a value, or ``"auto"``; see :class:`QuantizationPlugin`.
    :param method: ``"kmeans"`` (non-linear) or ``"fixed_point"`` (linear).
    :param tolerance: accuracy that quantisation may cost, in percentage points.
    :param max_bits: most bits of a value with ``bits="auto"``; weights with fewer left are closed.
    :param per_layer: search widths layer by layer.
    :param codebook_finetune_epochs: of training for the centroids.
    :param capacity_policy: when no weights are left: ``"raise"``, ``"grow_copy"`` or
        ``"reuse_frozen"``; see :class:`SlottedStore`.
    :param validation_fraction: training data set aside for these decisions, unless ``plugins``
        holds a :class:`ValidationPlugin`.
    :param seed: of the split and of random densities.
    :param reference_compat: do as the public code does.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = AdaQPackNet(model=model, optimizer=adam, bits=4, evaluator=None)
    >>> strategy.network.tasks
    []
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: Any,
        density: Density = 0.4,
        post_prune_epochs: int = 1,
        bits: int | str = "auto",
        method: str = "kmeans",
        tolerance: float = 0.5,
        max_bits: int = 8,
        per_layer: bool = True,
        codebook_finetune_epochs: int = 1,
        capacity_policy: str = "raise",
        validation_fraction: float = 0.1,
        seed: int = 0,
        reference_compat: bool = False,
        plugins: list[SupervisedPlugin] | None = None,
        **base_kwargs: Any,
    ):
        shaping = validation_unless_given(plugins, validation_fraction, seed)
        if reference_compat:
            shaping += [ReferenceMasking(density, seed=seed), ReferenceQuantization(bits)]
        else:
            shaping += [
                MaskingPlugin(density, post_prune_epochs=post_prune_epochs, seed=seed),
                QuantizationPlugin(
                    bits,
                    method=method,
                    tolerance=tolerance,
                    max_bits=max_bits,
                    per_layer=per_layer,
                    codebook_finetune_epochs=codebook_finetune_epochs,
                ),
            ]
        super().__init__(
            model=model,
            optimizer=optimizer,
            store=partial(SlottedStore, policy=capacity_policy),
            shaping=shaping,
            plugins=plugins,
            **base_kwargs,
        )


_ALL_BITS = {"bits": 16, "max_bits": 16, "density": 1.0}
register_method(
    Method(
        "ada_qpacknet",
        AdaQPackNet,
        SlottedStore,
        small={"density": 0.4, "bits": 4},
        long={"capacity_policy": "grow_copy"},
        variants={
            "fixed_point": {"bits": 6, "method": "fixed_point"},
            "pages": {**_ALL_BITS, "capacity_policy": "grow_copy"},
            "reuse": {**_ALL_BITS, "capacity_policy": "reuse_frozen"},
        },
    )
)
