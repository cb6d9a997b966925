"""W_t as a sum of terms: layers, freezing, bytes, state."""

from __future__ import annotations

import copy
import pickle
import random
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from avalanche_compress import TaskNetwork
from avalanche_compress.codec import (
    CorruptStreamError,
    Factors,
    quantise_codebook,
    quantise_fixed_point,
)
from avalanche_compress.core.store import Place
from avalanche_compress.errors import NonFiniteError, TaskStateError
from avalanche_compress.methods.cacl.store import FactoredStore
from benchmarks.runs.backbones import cacl_net


def behind(layer, **options) -> FactoredStore:
    return FactoredStore(Place(layer, "weight"), **options)


def store_of(rows=8, columns=12, seed=0, **options) -> FactoredStore:
    torch.manual_seed(seed)
    return behind(nn.Linear(columns, rows, bias=False), **options)


def conv_store(**options) -> FactoredStore:
    torch.manual_seed(0)
    return behind(nn.Conv2d(4, 6, 3, bias=False), **options)


def finish(store: FactoredStore, task: int) -> None:
    store.check_commit()
    store.restore(task, store.encode())


def learn(store, task, rank=None, reusable=None, energy=None, quantise=None):
    """Open a task with random terms, or a random difference, and commit it."""
    store.rank = rank
    store.open(list(store.sections) if reusable is None else reusable)
    if not store.factored:
        with torch.no_grad():
            store.scratch.copy_(torch.randn(store.shape))
    if energy is not None:
        store.truncate(energy)
    if quantise is not None:
        store.keep_values([quantise(values) for values in store.kept_values()])
    finish(store, task)


def set_terms(store, left, sigma, right) -> None:
    """Give the open task these terms."""
    parts = (torch.as_tensor(part, dtype=store.sigma.dtype) for part in (left, sigma, right))
    store.left, store.sigma, store.right = (nn.Parameter(part.clone()) for part in parts)


def terms_of(store) -> list:
    return [part.detach().clone() for part in store.terms]


# ------------------------------------------------------------------ one layer

LAYERS = {
    "linear": (partial(nn.Linear, 10, 7), (5, 10)),
    "linear without bias": (partial(nn.Linear, 10, 7, bias=False), (5, 10)),
    "conv": (partial(nn.Conv2d, 4, 6, 3), (2, 4, 9, 9)),
    "stride": (partial(nn.Conv2d, 4, 6, 3, stride=(2, 1), bias=False), (2, 4, 9, 9)),
    "padding": (partial(nn.Conv2d, 4, 6, 3, padding=(0, 2)), (2, 4, 9, 9)),
    "same": (partial(nn.Conv2d, 4, 6, (3, 5), padding="same"), (2, 4, 9, 9)),
    "circular": (partial(nn.Conv2d, 4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9, 9)),
    "dilation": (partial(nn.Conv2d, 4, 6, 3, dilation=2), (2, 4, 9, 9)),
    "groups": (partial(nn.Conv2d, 4, 6, 3, groups=2), (2, 4, 9, 9)),
    "depthwise": (partial(nn.Conv2d, 4, 4, 3, groups=4), (2, 4, 9, 9)),
    "pointwise": (partial(nn.Conv2d, 4, 6, 1), (2, 4, 9, 9)),
    "tall kernel": (partial(nn.Conv2d, 4, 6, (3, 1)), (2, 4, 9, 9)),
    "conv1d": (partial(nn.Conv1d, 4, 6, 3), (2, 4, 9)),
    "conv3d": (partial(nn.Conv3d, 3, 4, 2), (2, 3, 4, 4, 4)),
    "transposed": (partial(nn.ConvTranspose2d, 4, 6, 3, stride=2), (2, 4, 5, 5)),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_full_rank_start_by_svd_is_the_dense_layer(name, decomposition, dtype, tolerance):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build().to(dtype), torch.randn(*shape, dtype=dtype)
    store = behind(layer, decomposition=decomposition)
    expected, dense = layer(x), layer.weight.detach().clone()
    store.rank, store.start = min(store.rows, store.columns), "svd"
    store.open([])
    y = functional_call(layer, {"weight": store.weight()}, (x,))
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance)
    finish(store, 0)
    torch.testing.assert_close(store.committed(0), dense, rtol=0, atol=tolerance)


