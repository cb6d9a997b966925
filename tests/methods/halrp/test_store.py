"""W_t as a perturbation of a base: layers, freezing, bytes, state."""

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

from avalanche_compress import TaskNetwork, load_archive, save_archive
from avalanche_compress.codec import CorruptStreamError, quantise_codebook, quantise_fixed_point
from avalanche_compress.core.store import Place
from avalanche_compress.errors import NonFiniteError, TaskStateError
from avalanche_compress.methods.halrp.reference import reference_scalings
from avalanche_compress.methods.halrp.store import PerturbedStore

KERNELS = ("spatial_mean", "flatten")


def behind(layer, **options) -> PerturbedStore:
    return PerturbedStore(Place(layer, "weight"), **options)


def linear_store(rows=8, columns=12, **options) -> PerturbedStore:
    torch.manual_seed(0)
    return behind(nn.Linear(columns, rows, bias=False), **options)


def conv_store(**options) -> PerturbedStore:
    torch.manual_seed(0)
    return behind(nn.Conv2d(4, 6, 3, bias=False), **options)


def finish(store, task) -> None:
    store.check_commit()
    store.restore(task, store.encode())


def with_base(store) -> PerturbedStore:
    """The store with a finished task 0, which is the base, and an open task."""
    store.open([])
    finish(store, 0)
    store.open([0])
    return store


def perturb(store, rank=2, mode=None, seed=1) -> None:
    """Let the open task train random scales and factors."""
    generator = torch.Generator().manual_seed(seed)
    g, n, m, width = store.groups, store.rows, store.columns, store.width(mode or store.modes[0])
    shapes = (g, n), (g, m), (g, n, rank), (g, rank, width)
    r, s, left, right = (torch.randn(shape, generator=generator) for shape in shapes)
    store.perturb(1 + r / 10, 1 + s / 10, left, right)


def prune(store, seed=2) -> None:
    """Drop about half of the entries of both factors."""
    generator = torch.Generator().manual_seed(seed)
    halves = [torch.rand(p.shape, generator=generator) < 0.5 for p in (store.left, store.right)]
    store.fix_masks(*halves)


def learn(store, task, rank=2, mode=None, pruned=False, quantise=None) -> None:
    """Open a task, perturb the base where there is one, and commit it."""
    store.open(list(store.sections))
    if store.factored and store.base is not None:
        perturb(store, rank, mode, seed=task + 50)
        if pruned:
            prune(store)
    else:
        with torch.no_grad():
            store.scratch.add_(torch.randn(store.shape))
    if quantise is not None:
        store.keep_values([quantise(values) for values in store.kept_values()])
    finish(store, task)


# ------------------------------------------------------------------ one layer

LAYERS = {
    "linear": (partial(nn.Linear, 10, 7), (5, 10)),
    "conv": (partial(nn.Conv2d, 4, 6, 3), (2, 4, 9, 9)),
    "stride": (partial(nn.Conv2d, 4, 6, 3, stride=(2, 1), bias=False), (2, 4, 9, 9)),
    "padding": (partial(nn.Conv2d, 4, 6, 3, padding=(0, 2)), (2, 4, 9, 9)),
    "same": (partial(nn.Conv2d, 4, 6, (3, 5), padding="same"), (2, 4, 9, 9)),
    "even": (partial(nn.Conv2d, 4, 6, 2, stride=2, padding=1), (2, 4, 9, 9)),
    "circular": (partial(nn.Conv2d, 4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9, 9)),
    "dilation": (partial(nn.Conv2d, 4, 6, 3, dilation=2), (2, 4, 9, 9)),
    "groups": (partial(nn.Conv2d, 4, 6, 3, groups=2), (2, 4, 9, 9)),
    "pointwise": (partial(nn.Conv2d, 8, 6, 1), (2, 8, 9, 9)),
    "conv1d": (partial(nn.Conv1d, 4, 6, 3), (2, 4, 9)),
    "conv3d": (partial(nn.Conv3d, 3, 4, 2), (2, 3, 4, 4, 4)),
}


