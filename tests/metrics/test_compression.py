"""What the network weighs, as numbers and as Avalanche metrics."""

from __future__ import annotations

import os

import pytest
import torch
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin
from streams_for_tests import make_stream, mlp
from torch import nn

from avalanche_compress import (
    CACL,
    WSN,
    MaskedStore,
    PackNet,
    TaskNetwork,
    compression_metrics,
    layer_bits,
    layer_densities,
    save_archive,
)
from avalanche_compress.codec import Codebook
from avalanche_compress.metrics import (
    bits_per_weight,
    capacity,
    capacity_tinysubnets,
    capacity_wsn,
    stored_bytes,
    task_parameters,
    union_density,
)


def test_capacity_is_that_of_the_golden_case():
    network = TaskNetwork(nn.Sequential(nn.Linear(100, 10, bias=False), nn.Linear(10, 2)))
    (store,) = network.weight_stores
    assert isinstance(store, MaskedStore)
    for task, count in enumerate((500, 100, 50)):
        network.open(task, [0, 1])
        free = torch.nonzero(store.free.flatten()).flatten()
        mask = torch.zeros(1000, dtype=torch.bool)
        mask[free[:count]] = True
        store.fix_mask(mask.view(10, 100))
        codes = torch.arange(count, dtype=torch.int32) % 16
        store.keep_values([Codebook(codes, torch.arange(16.0))])
        network.commit()
    assert capacity(network) == pytest.approx(8.125)
    assert union_density(network) == pytest.approx(65.0)
    assert capacity_tinysubnets(network, bits=4) == pytest.approx(8.125)
    # one code for the symbols 0, 1, 2, 4, of which there are 350, 500, 100 and 50
    mask_bits = 500 + 2 * 350 + 3 * 150
    assert capacity_wsn(network) == pytest.approx(65 + 100 * mask_bits / 32000)
    assert task_parameters(network) == 50 + 10 * 2 + 2


def test_densities_and_bits_of_the_layers_are_those_that_were_chosen_task_by_task():
    network = TaskNetwork(nn.Sequential(nn.Linear(20, 10, bias=False), nn.Linear(10, 2)))
    (store,) = network.weight_stores
    for task, (kept, size) in enumerate([(100, 16), (50, 4), (0, 4)]):
        network.open(task, [0, 1])
        free = torch.nonzero(store.free.flatten()).flatten()
        mask = torch.zeros(200, dtype=torch.bool)
        mask[free[:kept]] = True
        store.fix_mask(mask.view(10, 20))
        codes = torch.arange(kept, dtype=torch.int32) % size
        store.keep_values([Codebook(codes, torch.arange(float(size)))])
        network.commit()
    assert layer_densities(network) == {"0.weight": [0.5, 0.25, 0.0]}
    assert layer_bits(network) == {"0.weight": [4.0, 2.0, None]}


def test_terms_have_bits_and_no_density():
    model = mlp()
    strategy = CACL(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        train_mb_size=16,
    )
    strategy.train(make_stream(1).train_stream[0])
    assert layer_densities(strategy.network) == {}
    assert layer_bits(strategy.network) == {"1.weight": [32.0], "3.weight": [32.0]}


@pytest.mark.parametrize(
    ("density", "bits", "percent"),
    [(0.5, 4, 6.25), (1.0, 4, 12.5), (0.8125, 4, 10.15625), (0.6, 5, 9.375)],
)
def test_capacity_of_tinysubnets_is_that_of_its_code(density, bits, percent):
    network = TaskNetwork(nn.Sequential(nn.Linear(200, 8, bias=False), nn.Linear(8, 2)))
    network.open(0, [0, 1])
    mask = torch.arange(1600) < 1600 * density
    network.weight_stores[0].fix_mask(mask.view(8, 200))
    network.commit()
    assert capacity_tinysubnets(network, bits) == pytest.approx(percent)


def test_stored_bytes_are_those_of_the_file(tmp_path):
    model = mlp()
    strategy = WSN(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        train_mb_size=16,
        evaluator=EvaluationPlugin(compression_metrics(), loggers=[InteractiveLogger()]),
    )
    weights = sum(store.shape.numel() for store in strategy.network.weight_stores)
    for task, experience in enumerate(make_stream(2).train_stream):
        results = strategy.train(experience)
        written = save_archive(strategy.model, tmp_path / "archive")
        assert written == os.path.getsize(tmp_path / "archive") == stored_bytes(strategy.network)
        assert results["size/archive_bytes"] == written
        bits = results["size/bits_per_weight"]
        assert bits == bits_per_weight(strategy.network) == 8 * written / (weights * (task + 1))
    assert {type(value) for key, value in results.items() if key.startswith("size/")} == {float}


def test_every_metric_is_emitted_after_each_experience():
    model = mlp()
    strategy = PackNet(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        train_mb_size=16,
        evaluator=EvaluationPlugin(compression_metrics(), loggers=[]),
    )
    results = strategy.train(make_stream(1).train_stream[0])
    assert {
        "size/archive_bytes",
        "size/bits_per_weight",
        "size/capacity",
        "size/union_density",
        "size/capacity_wsn",
        "size/task_parameters",
    } <= set(results)


def test_nothing_learned_weighs_nothing():
    network = TaskNetwork(mlp())
    assert capacity(network) == union_density(network) == task_parameters(network) == 0