def test_only_the_first_task_starts_from_the_layers_weights():
    store = store_of()
    store.start = "svd"
    store.open([])
    first = terms_of(store)
    store.open([])
    assert all(torch.equal(a, b) for a, b in zip(first, terms_of(store)))
    finish(store, 0)
    store.open([0])
    left, sigma, _ = terms_of(store)
    torch.testing.assert_close(left @ left.t(), torch.eye(4), rtol=0, atol=1e-5)
    assert len(sigma.unique()) == 1


def test_a_given_decomposition_convolves_as_the_public_code_does():
    layer = nn.Conv2d(2, 3, 2, bias=False)
    store = behind(layer)
    store.open([])
    tenths = partial(torch.arange, dtype=torch.float32)
    left = (tenths(1, 7) / 10).view(3, 2).t()
    set_terms(store, left, [2.0, -0.5], (tenths(1, 17) / 10).view(2, 8))
    x = (tenths(1, 19) / 10).view(1, 2, 3, 3)
    expected = [
        [1.548, 1.720, 2.064, 2.236],
        [3.808, 4.224, 5.056, 5.472],
        [6.068, 6.728, 8.048, 8.708],
    ]
    y = functional_call(layer, {"weight": store.weight()}, (x,))
    torch.testing.assert_close(y.view(3, 4), torch.tensor(expected), rtol=0, atol=1e-5)
    finish(store, 0)
    y = functional_call(layer, {"weight": store.committed(0)}, (x,))
    torch.testing.assert_close(y.view(3, 4), torch.tensor(expected), rtol=0, atol=1e-5)


def two_convolutions(store, x, decomposition, stride=(2, 1), padding=(1, 2), dilation=(1, 2)):
    """What the open task's terms compute as two thin convolutions."""
    n, c, high, wide = store.shape
    left, sigma, right = store.terms
    first, scaled = (right, left) if decomposition == "channel" else (left, right)
    scaled = sigma.abs().unsqueeze(1) * scaled
    if decomposition == "channel":
        hidden = F.conv2d(x, first.view(-1, c, high, wide), None, stride, padding, dilation)
        return F.conv2d(hidden, scaled.t().reshape(n, -1, 1, 1))
    options = zip(stride, padding, dilation)
    (s0, p0, d0), (s1, p1, d1) = options
    hidden = F.conv2d(x, first.view(-1, c, high, 1), None, (s0, 1), (p0, 0), (d0, 1))
    kernel = scaled.view(-1, n, wide).transpose(0, 1).reshape(n, -1, 1, wide)
    return F.conv2d(hidden, kernel, None, (1, s1), (0, p1), (1, d1))


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_one_convolution_computes_what_two_thin_ones_do(decomposition):
    torch.manual_seed(0)
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    layer = nn.Conv2d(3, 4, (3, 2), bias=False, **options).double()
    store = behind(layer, decomposition=decomposition)
    store.open([])
    x = torch.randn(2, 3, 7, 7).double()
    results = []
    for compute in (
        lambda: functional_call(layer, {"weight": store.weight()}, (x,)),
        lambda: two_convolutions(store, x, decomposition),
    ):
        y = compute()
        direction = torch.linspace(-1, 1, y.numel()).double().view(y.shape)
        gradients = torch.autograd.grad((y * direction).sum(), list(store.parameters()))
        results.append((y, *gradients))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_gradients_are_those_of_finite_differences(decomposition):
    torch.manual_seed(1)
    store = behind(nn.Conv2d(2, 3, 2, bias=False).double(), decomposition=decomposition)
    learn(store, 0)
    store.open([0])

    def weight(left, sigma, right):
        # the store's own terms, as functions of the arguments
        store.__dict__.update(left=left, sigma=sigma, right=right)
        try:
            return store.weight()
        finally:
            for name in ("left", "sigma", "right"):
                del store.__dict__[name]

    inputs = tuple(part.requires_grad_() for part in terms_of(store))
    assert torch.autograd.gradcheck(weight, inputs)


def test_only_the_terms_of_the_open_task_get_a_gradient():
    store = store_of()
    learn(store, 0)
    store.open([0])
    store.weight().square().sum().backward()
    assert store.scratch.grad is None
    assert all(p.grad is not None and p.grad.any() for p in store.parameters())
    assert not any(buffer.requires_grad for buffer in store.buffers())
    assert {name for name, _ in store.named_parameters()} == {"left", "sigma", "right"}


def test_a_scale_of_zero_has_a_finite_gradient():
    store = store_of()
    store.open([])
    with torch.no_grad():
        store.sigma[0] = 0
    store.weight().square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in store.parameters())