def scaled_and_summed(layer, x, r, s, left, right):
    """What the public code's layers compute, without ever building the weight of the task.

    The inputs are scaled, the base computes, the outputs are scaled; beside it a convolution of
    1 x 1, the sum over the kernel's window in every channel, and another of 1 x 1.
    """
    plain = copy.deepcopy(layer)
    bias, plain.bias = plain.bias, None
    if isinstance(layer, nn.Linear):
        y = r[0] * plain(s[0] * x) + x @ right[0].t() @ left[0].t()
        return y if bias is None else y + bias
    groups, rank = layer.groups, left.shape[2]
    ones = [1] * len(layer.kernel_size)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(ones)]
    y = r.reshape(1, -1, *ones) * plain(s.reshape(1, -1, *ones) * x)
    hidden = convolve(x, right.reshape(groups * rank, -1, *ones), groups=groups)
    window = copy.deepcopy(plain)
    window.groups = window.in_channels = window.out_channels = groups * rank
    window.weight = nn.Parameter(x.new_ones(groups * rank, 1, *layer.kernel_size))
    product = convolve(window(hidden), left.reshape(-1, rank, *ones), groups=groups)
    y = y + product
    return y if bias is None else y + bias.view(1, -1, *ones)


@pytest.mark.parametrize("name", LAYERS)
def test_one_layer_computes_what_the_public_codes_layers_do_and_so_do_its_gradients(name):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build().double(), torch.randn(*shape).double().requires_grad_()
    store = with_base(behind(layer))
    perturb(store)
    leaves = [store.row_scale, store.column_scale, store.left, store.right, x]
    results = []
    for y in (
        functional_call(layer, {"weight": store.weight()}, (x,)),
        scaled_and_summed(layer, x, *leaves[:4]),
    ):
        direction = torch.linspace(-1, 1, y.numel()).double().view(y.shape)
        results.append((y, *torch.autograd.grad((y * direction).sum(), leaves)))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


FULL = {
    **{name: build for name, (build, _) in LAYERS.items()},
    "transposed": partial(nn.ConvTranspose2d, 4, 6, 3),
    "transposed with groups": partial(nn.ConvTranspose2d, 4, 6, 3, groups=2),
    "tall": partial(nn.Linear, 5, 30),
}


def perturb_fully(store, mode) -> None:
    """Scale the base anyhow and let a product of full rank make up for the rest."""
    r, s = torch.rand(store.groups, store.rows), torch.rand(store.groups, store.columns)
    r, s = r.to(store.base), s.to(store.base)
    rest = store.residual(r, s, mode)
    u, sigma, v = torch.linalg.svd(rest, full_matrices=False)
    store.perturb(r, s, u * sigma.unsqueeze(1), v)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("mode", KERNELS)
@pytest.mark.parametrize("name", FULL)
def test_a_product_of_full_rank_is_the_whole_weight_or_its_mean_over_the_kernel(
    name, mode, dtype, tolerance
):
    torch.manual_seed(0)
    store = with_base(behind(FULL[name]().to(dtype), conv_mode=mode))
    with torch.no_grad():
        tuned = store.scratch.add_(torch.randn_like(store.scratch)).clone()
    perturb_fully(store, store.modes[0])
    weight = store.weight().detach()
    if store.modes[0] == "spatial_mean" and store.kernel_size > 1:
        assert not torch.allclose(weight, tuned, atol=0.1)
        weight, tuned = weight.flatten(2).mean(2), tuned.flatten(2).mean(2)
    torch.testing.assert_close(weight, tuned, rtol=0, atol=tolerance)


def test_groups_are_layers_side_by_side():
    torch.manual_seed(0)
    store = with_base(behind(nn.Conv2d(8, 6, 3, groups=2, bias=False)))
    with torch.no_grad():
        store.scratch.add_(torch.randn_like(store.scratch))
    r, s = store.scalings()
    rest = store.residual(r, s, "spatial_mean")
    for group, part in enumerate(torch.arange(6).split(3)):
        single = with_base(behind(nn.Conv2d(4, 3, 3, bias=False)))
        with torch.no_grad():
            single.base.copy_(store.base[part])
            single.scratch.copy_(store.scratch[part])
        scalings = single.scalings()
        torch.testing.assert_close((r[group], s[group]), (scalings[0][0], scalings[1][0]))
        torch.testing.assert_close(rest[group], single.residual(*scalings, "spatial_mean")[0])


def test_only_what_the_open_task_trains_gets_a_gradient():
    store = with_base(linear_store())
    store.weight().square().sum().backward()
    assert store.scratch.grad is not None
    assert all(parameter.grad is None for parameter in store.parameters())
    store.scratch.grad = None
    perturb(store)
    store.weight().square().sum().backward()
    assert store.scratch.grad is None
    assert store.base.grad is None
    names = {"row_scale", "column_scale", "left", "right"}
    assert {name for name, p in store.named_parameters() if p.grad.any()} == names
    assert not any(buffer.requires_grad for buffer in store.buffers())


def test_a_base_row_of_zeros_has_the_scale_zero():
    store = linear_store()
    with torch.no_grad():
        store.scratch[1] = 0
        store.scratch[:, 2] = 0
    with_base(store)
    with torch.no_grad():
        store.scratch.normal_()
    r, s = store.scalings()
    assert r[0, 1] == 0
    assert s[0, 2] == 0
    assert bool(r.isfinite().all() and s.isfinite().all())


