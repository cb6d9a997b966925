"""How many tasks find room is said before the first one, and is true."""

from __future__ import annotations

import contextlib

import pytest
import torch
from streams_for_tests import make_stream
from torch import nn

from avalanche_compress import AdaQPackNet, CapacityExhaustedError, DensityRange, PackNet
from avalanche_compress.methods.subnetworks import capacity
from avalanche_compress.methods.subnetworks.capacity import (
    _tasks_until_nothing_is_kept,
    count_kept,
)


def small(width=6):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, 5, bias=False),
        nn.Linear(5, 2),
    )


def build(method, **options):
    torch.manual_seed(0)
    model = small()
    return method(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_mb_size=30,
        evaluator=None,
        **options,
    )


def tasks_until_refused(strategy, most):
    with contextlib.suppress(CapacityExhaustedError):
        for experience in make_stream(most, samples=24).train_stream:
            strategy.train(experience)
    return len(strategy.network.tasks)


@pytest.mark.parametrize("density", [1.0, 0.9, 0.5, 0.31, 0.02, 1e-3, 3e-4, 1e-6])
@pytest.mark.parametrize("weights", [0, 1, 7, 1000, 99_999])
def test_tasks_are_counted_as_one_by_one(weights, density):
    free, tasks = weights, 0
    while free and (kept := count_kept(free, density)):
        free, tasks = free - kept, tasks + 1
    assert _tasks_until_nothing_is_kept(weights, density) == tasks


def test_a_proportion_of_almost_all_is_counted_in_few_steps(monkeypatch):
    asked = []
    monkeypatch.setattr(
        capacity, "count_kept", lambda *given: asked.append(given) or count_kept(*given)
    )
    assert _tasks_until_nothing_is_kept(10**8, 1 - 0.999999) > 10**6
    assert len(asked) < 10_000


@pytest.mark.parametrize("proportion", [0.5, 0.2, {"1.weight": 0.3, "3.weight": 0.1}, 0.7])
def test_packnet_says_how_many_tasks_its_proportions_leave_room_for(proportion):
    said = r"PackNet has room for at least \d+ tasks.*prune_proportion="
    with pytest.warns(UserWarning, match=said):
        strategy = build(PackNet, prune_proportion=proportion)
    found = tasks_until_refused(strategy, strategy.room + 3)
    # weights of equal magnitude all go together, and of one weight of which 70 % go nothing is kept
    assert strategy.room <= found <= strategy.room + (3 if proportion == 0.7 else 1)


@pytest.mark.parametrize("proportion", [[0.5, 0.5, 0.0], lambda position: 0.5, 1.0])
def test_packnet_is_silent_where_tasks_were_counted_or_none_is_kept(proportion, recwarn):
    assert build(PackNet, prune_proportion=proportion).room is None
    assert not any("has room for" in str(warning.message) for warning in recwarn)


def test_shares_of_the_advice_use_all_weights_and_are_equal():
    n = 4
    strategy = build(PackNet, prune_proportion=[1 - 1 / (n - i) for i in range(n)])
    assert tasks_until_refused(strategy, n) == n
    store = strategy.network.weight_stores[0]
    assert store.free_weights == 0
    assert {store.stored_values(task) for task in range(n)} == {store.shape.numel() // n}


@pytest.mark.parametrize(
    ("options", "fewest"),
    [
        ({"density": 0.5, "bits": 8}, 8),
        ({"density": 1.0, "bits": 16}, 2),
        ({"density": {"1.weight": 0.5, "3.weight": 1.0}, "bits": 8}, 4),
        ({"density": DensityRange(0.2, 0.5), "bits": 8}, 8),
    ],
)
def test_ada_qpacknet_says_how_many_tasks_find_room_for_certain(options, fewest):
    said = f"AdaQPackNet has room for at least {fewest} tasks.*density="
    with pytest.warns(UserWarning, match=said):
        strategy = build(AdaQPackNet, **options)
    assert strategy.room == fewest
    found = tasks_until_refused(strategy, fewest + 1)
    assert found >= fewest
    if options["density"] == 1.0:  # all slots fill at once, so that it is no less and no more
        assert found == fewest


def test_ada_qpacknet_is_silent_where_there_is_no_limit(recwarn):
    assert build(AdaQPackNet, bits=4, capacity_policy="grow_copy").room is None
    assert not any("has room for" in str(warning.message) for warning in recwarn)