def test_a_task_starts_with_the_variances_of_the_public_code():
    store = store_of(60, 90)
    store.rank = 200
    store.open([])
    assert float(store.left.square().mean()) == pytest.approx(2 / 200, rel=0.1)
    assert float(store.right.square().mean()) == pytest.approx(2 / 90, rel=0.1)
    assert float(store.sigma.square().mean()) == pytest.approx(1, rel=0.3)


def test_a_later_task_may_start_where_earlier_ones_have_ended():
    store = store_of()
    store.residual_strength = 0.0
    learn(store, 0)
    assert store.committed(0).any()  # a first task has nothing to start from
    store.open([0])
    assert torch.equal(store.weight(), store.committed(0))
    store.open([])
    assert store.weight().any()
    store.open([0])
    optimizer = torch.optim.SGD(store.parameters(), lr=0.05)
    target = torch.randn(store.shape)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append((store.weight() - target).square().sum())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_the_start_of_later_tasks_is_scaled():
    spread = []
    for residual in (1.0, 0.1):
        store = store_of()
        store.residual_strength = residual
        learn(store, 0)
        torch.manual_seed(1)
        store.open([0])
        spread.append((store.weight() - store.shared).detach())
    torch.testing.assert_close(spread[1], 0.1 * spread[0], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ ranks and numbers


def test_initial_ranks_are_those_of_the_public_code():
    network = TaskNetwork(cacl_net((3, 32, 32), 5), FactoredStore)
    stores = network.weight_stores
    assert [store.initial_rank for store in stores] == [18, 57, 104, 115, 170]
    # three five-way heads over the shared terms, as in the public code's network
    for task in range(3):
        network.open(task, range(5))
        for store in stores:
            store.rank = 0
        network.commit()
    parts = [*stores, network.private]
    values = [sum(part.stored_values(task) for part in parts) for task in range(3)]
    assert values == [389_558 + 5125, 5125, 5125]
    assert sum(values) == 404_933


@pytest.mark.parametrize(
    ("decomposition", "rows", "columns"), [("channel", 6, 36), ("spatial", 12, 18)]
)
def test_stored_values_are_the_numbers_in_the_section(decomposition, rows, columns):
    store = conv_store(decomposition=decomposition)
    assert (store.rows, store.columns) == (rows, columns)
    for task, rank in enumerate((3, 0, 2)):
        learn(store, task, rank)
        assert store.ranks[task] == rank
        assert store.stored_values(task) == rank * (rows + columns + 1)
        assert store.value_bits(task) == 32 * store.stored_values(task)
        # rank, kind of block, parents, and a byte before each of three tensors
        assert len(store.sections[task]) == 4 * store.stored_values(task) + 6


def test_a_dense_difference_has_the_weights_numbers():
    store = store_of()
    learn(store, 0, rank=8, energy=0.0)
    assert store.ranks == {0: 8}
    assert store.stored_values(0) == 8 * 12
    assert len(store.sections[0]) == 4 * 8 * 12 + 4


def test_codes_have_few_bits_but_few_values_stay_floats():
    store = store_of()
    learn(store, 0, rank=3, quantise=partial(quantise_fixed_point, bits=5))
    assert store.stored_values(0) == 3 * 21
    assert store.value_bits(0) == 3 * 21 * 5
    learn(store, 1, rank=3, quantise=partial(quantise_codebook, bits=3))
    # three values of sigma: a codebook of them is no less than the values
    assert store.value_bits(1) == 3 * 20 * 3 + 3 * 32
    assert len(store.sections[1]) < 4 * (2 * 8 + 3) + 3 * 20 * 3 / 8 + 12


# ------------------------------------------------------------------ truncation


def test_truncation_keeps_terms_by_energy():
    store = store_of()
    store.rank = 4
    store.open([])
    left, _, right = terms_of(store)
    set_terms(store, left, [3, -0.001, 0.02, 1], right)
    store.truncate(3e-5)
    kept = [0, 2, 3]
    torch.testing.assert_close(store.sigma.detach(), torch.tensor([3, 0.02, 1]))
    assert torch.equal(store.left, left[kept])
    assert torch.equal(store.right, right[kept])
    assert all(p.requires_grad and p.is_leaf for p in store.parameters())


def test_energy_that_is_kept_already_leaves_nothing_of_a_small_task():
    store = store_of()
    learn(store, 0)
    old = store.committed(0)
    store.open([0])
    with torch.no_grad():
        store.sigma.mul_(1e-4)
    store.truncate(3e-5, earlier=1e3)
    finish(store, 1)
    assert store.ranks[1] == 0
    assert store.stored_values(1) == 0
    assert torch.equal(store.committed(1), old)


@pytest.mark.parametrize("mode", ["raw", "exact"])
@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_truncation_without_loss_leaves_the_weight(mode, decomposition):
    store = conv_store(decomposition=decomposition)
    learn(store, 0, 3)
    store.rank = 5
    store.open([0])
    before = store.weight().detach()
    store.truncate(0.0, mode)
    torch.testing.assert_close(store.weight().detach(), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["raw", "exact"])
def test_a_larger_loss_of_energy_never_gives_more_terms(mode):
    store = store_of(20, 30, storage="factors")
    store.rank = 18
    store.open([])
    ranks = []
    for energy in (0.0, 1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9):
        one = copy.deepcopy(store)
        one.truncate(energy, mode)
        ranks.append(one.sigma.numel())
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[-1]


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
@pytest.mark.parametrize("rank", [0, 3, 4, 5, 6])
def test_auto_storage_takes_what_has_fewer_numbers(rank, decomposition):
    store = conv_store(decomposition=decomposition)
    learn(store, 0, 2)
    store.rank = rank
    store.open([0])
    composed = store.weight().detach()
    store.truncate(0.0)
    before = store.weight().detach().clone()
    torch.testing.assert_close(before, composed, rtol=1e-5, atol=1e-6)
    finish(store, 1)
    factors = rank * (store.rows + store.columns + 1)
    assert store.stored_values(1) == min(factors, store.shape.numel())
    assert store.ranks[1] == rank
    if store.stored_values(1) < factors:
        assert store.low_rank(1) is None
        assert torch.equal(store.committed(1), before)
    else:
        assert store.low_rank(1).factors.rank == 2 + rank
        torch.testing.assert_close(store.committed(1), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rank", "dense"), [(6, False), (7, True)])
def test_auto_storage_keeps_terms_of_as_many_numbers_as_the_weight(rank, dense):
    store = store_of(8, 27)
    assert 6 * (8 + 27 + 1) == 8 * 27
    learn(store, 0, rank, energy=0.0)
    assert (store.low_rank(0) is None) == dense


def test_factors_storage_never_turns_dense():
    store = store_of(storage="factors")
    learn(store, 0, rank=8, energy=0.0)
    assert store.stored_values(0) == 8 * 21
    assert store.low_rank(0).factors.rank == 8


def test_a_dense_difference_gives_the_same_layer_output_before_and_after_the_commit():
    for decomposition in ("channel", "spatial"):
        store = conv_store(decomposition=decomposition)
        learn(store, 0, 2)
        store.rank = 6
        store.open([0])
        store.truncate(0.0)
        x = torch.randn(2, 4, 8, 8)
        with torch.no_grad():
            before = functional_call(store.place.module, {"weight": store.weight()}, (x,))
            finish(store, 1)
            after = functional_call(store.place.module, {"weight": store.committed(1)}, (x,))
        assert torch.equal(before, after)


def test_the_task_after_a_dense_difference_trains_terms_again():
    store = store_of()
    learn(store, 0, rank=8, energy=0.0)
    store.rank = 2
    store.open([0])
    assert store.sigma.numel() == 2
    expected = store.committed(0) + Factors(*terms_of(store)).compose()
    torch.testing.assert_close(store.weight().detach(), expected)
    assert store.frozen_terms() == []


# ------------------------------------------------------------------ freezing


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
@pytest.mark.parametrize(
    "quantise", [None, partial(quantise_codebook, bits=4), partial(quantise_fixed_point, bits=6)]
)
def test_old_weights_never_change_and_another_store_has_the_same_bits(decomposition, quantise):
    """Labels out of order, dense differences between terms, tasks that build on some or none."""
    first, second = conv_store(decomposition=decomposition), conv_store(decomposition=decomposition)
    plan = [(5, 3, []), (2, 6, [5]), (9, 2, [5, 2]), (-1, 0, [9, 5]), (7, 4, []), (3, 5, [-1, 2])]
    kept = {}
    for task, rank, reusable in plan:
        learn(first, task, rank, reusable, energy=0.0, quantise=quantise)
        for old, weight in kept.items():
            assert torch.equal(first.committed(old), weight)
        kept[task] = first.committed(task).clone()
        second.restore(task, first.sections[task])
    for task, weight in kept.items():
        assert torch.equal(first.committed(task), weight)
        assert torch.equal(second.committed(task), weight)
        assert first.stored_values(task) == second.stored_values(task)
        assert first.value_bits(task) == second.value_bits(task)
    assert first.ranks == second.ranks


def test_a_weight_is_the_sum_of_the_tasks_it_builds_on():
    store = store_of()
    parts = {}
    for task, reusable in ((4, []), (1, [4]), (8, [4]), (6, [])):
        learn(store, task, 3, reusable)
        parts[task] = store.weight().detach() - store.shared
    for task, parents in ((4, []), (1, [4]), (8, [4]), (6, [])):
        expected = sum(parts[parent] for parent in (*parents, task))
        torch.testing.assert_close(store.committed(task), expected, rtol=1e-5, atol=1e-5)


def test_the_terms_of_a_task_compose_to_its_weight():
    store = conv_store(decomposition="spatial")
    for task in range(3):
        learn(store, task, 3)
    terms, spatial = store.low_rank(2)
    assert spatial
    assert terms.rank == 9
    matrix = store._to_matrix(store.committed(2))
    torch.testing.assert_close(terms.compose(), matrix, rtol=1e-5, atol=1e-5)
    assert [block.rank for block in store.frozen_terms()] == [3, 3]


def test_quantised_values_are_what_the_task_computes_with():
    store = store_of()
    store.rank = 3
    store.open([])
    store.keep_values([quantise_codebook(v, 2) for v in store.kept_values()])
    before = store.weight().detach()
    assert all(len(values.unique()) <= 4 for values in store.kept_values())
    finish(store, 0)
    torch.testing.assert_close(store.committed(0), before, rtol=1e-6, atol=1e-6)
    for part, values in zip(store.low_rank(0).factors, store.kept_values()):
        assert torch.equal(part.flatten(), values)


def test_training_touches_one_constant_tensor_however_many_tasks_there_are(monkeypatch):
    store = store_of()
    for task in range(6):
        learn(store, task, 2)
    store.open(range(6))
    reads = []
    monkeypatch.setattr(FactoredStore, "_block_at", lambda self, *at: reads.append(at))
    shared, bits = store.shared, store.shared.clone()
    optimizer = torch.optim.SGD(store.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        store.weight().square().sum().backward()
        optimizer.step()
    assert store.shared is shared
    assert torch.equal(shared, bits)
    assert not reads
    # the sum of all tasks is kept: opening builds nothing, nor does the last task
    store.open(range(6))
    assert not reads
    store.committed(5)
    assert not reads


def test_a_task_that_is_opened_anew_forgets_its_first_attempt():
    store = store_of()
    learn(store, 0, 2)
    store.open([0])
    store.keep_values([quantise_codebook(v, 1) for v in store.kept_values()])
    store.truncate(0.9)
    store.rank = 4
    store.open([0])
    assert store.sigma.numel() == 4
    torch.testing.assert_close(
        store.kept_values()[1], store.sigma.detach().flatten(), rtol=0, atol=0
    )


def test_nothing_that_a_finished_task_uses_lies_in_a_trained_tensors_memory():
    store = store_of()
    for task in range(2):
        learn(store, task, 2, energy=0.0)
    store.open([0, 1])
    trained = [*store.parameters(), store.scratch]
    with torch.no_grad():
        before = [store.committed(task).clone() for task in (0, 1)]
        for tensor in trained:
            tensor.fill_(7)
    assert all(torch.equal(store.committed(task), before[task]) for task in (0, 1))


# ------------------------------------------------------------------ too small to factor


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (partial(nn.Conv2d, 1, 1, 1), "weight"),
        (partial(nn.Linear, 1, 9), "weight"),
        (partial(nn.BatchNorm2d, 7), "weight"),
        (partial(nn.Conv2d, 3, 5, 3), "bias"),
        (partial(nn.Linear, 3, 5), "bias"),
    ],
)
def test_what_is_too_small_to_factor_trains_a_dense_difference(layer, name, decomposition):
    torch.manual_seed(0)
    store = FactoredStore(Place(layer(), name), name, decomposition=decomposition)
    assert not store.factored
    assert store.initial_rank == 0
    weights = {}
    for task in range(3):
        store.open(list(store.sections))
        if task:
            torch.testing.assert_close(store.weight().detach(), weights[task - 1], rtol=0, atol=0)
        target = torch.randn(store.shape)
        optimizer = torch.optim.SGD([store.scratch], lr=0.5)
        for _ in range(40):
            optimizer.zero_grad()
            (store.weight() - target).square().sum().backward()
            optimizer.step()
        store.truncate(3e-5)
        trained = store.weight().detach()
        torch.testing.assert_close(trained, target, rtol=1e-3, atol=1e-3)
        finish(store, task)
        weights[task] = store.committed(task)
        assert torch.equal(weights[task], trained)
        assert store.stored_values(task) == store.shape.numel()
        assert all(torch.equal(store.committed(old), w) for old, w in weights.items())


# ------------------------------------------------------------------ state


def trained_network(build, **options) -> TaskNetwork:
    """Two finished tasks and a third that is open, with terms that were moved."""
    torch.manual_seed(0)
    network = TaskNetwork(build(), partial(FactoredStore, **options))
    for task, rank in ((3, None), (1, 2), (8, 4)):
        for store in network.weight_stores:
            store.rank = rank
        network.open(task, [0, 1])
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        if task != 8:
            for store in network.weight_stores:
                store.truncate(0.0)
            network.commit()
    return network.eval()


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 12),
        nn.ReLU(),
        nn.Linear(12, 2),
    )