def test_more_sweeps_leave_less():
    store = with_base(conv_store())
    with torch.no_grad():
        store.scratch.add_(0.3 * torch.randn_like(store.scratch))
    left = [
        float(store.residual(*store.scalings(sweeps), "flatten").square().sum())
        for sweeps in (1, 2, 5, 20)
    ]
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1]
    reference = float(
        store.residual(*store.scalings(solve=reference_scalings), "flatten").square().sum()
    )
    assert left[0] < reference


# ------------------------------------------------------------------ the base


def test_the_first_task_is_the_base_and_later_ones_start_from_it():
    store = linear_store()
    before = store.scratch.detach().clone()
    store.open([])
    assert torch.equal(store.weight(), before)
    assert store.base is None
    with pytest.raises(TaskStateError, match="no base"):
        store.scalings()
    finish(store, 3)
    for task in (1, 2):
        store.open(list(store.sections))
        assert torch.equal(store.weight(), before)
        perturb(store, seed=task)
        finish(store, task)
        assert torch.equal(store.base, before)
    assert [store.rank_of(task) for task in (3, 1, 2)] == [0, 2, 2]


def test_a_given_base_is_the_weight_at_the_first_opening_however_often_that_is():
    store = linear_store(base="given")
    with torch.no_grad():
        given = store.scratch.fill_(2.0).clone()  # as when pretrained weights are loaded late
    for _ in range(2):
        store.open([])
        assert torch.equal(store.weight(), given)
        assert torch.equal(store.base, given)
        with torch.no_grad():
            store.scratch.normal_()
    perturb(store)
    finish(store, 0)
    assert torch.equal(store.base, given)
    assert store.rank_of(0) == 2
    assert store.stored_values(0) == store.added_values(0) == 3 * 20
    assert store.value_bits(0) == 32 * 3 * 20
    assert store.shared_bits == 32 * 8 * 12
    learn(store, 1)
    assert store.stored_values(1) == store.added_values(1) == 3 * 20


def test_a_quantised_first_task_is_a_quantised_base():
    store = linear_store()
    learn(store, 0, quantise=partial(quantise_codebook, bits=2))
    assert len(store.base.unique()) <= 4
    assert torch.equal(store.base, store.committed(0))
    assert store.value_bits(0) == 2 * 96
    assert store.added_values(0) == 0


def test_nothing_that_a_finished_task_uses_lies_in_a_trained_tensors_memory():
    store = linear_store()
    for task in range(3):
        learn(store, task)
    store.open([0, 1, 2])
    perturb(store)
    before = [store.committed(task).clone() for task in range(3)]
    with torch.no_grad():
        for tensor in (store.scratch, *store.parameters()):
            tensor.fill_(7)
    assert all(torch.equal(store.committed(task), before[task]) for task in range(3))


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize(("mode", "width"), [("spatial_mean", 4), ("flatten", 36)])
def test_stored_values_are_the_numbers_in_the_section(mode, width):
    store = conv_store(conv_mode=mode)
    learn(store, 0)
    for task, rank in ((1, 2), (2, 0), (3, 1)):
        learn(store, task, rank)
        numbers = (6 + 4) + rank * (6 + width)
        assert store.stored_values(task) == store.added_values(task) == numbers
        assert store.value_bits(task) == 32 * numbers
        # form, rank, a mask of one byte with its length for each factor, a byte before each tensor
        assert len(store.sections[task]) == 4 * numbers + 2 + 2 * 2 + 4


