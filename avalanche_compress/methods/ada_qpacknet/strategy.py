"""Ada-QPacknet: sub-networks of few bits, several of them in the 32 bits of every weight."""

from __future__ import annotations

from functools import partial

from typing_extensions import Unpack

from avalanche_compress.core.registry import Method, register_method
from avalanche_compress.methods.ada_qpacknet.fill import SLOT_BITS
from avalanche_compress.methods.ada_qpacknet.reference import (
    ReferenceMasking,
    ReferenceQuantization,
)
from avalanche_compress.methods.ada_qpacknet.store import SlottedStore
from avalanche_compress.methods.subnetworks.capacity import fewest_tasks, warn_of_room
from avalanche_compress.methods.subnetworks.plugin import MaskingOptions, MaskingPlugin
from avalanche_compress.shaping.quantization import QuantizationOptions, QuantizationPlugin
from avalanche_compress.shaping.validation import validation_unless_given
from avalanche_compress.training.options import StrategyOptions, split_options, takes_over
from avalanche_compress.training.strategy import CompressedStrategy


class AdaQPackNetOptions(MaskingOptions, QuantizationOptions, StrategyOptions, total=False):
    """Options of :class:`AdaQPackNet` that are those of its parts."""


class AdaQPackNet(CompressedStrategy):
    """Ada-QPacknet (Pietron et al., ECAI 2023, arXiv 2308.07939), ``W_t[i] = C_t[Z_t[i]] M_t[i]``.

    A task trains all weights that have bits left, keeps the largest of each layer, and stores for
    each a code of few bits into a codebook of its own. A weight's 32 bits hold the codes of several
    tasks, which share no values: eight tasks at 4 bits if each keeps everything, more if not, as
    only kept weights are charged.

    So late tasks of a long stream have little to learn with: a task trains the weights of which
    earlier ones have not used up the bits, keeps ``density`` of these, and reads nothing of other
    tasks. On 100 tasks of Omniglot (an MLP of 784-100-100, 20 epochs, one seed) the 36th found 9 %
    of a layer open and the 48th 4 %; means of 25 tasks in order were 45.2, 34.0, 8.3 and 8.3 %, the
    last two those of chance. Below 10 % there is a warning. ``capacity_policy="grow_copy"`` then
    begins a fresh page of slots: 45.2, 45.0, 44.9 and 39.0 %, in 1.62 MB where the first had .99. A
    lower ``density`` or fewer ``bits`` leave late tasks more of the first page. :class:`WSN`, which
    shares values, had 50.4, 61.0, 52.6 and 58.2 % in 1.28 MB.

    ``reference_compat=True`` follows the public code where that departs from the paper's idea, for
    comparison only. B1: the mask is that of the initial weights' magnitudes, fixed before the first
    step. B2, B3: all weights are charged, kept or not, and the last task that would fit exactly is
    refused. B12: 64 centroids a layer, halved while accuracy stays within 2.0 percentage points in
    either direction. B13: pruned weights' zeros take part in k-means. ``post_prune_epochs``,
    ``method``, ``tolerance``, ``max_bits``, ``per_layer`` and ``codebook_finetune_epochs`` have no
    meaning then. Its random redraw of free weights and its decisions on test data are not followed.

    Needs task labels, or ``task_inference=``. All other options are those of
    :class:`~avalanche_compress.MaskingPlugin`, whose ``density`` is a part of each layer's open
    weights and whose ``seed`` is also that of the split,
    :class:`~avalanche_compress.QuantizationPlugin` and :class:`CompressedStrategy`.

    :param capacity_policy: when no weights are left: ``"raise"``, ``"grow_copy"`` or
        ``"reuse_frozen"``; see :class:`SlottedStore`.
    :param validation_fraction: training data set aside for these decisions, unless ``plugins``
        holds a :class:`ValidationPlugin`.
    :param reference_compat: do as the public code does.
    :ivar room: how many tasks find room for certain, which a warning says on construction; None
        where there is no limit, or densities are given by position of the task.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> adam = torch.optim.Adam(model.parameters())
    >>> strategy = AdaQPackNet(model=model, optimizer=adam, bits=4, evaluator=None)
    >>> strategy.network.tasks
    []
    """

    @takes_over(
        MaskingPlugin,
        QuantizationPlugin,
        CompressedStrategy,
        density=0.4,
        post_prune_epochs=1,
        per_layer=True,
        codebook_finetune_epochs=1,
    )
    def __init__(
        self,
        *,
        capacity_policy: str = "raise",
        validation_fraction: float = 0.1,
        reference_compat: bool = False,
        **options: Unpack[AdaQPackNetOptions],
    ) -> None:
        (masking, bits), others = split_options(options, MaskingPlugin, QuantizationPlugin)
        seed = options.get("seed", 0)
        shaping = validation_unless_given(options.get("plugins"), validation_fraction, seed)
        if reference_compat:
            shaping += [
                ReferenceMasking(options.get("density", 0.4), seed=seed),
                ReferenceQuantization(options.get("bits", "auto")),
            ]
        else:
            shaping += [MaskingPlugin(**masking), QuantizationPlugin(**bits)]
        super().__init__(
            store=partial(SlottedStore, policy=capacity_policy), shaping=shaping, **others
        )
        self.room: int | None = None
        if capacity_policy == "raise" and not reference_compat and not self.network.tasks:
            most_bits = QuantizationPlugin(**bits).most_bits
            self.room = fewest_tasks(
                self.network, MaskingPlugin(**masking).density, most_bits, SLOT_BITS
            )
            if self.room is not None:
                warn_of_room(
                    "AdaQPackNet",
                    self.room,
                    f"It has more if these need less than {most_bits} bits; for longer streams "
                    "give a smaller density= or bits=, or capacity_policy='grow_copy'.",
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
        recipes=["ada_qpacknet_small"],
    )
)