@torch.no_grad()
def outputs(network) -> list:
    x = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    return [network.eval()(x, task) for task in (3, 1, 8)]


def by_state_dict(network):
    fresh = TaskNetwork(small_net(), FactoredStore)
    fresh.open(4, [0, 1, 2])  # a head and ranks of other sizes
    fresh.load_state_dict(network.state_dict())
    return fresh


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network)), by_state_dict],
    ids=["deepcopy", "pickle", "state_dict"],
)
def test_a_copy_in_the_middle_of_a_task_goes_on_as_the_original(copied):
    network = trained_network(small_net)
    expected = outputs(network)
    other = copied(network)
    assert other.tasks == [3, 1]
    assert other.open_task == 8
    assert all(torch.equal(a, b) for a, b in zip(outputs(other), expected))
    for one in (network, other):
        for store in one.weight_stores:
            store.truncate(0.01)
        one.commit()
    for ours, theirs in zip(network.weight_stores, other.weight_stores):
        assert ours.sections == theirs.sections
        assert ours.ranks == theirs.ranks
        assert torch.equal(ours.committed(8), theirs.committed(8))
    assert all(torch.equal(a, b) for a, b in zip(outputs(other), outputs(network)))


def test_loading_a_state_keeps_the_parameters_that_an_optimiser_knows():
    source, target = trained_network(small_net), TaskNetwork(small_net(), FactoredStore)
    target.open(4, [0, 1])
    known = [p for store in target.weight_stores for p in store.parameters()]
    target.load_state_dict(source.state_dict())
    now = [p for store in target.weight_stores for p in store.parameters()]
    assert all(a is b for a, b in zip(known, now))
    assert [p.shape for p in now] == [
        p.shape for store in source.weight_stores for p in store.parameters()
    ]