@pytest.mark.parametrize("mode", KERNELS)
def test_pruned_entries_are_zero_for_ever_and_are_not_stored(mode):
    store = with_base(conv_store(conv_mode=mode))
    perturb(store)
    full = 10 + store.left.numel() + store.right.numel()
    whole = len(store.encode())
    prune(store)
    kept = [int((part != 0).sum()) for part in (store.left, store.right)]
    assert [len(values) for values in store.kept_values()] == [6, 4, *kept]
    before = store.weight().detach()
    optimizer = torch.optim.Adam(store.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        store.weight().square().sum().backward()
        optimizer.step()
    assert not torch.equal(store.weight(), before)
    for part, mask in zip(store.factors, (store._left_mask, store._right_mask)):
        assert torch.equal(part != 0, mask)
    trained = store.weight().detach()
    finish(store, 1)
    torch.testing.assert_close(store.committed(1), trained, rtol=1e-6, atol=1e-6)
    assert store.stored_values(1) == 10 + sum(kept)
    assert store.stored_unpruned(1) == full
    # a mask is at most plain bits, with its kind and length
    masks = sum(part.numel() / 8 + 3 for part in store.factors)
    assert len(store.sections[1]) <= whole - 4 * (full - 10 - sum(kept)) + masks


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize(("quantise", "bits"), [(quantise_codebook, 3), (quantise_fixed_point, 5)])
def test_quantised_values_are_what_the_task_computes_with(quantise, bits, pruned):
    store = with_base(linear_store(20, 30))
    perturb(store)
    if pruned:
        prune(store)
    zeros = [part == 0 for part in store.factors]
    store.keep_values([quantise(values, bits) for values in store.kept_values()])
    before = store.weight().detach()
    finish(store, 1)
    torch.testing.assert_close(store.committed(1), before, rtol=1e-6, atol=1e-6)
    assert not any(bool(part[zero].any()) for part, zero in zip(store.factors, zeros))
    assert all(len(values.unique()) <= 2**bits for values in store.kept_values())
    assert store.value_bits(1) == bits * store.stored_values(1)


def test_gradients_of_kept_values_are_those_of_the_kept_entries():
    store = with_base(linear_store())
    perturb(store)
    prune(store)
    assert not any(bool(gradient.any()) for gradient in store.kept_gradients())
    store.weight().square().sum().backward()
    parts = store.row_scale, store.column_scale, store.left, store.right
    masks = *(torch.ones_like(p, dtype=torch.bool) for p in parts[:2]), *_masks(store)
    for part, mask, gradient in zip(parts, masks, store.kept_gradients()):
        assert torch.equal(part.grad[mask], gradient)
        assert not part.grad[~mask].any()


def _masks(store):
    return store._left_mask, store._right_mask


@pytest.mark.parametrize(
    ("layer", "modes", "rank"),
    [
        (partial(nn.Linear, 12, 8), ["spatial_mean"], [3]),  # (96 - 20) / 20
        (partial(nn.Conv2d, 4, 6, 3), ["spatial_mean"], [4]),  # no more than the matrix has
        (partial(nn.Conv2d, 4, 6, 3), ["flatten"], [4]),  # (216 - 10) / 42
        (partial(nn.Conv2d, 4, 6, 3), ["spatial_mean", "flatten"], [4, 4]),
        (partial(nn.Conv2d, 8, 6, 3, groups=2), ["flatten"], [2]),  # (216 - 14) / 78
        (partial(nn.Linear, 2, 2), ["spatial_mean"], [0]),
    ],
)
def test_the_break_even_rank_is_the_last_that_is_no_more_than_the_weight(layer, modes, rank):
    store = behind(layer(), conv_mode="auto" if len(modes) > 1 else modes[0])
    assert list(store.modes) == modes
    assert [store.break_even_rank(mode) for mode in modes] == rank
    assert store.factored == (rank[0] > 0)
    for mode, most in zip(modes, rank):
        numbers = store.scales + most * store.parameters_per_rank(mode)
        assert not most or numbers <= store.shape.numel()
        if most < store.full_rank(mode):
            assert numbers + store.parameters_per_rank(mode) > store.shape.numel()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (partial(nn.Conv2d, 1, 1, 1), "weight"),
        (partial(nn.Linear, 2, 2), "weight"),
        (partial(nn.Conv2d, 6, 6, 3, groups=6), "weight"),
        (partial(nn.Conv2d, 6, 12, 3, groups=6), "weight"),
        (partial(nn.BatchNorm2d, 7), "weight"),
        (partial(nn.Conv2d, 3, 5, 3), "bias"),
        (partial(nn.ParameterDict, {"scale": torch.tensor(3.0)}), "scale"),
    ],
)
def test_what_is_too_small_or_depthwise_is_kept_whole(layer, name):
    torch.manual_seed(0)
    store = PerturbedStore(Place(layer(), name), name)
    assert not store.factored
    weights = {}
    for task in range(3):
        learn(store, task)
        weights[task] = store.scratch.detach().clone()
        assert store.stored_values(task) == store.shape.numel()
        assert store.added_values(task) == (store.shape.numel() if task else 0)
        assert store.rank_of(task) is None
        assert all(torch.equal(store.committed(old), w) for old, w in weights.items())


def test_a_task_that_is_committed_in_its_warm_up_keeps_its_whole_weight():
    store = with_base(conv_store())
    with torch.no_grad():
        tuned = store.scratch.normal_().clone()
    finish(store, 1)
    assert torch.equal(store.committed(1), tuned)
    assert store.rank_of(1) == 4
    assert store.stored_values(1) == store.shape.numel()
    learn(store, 2)
    assert torch.equal(store.committed(1), tuned)
    assert store.rank_of(2) == 2


