"""Every task has its own low-bit value in a 32-bit slot: room, words, bytes, policies."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_compress.archive import load_archive, save_archive
from avalanche_compress.codec import (
    Codebook,
    CorruptStreamError,
    quantise_codebook,
    quantise_fixed_point,
)
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.store import Place
from avalanche_compress.errors import CapacityExhaustedError, NonFiniteError, TaskStateError
from avalanche_compress.methods.ada_qpacknet.store import SlottedStore


def store_of(rows=4, columns=6, policy="raise", seed=0) -> SlottedStore:
    torch.manual_seed(seed)
    layer = nn.Linear(columns, rows, bias=False)
    return SlottedStore(Place(layer, "weight"), "fc.weight", policy=policy)


def learn(store, task, bits, density=1.0, reusable=None, quantise=quantise_codebook):
    """Open, change, prune, quantise (``bits`` None: floats) and commit a task; its weight."""
    store.reserved_bits = 32 if bits is None else bits
    reusable = list(store.sections) if reusable is None else reusable
    store.check_open(reusable)
    store.open(reusable)
    with torch.no_grad():
        store.scratch.copy_(torch.randn(store.shape))
    store.prune(1 - density)
    if bits is not None:
        store.keep_values([quantise(v, bits) for v in store.kept_values()])
    weight = store.weight().detach().clone()
    store.check_commit()
    store.restore(task, store.encode())
    assert torch.equal(store.committed(task), weight)
    return weight


def occupancy_of(store) -> torch.Tensor:
    """u recomputed from masks and bits, on one page."""
    u = torch.zeros(store.shape, dtype=torch.int64)
    for task in store.sections:
        count = max(1, store.stored_values(task))
        u += store.mask_of(task) * (store.value_bits(task) // count)
    return u


# ------------------------------------------------------------------ room


def test_eight_tasks_of_four_bits_are_admitted_and_the_ninth_is_refused():
    store = store_of(20, 30)
    for task in range(8):
        learn(store, task, bits=4)
    assert (store.occupancy == 32).all()
    assert store.slot_used == 100
    with pytest.raises(CapacityExhaustedError, match=r"fc\.weight has 600 slots .* 4 bits left"):
        store.check_open(range(8))


@pytest.mark.parametrize(
    ("bits", "admitted"), [(1, 32), (4, 8), (6, 5), (8, 4), (16, 2), (None, 1)]
)
def test_a_task_is_admitted_while_its_bits_fit_exactly(bits, admitted):
    store = store_of(2, 3)
    book = None if bits is None else torch.arange(2.0 ** (bits - 1) + 1)
    codes = torch.zeros(6, dtype=torch.int32)
    for task in range(admitted):
        store.reserved_bits = bits or 32
        store.check_open([])
        store.open([])
        if book is not None:
            store.keep_values([Codebook(codes, book)])
        store.check_commit()
        store.restore(task, store.encode())
    with pytest.raises(CapacityExhaustedError):
        store.check_open([])


def test_slot_used_is_that_of_the_golden_example():
    store = store_of(25, 40)
    for task, (density, bits) in enumerate([(0.5, 4), (0.3, 4), (0.2, 3)]):
        learn(store, task, bits, density)
    assert [store.value_bits(task) for task in range(3)] == [2000, 1200, 600]
    assert store.slot_used == 11.875


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0, 1)), max_size=8), st.integers(0, 99))
def test_no_slot_holds_more_than_32_bits(tasks, seed):
    store = store_of(8, 9, seed=seed)
    for task, (bits, density) in enumerate(tasks):
        opened = store.occupancy.long() + bits <= 32
        if not opened.any():
            with pytest.raises(CapacityExhaustedError):
                learn(store, task, bits, density)
            return
        weight = learn(store, task, bits, density)
        mask = store.mask_of(task)
        open_count = int(opened.sum())
        assert int(mask.sum()) == open_count - round((1 - density) * open_count)
        assert not (mask & ~opened).any()
        assert (weight[~mask] == 0).all()
        assert weight[mask].unique().numel() <= 2**bits
    assert torch.equal(store.occupancy.long(), occupancy_of(store))
    assert (store.occupancy <= 32).all()
    assert store.slot_used <= 100
    assert store.slot_used == pytest.approx(100 * float(occupancy_of(store).sum()) / (32 * 72))


def test_bits_beyond_the_reserved_bits_are_refused_before_anything_changed():
    store = store_of()
    learn(store, 0, bits=4)
    old, u = store.committed(0), store.occupancy.clone()
    store.reserved_bits = 3
    store.open([0])
    with pytest.raises(CapacityExhaustedError, match="32 bits to keep and 3 bits"):
        store.check_commit()
    store.keep_values([quantise_codebook(store.kept_values()[0], 4)])
    with pytest.raises(CapacityExhaustedError, match="4 bits to keep and 3 bits"):
        store.check_commit()
    assert torch.equal(store.committed(0), old)
    assert torch.equal(store.occupancy, u)
    store.keep_values([quantise_codebook(store.kept_values()[0], 3)])
    store.check_commit()


@pytest.mark.parametrize("reserved_bits", [0, 33])
def test_reserved_bits_outside_the_slot_is_an_error(reserved_bits):
    store = store_of()
    store.reserved_bits = reserved_bits
    with pytest.raises(TaskStateError, match="reserved_bits"):
        store.check_open([])


def test_an_unknown_policy_is_an_error():
    with pytest.raises(TaskStateError, match="policy='grow'"):
        store_of(policy="grow")


# ------------------------------------------------------------------ words


def test_the_slot_word_is_that_of_the_golden_example():
    store = store_of(1, 1)
    for task, (bits, code) in enumerate([(4, 5), (6, 33), (3, 6)]):
        store.open([])
        codes = torch.tensor([code], dtype=torch.int32)
        store.keep_values([Codebook(codes, torch.arange(2.0**bits))])
        store.restore(task, store.encode())
    assert store.slot_words().tolist() == [[6677]]


@pytest.mark.parametrize("quantise", [quantise_codebook, quantise_fixed_point])
def test_slot_words_hold_every_tasks_codes(quantise):
    store = store_of(12, 10)
    books, widths = {}, {}
    for task, bits in enumerate([4, 7, 2, 5]):
        learn(store, task, bits, density=0.6, quantise=quantise)
        books[task], widths[task] = store._values_at(len(books)), bits
    words = store.slot_words().flatten().tolist()
    masks = {task: store.mask_of(task).flatten().tolist() for task in books}
    for i, word in enumerate(words):
        assert 0 <= word < 2**32
        for task, book in books.items():
            if masks[task][i]:
                code = int(book.codes[sum(masks[task][:i])])
                lowest = 0 if isinstance(book, Codebook) else -(2 ** (widths[task] - 1))
                assert word % 2 ** widths[task] == code - lowest
                word >>= widths[task]
        assert word == 0


def test_a_float_is_its_bits_in_the_slot_word():
    store = store_of()
    weight = learn(store, 0, bits=None)
    words = store.slot_words()
    signed = torch.where(words >= 2**31, words - 2**32, words).int()
    assert torch.equal(signed.view(torch.float32), weight)


# ------------------------------------------------------------------ what tasks compute with


def test_committed_weights_never_change():
    store = store_of(20, 30)
    kept = {}
    for task, bits in enumerate([4, 2, 8, 3, 6]):
        kept[task] = learn(store, task, bits, density=0.4)
        for old, weight in kept.items():
            assert torch.equal(store.committed(old), weight)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_reaches_open_slots_only_and_no_finished_task(optimizer):
    store = store_of(10, 10)
    old = learn(store, 0, bits=8, density=0.5)
    used = store.mask_of(0)
    store.reserved_bits = 27
    store.open([0])
    training = optimizer([store.scratch], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        training.zero_grad()
        store.weight().square().sum().backward()
        training.step()
    assert torch.equal(store.committed(0), old)
    assert (store.weight().detach()[used] == 0).all()
    assert not (store.owned & used).any()


def test_gradients_of_kept_values_are_those_of_autograd():
    store = store_of()
    store.open([])
    assert (store.kept_gradients()[0] == 0).all()
    store.prune(0.5)
    direction = torch.randn(store.shape)
    (store.weight() * direction).sum().backward()
    assert torch.allclose(store.kept_gradients()[0], direction[store.mask])
    assert store.kept_gradients()[0].shape == store.kept_values()[0].shape


def test_a_task_starts_from_the_newest_one_where_that_kept_weights():
    store = store_of(10, 10)
    learn(store, 3, bits=4, density=0.5)
    newest, mask = learn(store, 1, bits=4, density=0.3), store.mask_of(1)
    scratch = store.scratch.detach().clone()
    store.open([3, 1])
    assert torch.equal(store.weight().detach(), torch.where(mask, newest, scratch))
    store.open([])
    with torch.no_grad():
        store.scratch.copy_(scratch)
    store.open([])
    assert torch.equal(store.weight().detach(), scratch)


@pytest.mark.parametrize("reusable", [[3], [1], [3, 1], [1, 3], [8, 1], [3, 8, 1]])
def test_a_task_starts_from_the_last_learned_of_those_it_may_read_and_from_no_other(reusable):
    """Whatever the order in which they are named, and whatever their labels."""
    store, weights = store_of(10, 10), {}
    for task in (3, 8, 1):
        weights[task] = learn(store, task, bits=4, density=0.4)
    scratch = store.scratch.detach().clone()
    store.open(reusable)
    newest = next(task for task in (1, 8, 3) if task in reusable)
    expected = torch.where(store.mask_of(newest), weights[newest], scratch)
    assert torch.equal(store.scratch, expected)


def test_non_finite_values_are_refused():
    store = store_of()
    store.open([])
    with torch.no_grad():
        store.scratch[1, 2] = float("nan")
    with pytest.raises(NonFiniteError):
        store.check_commit()
    with pytest.raises(NonFiniteError):
        store.prune(0.5)


def test_an_unknown_task_is_an_error():
    with pytest.raises(TaskStateError, match="task 4"):
        store_of().committed(4)


# ------------------------------------------------------------------ policies


def test_grow_copy_starts_a_fresh_page():
    store = store_of(6, 7, policy="grow_copy")
    kept = {task: learn(store, task, 16, quantise=quantise_fixed_point) for task in range(5)}
    assert store.pages == 3
    assert (store.occupancy == 16).all()
    assert store.slot_used == pytest.approx(100 * 5 / 6)
    for task, weight in kept.items():
        assert torch.equal(store.committed(task), weight)
    low = store.slot_words(page=0) % 2**16
    assert torch.equal(low.flatten(), store._values_at(0).codes.long() + 2**15)
    assert torch.equal(store.slot_words(), store.slot_words(page=2))


def test_reuse_frozen_reads_the_newest_task_and_adds_nothing():
    store = store_of(10, 10, policy="reuse_frozen")
    learn(store, 0, bits=16, quantise=quantise_fixed_point)
    newest = learn(store, 1, bits=16, quantise=quantise_fixed_point)
    store.reserved_bits = 4
    for task in (2, 3):
        store.check_open(list(store.sections))
        store.open(list(store.sections))
        store.prune(0.5)
        assert store.kept_values()[0].numel() == store.kept_gradients()[0].numel() == 0
        assert torch.equal(store.weight().detach(), newest)
        store.weight().sum().backward()
        assert store.scratch.grad.abs().max() <= 1e-12
        store.scratch.grad = None
        store.keep_values([quantise_codebook(v, 4) for v in store.kept_values()])
        store.check_commit()
        store.restore(task, store.encode())
        assert torch.equal(store.committed(task), newest)
        assert store.stored_values(task) == store.value_bits(task) == 0
        assert len(store.sections[task]) < 20
    assert store.slot_used == 100
    with pytest.raises(CapacityExhaustedError):
        store.check_open([])


@pytest.mark.parametrize("policy", ["grow_copy", "reuse_frozen", "raise"])
@pytest.mark.parametrize("density", [0.89, 0.91])
def test_a_page_with_less_than_a_tenth_open_is_left_or_warned_of(policy, density):
    store = store_of(10, 10, policy=policy)
    learn(store, 0, bits=None, density=density)
    few = density > 0.9
    with (
        pytest.warns(UserWarning, match="less than 10% of its slots open")
        if few and policy == "raise"
        else nullcontext()
    ):
        store.open([0])
    state = copy.deepcopy(store.state_dict())
    store = store_of(10, 10, policy=policy)
    store.load_state_dict(state)  # the decision of a task in training is part of its state
    kept = store.weight().detach()
    store.restore(1, store.encode())
    assert store.pages == 1 + (few and policy == "grow_copy")
    assert (
        store.stored_values(1)
        == {
            "grow_copy": 100 if few else 11,
            "reuse_frozen": 0 if few else 11,
            "raise": 9 if few else 11,
        }[policy]
    )
    assert torch.equal(store.committed(1), kept)


def test_a_mask_fixed_while_reading_is_the_tasks_own():
    store = store_of(10, 10, policy="reuse_frozen")
    learn(store, 0, bits=None, density=1.0)
    store.open([0])
    mask = torch.rand(store.shape) < 0.5
    store.fix_mask(mask)
    before = store.weight().detach()
    store.restore(1, store.encode())
    assert torch.equal(store.committed(1), before)
    assert torch.equal(before, torch.where(mask, store.committed(0), 0.0))


# ------------------------------------------------------------------ bytes

LESSONS = [(4, 1.0, quantise_codebook), (12, 0.5, quantise_fixed_point), (None, 1.0, None)]


def taught(policy: str) -> tuple[SlottedStore, dict[int, torch.Tensor]]:
    store = store_of(20, 30, policy)
    kept = {}
    for task, (bits, density, quantise) in enumerate(LESSONS * 2):
        kept[7 - task] = learn(store, 7 - task, bits, density, quantise=quantise)
    return store, kept


@pytest.mark.parametrize("policy", ["grow_copy", "reuse_frozen"])
def test_sections_give_the_same_bits_in_another_store(policy):
    store, kept = taught(policy)
    assert store.pages == {"grow_copy": 4, "reuse_frozen": 1}[policy]
    second = store_of(20, 30, policy, seed=9)
    for task, section in store.sections.items():
        second.restore(task, section)
    third = store_of(20, 30, policy, seed=8)
    third.load_state_dict(store.state_dict())
    for other in (second, third):
        for task, weight in kept.items():
            assert torch.equal(other.committed(task), weight)
            assert torch.equal(other.mask_of(task), store.mask_of(task))
            assert other.value_bits(task) == store.value_bits(task)
        assert torch.equal(other.occupancy, store.occupancy)
        assert other.pages == store.pages
        assert torch.equal(other.slot_words(), store.slot_words())


def test_a_section_is_mask_codes_and_codebook():
    store = store_of(200, 300)
    for task in range(3):
        learn(store, task, bits=4, density=0.5)
        stored = store.stored_values(task)
        assert (
            stored * 4 / 8 + 16 * 4 <= len(store.sections[task]) <= stored / 2 + 64 + 60000 / 8 + 32
        )


def test_a_damaged_section_is_refused():
    store = store_of(8, 9)
    for task in range(2):
        learn(store, task, bits=4, density=0.5)

    def second_after_first(section: bytes) -> None:
        other = store_of(8, 9)
        other.restore(0, store.sections[0])
        other.restore(1, section)

    second_after_first(store.sections[1])
    for cut in range(len(store.sections[1])):
        with pytest.raises(CorruptStreamError):
            second_after_first(store.sections[1][:cut])
    with pytest.raises(CorruptStreamError):
        second_after_first(store.sections[1] + b"\0")
    with pytest.raises(ValueError, match="reserved bits"):
        second_after_first(b"\x21" + store.sections[1][1:])
    with pytest.raises(ValueError, match="4 bits, and 3"):
        second_after_first(b"\x03" + store.sections[1][1:])


def test_what_was_asked_about_slots_stays_as_it_was():
    store = store_of(8, 9)
    seen = []
    for task in range(20):
        store.reserved_bits = 1
        store.open([])
        store.fix_mask(torch.rand(store.shape) < 0.2)
        store.keep_values([quantise_codebook(values, 1) for values in store.kept_values()])
        store.restore(task, store.encode())
        seen.append((store.occupancy, store.occupancy.clone()))
    assert all(torch.equal(*pair) for pair in seen)


def test_a_section_where_no_slot_is_open_is_refused():
    store = store_of()
    learn(store, 0, bits=None)
    with pytest.raises(ValueError, match="no slot is open"):
        store.restore(1, store.sections[0])


def test_an_open_task_goes_on_from_a_state_dict():
    store = store_of(8, 9)
    learn(store, 0, bits=12, density=0.5, quantise=quantise_fixed_point)
    store.reserved_bits = 21
    store.open([0])
    store.prune(0.5)
    second = store_of(8, 9, seed=5)
    second.load_state_dict(store.state_dict())
    with torch.no_grad():
        second.scratch.copy_(store.scratch)
    assert torch.equal(second.weight(), store.weight())
    for each in (store, second):
        each.keep_values([quantise_codebook(v, 6) for v in each.kept_values()])
        each.check_commit()
    assert second.encode() == store.encode()


def test_an_archive_gives_the_same_logits(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 9), nn.Linear(9, 2))

    torch.manual_seed(0)
    network = TaskNetwork(build(), SlottedStore)
    for task in range(3):
        network.open(task, [0, 1])
        for store in network.weight_stores:
            store.prune(0.5)
            store.keep_values([quantise_codebook(v, 4) for v in store.kept_values()])
        network.commit()
    save_archive(network.eval(), tmp_path / "archive")
    loaded, x = load_archive(tmp_path / "archive", build), torch.randn(5, 6)
    for task in range(3):
        assert torch.equal(loaded(x, task), network(x, task))