def test_a_state_in_the_middle_of_a_task_keeps_what_the_task_builds_on():
    torch.manual_seed(0)
    first, second = (TaskNetwork(small_net(), FactoredStore) for _ in "ab")
    for task in (0, 1):
        first.open(task, [0, 1])
        first.commit()
    first.plan_reuse([1])
    first.open(2, [0, 1])
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(first.weight_stores, second.weight_stores):
        assert torch.equal(ours.shared, theirs.shared)
        assert torch.equal(ours.weight(), theirs.weight())
        assert ours.encode() == theirs.encode()


def test_a_state_between_truncation_and_commit_keeps_a_dense_difference():
    source, target = trained_network(small_net), TaskNetwork(small_net(), FactoredStore)
    for store in source.weight_stores:
        store.rank = min(store.rows, store.columns)
        store.open([3, 1])
        store.truncate(0.0)
    target.load_state_dict(source.state_dict())
    for network in (source, target):
        network.commit()
    for ours, theirs in zip(source.weight_stores, target.weight_stores):
        assert ours.low_rank(8) is None
        assert ours.sections == theirs.sections


def test_a_network_can_be_converted_to_double_before_its_first_task():
    torch.manual_seed(0)
    network = TaskNetwork(small_net(), FactoredStore).double()
    for task in (0, 1):
        network.open(task, [0, 1])
        for store in network.weight_stores:
            store.keep_values([quantise_fixed_point(v, 8) for v in store.kept_values()])
        network.commit()
    for store in network.weight_stores:
        assert store.committed(1).dtype == torch.float64
    assert network(torch.randn(2, 1, 8, 8).double(), 0).dtype == torch.float64