# ------------------------------------------------------------------ freezing

QUANTISERS = [None, partial(quantise_codebook, bits=4), partial(quantise_fixed_point, bits=6)]


@pytest.mark.parametrize("base", ["first", "given"])
@pytest.mark.parametrize("quantise", QUANTISERS)
def test_old_weights_never_change_and_another_store_has_the_same_bits(quantise, base):
    """Labels out of order, both kinds of product, pruned factors and whole weights."""
    first, second = conv_store(conv_mode="auto", base=base), conv_store(conv_mode="auto", base=base)
    with torch.no_grad():
        second.scratch.normal_()
    plan = [(5, 2, None), (2, 3, "flatten"), (9, 0, None), (-1, 4, "spatial_mean"), (7, 1, None)]
    kept = {}
    for task, rank, mode in plan:
        learn(first, task, rank, mode, pruned=task in (9, 7, 2), quantise=quantise)
        kept[task] = first.committed(task).clone()
        if not second.sections:
            second.accept_shared(first.encode_shared())
        second.restore(task, first.sections[task])
        assert torch.equal(first.base, second.base)
        for old, weight in kept.items():
            assert torch.equal(first.committed(old), weight)
            assert torch.equal(second.committed(old), weight)
            assert first.stored_values(old) == second.stored_values(old)
            assert first.value_bits(old) == second.value_bits(old)
            assert first.stored_unpruned(old) == second.stored_unpruned(old)


def test_a_task_knows_nothing_of_its_predecessors():
    stores = [conv_store() for _ in "ab"]
    for store in stores:
        learn(store, 0)
    learn(stores[0], 1)
    learn(stores[0], 2)
    learn(stores[1], 2)
    assert stores[0].sections[2] == stores[1].sections[2]


def test_a_finished_base_trains_on_nowhere():
    store = with_base(linear_store())
    base, bits = store.base, store.base.clone()
    trained = [store.scratch]
    for phase in range(2):
        optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            store.weight().square().sum().backward()
            optimizer.step()
        if not phase:
            perturb(store)
            trained = [store.scratch, *store.parameters()]
    finish(store, 1)
    assert store.base is base
    assert torch.equal(base, bits)
    assert torch.equal(store.committed(0), bits)


def test_a_task_that_is_opened_anew_forgets_its_first_attempt():
    store = with_base(linear_store())
    perturb(store)
    prune(store)
    store.keep_values([quantise_codebook(values, 1) for values in store.kept_values()])
    store.open([0])
    assert store.dense
    assert torch.equal(store.weight(), store.base)
    perturb(store, seed=9)
    assert store.factors == (store.left, store.right)
    assert len(store.kept_values()[0].unique()) == 8


# ------------------------------------------------------------------ state


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, groups=1, bias=False),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Flatten(),
        nn.Linear(24, 12),
        nn.ReLU(),
        nn.Linear(12, 2),
    )


def trained_network(base="first", phase="pruned") -> TaskNetwork:
    """Two finished tasks and a third that is open, in some phase of its training."""
    torch.manual_seed(0)
    network = TaskNetwork(small_net(), partial(PerturbedStore, conv_mode="auto", base=base))
    for task in (3, 1, 8):
        network.open(task, [0, 1])
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        for store in network.weight_stores:
            if store.factored and store.base is not None and (task != 8 or phase != "warm-up"):
                perturb(store, 1, store.modes[-1])
                if phase == "pruned":
                    prune(store)
        if task != 8:
            network.commit()
    return network.eval()


@torch.no_grad()
def outputs(network) -> list:
    x = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    return [network.eval()(x, task) for task in (3, 1, 8)]


def by_state_dict(network):
    options = network.weight_stores[0].config()
    fresh = TaskNetwork(small_net(), partial(PerturbedStore, **options))
    fresh.open(4, [0, 1, 2])  # a head of another size
    fresh.load_state_dict(network.state_dict())
    return fresh


@pytest.mark.parametrize("base", ["first", "given"])
@pytest.mark.parametrize("phase", ["warm-up", "factors", "pruned"])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network)), by_state_dict],
    ids=["deepcopy", "pickle", "state_dict"],
)
def test_a_copy_in_any_phase_goes_on_as_the_original(copied, phase, base):
    network = trained_network(base, phase)
    expected = outputs(network)
    other = copied(network)
    assert other.tasks == [3, 1]
    assert other.open_task == 8
    assert all(torch.equal(a, b) for a, b in zip(outputs(other), expected))
    for one in (network, other):
        one.commit()
    for ours, theirs in zip(network.weight_stores, other.weight_stores):
        assert ours.sections == theirs.sections
        assert torch.equal(ours.committed(8), theirs.committed(8))
    assert all(torch.equal(a, b) for a, b in zip(outputs(other), outputs(network)))


