"""W_t as a base and a product of low rank: layers, freezing, bytes, state."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from avalanche_compress import AdaptedStore, NonFiniteError, TaskNetwork, TaskStateError
from avalanche_compress.codec import CorruptStreamError, quantise_codebook, quantise_fixed_point
from avalanche_compress.core.store import Place


def behind(layer, **options) -> AdaptedStore:
    return AdaptedStore(Place(layer, "weight"), **{"base": "given", **options})


def linear_store(rows=8, columns=12, **options) -> AdaptedStore:
    torch.manual_seed(0)
    return behind(nn.Linear(columns, rows, bias=False), **options)


def adapt(store, seed=1) -> None:
    """Let both factors of the open task be random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (store.left, store.right):
            part.copy_(torch.randn(part.shape, generator=generator))


def finish(store, task) -> None:
    store.check_commit()
    store.restore(task, store.encode())


def learn(store, task, rank=2, quantise=None) -> None:
    store.rank = rank
    store.open(list(store.sections))
    if store.dense:
        with torch.no_grad():
            store.scratch.add_(torch.randn(store.shape))
    else:
        adapt(store, seed=task + 50)
    if quantise is not None:
        store.keep_values([quantise(values) for values in store.kept_values()])
    finish(store, task)


# ------------------------------------------------------------------ one layer

LAYERS = {
    "linear": (partial(nn.Linear, 10, 7), (5, 10)),
    "conv": (partial(nn.Conv2d, 4, 6, 3, stride=(2, 1), padding=1), (2, 4, 9, 9)),
    "groups": (partial(nn.Conv2d, 4, 6, 3, groups=2), (2, 4, 9, 9)),
    "pointwise": (partial(nn.Conv2d, 8, 6, 1), (2, 8, 9, 9)),
    "conv1d": (partial(nn.Conv1d, 4, 6, 3), (2, 4, 9)),
    "conv3d": (partial(nn.Conv3d, 3, 4, 2), (2, 3, 4, 4, 4)),
    "transposed": (partial(nn.ConvTranspose2d, 4, 6, 3), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_with_the_base_and_the_scaled_product_and_so_do_its_gradients(name):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build().double(), torch.randn(*shape).double().requires_grad_()
    store = behind(layer, alpha=6.0)
    store.rank = 2
    store.open([])
    adapt(store)
    products = [left @ right for left, right in zip(store.left, store.right)]
    weight = store.base + 6.0 / 2 * torch.cat(products).view(store.shape)
    leaves = [store.left, store.right, x]
    results = []
    for each in (store.weight(), weight):
        y = functional_call(layer, {"weight": each}, (x,))
        results.append((y, *torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True)))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    store = behind(nn.Conv2d(4, 6, 2, groups=2, bias=False).double())
    store.open([])
    adapt(store)

    def weight(left, right):
        return store._compose(left, right)

    assert torch.autograd.gradcheck(weight, (store.left, store.right))


def test_a_task_starts_from_the_base_and_trains_nothing_else():
    store = linear_store()
    before = store.scratch.detach().clone()
    store.open([])
    assert torch.equal(store.weight(), before)
    assert not store.left.any()
    bound = 12**-0.5
    assert float(store.right.abs().max()) <= bound
    assert float(store.right.std()) > 0.4 * bound
    adapt(store)
    store.weight().square().sum().backward()
    assert store.scratch.grad is None
    assert not any(b.requires_grad for b in store.buffers())
    assert {name for name, p in store.named_parameters() if p.grad.any()} == {"left", "right"}


def test_the_first_task_may_be_the_base():
    store = linear_store(base="first")
    learn(store, 3)
    base = store.base.clone()
    for task in (1, 2):
        learn(store, task)
        assert torch.equal(store.base, base)
        assert not torch.equal(store.committed(task), base)
    assert torch.equal(store.committed(3), base)
    assert [store.rank_of(task) for task in (3, 1, 2)] == [0, 2, 2]
    assert [store.added_values(task) for task in (3, 1, 2)] == [0, 40, 40]
    assert store.encode_shared() == b""
    assert store.shared_bits == 0


@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        (partial(nn.Linear, 12, 8), 4),  # 96 / 20
        (partial(nn.Conv2d, 4, 6, 3), 5),  # 216 / 42
        (partial(nn.Conv2d, 4, 6, 3, groups=2), 2),  # 108 / (2 (3 + 18))
        (partial(nn.Embedding, 30, 6), 5),  # 180 / 36
        (partial(nn.Linear, 1, 5), 0),
        (partial(nn.Conv2d, 6, 6, 3, groups=6), 0),
    ],
)
def test_no_task_takes_a_rank_at_which_its_whole_weight_has_fewer_numbers(layer, rank):
    torch.manual_seed(0)
    store = behind(layer())
    assert store.break_even_rank == rank
    assert store.factored == (rank > 0)
    learn(store, 0, rank=100)
    numbers = rank * store.groups * (store.rows + store.width)
    assert store.stored_values(0) == (numbers or store.shape.numel()) <= store.shape.numel()
    assert store.rank_of(0) == (rank or None)


@pytest.mark.parametrize(("quantise", "bits"), [(quantise_codebook, 3), (quantise_fixed_point, 5)])
def test_quantised_factors_are_what_the_task_computes_with(quantise, bits):
    store = linear_store(20, 30)
    store.open([])
    adapt(store)
    store.keep_values([quantise(values, bits) for values in store.kept_values()])
    before = store.weight().detach()
    finish(store, 1)
    assert torch.equal(store.committed(1), before)
    assert store.value_bits(1) == bits * store.stored_values(1)
    assert all(len(values.unique()) <= 2**bits for values in store.kept_values())


