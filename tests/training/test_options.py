"""An option stands in one place: strategies take those of their parts over, with their types."""

from __future__ import annotations

import inspect
import re
import sys

import pytest
import torch
from streams_for_tests import mlp

from avalanche_compress import (
    CACL,
    HALRP,
    AdaQPackNet,
    CompressedStrategy,
    FactorizationPlugin,
    MaskingPlugin,
    PackNet,
    QuantizationPlugin,
    TinySubNets,
    registered_methods,
)
from avalanche_compress.training.options import StrategyOptions, options_of

OURS = [
    method.strategy
    for method in registered_methods()
    if method.strategy.__module__.startswith("avalanche_compress.")
]


def typed_options(strategy):
    """What a strategy's constructor is written with, for type checkers: names and types."""
    written = strategy.__init__
    while hasattr(written, "__wrapped__"):
        written = written.__wrapped__
    module = sys.modules[strategy.__module__]
    annotation = written.__annotations__["options"]
    typed = getattr(module, re.fullmatch(r"Unpack\[(\w+)\]", annotation).group(1))
    return {
        **{name: hint for name, hint in written.__annotations__.items() if name != "options"},
        **typed.__annotations__,
    }


def text(hint):
    """A type as it is written."""
    return getattr(hint, "__forward_arg__", hint)


@pytest.mark.parametrize("strategy", OURS)
def test_type_checkers_and_signatures_know_the_same_options(strategy):
    typed = {name: text(hint) for name, hint in typed_options(strategy).items() if name != "return"}
    signature = inspect.signature(strategy).parameters
    assert typed.keys() == signature.keys()
    of_all = set(StrategyOptions.__annotations__)
    for name, parameter in signature.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if name not in of_all:
            assert text(parameter.annotation) == typed[name], name


def test_the_options_of_every_strategy_are_those_of_the_frame():
    assert set(StrategyOptions.__annotations__) == set(options_of(CompressedStrategy))


@pytest.mark.parametrize(
    ("strategy", "name", "default"),
    [
        (CACL, "reg_interval", FactorizationPlugin().reg_interval),
        (CACL, "storage", "auto"),
        (HALRP, "conv_mode", "spatial_mean"),
        (TinySubNets, "prune_rounds", 20),
        (TinySubNets, "per_layer", False),
        (AdaQPackNet, "per_layer", True),
        (AdaQPackNet, "density", 0.4),
        (PackNet, "eval_every", -1),
        (PackNet, "peval_mode", "epoch"),
    ],
)  # fmt: skip
def test_defaults_are_those_of_the_part_unless_the_strategy_says_otherwise(strategy, name, default):
    assert inspect.signature(strategy).parameters[name].default == default


def build(strategy, **options):
    model = mlp()
    return strategy(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)


def plugin_of(strategy, kind):
    return next(plugin for plugin in strategy.plugins if isinstance(plugin, kind))


def test_options_and_defaults_reach_the_parts():
    strategy = build(TinySubNets, density=0.3, max_bits=5, seed=7)
    masking = plugin_of(strategy, MaskingPlugin)
    assert (masking.density, masking.prune_rounds, masking.seed) == (0.3, 20, 7)
    quantization = plugin_of(strategy, QuantizationPlugin)
    assert (quantization.max_bits, quantization.bits) == (5, "auto")
    strategy = build(CACL, rank=2, decomposition="spatial", train_epochs=3)
    assert plugin_of(strategy, FactorizationPlugin).rank == 2
    assert strategy.network.weight_stores[0].decomposition == "spatial"
    assert strategy.train_epochs == 3


@pytest.mark.parametrize(
    ("strategy", "given", "meant"),
    [
        (PackNet, "prune_propotion", "prune_proportion"),
        (CACL, "sparity", "sparsity"),
        (HALRP, "warmup_epoch", "warmup_epochs"),
        (TinySubNets, "train_epoch", "train_epochs"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_option(strategy, given, meant):
    with pytest.raises(TypeError, match=rf"{strategy.__name__} has no option '{given}'.*'{meant}'"):
        build(strategy, **{given: 1})


def test_what_is_missing_is_named():
    with pytest.raises(TypeError, match="optimizer"):
        PackNet(model=mlp())


def test_a_subclass_adds_options_of_its_own():
    class Mine(PackNet):
        def __init__(self, *, mine, **options):
            super().__init__(**options)
            self.mine = mine

    assert build(Mine, mine=3, prune_proportion=0.1).mine == 3
    with pytest.raises(TypeError, match="Mine has no option 'mime'"):
        build(Mine, mime=3)