def test_a_given_base_goes_with_the_state_before_a_task_is_finished():
    first, second = (
        TaskNetwork(small_net(), partial(PerturbedStore, base="given")) for _ in range(2)
    )
    first.open(0, [0, 1])
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(first.weight_stores, second.weight_stores):
        assert torch.equal(ours.base, theirs.base)
        assert not torch.equal(ours.base, ours.scratch)


def test_loading_a_state_keeps_the_parameters_that_an_optimiser_knows():
    source = trained_network()
    target = TaskNetwork(small_net(), partial(PerturbedStore, conv_mode="auto"))
    known = [p for store in target.weight_stores for p in store.parameters()]
    target.load_state_dict(source.state_dict())
    now = [p for store in target.weight_stores for p in store.parameters()]
    assert all(a is b for a, b in zip(known, now))


@pytest.mark.parametrize("base", ["first", "given"])
def test_an_archive_gives_the_same_bits_and_learns_on(base, tmp_path):
    network = trained_network(base)
    network.commit()
    save_archive(network, tmp_path / "archive")
    loaded = load_archive(tmp_path / "archive", small_net)
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded), outputs(network)))
    for ours, theirs in zip(network.weight_stores, loaded.weight_stores):
        assert ours.config() == theirs.config()
        assert torch.equal(ours.base, theirs.base)
    loaded.open(9, [0, 1])
    for store in loaded.weight_stores:
        assert torch.equal(store.weight(), store.base)


def test_a_network_can_be_converted_to_double_before_its_first_task():
    network = TaskNetwork(small_net(), partial(PerturbedStore, base="given")).double()
    for task in (0, 1):
        network.open(task, [0, 1])
        for store in network.weight_stores:
            if store.factored:
                perturb(store, 1)
            store.keep_values([quantise_fixed_point(v, 8) for v in store.kept_values()])
        network.commit()
    for store in network.weight_stores:
        assert store.committed(1).dtype == store.base.dtype == torch.float64
    assert network(torch.randn(2, 1, 8, 8).double(), 0).dtype == torch.float64


def test_a_finished_task_materialises_as_a_plain_model():
    network = trained_network()
    x = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    plain = network.materialise(1, form="auto")
    assert torch.equal(plain(x), network(x, 1))


# ------------------------------------------------------------------ autocast


def in_bfloat16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("mode", KERNELS)
def test_nothing_loses_precision_under_autocast(mode):
    store = with_base(conv_store(conv_mode=mode))
    with torch.no_grad():
        store.scratch.add_(torch.randn_like(store.scratch))
    r, s = store.scalings()
    rest = store.residual(r, s, mode)
    with in_bfloat16():
        assert all(torch.equal(a, b) for a, b in zip(store.scalings(), (r, s)))
        assert torch.equal(store.residual(r, s, mode), rest)
    perturb(store)
    expected = store.weight()
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in store.parameters()]
    for parameter in store.parameters():
        parameter.grad = None
    section = store.encode()
    with in_bfloat16():
        weight = store.weight()
        assert torch.equal(weight, expected)
        weight.square().sum().backward()
        store.restore(1, section)
        committed = store.committed(1)
    assert all(torch.equal(p.grad, g) for p, g in zip(store.parameters(), gradients))
    assert torch.equal(store.committed(1), committed)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("options", [{"conv_mode": "tucker"}, {"base": "last"}])
def test_unknown_options_are_refused_by_name(options):
    (value,) = options.values()
    with pytest.raises(TaskStateError, match=value):
        linear_store(**options)


