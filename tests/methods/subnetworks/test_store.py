"""W_t = M_t * V: gradients, freezing, bytes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from avalanche_compress.codec import (
    ByteReader,
    CorruptStreamError,
    kept_count,
    quantise_codebook,
    quantise_fixed_point,
)
from avalanche_compress.core.store import Place
from avalanche_compress.errors import CapacityExhaustedError, NonFiniteError, TaskStateError
from avalanche_compress.methods.subnetworks.store import MaskedStore
from avalanche_compress.methods.subnetworks.subnetwork import values_where


def store_of(rows=4, columns=6, scored=False, seed=0) -> MaskedStore:
    torch.manual_seed(seed)
    return MaskedStore(Place(nn.Linear(columns, rows, bias=False), "weight"), scored=scored)


def finish(store: MaskedStore, task: int) -> None:
    store.check_commit()
    store.restore(task, store.encode())


def random_mask(store: MaskedStore, density: float) -> torch.Tensor:
    return torch.rand(store.shape) < density


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_where_a_mask_is_set_are_those_that_an_index_gives(layout, dtype):
    values = torch.randn(5, 4, 3, 3).to(dtype).to(memory_format=layout)
    for mask in (torch.rand(5, 4, 3, 3) < 0.4, torch.zeros(5, 4, 3, 3).bool(), values > 0):
        assert torch.equal(values_where(mask, values), values[mask])
    assert values_where(torch.tensor(True), torch.tensor(2.0)).tolist() == [2.0]


def test_score_gradients_are_those_of_the_public_code():
    layer = nn.Linear(4, 3, bias=False)
    store = MaskedStore(Place(layer, "weight"), scored=True)
    with torch.no_grad():
        layer.weight.copy_(
            torch.tensor([[-0.5, -0.4, -0.3, -0.2], [-0.1, 0, 0.1, 0.2], [0.3, 0.4, 0.5, 0.6]])
        )
        store.scores.copy_(
            torch.tensor([[0.1, -0.2, 0.3, -0.4], [0.5, -0.6, 0.7, -0.8], [0.9, -1, 1.1, -1.2]])
        )
    store.density = 0.5
    store.open([])
    y = store.weight() @ torch.tensor([1.0, 2, 3, 4])
    assert torch.allclose(y, torch.tensor([0, 1.1, 5.0]))
    assert store.mask.int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]
    y.sum().backward()
    weight_gradient = torch.tensor([[0, 0, 0, 0], [0, 0, 3, 4], [1, 2, 3, 4.0]])
    score_gradient = torch.tensor(
        [[-0.5, 0.8, -0.9, 0.8], [-0.1, 0, 0.3, -0.8], [0.3, -0.8, 1.5, -2.4]]
    )
    assert torch.allclose(layer.weight.grad, weight_gradient)
    assert torch.allclose(store.scores.grad, score_gradient)


@pytest.mark.parametrize("scored", [False, True])
def test_gradients_are_those_of_autograd_on_the_formula(scored):
    store = store_of(scored=scored)
    store.density = 0.6
    store.open([])
    store.fix_mask(random_mask(store, 0.5))
    finish(store, 3)
    store.open([3])
    direction = torch.randn(store.shape)
    (store.weight() * direction).sum().backward()
    free = store.free.clone()
    scratch = store.scratch.detach().clone().requires_grad_()
    formula = store.value + free * scratch
    if scored:
        scores = store.scores.detach().clone().requires_grad_()
        straight_through = scores.abs() - scores.detach().abs()
        formula = formula * (store.mask.float() + straight_through)
        (formula * direction).sum().backward()
        assert torch.allclose(store.scores.grad, scores.grad, atol=1e-6)
    else:
        (formula * direction).sum().backward()
    assert torch.allclose(store.scratch.grad, scratch.grad, atol=1e-6)


def test_frozen_positions_get_no_gradient_to_speak_of():
    store = store_of()
    store.open([])
    store.prune(0.5)
    finish(store, 0)
    store.open([0])
    store.weight().square().sum().backward()
    used = store.free == 0
    assert store.scratch.grad[used].abs().max() <= 1.001e-13


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("quantise", [None, quantise_codebook, quantise_fixed_point])
def test_a_section_gives_the_same_bits_in_another_store(scored, quantise):
    first, second = store_of(20, 30, scored, 1), store_of(20, 30, scored, 2)
    for task in (5, 2, 9):
        first.open(list(first.sections))
        first.fix_mask(random_mask(first, 0.4))
        before = first.weight().detach().clone()
        if quantise is not None:
            first.keep_values([quantise(v, 4) for v in first.kept_values()])
            before = first.weight().detach().clone()
        finish(first, task)
        assert torch.equal(first.committed(task), before)
        second.restore(task, first.sections[task])
    for task in (5, 2, 9):
        assert torch.equal(first.committed(task), second.committed(task))
        assert torch.equal(first.mask_of(task), second.mask_of(task))
        assert first.stored_values(task) == second.stored_values(task)
        assert first.value_bits(task) == second.value_bits(task)


def test_old_weights_never_change():
    store = store_of(20, 30, scored=True)
    kept = {}
    for task in range(5):
        store.density = 0.4
        store.open(list(store.sections))
        with torch.no_grad():
            store.scratch.add_(torch.randn(store.shape))
            store.scores.add_(0.1 * torch.randn(store.shape))
        finish(store, task)
        for old, weight in kept.items():
            assert torch.equal(store.committed(old), weight)
        kept[task] = store.committed(task)


def test_masks_cost_the_conditional_entropy():
    store = store_of(300, 400)
    inherited = random_mask(store, 0.5)
    for task in range(4):
        store.open(list(store.sections))
        used = store.free == 0
        redrawn = torch.rand(store.shape) < 0.2
        mask = torch.where(redrawn, random_mask(store, 0.5), inherited)
        store.fix_mask(mask)
        owned = int(store.owned.sum())
        store.keep_values([quantise_codebook(store.kept_values()[0], 4)])
        section = store.encode()
        entropy = 0.0
        for was in (False, True):
            for in_use in (False, True):
                cell = (used == in_use) & ((inherited if task else torch.zeros_like(mask)) == was)
                n, ones = int(cell.sum()), int((cell & mask).sum())
                for part in (ones, n - ones):
                    if part:
                        entropy -= part * math.log2(part / n)
        store.restore(task, section)
        values = (4 * owned + 7) // 8 + 16 * 4
        assert len(section) - values <= 1.02 * entropy / 8 + 48
        inherited = mask


def test_pruned_weights_start_the_next_task_at_zero():
    store = store_of(10, 10)
    store.open([])
    store.prune(0.7)
    finish(store, 0)
    store.open([0])
    assert (store.scratch[store.free != 0] == 0).all()


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("reusable", [[], [0]])
def test_free_weights_start_at_zero_next_to_old_ones_and_go_on_where_nothing_old_is_read(
    scored, reusable
):
    """Scored ones always go on: their mask chooses them, whatever they are."""
    store = store_of(scored=scored)
    store.density = 0.4
    store.open([])
    if not scored:
        store.prune(0.5)
    finish(store, 0)
    with torch.no_grad():
        trained, free = store.scratch.normal_().clone(), store.free != 0
    store.open(reusable)
    zeroed = bool(reusable) and not scored
    expected = torch.zeros_like(trained) if zeroed else trained
    assert bool(free.any())
    assert torch.equal(store.scratch[free], expected[free])
    assert torch.equal(store.scratch[~free], trained[~free])


def test_a_scored_weight_that_may_read_nothing_computes_with_free_weights_alone():
    store = store_of(scored=True)
    store.density = 0.3
    store.open([])
    finish(store, 0)
    used = store.free == 0
    assert bool(used.any())
    store.open([])
    assert not bool((store.mask & used).any())
    assert not bool(store.weight()[used].any())
    store.open([0])
    assert bool((store.mask & used).any())
    assert torch.equal(store.weight()[store.mask & used], store.value[store.mask & used])


def test_sharing_decides_what_a_task_may_read():
    store = store_of(10, 10)
    masks = []
    for task in (0, 1):
        store.open(list(store.sections))
        store.fix_mask(random_mask(store, 0.3) & (store.free != 0))
        masks.append(store.mask)
        finish(store, task)
    store.open([1])
    weight = store.weight().detach()
    assert torch.equal(weight[masks[1]], store.value[masks[1]])
    assert (weight[masks[0]] == 0).all()
    store.open([])
    assert (store.weight().detach()[masks[0] | masks[1]] == 0).all()


def test_a_scored_task_without_room_is_refused():
    store = store_of(10, 10, scored=True)
    store.density = 1.0
    store.open([])
    finish(store, 0)
    store.check_open([0])
    with pytest.raises(CapacityExhaustedError, match=r"weight has no weights .* density"):
        store.check_open([])


@pytest.mark.parametrize("density", [0.0, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("shape", [(10, 10), (1, 1), (2, 7)])
def test_a_density_is_a_part_of_the_weights_that_a_task_may_use(density, shape):
    store = store_of(*shape, scored=True)
    store.density = density
    masks = []
    for task in range(4):
        if not bool(store.free.any()):
            break
        store.open([])  # nothing of earlier tasks
        assert int(store.mask.sum()) == kept_count(density, int(store.free.sum()))
        weight = store.weight().detach()
        assert torch.equal(weight != 0, store.mask & (store.scratch != 0))
        masks.append(store.mask)
        finish(store, task)
    assert int(torch.stack(masks).sum(0).max()) == 1


def test_blocked_slots_are_never_chosen():
    store = store_of(10, 10, scored=True)
    store.density = 0.4
    store.open([])
    finish(store, 0)
    store.open([])
    assert not (store.mask & store.mask_of(0)).any()
    assert int(store.mask.sum()) == kept_count(0.4, 100 - int(store.mask_of(0).sum()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(bad):
    store = store_of()
    store.open([])
    with torch.no_grad():
        store.scratch[1, 2] = bad
    with pytest.raises(NonFiniteError):
        store.check_commit()
    with pytest.raises(NonFiniteError):
        store.prune(0.5)


def test_a_fixed_mask_loads_into_a_store_that_has_just_opened_the_task():
    store, other = store_of(), store_of(seed=1)
    for one in (store, other):
        one.open([])
    store.fix_mask(random_mask(store, 0.5))
    other.load_state_dict(store.state_dict())
    other.scratch.data.copy_(store.scratch)
    assert torch.equal(other.weight(), store.weight())
    assert torch.equal(other.free, torch.ones(store.shape))


def test_an_unknown_task_is_an_error():
    with pytest.raises(TaskStateError, match="task 4"):
        store_of().committed(4)


def test_a_damaged_section_is_refused():
    store = store_of(20, 30)
    store.open([])
    store.prune(0.5)
    section = store.encode()
    for cut in range(len(section)):
        with pytest.raises(CorruptStreamError):
            store_of(20, 30).restore(0, section[:cut])
    with pytest.raises(CorruptStreamError):
        store_of(20, 30).restore(0, section + b"\0")
    assert ByteReader(section).remaining == len(section)
