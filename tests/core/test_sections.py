"""Whatever bytes a section has: it is refused by name and nothing changes, or it is a task."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores_for_tests import of_variants, prune
from torch import nn

from avalanche_compress.codec import (
    ByteWriter,
    CorruptStreamError,
    quantise_codebook,
    quantise_fixed_point,
)
from avalanche_compress.core.private import PrivateStore
from avalanche_compress.core.store import Place
from avalanche_compress.methods.cacl.store import FactoredStore
from avalanche_compress.methods.halrp.store import PerturbedStore

CODES = (None, partial(quantise_codebook, bits=3), partial(quantise_fixed_point, bits=5))


def _behind_a_convolution(build):
    return build(Place(nn.Conv2d(4, 6, 3), "weight"))


def private():
    module = nn.BatchNorm1d(5)
    names = ["weight", "running_mean", "offset"]
    module.register_buffer("offset", torch.tensor(1.0))
    return PrivateStore([Place(module, name) for name in names], names)


STORES = {
    **{name: partial(_behind_a_convolution, build) for name, build in of_variants().items()},
    "private": private,
}


def encoded(store, task, codes):
    """The section of a task that was opened, shaped and not committed."""
    if isinstance(store, PrivateStore):
        return store.encode()
    store.density = 0.4
    store.reserved_bits = 32 if codes is None else 8
    store.open(list(store.sections))
    prune(store)
    if isinstance(store, FactoredStore):
        store.truncate(0.3)
    elif isinstance(store, PerturbedStore) and store.base is not None:
        mode = store.modes[task % len(store.modes)]
        g, n, width = store.groups, store.rows, store.width(mode)
        store.perturb(*store.scalings(), torch.randn(g, n, 2), torch.randn(g, 2, width))
        store.fix_masks(torch.rand(g, n, 2) < 0.5, torch.rand(g, 2, width) < 0.5)
    if codes is not None:
        store.keep_values([codes(values) for values in store.kept_values()])
    return store.encode()


def restored(build, sections, shared=b""):
    store = build()
    store.accept_shared(shared)
    for task, section in enumerate(sections):
        store.restore(task, section)
    return store


@pytest.fixture(scope="module")
def examples():
    """Of each store the sections of two tasks, and all forms of a third one."""
    found = {}
    for name, build in STORES.items():
        torch.manual_seed(0)
        store = build()
        for task, codes in enumerate(CODES[1:]):
            store.restore(task, encoded(store, task, codes))
        thirds = [encoded(store, 2, codes) for codes in CODES]
        found[name] = (list(store.sections.values()), thirds, store.encode_shared())
    return found


def everything(store):
    """What a store holds, in a form that can be compared; buffers that are not saved, too."""
    tensors = {name: tensor.clone() for name, tensor in store.named_buffers()}
    tensors.update({name: tensor.detach().clone() for name, tensor in store.named_parameters()})
    plain = {
        name: repr(value)
        for name, value in vars(store).items()
        if not name.startswith("_") or name in ("_kept_by", "_sizes")
    }
    weights = [store.committed(task) for task in store.sections]
    flat = [tensor for one in weights for tensor in (one if isinstance(one, list) else [one])]
    return dict(store.sections), tensors, plain, flat


def assert_same(before, after):
    assert before[0] == after[0]
    assert before[2] == after[2]
    assert before[1].keys() == after[1].keys()
    pairs = [
        *((tensor, after[1][name]) for name, tensor in before[1].items()),
        *zip(before[3], after[3]),
    ]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len(before[3]) == len(after[3])


def check(build, good, section, shared):
    """Restore a section that may be damaged after good ones."""
    store = restored(build, good, shared)
    before = everything(store)
    try:
        store.restore(len(good), section)
    except CorruptStreamError:
        assert_same(before, everything(store))
        return
    assert list(store.sections) == [*range(len(good) + 1)]
    store.committed(len(good))
    store.stored_values(len(good))


@pytest.mark.parametrize("name", STORES)
@settings(max_examples=60, deadline=None)
@given(
    form=st.integers(0, 2),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    near=st.booleans(),
    cut=st.integers(0, 6),
    tail=st.binary(max_size=3),
)
def test_a_damaged_section_is_refused_and_nothing_changes_or_it_is_a_task(
    name, examples, form, edits, near, cut, tail
):
    good, thirds, shared = examples[name]
    changed = bytearray(thirds[form])
    for position, value in edits:
        changed[position % min(len(changed), 8 if near else len(changed))] = value
    check(STORES[name], good, bytes(changed[: len(changed) - cut]) + tail, shared)


@pytest.mark.parametrize("name", STORES)
@settings(max_examples=60, deadline=None)
@given(section=st.binary(max_size=60), finished=st.integers(0, 2))
def test_any_bytes_are_refused_and_nothing_changes_or_they_are_a_task(
    name, examples, section, finished
):
    check(STORES[name], examples[name][0][:finished], section, examples[name][2])


@pytest.mark.parametrize("name", STORES)
def test_a_section_that_goes_on_is_refused_before_anything_has_changed(name, examples):
    good, thirds, shared = examples[name]
    for third in thirds:
        store = restored(STORES[name], good, shared)
        before = everything(store)
        with pytest.raises(CorruptStreamError):
            store.restore(2, third + b"\0")
        assert_same(before, everything(store))
        store.restore(2, third)


@pytest.mark.parametrize("name", STORES)
def test_sections_of_other_stores_do_no_harm(name, examples):
    good, _, shared = examples[name]
    for others, thirds, _ in examples.values():
        for section in (*others, *thirds):
            check(STORES[name], good, section, shared)


@pytest.mark.parametrize("name", STORES)
def test_a_number_anywhere_that_claims_terabytes_takes_no_memory(name, examples):
    good, thirds, shared = examples[name]
    for huge in ((1 << 63) - 1, 1 << 40, 1 << 33):
        writer = ByteWriter()
        writer.write_uint(huge)
        for third in thirds:
            for position in range(0, len(third), max(1, len(third) // 25)):
                changed = third[:position] + writer.getvalue() + third[position + 1 :]
                check(STORES[name], good, changed, shared)


@pytest.mark.parametrize("name", STORES)
def test_a_state_dict_with_a_damaged_section_leaves_the_tasks_from_before(name, examples):
    good, thirds, shared = examples[name]
    other = restored(STORES[name], good, shared)
    other.sections[1] = good[1][:-1]
    state = other.state_dict()
    store = restored(STORES[name], [*good, thirds[1]], shared)
    before = everything(store)
    with pytest.raises(CorruptStreamError):
        store.load_state_dict(state)
    after = everything(store)
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[3], after[3]))


@pytest.mark.parametrize("name", STORES)
def test_what_all_tasks_share_is_taken_whole_or_refused_and_nothing_changes(name, examples):
    good, _, shared = examples[name]
    store = restored(STORES[name], good, shared)
    before = everything(store)
    assert store.encode_shared() == shared
    for damaged in (shared + b"\0", shared[:-1] + b"\0\0", b"\3" + shared[1:], b"\0"):
        with pytest.raises(CorruptStreamError):
            store.accept_shared(damaged)
        assert_same(before, everything(store))
