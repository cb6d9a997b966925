"""A mask that is decoded by way of others: right, in linear time, with few of them in memory."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from avalanche_compress import SlottedStore
from avalanche_compress.codec import quantise_codebook
from avalanche_compress.core.cache import PassedMasks
from avalanche_compress.core.store import Place

TASKS = 60


def empty_store(rows=12, columns=10):
    torch.manual_seed(0)
    layer = nn.Linear(columns, rows, bias=False)
    return SlottedStore(Place(layer, "weight"), policy="reuse_frozen")


def learn(store, task, reusable, density):
    store.reserved_bits = 4
    store.open(reusable)
    with torch.no_grad():
        store.scratch.copy_(torch.randn(store.shape))
    store.prune(1 - density)
    store.fix_mask(store.mask & (torch.rand(store.shape) < 0.9))
    if store.owned.any():
        store.keep_values([quantise_codebook(values, 4) for values in store.kept_values()])
    mask = store.mask.clone()
    store.check_commit()
    store.restore(task, store.encode())
    return mask


@pytest.fixture(scope="module", params=["newest", "any"])
def example(request):
    """Sections and masks of many tasks, of which those that find no room read earlier ones."""
    store, masks, draw = empty_store(), [], random.Random(0)
    for task in range(TASKS):
        known = list(store.sections)
        known = draw.sample(known, min(3, len(known))) if request.param == "any" else known
        masks.append(learn(store, task, known, draw.uniform(0.2, 0.9)))
    sources = [store._read_head(store._section(t)[1]).source for t in range(TASKS)]
    assert sum(source is not None for source in sources) > TASKS // 3
    return dict(store.sections), masks


def loaded(sections):
    store = empty_store()
    for task, section in sections.items():
        store.defer(task, section)
    return store


@pytest.mark.parametrize("seed", range(4))
def test_masks_and_weights_are_the_same_in_any_order(seed, example):
    sections, masks = example
    store, whole = loaded(sections), empty_store()
    for task, section in sections.items():
        whole.restore(task, section)
    order = random.Random(seed).sample(range(TASKS), TASKS)
    for task in [*order, *order[::-1]]:
        assert torch.equal(store.mask_of(task), masks[task])
        assert torch.equal(store.committed(task), whole.committed(task))
    assert torch.equal(store.occupancy, whole.occupancy)


def test_a_walk_over_all_tasks_decodes_each_mask_once(example, monkeypatch):
    sections, _ = example
    store, decoded = loaded(sections), []
    recall = SlottedStore._recall_next

    def counted(self, position, *rest):
        decoded.append(position)
        return recall(self, position, *rest)

    monkeypatch.setattr(SlottedStore, "_recall_next", counted)
    store.mask_of(TASKS - 1)
    assert decoded == list(range(TASKS))


def test_the_time_of_all_tasks_in_turn_is_linear_where_each_reads_the_one_before(monkeypatch):
    counts = []
    recall = SlottedStore._recall_next
    for tasks in (40, 160):
        store = empty_store()
        for task in range(tasks):
            learn(store, task, list(store.sections), 0.5)
        fresh, decoded = loaded(store.sections), []

        def counted(self, position, *rest, decoded=decoded):
            decoded.append(position)
            return recall(self, position, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(SlottedStore, "_recall_next", counted)
            for task in range(tasks):
                fresh.mask_of(task)
        counts.append(len(decoded))
    assert counts[1] <= 6 * counts[0]


def test_empty_tasks_of_a_small_file_keep_no_masks_in_memory(monkeypatch):
    store, kept = empty_store(), []
    store.open([])
    store.fix_mask(torch.zeros_like(store.mask))
    section = store.encode()
    store = loaded(dict.fromkeys(range(400), section))
    keep = PassedMasks.keep

    def counted(self, position, mask):
        keep(self, position, mask)
        kept.append(len(self))

    monkeypatch.setattr(PassedMasks, "keep", counted)
    assert not store.mask_of(399).any()
    assert len(kept) == 400
    assert max(kept) == 0


def test_masks_that_are_read_later_share_a_row_where_they_are_equal():
    passed = PassedMasks(8, dict.fromkeys(range(100), 100))
    mask = torch.rand(8) < 0.5
    for position in range(100):
        passed.keep(position, mask)
    assert torch.equal(passed.take(7, step=50), mask)
    assert len(passed) == 100
    assert len({row.data_ptr() for row in passed._rows.values()}) == 1


def test_a_copy_walks_on_its_own(example):
    sections, masks = example
    store = loaded(sections)
    store.mask_of(TASKS // 2)
    other = copy.deepcopy(store)
    assert torch.equal(other.mask_of(TASKS - 1), masks[-1])
    assert torch.equal(store.mask_of(3), masks[3])