def test_an_unknown_task_is_an_error():
    store = with_base(linear_store())
    with pytest.raises(TaskStateError, match=r"task 4 .* \[0\]"):
        store.committed(4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused_and_nothing_changes(bad):
    store = with_base(linear_store())
    r, s = store.scalings()
    left, right = torch.ones(1, 8, 1), torch.full((1, 1, 12), bad)
    with pytest.raises(NonFiniteError, match="weight"):
        store.perturb(r, s, left, right)
    assert store.dense
    perturb(store)
    for part in store.parameters():
        with torch.no_grad():
            before = part.flatten()[0].clone()
            part.view(-1)[0] = bad
            with pytest.raises(NonFiniteError, match="weight"):
                store.check_commit()
            part.view(-1)[0] = before
    store.check_commit()


# ------------------------------------------------------------------ damage


def example_store(mode, pruned, quantise, base="first") -> PerturbedStore:
    """A base, a perturbation, and one in all forms that a section has."""
    store = conv_store(conv_mode="auto", base=base)
    learn(store, 0)
    learn(store, 1)
    if mode == "dense":
        store.open([0, 1])
        finish(store, 2)
    else:
        learn(store, 2, 2, mode, pruned, quantise)
    return store


EXAMPLES = [
    (mode, pruned, quantise)
    for mode in KERNELS
    for pruned in (False, True)
    for quantise in QUANTISERS
] + [("dense", False, None)]


def restored(sections, **options) -> PerturbedStore:
    store = conv_store(conv_mode="auto", **options)
    for task, section in enumerate(sections):
        store.restore(task, section)
    return store


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_truncated_or_longer_section_is_refused(example):
    store = example_store(*example)
    good, last = [store.sections[0], store.sections[1]], store.sections[2]
    assert torch.equal(restored([*good, last]).committed(2), store.committed(2))
    for cut in range(0, len(last), 1 + len(last) // 60):
        with pytest.raises(CorruptStreamError):
            restored([*good, last[:cut]])
    with pytest.raises(CorruptStreamError):
        restored([*good, last + b"\0"])


def test_a_changed_byte_is_refused_by_name_or_does_no_harm():
    generator = random.Random(0)
    refused = 0
    for example in EXAMPLES:
        store = example_store(*example)
        good, last = [store.sections[0], store.sections[1]], store.sections[2]
        head = [(place, value) for place in range(8) for value in (0, 1, 2, 3, 255)]
        anywhere = [(generator.randrange(len(last)), generator.randrange(256)) for _ in range(20)]
        for place, value in head + anywhere:
            changed = bytearray(last)
            changed[place] = value
            try:
                restored([*good, bytes(changed)]).committed(2)
            except CorruptStreamError:
                refused += 1
    assert refused > 100


def test_a_section_that_claims_terabytes_is_refused_at_once():
    base = with_base(conv_store(conv_mode="auto")).sections[0]
    for form in (b"\1", b"\2", b"\3"):
        with pytest.raises(CorruptStreamError):
            restored([base, form + b"\xff" * 8 + b"\x7f" + b"\0" * 40])


def test_a_perturbation_needs_a_base_and_a_weight_that_has_them():
    store = example_store("flatten", False, None)
    with pytest.raises(CorruptStreamError):
        restored([store.sections[2]])
    plain = conv_store()
    plain.restore(0, store.sections[0])
    with pytest.raises(CorruptStreamError, match="flatten"):
        plain.restore(2, store.sections[2])
    given = example_store("flatten", False, None, base="given")
    with pytest.raises(CorruptStreamError, match="none is there"):
        restored([given.sections[0]], base="given")


# ------------------------------------------------------------------ computing without the whole


def both_ways(layer, x, monkeypatch, rank=2):
    """Output and gradients of a layer, from the whole weight and from scales and factors."""
    store = behind(layer.double(), base="given")
    store.open([])
    perturb(store, rank)
    prune(store)
    found = []
    for deferred in (False, True):
        monkeypatch.setattr(PerturbedStore, "_linear_is_cheaper", lambda self, rows: True)
        monkeypatch.setattr(PerturbedStore, "_convolution_is_cheaper", lambda self, x, stride: True)
        inputs = x.double().requires_grad_()
        weight = store.substitute() if deferred else store.weight()
        monkeypatch.setattr(store, "weight", lambda: pytest.fail("composed"), raising=True)
        layer.__dict__["weight"] = weight
        out = layer(inputs)
        del layer.__dict__["weight"]
        monkeypatch.undo()
        trained = [store.row_scale, store.column_scale, store.left, store.right]
        if layer.bias is not None:
            trained.append(layer.bias)
        found.append((out, *torch.autograd.grad(out.square().sum(), [inputs, *trained])))
    return found


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 7), (3, 5)),
        (nn.Linear(5, 7, bias=False), (2, 3, 5)),
        (nn.Conv2d(3, 6, 3), (2, 3, 8, 8)),
        (nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), (2, 3, 9, 8)),
        (nn.Conv2d(4, 5, (3, 2), stride=(1, 2), padding=(1, 0)), (2, 4, 7, 7)),
        (nn.Conv2d(4, 5, 4, stride=3, padding=2), (2, 4, 9, 9)),
        (nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"), (2, 4, 6, 6)),
        (nn.Conv2d(4, 8, 1), (2, 4, 3, 3)),
        (nn.Conv2d(4, 8, 3), (4, 5, 5)),
    ],
)
def test_a_layer_computes_from_the_factors_what_it_does_from_the_weight(layer, shape, monkeypatch):
    torch.manual_seed(3)
    whole, parts = both_ways(layer, torch.randn(shape), monkeypatch)
    for expected, found in zip(whole, parts):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, dilation=2),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv1d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3),
    ],
)
def test_other_layers_get_the_whole_weight(layer):
    torch.manual_seed(3)
    store = behind(layer, base="given")
    store.open([])
    perturb(store)
    x = torch.randn(2, 4, *[8] * (layer.weight.dim() - 2))
    layer.__dict__["weight"] = store.substitute()
    out = layer(x)
    del layer.__dict__["weight"]
    with torch.no_grad():
        layer.weight.copy_(store.weight())
    assert torch.equal(out, layer(x))


