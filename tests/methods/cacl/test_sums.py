"""Sums that are kept: any task adds up few others, and memory is a part of the sections."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from avalanche_compress.core.store import Place
from avalanche_compress.methods.cacl.store import FactoredStore
from avalanche_compress.methods.cacl.sums import PrefixSums

TASKS = 200


def learned(rank):
    """A store, of whose tasks each keeps so many terms, and their weights added up one by one."""
    torch.manual_seed(0)
    store = FactoredStore(Place(nn.Linear(30, 20, bias=False), "weight"), storage="factors")
    store.rank = rank
    weights = []
    for task in range(TASKS):
        store.open(list(store.sections))
        store.restore(task, store.encode())
        weights.append(store._sum)
    return store, weights


def loaded(sections):
    store = FactoredStore(Place(nn.Linear(30, 20, bias=False), "weight"), storage="factors")
    for task, section in sections.items():
        store.defer(task, section)
    return store


@pytest.mark.parametrize("way", ["trained", "loaded", "copied"])
def test_any_of_two_hundred_tasks_adds_up_few_others_to_the_same_bits(way, monkeypatch):
    store, weights = learned(rank=store_rank())
    if way == "loaded":
        store = loaded(store.sections)
    if way == "copied":
        store = copy.deepcopy(store)
    if way != "trained":
        assert torch.equal(store.committed(TASKS - 1), weights[-1])
        assert torch.equal(store.committed(TASKS - 2), weights[-2])  # not the sum of all there are
    read = []
    block_at = FactoredStore._block_at
    monkeypatch.setattr(
        FactoredStore, "_block_at", lambda *given: read.append(given) or block_at(*given)
    )
    for task in torch.randperm(TASKS).tolist():
        read.clear()
        assert torch.equal(store.committed(task), weights[task])
        assert len(read) <= 12


def store_rank():
    """That a weight of 20 x 30 is no longer than."""
    return 20 * 30 // (20 + 30)


@pytest.mark.parametrize("rank", [1, 3, store_rank()])
def test_sums_take_an_eleventh_of_the_sections_at_most(rank):
    store, weights = learned(rank)
    for task in range(TASKS):
        store.committed(task)
    kept = list(store._sums._sums.values())
    stored = sum(map(len, store.sections.values()))
    assert sum(total.numel() * total.element_size() for total in kept) <= stored / 11
    assert kept or rank < store_rank()
    assert torch.equal(store.committed(77), weights[77])


def test_sums_lie_further_apart_where_tasks_become_smaller():
    sums = PrefixSums()
    for count in range(1, 101):
        sums.add(count, torch.zeros(10), task_bytes=40)
    assert sums.before(100)[0] == 96
    for count in range(101, 301):
        sums.add(count, torch.zeros(10), task_bytes=10)
    assert sorted(sums._sums) == [48, 96, 144, 192, 240, 288]
    sums.clear()
    assert sums.before(300) == (0, None)