# ------------------------------------------------------------------ autocast


def in_bfloat16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_the_trained_weight_has_full_precision_under_autocast(decomposition):
    store = conv_store(decomposition=decomposition)
    learn(store, 0, 3)
    store.open([0])
    expected = store.weight()
    with in_bfloat16():
        assert torch.equal(store.weight(), expected)


def test_a_commit_under_autocast_gives_the_bits_of_any_other_commit():
    store, twin = store_of(), store_of()
    store.rank = 3
    store.open([])
    section = store.encode()
    with in_bfloat16():
        store.restore(0, section)
    twin.restore(0, section)
    assert torch.equal(store.committed(0), twin.committed(0))


def test_a_finished_weight_has_the_same_bits_under_autocast():
    store = store_of()
    for task in range(3):
        learn(store, task, 3)
    for task in range(3):
        expected = store.committed(task)
        with in_bfloat16():
            assert torch.equal(store.committed(task), expected)


def test_a_dense_difference_under_autocast_is_the_terms_in_full_precision():
    store = store_of()
    store.rank = 8
    store.open([])
    expected = store.weight().detach()
    with in_bfloat16():
        store.truncate(0.0)
    torch.testing.assert_close(store.weight().detach(), expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("options", [{"decomposition": "tucker"}, {"storage": "dense"}])
def test_unknown_options_are_refused_by_name(options):
    (value,) = options.values()
    with pytest.raises(TaskStateError, match=value):
        store_of(**options)


def test_an_unknown_task_is_an_error():
    store = store_of()
    learn(store, 2)
    with pytest.raises(TaskStateError, match=r"task 4 .* \[2\]"):
        store.committed(4)


@pytest.mark.parametrize("mode", ["raw", "exact"])
@pytest.mark.parametrize("part", ["left", "sigma", "right"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_terms_are_refused_at_truncation_and_commit_and_nothing_changes(part, bad, mode):
    store = store_of()
    learn(store, 0, 2)
    store.open([0])
    with torch.no_grad():
        getattr(store, part).view(-1)[1] = bad
    before, old = store.terms, store.committed(0)
    with pytest.raises(NonFiniteError, match="weight"):
        store.truncate(3e-5, mode)
    assert all(a is b for a, b in zip(before, store.terms))
    with pytest.raises(NonFiniteError, match="weight"):
        store.check_commit()
    assert list(store.sections) == [0]
    assert torch.equal(store.committed(0), old)


def test_a_non_finite_dense_difference_is_refused():
    store = behind(nn.Conv2d(1, 1, 1))
    store.open([])
    with torch.no_grad():
        store.scratch.fill_(float("nan"))
    with pytest.raises(NonFiniteError):
        store.check_commit()


def test_a_commit_that_is_refused_changes_nothing():
    network = trained_network(small_net)
    before = network.state_dict()
    before = {k: v.clone() for k, v in before.items() if isinstance(v, torch.Tensor)}
    sections = [dict(store.sections) for store in network.weight_stores]
    with torch.no_grad():
        network.weight_stores[-1].sigma[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"6\.weight"):
        network.commit()
    assert network.open_task == 8
    assert network.tasks == [3, 1]
    assert [store.sections for store in network.weight_stores] == sections
    now = network.state_dict()
    changed = [key for key, tensor in before.items() if not torch.equal(now[key], tensor)]
    assert changed == ["stores.6/weight.sigma"]


# ------------------------------------------------------------------ damage


def example_sections():
    """Two tasks of a store, then a third in all forms that a section has."""
    for quantise in (
        None,
        partial(quantise_codebook, bits=3),
        partial(quantise_fixed_point, bits=5),
    ):
        for rank, reusable in ((2, [0]), (0, [0, 1]), (8, [0, 1])):
            store = store_of()
            learn(store, 0, 2)
            learn(store, 1, 2)
            learn(store, 2, rank, reusable, energy=0.0, quantise=quantise)
            yield store


def restored(sections) -> FactoredStore:
    store = store_of()
    for task, section in enumerate(sections):
        store.restore(task, section)
    return store


@pytest.mark.parametrize("index", range(9))
def test_a_truncated_or_longer_section_is_refused(index):
    store = list(example_sections())[index]
    good, last = [store.sections[0], store.sections[1]], store.sections[2]
    assert torch.equal(restored([*good, last]).committed(2), store.committed(2))
    for cut in range(len(last)):
        with pytest.raises(CorruptStreamError):
            restored([*good, last[:cut]])
    with pytest.raises(CorruptStreamError):
        restored([*good, last + b"\0"])


def test_a_changed_byte_is_refused_by_name_or_does_no_harm():
    generator = random.Random(0)
    refused = 0
    for store in example_sections():
        good, last = [store.sections[0], store.sections[1]], store.sections[2]
        head = [(place, value) for place in range(min(7, len(last))) for value in (0, 1, 2, 3, 255)]
        anywhere = [(generator.randrange(len(last)), generator.randrange(256)) for _ in range(60)]
        for place, value in head + anywhere:
            changed = bytearray(last)
            changed[place] = value
            try:
                restored([*good, bytes(changed)]).committed(2)
            except CorruptStreamError:
                refused += 1
    assert refused > 100


def test_a_section_that_claims_terabytes_is_refused_at_once():
    huge = b"\xff" * 8 + b"\x7f"  # 2**63 - 1 terms
    for dense in (b"\0", b"\1"):
        with pytest.raises(CorruptStreamError):
            store_of().restore(0, huge + dense + b"\0" + b"\0" * 40)


# ------------------------------------------------------------------ computing without the whole


def from_terms_and_whole(layer, x):
    """Output and gradients of a layer, from the store's stand-in and from the whole weight."""
    store = behind(layer.double())
    learn(store, 0, rank=3)
    store.rank = 2
    store.open([0])
    parts = [*store.terms, *([] if layer.bias is None else [layer.bias])]
    found = []
    for weight in (store.substitute(), store.weight()):
        inputs = x.double().requires_grad_()
        layer.__dict__["weight"] = weight
        out = layer(inputs)
        del layer.__dict__["weight"]
        found.append((out, *torch.autograd.grad(out.square().sum(), [inputs, *parts])))
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 40), (40,), (0, 40)])
def test_a_linear_layer_computes_from_the_terms_what_it_does_from_the_weight(
    shape, bias, monkeypatch
):
    torch.manual_seed(3)
    composed = []
    weight = FactoredStore.weight
    monkeypatch.setattr(FactoredStore, "weight", lambda self: composed.append(self) or weight(self))
    parts, whole = from_terms_and_whole(nn.Linear(40, 30, bias=bias), torch.randn(shape))
    assert len(composed) == 1  # the whole weight's turn alone
    for found, expected in zip(parts, whole):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_stand_in_computes_from_terms_only_where_that_is_fewer_products(monkeypatch):
    store = store_of(100, 784)
    store.open([])
    calls = []
    monkeypatch.setattr(
        "avalanche_compress.methods.cacl.store.factored_linear", lambda *_: calls.append(1)
    )
    for samples, cheaper in ((32, True), (128, True), (1024, False)):
        calls.clear()
        F.linear(torch.randn(samples, 784), store.substitute())
        assert bool(calls) == cheaper