def test_a_flattened_kernel_is_read_as_a_whole():
    store = conv_store(conv_mode="flatten", base="given")
    store.open([])
    perturb(store)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(F.conv2d(x, store.substitute()), F.conv2d(x, store.weight()))


def test_whoever_reads_the_weight_itself_gets_it_with_its_gradients():
    store = linear_store(base="given")
    store.open([])
    perturb(store)
    substitute = store.substitute()
    assert type(substitute) is not torch.Tensor  # the stand-in
    assert (substitute.shape, substitute.dtype, substitute.device) == (
        (8, 12),
        torch.float32,
        torch.device("cpu"),
    )
    assert torch.equal(substitute.t(), store.weight().t())
    (found,) = torch.autograd.grad((2 * substitute).sum(), store.left)
    (expected,) = torch.autograd.grad((2 * store.weight()).sum(), store.left)
    assert torch.equal(found, expected)


def test_evaluation_takes_the_whole_weight():
    store = linear_store(base="given")
    store.open([])
    assert store.substitute() is store.scratch  # no factors yet
    perturb(store)
    with torch.no_grad():
        assert type(store.substitute()) is torch.Tensor


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (partial(nn.Linear, 50, 70), (30, 50)),
        (partial(nn.Linear, 50, 70, bias=False), (2, 15, 50)),
        (partial(nn.Conv2d, 16, 24, 3, stride=2, padding=1), (4, 16, 9, 8)),
        (partial(nn.Conv2d, 16, 24, 4, bias=False), (4, 16, 9, 8)),
    ],
)
def test_under_autocast_the_factors_give_what_the_weight_does_but_for_rounding(
    layer, shape, channels_last, monkeypatch
):
    torch.manual_seed(3)
    monkeypatch.setattr(PerturbedStore, "_convolution_is_cheaper", lambda self, x, stride: True)
    layer = layer()
    store = behind(layer, base="given")
    store.open([])
    perturb(store, 4)
    prune(store)
    x = torch.randn(shape)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    trained = [store.row_scale, store.column_scale, store.left, store.right]
    trained += [] if layer.bias is None else [layer.bias]

    def computed(weight):
        inputs = x.clone().requires_grad_()
        layer.__dict__["weight"] = weight
        out = layer(inputs)
        del layer.__dict__["weight"]
        return out, *torch.autograd.grad(out.float().square().sum(), [inputs, *trained])

    expected = computed(store.weight())
    composed = []
    weight = PerturbedStore.weight
    monkeypatch.setattr(
        PerturbedStore, "weight", lambda self: composed.append(self) or weight(self)
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = computed(store.substitute())
        assert not composed
        rounded = computed(store.weight())
    assert found[0].dtype is torch.bfloat16
    for exact, ours, theirs in zip(expected, found, rounded):
        assert ours.dtype is theirs.dtype
        # a product, its scales, their sum and the gradients of all are rounded to 2**-8 each
        assert (ours.float() - exact).norm() < 2**-6 * exact.norm()


def test_double_precision_stays_as_it_is_under_autocast():
    store = behind(nn.Linear(12, 8).double(), base="given")
    store.open([])
    perturb(store)
    x = torch.randn(5, 12, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found = F.linear(x, store.substitute())
        torch.testing.assert_close(found, F.linear(x, store.weight()), rtol=1e-12, atol=1e-12)


def test_what_hides_from_torch_cannot_read_the_scratch_by_mistake():
    store = linear_store(base="given")
    store.open([])
    perturb(store)
    substitute = store.substitute()
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(RuntimeError, match="whole weight"):
        substitute + 1


def test_few_multiplications_decide_who_computes_from_factors():
    store = linear_store(400, 400, base="given")
    store.open([])
    perturb(store, rank=20)
    assert store._linear_is_cheaper(10_000)
    perturb(store, rank=190)
    assert store._linear_is_cheaper(50)
    assert not store._linear_is_cheaper(200)