def test_a_quantised_first_task_is_a_quantised_base():
    store = linear_store(base="first")
    learn(store, 0, quantise=partial(quantise_codebook, bits=2))
    assert len(store.base.unique()) <= 4
    assert torch.equal(store.base, store.committed(0))


@pytest.mark.parametrize("base", ["first", "given"])
def test_old_weights_never_change_and_another_store_has_the_same_bits(base):
    first, second = linear_store(20, 30, base=base), linear_store(20, 30, base=base)
    with torch.no_grad():
        second.scratch.normal_()
    kept = {}
    for task, rank in ((5, 2), (2, 0), (-1, 4)):
        quantise = partial(quantise_codebook, bits=3) if task == 2 else None
        learn(first, task, rank, quantise)
        kept[task] = first.committed(task).clone()
        if not second.sections:
            second.accept_shared(first.encode_shared())
        second.restore(task, first.sections[task])
        for old, weight in kept.items():
            assert torch.equal(first.committed(old), weight)
            assert torch.equal(second.committed(old), weight)
    first.open(list(kept))
    with torch.no_grad():
        for tensor in (first.scratch, *first.parameters()):
            tensor.fill_(7)
    assert all(torch.equal(first.committed(old), weight) for old, weight in kept.items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), None])
@pytest.mark.parametrize("base", ["first", "given"])
def test_a_copy_in_the_middle_of_a_task_goes_on_as_the_original(copied, base):
    torch.manual_seed(0)
    build = partial(nn.Sequential, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    network = TaskNetwork(build(), partial(AdaptedStore, base=base))
    for task in range(2):
        network.open(task, [0, 1])
        if task == 0:
            network.commit()
    adapt(network.weight_stores[0])
    if copied is None:
        other = TaskNetwork(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)),
            partial(AdaptedStore, base=base),
        )
        other.load_state_dict(network.state_dict())
    else:
        other = copied(network)
    x = torch.randn(5, 6)
    assert torch.equal(other.eval()(x, 1), network.eval()(x, 1))
    network.commit()
    other.commit()
    assert torch.equal(other(x, 0), network(x, 0))
    assert torch.equal(other(x, 1), network(x, 1))
    for each in (network, other):
        torch.manual_seed(4)
        each.open(2, [0, 1])
    assert torch.equal(other.weight_stores[0].right, network.weight_stores[0].right)


# ------------------------------------------------------------------ computing without the whole


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (partial(nn.Linear, 40, 30), torch.randn(5, 40)),
        (partial(nn.Linear, 40, 30, bias=False), torch.randn(2, 3, 40)),
        (partial(nn.Embedding, 30, 12), torch.tensor([[0, 7], [29, 7]])),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_computes_from_the_factors_what_it_does_from_the_weight(
    layer, x, autocast, monkeypatch
):
    torch.manual_seed(3)
    layer = layer()
    store = behind(layer)
    store.open([])
    adapt(store)
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for deferred in (False, True):
            whole = store.weight()
            with monkeypatch.context() as patch:
                patch.setattr(AdaptedStore, "weight", lambda self: pytest.fail("composed"))
                layer.__dict__["weight"] = store.substitute() if deferred else whole
                out = layer(x)
                del layer.__dict__["weight"]
            grads = torch.autograd.grad(out.float().square().sum(), [store.left, store.right])
            found.append((out, *grads))
    tolerance = 2**-5 if autocast else 1e-5
    for expected, ours in zip(*found):
        assert ours.dtype is expected.dtype
        assert (ours - expected).float().norm() <= tolerance * expected.float().norm()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(4, 6, 3), torch.randn(2, 4, 8, 8)),
        (nn.Embedding(30, 12, max_norm=1.0), torch.tensor([1, 2])),
        (nn.Embedding(30, 12, scale_grad_by_freq=True), torch.tensor([1, 1])),
    ],
)
def test_other_layers_get_the_whole_weight(layer, x):
    store = behind(layer)
    store.open([])
    adapt(store)
    weight = store.weight().detach()
    substitute = store.substitute()
    # max_norm shortens rows in place
    given = substitute if layer.__class__ is nn.Conv2d else weight.clone()
    out = functional_call(layer, {"weight": given}, (x,))
    assert torch.equal(out, functional_call(layer, {"weight": weight}, (x,)))


def test_evaluation_takes_the_whole_weight():
    store = linear_store()
    store.open([])
    assert type(store.substitute()) is not torch.Tensor  # the stand-in
    with torch.no_grad():
        assert type(store.substitute()) is torch.Tensor
    assert torch.equal(F.linear(torch.eye(12), store.substitute()), store.weight().t())


# ------------------------------------------------------------------ what is refused


def test_unknown_options_are_refused_by_name():
    with pytest.raises(TaskStateError, match="base='second'"):
        linear_store(base="second")
    for alpha in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(TaskStateError, match="alpha="):
            linear_store(alpha=alpha)


def test_non_finite_factors_are_refused_and_nothing_changes():
    store = linear_store()
    learn(store, 0)
    store.open([0])
    with torch.no_grad():
        store.left[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="weight"):
        store.check_commit()
    assert list(store.sections) == [0]


def test_a_truncated_section_and_a_rank_that_no_task_has_are_refused():
    store = linear_store()
    learn(store, 0)
    section, shared = store.sections[0], store.encode_shared()
    for damaged in (section[:-1], section + b"\0", b"\6" + section[1:], b"\xff" * 8 + b"\x7f"):
        other = linear_store()
        other.accept_shared(shared)
        with pytest.raises(CorruptStreamError):
            other.restore(0, damaged)
        assert not other.sections
    with pytest.raises(CorruptStreamError, match="none is there"):
        linear_store().restore(0, section)
    with pytest.raises(CorruptStreamError, match="none is there"):
        linear_store(base="first").restore(0, section)