def test_under_autocast_the_terms_give_what_the_weight_does_but_for_rounding(monkeypatch):
    torch.manual_seed(3)
    layer = nn.Linear(50, 70)
    store = behind(layer)
    learn(store, 0, rank=5)
    store.rank = 4
    store.open([0])
    x = torch.randn(30, 50)

    def computed(weight):
        inputs = x.clone().requires_grad_()
        layer.__dict__["weight"] = weight
        out = layer(inputs)
        del layer.__dict__["weight"]
        gradients = torch.autograd.grad(
            out.float().square().sum(), [inputs, *store.terms, layer.bias]
        )
        return out, *gradients

    expected = computed(store.weight())
    composed = []
    weight = FactoredStore.weight
    monkeypatch.setattr(FactoredStore, "weight", lambda self: composed.append(self) or weight(self))
    with torch.autocast("cpu", torch.bfloat16):
        found = computed(store.substitute())
    assert not composed
    assert found[0].dtype is torch.bfloat16
    for exact, ours in zip(expected, found):
        # a product, its scale, their sum and the gradients of all are rounded to 2**-8 each
        assert (ours.float() - exact).norm() < 2**-6 * exact.norm()


def test_evaluation_convolutions_and_dense_differences_take_the_whole_weight():
    store, convolution = store_of(), conv_store()
    for one in (store, convolution):
        one.open([])
    assert type(store.substitute()) is not torch.Tensor  # the stand-in
    assert type(convolution.substitute()) is torch.Tensor
    with torch.no_grad():
        assert type(store.substitute()) is torch.Tensor
    store.rank = 8
    store.open([])
    store.truncate(0.0)
    assert type(store.substitute()) is torch.Tensor
