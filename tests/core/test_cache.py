"""Which masks need no decoding, and that the others come back as they were."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from stores_for_tests import of_variants
from torch import nn

from avalanche_compress.codec import ByteReader, Codebook, CorruptStreamError, quantise_codebook
from avalanche_compress.core.cache import MaskCache, RowCache
from avalanche_compress.core.store import Place
from avalanche_compress.methods.ada_qpacknet import store as slotted
from avalanche_compress.methods.ada_qpacknet.store import SlottedStore
from avalanche_compress.methods.subnetworks import store as masked
from avalanche_compress.methods.subnetworks.store import MaskedStore
from avalanche_compress.methods.subnetworks.subnetwork import SubnetworkStore

EVENLY_SPACED, RECENT = 256, 4
TASKS = EVENLY_SPACED + 40


def spread(count):
    masks = MaskCache(70)
    for task in range(count):
        masks.add(task, torch.arange(70) == task % 70)
    return masks


@pytest.mark.parametrize(
    "count", [1, EVENLY_SPACED, EVENLY_SPACED + RECENT, EVENLY_SPACED + RECENT + 1, 700]
)
def test_cached_masks_are_those_that_were_given(count):
    masks = spread(count)
    cached = [task for task in range(count) if masks.get(task) is not None]
    assert len(cached) == min(count, EVENLY_SPACED + RECENT)
    for task in cached:
        assert masks.get(task).nonzero().flatten().tolist() == [task % 70]


@pytest.mark.parametrize("count", [EVENLY_SPACED + 5, TASKS, 700])
def test_cached_rows_lie_evenly_and_the_newest_is_one_of_them(count):
    rows = RowCache(1, evenly_spaced=EVENLY_SPACED)
    for task in [*range(count), *torch.randperm(count).tolist()]:  # others come and go
        rows.add(task, torch.zeros(1, dtype=torch.uint8))
    far = max(task - rows.nearest(task) for task in range(count))
    assert far < 2 * count / EVENLY_SPACED
    assert rows.nearest(count - 1) == count - 1


def test_nothing_is_cached_after_clearing():
    masks, rows = spread(TASKS), RowCache(1, evenly_spaced=EVENLY_SPACED)
    rows.add(0, torch.zeros(1, dtype=torch.uint8))
    masks.clear()
    rows.clear()
    assert rows.nearest(TASKS) == -1
    assert rows.get(0) is None
    assert all(masks.get(task) is None for task in range(TASKS))


def learned(store, tasks, sharing=None):
    """Random masks and values for many tasks, and what they were."""
    expected = {}
    for task in range(tasks):
        store.density = 0.3
        reusable = list(store.sections)
        store.open(reusable if sharing is None else reusable[-sharing:])
        with torch.no_grad():
            store.scratch.normal_()
            if store.scored:
                store.scores.add_(0.3 * torch.randn(store.shape))
        store.fix_mask(store.mask if store.scored else torch.rand(store.shape) < 0.3)
        store.keep_values([quantise_codebook(values, 4) for values in store.kept_values()])
        expected[task] = store.mask.clone(), store.weight().detach().clone()
        store.restore(task, store.encode())
    return expected


STORES = {
    name: build
    for name, build in of_variants().items()
    if issubclass(build.func, SubnetworkStore) and build.keywords.get("policy") != "raise"
}
"""Those with masks that find room for any number of tasks."""


@pytest.mark.parametrize("sharing", [None, 3])
@pytest.mark.parametrize("name", STORES)
def test_every_mask_of_many_tasks_is_recalled_in_any_order(name, sharing):
    torch.manual_seed(0)
    store = STORES[name](Place(nn.Linear(12, 10, bias=False), "weight"))
    expected = learned(store, TASKS, sharing if not store.scored else None)
    for task in torch.randperm(TASKS).tolist():
        mask, weight = expected[task]
        assert torch.equal(store.mask_of(task), mask)
        assert torch.equal(store.committed(task), weight)
    other = STORES[name](Place(nn.Linear(12, 10, bias=False), "weight"))
    other.load_state_dict(store.state_dict())
    for task in reversed(range(TASKS)):
        assert torch.equal(other.committed(task), expected[task][1])
    unread = STORES[name](Place(nn.Linear(12, 10, bias=False), "weight"))
    for task, section in store.sections.items():
        unread.defer(task, section)
    for task in torch.randperm(TASKS).tolist():
        assert torch.equal(unread.committed(task), expected[task][1])


def counted(module, monkeypatch):
    """What the module decodes from now on."""
    decoded = []
    recall = module.recall_mask_among
    monkeypatch.setattr(
        module, "recall_mask_among", lambda *given: decoded.append(given) or recall(*given)
    )
    return decoded


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", ["packnet", "wsn", "tinysubnets", "ada_qpacknet"])
def test_any_of_two_hundred_tasks_is_activated_with_two_masks_decoded_at_most(
    name, loaded, monkeypatch
):
    torch.manual_seed(0)
    build = (
        SlottedStore if name == "ada_qpacknet" else partial(MaskedStore, scored=name != "packnet")
    )
    store = build(Place(nn.Linear(20, 50, bias=False), "weight"))
    for task in range(200):
        store.open(list(store.sections))
        if store.scored:
            store.density = 0.3
            with torch.no_grad():
                store.scores.add_(0.3 * torch.randn(store.shape))
        store.fix_mask(store.mask if store.scored else torch.rand(store.shape) < 0.03)
        store.keep_values([quantise_codebook(values, 1) for values in store.kept_values()])
        store.restore(task, store.encode())
    if loaded:
        sections, store = store.sections, build(Place(nn.Linear(20, 50, bias=False), "weight"))
        for task, section in sections.items():
            store.defer(task, section)
        for task in torch.randperm(200).tolist():  # once, by way of at most 36 others
            store.committed(task)
    decoded = counted(slotted if name == "ada_qpacknet" else masked, monkeypatch)
    for task in torch.randperm(200).tolist():
        decoded.clear()
        store.committed(task)
        assert len(decoded) <= 2


# 31 tasks since the last leap and 5 leaps of 32; as many as find room on a page
@pytest.mark.parametrize(
    ("name", "most"), [("packnet", 36), ("wsn", 36), ("ada_qpacknet_pages", TASKS // 3)]
)
def test_the_newest_of_many_tasks_is_read_without_the_masks_of_most(name, most, monkeypatch):
    torch.manual_seed(0)
    store = STORES[name](Place(nn.Linear(12, 10, bias=False), "weight"))
    expected = learned(store, TASKS)
    unread = STORES[name](Place(nn.Linear(12, 10, bias=False), "weight"))
    for task, section in store.sections.items():
        unread.defer(task, section)
    unread.read_on()
    decoded = counted(masked if name != "ada_qpacknet_pages" else slotted, monkeypatch)
    assert torch.equal(unread.committed(TASKS - 1), expected[TASKS - 1][1])
    assert 0 < len(decoded) <= most


@pytest.mark.parametrize("name", ["wsn", "ada_qpacknet_pages"])
def test_damage_to_a_mask_that_nobody_has_read_names_its_task(name):
    torch.manual_seed(0)
    store = STORES[name](Place(nn.Linear(64, 64, bias=False), "weight"))
    expected = learned(store, 4)
    section = bytearray(store.sections[2])
    reader = ByteReader(bytes(section))
    if name == "ada_qpacknet_pages":
        for _ in range(3):
            reader.read_uint()
    else:
        reader.read_bytes()  # the slots that it wrote
    size = reader.read_uint()
    section[len(section) - reader.remaining + size // 2] ^= 255
    unread = STORES[name](Place(nn.Linear(64, 64, bias=False), "weight"))
    for task in range(4):
        unread.defer(task, bytes(section) if task == 2 else store.sections[task])
    for task in (2, 3):
        with pytest.raises(CorruptStreamError, match=r"^weight of task 2 is damaged"):
            unread.committed(task)
    assert torch.equal(unread.committed(1), expected[1][1])
    with pytest.raises(CorruptStreamError, match=r"^weight of task 2 is damaged"):
        unread.verify()


def test_damage_to_values_that_nobody_has_read_names_their_task():
    torch.manual_seed(0)
    store = STORES["ada_qpacknet_pages"](Place(nn.Linear(64, 64, bias=False), "weight"))
    for task in range(2):
        store.open([])
        store.fix_mask(torch.rand(store.shape) < 0.3)
        codes = [quantise_codebook(values.clamp(-0.05, 0.05), 2) for values in store.kept_values()]
        store.keep_values([Codebook(book.codes.clamp(max=2), book.centroids[:3]) for book in codes])
        store.restore(task, store.encode())
    section = store.sections[1]
    unread = STORES["ada_qpacknet_pages"](Place(nn.Linear(64, 64, bias=False), "weight"))
    unread.defer(0, store.sections[0])
    unread.defer(1, section[:-9] + bytes([255]) + section[-8:])  # a fourth of three centroids
    assert torch.equal(unread.committed(0), store.committed(0))
    with pytest.raises(CorruptStreamError, match=r"^weight of task 1 is damaged"):
        unread.committed(1)


def test_how_full_slots_were_is_recalled_without_the_start_of_the_page(monkeypatch):
    torch.manual_seed(0)
    store = SlottedStore(Place(nn.Linear(40, 50, bias=False), "weight"))
    expected = {}
    for task in range(TASKS):
        store.open([])
        store.fix_mask(torch.rand(store.shape) < 0.03)
        store.keep_values([quantise_codebook(values, 1) for values in store.kept_values()])
        expected[task] = store.mask.clone()
        store.restore(task, store.encode())
    assert store.pages == 1
    decoded = counted(slotted, monkeypatch)
    for task in torch.randperm(TASKS).tolist():
        decoded.clear()
        assert torch.equal(store.mask_of(task), expected[task])
        assert len(decoded) < 2 * TASKS / EVENLY_SPACED  # between two masks that are cached
