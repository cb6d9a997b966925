"""Options as NumPy and sweeps give them, and of wrong types."""

import numpy as np
import pytest
import torch
from streams_for_tests import mlp

from avalanche_compress import (
    CACL,
    HALRP,
    WSN,
    AdaptationPlugin,
    AdaQPackNet,
    ArchiveBudget,
    DensityRange,
    FactorizationPlugin,
    MaskingPlugin,
    PackNet,
    PerturbationPlugin,
    QuantizationPlugin,
    SharingPlugin,
    SizeBudgetPlugin,
    TaskStateError,
)
from avalanche_compress.errors import UnsupportedModuleError
from avalanche_compress.methods.subnetworks.packnet import complement


def build(strategy, **options):
    model = mlp()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    return strategy(model=model, optimizer=sgd, evaluator=None, **options)


@pytest.mark.parametrize(
    ("plugin", "name", "given", "expected"),
    [
        (QuantizationPlugin, "bits", np.int64(4), 4),
        (QuantizationPlugin, "bits", 4.0, 4),
        (QuantizationPlugin, "private_bits", torch.tensor(8), 8),
        (FactorizationPlugin, "rank", np.int32(3), 3),
        (FactorizationPlugin, "rank", np.float32(0.5), 0.5),
        (FactorizationPlugin, "rank", 1.0, 1.0),
        (PerturbationPlugin, "warmup_epochs", np.int64(1), 1),
        (PerturbationPlugin, "max_rank", 2.0, 2),
        (AdaptationPlugin, "rank", np.uint8(2), 2),
        (MaskingPlugin, "density", np.array([0.5, 0.25]), [0.5, 0.25]),
        (MaskingPlugin, "density", {"a": np.float64(0.5)}, {"a": 0.5}),
        (SizeBudgetPlugin, "size_budget", np.int64(400), 400),
    ],
)
def test_numbers_are_those_of_python(plugin, name, given, expected):
    kept = getattr(plugin(**{name: given}), name)
    assert kept == expected
    assert type(kept) is type(expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaskingPlugin(density="0.5"), "density='0.5' must be a number between 0 and 1"),
        (lambda: MaskingPlugin(density=[0.5, 1.5]), "density=1.5 must be a number"),
        (lambda: MaskingPlugin(density={"a": [None]}), "density=None must be a number"),
        (lambda: MaskingPlugin(post_prune_epochs="1"), "post_prune_epochs='1' must be an int"),
        (lambda: MaskingPlugin(prune_fraction="a"), "prune_fraction='a' must be a number"),
        (lambda: complement("0.5"), "prune_proportion='0.5' must be a number"),
        (lambda: complement([0.5, 50]), "prune_proportion=50 must be a number"),
        (lambda: QuantizationPlugin(bits=True), "bits=True must be an int from 1"),
        (lambda: QuantizationPlugin(per_layer=1), "per_layer=1 must be True or False"),
        (lambda: PerturbationPlugin(max_rank="2"), "max_rank='2' must be an int"),
        (lambda: PerturbationPlugin(per_task_budget="2"), "per_task_budget='2' must be an int"),
        (lambda: PerturbationPlugin(min_rank=1.5), "min_rank=1.5 must be an int"),
        (lambda: AdaptationPlugin(rank=None), "rank=None must be an int"),
        (lambda: SharingPlugin(memory="all"), "memory='all' must be an int"),
        (lambda: DensityRange("low", 1), "low='low' must be a number"),
        (lambda: ArchiveBudget(1000, tasks="10"), "tasks='10' must be an int"),
        (lambda: SizeBudgetPlugin(True), "size_budget=True must be an int"),
    ],
)
def test_other_types_are_refused_when_something_is_built(build, message):
    with pytest.raises(TaskStateError, match=message):
        build()


def test_of_strategies_too():
    """Which have the options of their plugins."""
    assert build(PackNet, prune_proportion=np.full(3, 0.25)).room is None
    built = [
        build(WSN, density=np.float32(0.5)),
        build(AdaQPackNet, bits=np.int64(4)),
        build(CACL, rank=np.int64(3)),
        build(HALRP, max_rank=np.int64(2)),
    ]
    assert all(strategy.network.tasks == [] for strategy in built)


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_one_name_is_no_list_of_names(argument):
    with pytest.raises(UnsupportedModuleError, match=rf"{argument}='head' must be a list of names"):
        build(WSN, **{argument: "head"})
