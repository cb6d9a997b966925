"""The task in training: its tensors stay for the backward pass; its first step and end are checked.

Models whose finished tasks would change, or answer otherwise out of an archive, are refused by name
in the first step.
"""

from __future__ import annotations

import copy
import pickle
from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.models import PNN, DynamicModule
from avalanche.training.utils import replace_bn_with_brn
from stores_for_tests import get_ready
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

from avalanche_compress import (
    NonFiniteError,
    TaskNetwork,
    TaskStateError,
    UnsupportedModuleError,
)
from tests.core.test_views import STORES, finish, learn, logits_of, mlp

# ---------------------------------------------------------------- checkpointing


class Checkpointed(nn.Module):
    """The same block in several regions that are computed again in the backward pass."""

    def __init__(self, form, times=1):
        super().__init__()
        torch.manual_seed(0)
        self.form, self.times = form, times
        self.a, self.b, self.c = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.head = nn.Linear(24, 2)

    def block(self, x):
        return torch.tanh(self.c(torch.tanh(self.b(x))))

    def forward(self, x):
        x = torch.tanh(self.a(x))
        for _ in range(self.times):
            if self.form is None:
                x = self.block(x)
            else:
                x = checkpoint(self.block, x, use_reentrant=self.form == "reentrant")
        return self.head(x)


def gradients(network, form, x, y, task, passes=1):
    network.backbone.form = form
    network.zero_grad()
    losses = [nn.functional.cross_entropy(network(x, task), y) for _ in range(passes)]
    for loss in losses:
        loss.backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("form", ["reentrant", "other"])
@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_checkpointed_models_have_the_gradients_of_plain_ones(store, form, times):
    x, y = torch.randn(8, 6), torch.tensor([0, 1] * 4)
    network = TaskNetwork(Checkpointed(form, times), store)
    for task in range(2):
        for kept in network.weight_stores:
            get_ready(kept)
        network.open(task, [0, 1])
        network.train()
        first = gradients(network, form, x, y, task)  # the step that is watched
        for passes in (1, 2):
            expected = gradients(network, None, x, y, task, passes)
            found = gradients(network, form, x, y, task, passes)
            assert expected.keys() == found.keys()
            assert any(g.any() for g in found.values())
            for name, gradient in expected.items():
                assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
                if passes == 1:
                    assert torch.allclose(first[name], gradient, rtol=1e-4, atol=1e-6), name
        finish(network)


class Words(nn.Module):
    """A bag of words, whose embedding has sparse gradients on demand."""

    def __init__(self, sparse, kind=nn.Embedding):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = kind(20, 8, sparse=sparse), nn.Linear(8, 2)

    def forward(self, x):
        found = self.words(x)
        return self.head(found.mean(1) if found.dim() == 3 else found)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_sparse_gradients_are_those_of_dense_ones(store, kind):
    x, y = torch.randint(20, (8, 5)), torch.tensor([0, 1] * 4)
    networks = [TaskNetwork(Words(sparse, kind), store) for sparse in (False, True)]
    networks[1].load_state_dict(networks[0].state_dict())
    for task in range(2):
        found = []
        for network in networks:
            for kept in network.weight_stores:
                get_ready(kept)
            torch.manual_seed(task)
            network.open(task, [0, 1])
            network.train()
            for _ in range(2):  # the first step is watched
                network.zero_grad()
                nn.functional.cross_entropy(network(x, task), y).backward()
            found.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
            finish(network)
        assert found[0].keys() == found[1].keys()
        for name, gradient in found[0].items():
            assert torch.allclose(found[1][name], gradient, rtol=1e-4, atol=1e-6), name


def test_an_evaluation_between_forward_and_backward_changes_no_gradient():
    x, y = torch.randn(8, 6), torch.tensor([0, 1] * 4)
    network = TaskNetwork(Checkpointed("reentrant"))
    network.open(0, [0, 1])
    network.train()
    expected = gradients(network, None, x, y, 0)
    network.backbone.form = "reentrant"
    network.zero_grad()
    loss = nn.functional.cross_entropy(network(x, 0), y)
    with torch.no_grad():
        network(x, 0)
    loss.backward()
    for name, parameter in network.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.grad, expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_second_derivatives_exist(store):
    network, x = TaskNetwork(mlp(), store), torch.randn(4, 6, requires_grad=True)
    network.open(0, [0, 1])
    network.train()
    for _ in range(2):  # the step that is watched, and one that is not
        (slope,) = torch.autograd.grad(network(x, 0).tanh().sum(), x, create_graph=True)
        network.zero_grad()
        slope.square().sum().backward()
        found = [p.grad for p in network.parameters() if p.grad is not None]
        assert any(bool(gradient.any()) for gradient in found)


def test_a_copy_after_a_step_has_parameters_and_the_step_can_be_undone():
    network, x = TaskNetwork(mlp()), torch.randn(4, 6)
    network.open(0, [0, 1])
    network.train()(x, 0)
    assert "weight" in vars(network.backbone[0])
    network.end_substitution()
    assert "weight" not in vars(network.backbone[0])


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_model_in_the_middle_of_a_step_is_a_plain_model(store, copied):
    x, network = torch.randn(8, 6), TaskNetwork(mlp(), store)
    learn(network, x, 0)
    network.open(1, [0, 1])
    loss = network.train()(x, 1).square().sum()
    copied = copied(network.backbone)
    for (name, parameter), (_, other) in zip(
        network.backbone.named_parameters(), copied.named_parameters()
    ):
        assert torch.equal(parameter, other), name
        assert parameter is not other
    with torch.no_grad():
        copied[0].weight.zero_()  # what its layers compute with are its parameters
    assert torch.equal(copied[0](x), copied[0].bias.expand(8, -1))
    loss.backward()
    assert any(parameter.grad is not None for parameter in network.parameters())


# ---------------------------------------------------------------- state outside the tensors


class Centred(nn.Module):
    """Subtracts a running mean that it keeps in one of many ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        zeros = torch.zeros(6)
        if way == "buffer":
            self.register_buffer("mean", zeros, persistent=False)
        else:
            self.mean = {
                "attribute": zeros,
                "list": [zeros],
                "dict": {"a": {"b": zeros}},
                "number": 0.0,
                "array": np.zeros(6, dtype=np.float32),
                "object": Holder(zeros),
                "deque": deque([zeros], maxlen=1),
                "late": None,
                "module": [Unregistered(zeros)],
            }[way]

    def read(self):
        if self.way == "list" or self.way == "deque":
            return self.mean[0]
        if self.way == "dict":
            return self.mean["a"]["b"]
        if self.way == "array":
            return torch.from_numpy(self.mean)
        if self.way == "object":
            return self.mean.value
        if self.way == "module":
            return self.mean[0].value
        return torch.zeros(6) if self.mean is None else self.mean

    def write(self, mean):
        if self.way == "list":
            self.mean[0] = mean
        elif self.way == "deque":
            self.mean.append(mean)
        elif self.way == "dict":
            self.mean["a"]["b"] = mean
        elif self.way == "array":
            self.mean = mean.numpy()
        elif self.way == "object":
            self.mean.value = mean
        elif self.way == "module":
            self.mean[0].value = mean
        else:
            self.mean = mean.mean().item() if self.way == "number" else mean

    def forward(self, x):
        if self.training:
            self.write(0.9 * self.read() + 0.1 * x.detach().mean(0))
        return x - self.read()


class Unregistered(nn.Module):
    """In a list, where no model finds it."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", value)


class Holder:
    def __init__(self, value):
        self.value = value


WAYS = [
    "attribute",
    "buffer",
    "list",
    "dict",
    "number",
    "array",
    "object",
    "deque",
    "late",
    "module",
]


@pytest.mark.parametrize("exclude", [(), ("0",)])
@pytest.mark.parametrize("way", WAYS)
def test_state_that_no_archive_holds_is_refused_in_the_first_step(way, exclude):
    network = TaskNetwork(nn.Sequential(Centred(way), *mlp()), exclude=exclude)
    network.open(0, [0, 1])
    with pytest.raises(UnsupportedModuleError, match=r"depend on '0\.mean'"):
        network.train()(torch.randn(8, 6), 0)


MEANS = {"global": torch.zeros(6)}


class Elsewhere(nn.Module):
    """Keeps a running mean where no module of the model has it."""

    mean = torch.zeros(6)

    def __init__(self, way):
        super().__init__()
        kept = {"mean": torch.zeros(6)}
        self.read, self.write = {
            "class": (lambda: Elsewhere.mean, partial(setattr, Elsewhere, "mean")),
            "global": (lambda: MEANS["global"], partial(MEANS.__setitem__, "global")),
            "closure": (lambda: kept["mean"], lambda mean: kept.update(mean=mean)),
        }[way]

    def forward(self, x):
        if self.training:
            self.write(0.9 * self.read() + 0.1 * x.detach().mean(0))
        return x - self.read()


@pytest.mark.parametrize("way", ["class", "global", "closure"])
def test_state_outside_of_the_model_is_refused_in_the_first_step(way):
    network = TaskNetwork(nn.Sequential(Elsewhere(way), nn.Dropout(), *mlp()))
    network.open(0, [0, 1])
    with pytest.raises(UnsupportedModuleError, match="outside of its modules"):
        network.train()(torch.randn(8, 6), 0)


def test_state_in_a_second_task_is_refused_and_the_first_one_stays():
    class Late(Centred):
        active = False

        def forward(self, x):
            return super().forward(x) if self.active else x - self.read()

    x = torch.randn(8, 6)
    model = nn.Sequential(Late("attribute"), *mlp())
    network = TaskNetwork(model)
    learn(network, x, 0)
    before = logits_of(network, x, 0)
    model[0].active = True
    with pytest.raises(UnsupportedModuleError, match=r"task 1 .*'0\.mean'"):
        learn(network, x, 1)
    assert torch.equal(logits_of(network, x, 0), before)


def test_batch_renormalisation_is_refused():
    class Convolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = (
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.Linear(64, 2),
            )

        def forward(self, x):
            return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))

    model = Convolutional()
    replace_bn_with_brn(model)
    network = TaskNetwork(model)
    with pytest.raises(UnsupportedModuleError, match="running_avg_mean"):
        learn(network, torch.randn(8, 1, 6, 6), 0)


class Recording(nn.Module):
    """Remembers what it saw, for whoever asks, and answers by none of it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.last, self.calls, self.sizes = None, 0, []

    def forward(self, x):
        self.last = self.body(x)
        self.calls += 1
        self.sizes.append(len(x))
        return self.head(self.last)


def test_what_a_model_only_records_is_no_state():
    network, x = TaskNetwork(Recording()), torch.randn(8, 6)
    learn(network, x, 0)
    before = logits_of(network, x, 0)
    learn(network, x, 1)
    assert torch.equal(logits_of(network, x, 0), before)
    assert network.backbone.calls > 4


def test_a_model_whose_evaluations_differ_is_refused():
    class Adapting(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.zeros(6)

        def forward(self, x):
            if not self.training:
                self.shift = 0.5 * self.shift + 0.5 * x.mean(0)
            return x - self.shift

    network = TaskNetwork(nn.Sequential(Adapting(), *mlp()))
    with pytest.raises(UnsupportedModuleError, match="a second evaluation"):
        learn(network, torch.randn(8, 6), 0)


class OnSphere(nn.Linear):
    """Rows of length 1, which the forward pass sees to."""

    def forward(self, x):
        with torch.no_grad():
            self.weight.copy_(nn.functional.normalize(self.weight, dim=1))
        return super().forward(x)


class OnSphereByData(nn.Linear):
    def forward(self, x):
        self.weight.data = nn.functional.normalize(self.weight.data, dim=1)
        return super().forward(x)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("layer", [OnSphere, OnSphereByData])
def test_a_forward_pass_that_changes_its_weight_in_place_is_refused(layer, kind):
    network = TaskNetwork(nn.Sequential(layer(6, 6), *mlp()), STORES[kind])
    with pytest.raises(UnsupportedModuleError, match=r"evaluation changes '0\.weight' in place"):
        learn(network, torch.randn(8, 6), 0)


@pytest.mark.parametrize("excluded", [(), ("0",)])
def test_an_embedding_that_shortens_its_rows_is_refused(excluded):
    model = nn.Sequential(nn.Embedding(30, 6, max_norm=1.0), nn.Flatten(), *mlp())
    with pytest.raises(UnsupportedModuleError, match="max_norm="):
        learn(TaskNetwork(model, exclude=excluded), torch.arange(8).unsqueeze(1), 0)


class Largest(nn.Module):
    """Divides by the largest input that it has seen in evaluation."""

    def __init__(self, kept):
        super().__init__()
        self.kept, self.seen = kept, 1.0
        self.register_buffer("largest", torch.ones(()))

    def forward(self, x):
        if not self.training and self.kept == "buffer":
            self.largest.copy_(torch.maximum(self.largest, x.abs().max()))
        elif not self.training and self.kept == "number":
            self.seen = max(self.seen, float(x.abs().max()))
        return x / self.largest / self.seen


@pytest.mark.parametrize("kept", ["buffer", "number", None])
def test_a_model_that_an_evaluation_of_other_samples_changes_is_refused(kept):
    network, x = TaskNetwork(nn.Sequential(Largest(kept), *mlp())), torch.rand(8, 6)
    if kept is None:
        learn(network, x, 0)
        return
    with pytest.raises(UnsupportedModuleError, match="after one of other samples"):
        learn(network, x, 0)


class Merging(nn.Linear):
    """Adds a change of its weight to it in evaluation, as layers with adapters do."""

    def __init__(self, merges):
        super().__init__(6, 6)
        self.change, self.merges, self.merged = nn.Parameter(torch.zeros(6, 6)), merges, False

    def train(self, mode=True):
        super().train(mode)
        if self.merges and self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.change.data
            self.merged = not mode
        return self

    def forward(self, x):
        if self.merged:
            return super().forward(x)
        return nn.functional.linear(x, self.weight + self.change, self.bias)


@pytest.mark.parametrize("merges", [True, False])
def test_a_layer_that_merges_a_change_into_its_weight_in_evaluation_is_refused(merges):
    network, x = TaskNetwork(nn.Sequential(Merging(merges), *mlp())), torch.randn(8, 6)
    if merges:
        with pytest.raises(UnsupportedModuleError, match=r"eval\(\) change '0.weight'"):
            learn(network, x, 0)
        return
    learn(network, x, 0)
    before = logits_of(network, x, 0)
    learn(network, x, 1)
    assert torch.equal(logits_of(network, x, 0), before)


def test_models_that_draw_random_numbers_in_evaluation_are_not_taken_for_drifting():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + 0.1 * torch.randn_like(x)

    network = TaskNetwork(nn.Sequential(Noisy(), *mlp()))
    state = torch.random.get_rng_state()
    learn(network, torch.randn(8, 6), 0)
    assert not torch.equal(torch.random.get_rng_state(), state)


def test_checks_draw_no_random_numbers():
    x, states = torch.randn(8, 6), []
    for checked in (True, False):
        network = TaskNetwork(nn.Sequential(nn.Dropout(0.5), *mlp()))
        network.open(0, [0, 1])
        network._open._is_checked = not checked
        torch.manual_seed(3)
        logits = network.train()(x, 0)
        states.append((logits, torch.random.get_rng_state()))
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


class TwoMoving(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()
        self.body = mlp()
        for part in (self.first, self.second):
            part.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.first.count += 1
        self.second.count = self.second.count + 1
        return self.body(x) + 0 * self.first.count


def test_all_buffers_that_move_are_told_at_once_in_the_first_step():
    network = TaskNetwork(TwoMoving())
    network.open(0, [0, 1])
    with pytest.raises(
        UnsupportedModuleError, match=r"'first\.count', 'second\.count'.*\('first', 'second',\)"
    ):
        network.train()(torch.randn(8, 6), 0)
    network = TaskNetwork(TwoMoving(), exclude=("first", "second"))
    learn(network, torch.randn(8, 6), 0)


def test_a_buffer_that_moves_late_is_refused_at_the_commit_and_moves_no_finished_task():
    class Warming(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = 0
            self.register_buffer("shift", torch.zeros(6))

        def forward(self, x):
            self.steps += self.training
            if self.training and self.steps > 4:
                self.shift += 1
            return x + self.shift

    x = torch.randn(8, 6)
    network = TaskNetwork(nn.Sequential(Warming(), *mlp()))
    learn(network, x, 0, steps=3)
    before = logits_of(network, x, 0)
    with pytest.raises(TaskStateError, match=r"0\.shift changed"):
        learn(network, x, 1, steps=3)
    assert network.open_task == 1
    assert torch.equal(logits_of(network, x, 0), before)


# ---------------------------------------------------------------- weights past the attribute


class ReadsOtherwise(nn.Module):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.a, self.head = nn.Linear(6, 16), nn.Linear(16, 2)
        self.alias = [self.a.weight] if way == "alias" else []
        self.transposed = self.a.weight.t() if way == "view" else None

    def weight(self):
        return {
            "list": lambda: next(iter(self.parameters())),
            "dict": lambda: dict(self.named_parameters())["a.weight"],
            "get": lambda: self.get_parameter("a.weight"),
            "state": lambda: self.state_dict()["a.weight"],
            "registry": lambda: self.a._parameters["weight"],
            "alias": lambda: self.alias[0],
            "view": lambda: self.transposed.t(),
            "vector": lambda: nn.utils.parameters_to_vector(self.a.parameters())[:96].view(16, 6),
        }[self.way]()

    def forward(self, x):
        return self.head(torch.relu(nn.functional.linear(x, self.weight(), self.a.bias)))


PAST = r"'a\.weight' past .*exclude=\('a',\)"
MESSAGES = {"view": r"'transposed' is a view of a parameter", "get": r"get_parameter.*exclude="}


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
@pytest.mark.parametrize(
    "way", ["list", "dict", "get", "state", "registry", "alias", "view", "vector"]
)
def test_weights_read_past_the_attribute_are_refused_in_the_first_step(way, store):
    network = TaskNetwork(ReadsOtherwise(way), store)
    network.open(0, [0, 1])
    with pytest.raises(UnsupportedModuleError, match=MESSAGES.get(way, PAST)):
        network.train()(torch.randn(8, 6), 0)


@pytest.mark.parametrize("way", ["list", "dict", "get", "alias"])
def test_excluded_modules_may_be_read_in_any_way(way):
    x = torch.randn(8, 6)
    network = TaskNetwork(ReadsOtherwise(way), exclude=("a",))
    learn(network, x, 0)
    before = logits_of(network, x, 0)
    learn(network, x, 1)
    assert torch.equal(logits_of(network, x, 0), before)


@pytest.mark.parametrize("way", ["list", "alias", "state"])
def test_weights_read_past_the_attribute_in_evaluation_are_refused_too(way):
    class InEvaluation(ReadsOtherwise):
        def weight(self):
            return self.a.weight if self.training else super().weight()

    network = TaskNetwork(InEvaluation(way))
    network.open(0, [0, 1])
    with pytest.raises(UnsupportedModuleError, match=PAST):
        network.train()(torch.randn(8, 6), 0)


def test_asking_a_parameter_for_its_type_and_shape_is_no_reading():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            first = next(self.parameters())
            like = torch.zeros_like(first)[0, :1].mean()
            return self.body(x.to(first.device, first.dtype)) + like + first.new_zeros(())

    network, x = TaskNetwork(Asking()), torch.randn(8, 6)
    learn(network, x, 0)
    assert network.tasks == [0]


# ---------------------------------------------------------------- modules that change


CHANGES = {
    "replaced": lambda body: body.__setitem__(2, nn.Linear(16, 16)),
    "head replaced": lambda body: body.__setitem__(4, nn.Linear(16, 2)),
    "wrapped": lambda body: body.__setitem__(0, nn.Sequential(body[0])),
    "added": lambda body: body.add_module("5", nn.Identity()),
    "removed": lambda body: body.__delitem__(3),
    "parameter added": lambda body: body.register_parameter("gain", nn.Parameter(torch.ones(()))),
    "parameter resized": lambda body: setattr(body[2], "bias", nn.Parameter(torch.ones(1))),
    "buffer added": lambda body: body.register_buffer("mask", torch.ones(6)),
    "pruned": lambda body: prune.random_unstructured(body[2], "weight", 0.5),
    "parametrised": lambda body: parametrize.register_parametrization(body[2], "weight", Halved()),
    "spectral": lambda body: nn.utils.spectral_norm(body[2]),
}


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_modules_that_change_between_tasks_are_refused_and_tasks_stay(change):
    x = torch.randn(8, 6)
    network = TaskNetwork(mlp())
    learn(network, x, 0)
    before = logits_of(network, x, 0)
    change(network.backbone)
    with pytest.raises(UnsupportedModuleError, match=r"task 1 cannot be kept.*came, went"):
        network.open(1, [0, 1])
    assert network.open_task is None
    assert torch.equal(logits_of(network, x, 0), before)


def test_modules_that_change_within_a_task_are_refused_at_its_end():
    network, x = TaskNetwork(mlp()), torch.randn(8, 6)
    network.open(0, [0, 1])
    network.train()(x, 0).sum().backward()
    network.end_substitution()
    prune.random_unstructured(network.backbone[2], "weight", 0.5)
    with pytest.raises(UnsupportedModuleError, match=r"'2\."):
        network.commit()
    assert network.open_task == 0


def test_a_module_that_is_made_in_the_first_step_is_refused():
    class Lazy(nn.Module):
        def forward(self, x):
            if not hasattr(self, "scale"):
                self.scale = nn.Linear(6, 6)
            return self.scale(x)

    network = TaskNetwork(nn.Sequential(Lazy(), *mlp()))
    with pytest.raises(UnsupportedModuleError, match=r"'0\.scale' came"):
        learn(network, torch.randn(8, 6), 0)


class Growing(DynamicModule):
    """Grows by a column for each further experience."""

    def __init__(self):
        super().__init__()
        self.seen, self.parts = 0, nn.ModuleList([nn.Linear(6, 6)])

    def adaptation(self, experience):
        if self.training:
            self.seen += 1
            if self.seen > 1:
                self.parts.append(nn.Linear(6, 6))

    def forward(self, x):
        return sum(part(x) for part in self.parts)


@pytest.mark.parametrize(
    "build",
    [lambda: nn.Sequential(Growing(), *mlp()), partial(PNN, 1, 6, 8)],
    ids=["own module", "PNN"],
)
def test_modules_that_would_grow_are_refused_before_the_first_task_is_lost(build):
    network = TaskNetwork(build())
    network.open(0, [0, 1])
    for part in network.backbone.modules():
        if hasattr(part, "seen"):
            part.seen = 1
        if hasattr(part, "task_to_module_idx"):
            part.task_to_module_idx = {0: 0}
    with pytest.raises(UnsupportedModuleError, match=r"would come or grow.*adaptation\(\)"):
        network.train()(torch.randn(8, 6), 0)


# ---------------------------------------------------------------- names


class Folder(nn.Module):
    """Names that become one another where dots and slashes are mixed up."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Module()
        self.a.b = nn.Linear(6, 6)
        self.add_module("a/b", nn.Linear(6, 6))
        self.add_module("a%2Fb", nn.Linear(6, 6))
        self.values = nn.Parameter(torch.randn(6, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        for layer in (self.a.b, self._modules["a/b"], self._modules["a%2Fb"]):
            x = torch.tanh(layer(x))
        return self.head(x @ self.values)


def test_names_that_look_alike_are_told_apart():
    x = torch.randn(8, 6)
    network = TaskNetwork(Folder(), include=("values",))
    names = {"a.b.weight", "a/b.weight", "a%2Fb.weight", "values"}
    assert {store.name for store in network.weight_stores} == names
    learn(network, x, 0)
    before = logits_of(network, x, 0)
    learn(network, x, 1)
    assert torch.equal(logits_of(network, x, 0), before)
    weights = [network.weight_of(name, 0) for name in sorted(names)]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])
    network.backbone._modules["a/b"].weight.data[0, 0] = float("nan")
    assert network.first_nonfinite() == "a/b.weight"


# ---------------------------------------------------------------- the end of a task


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_a_commit_refuses_bytes_that_answer_otherwise(store, monkeypatch):
    x = torch.randn(8, 6)
    network = TaskNetwork(mlp(), store)
    learn(network, x, 0)
    before = logits_of(network, x, 0)
    network.open(1, [0, 1])
    network.train()(x, 1).sum().backward()
    first = network.weight_stores[0]
    kind, weight_in = type(first), type(first).weight_in
    monkeypatch.setattr(
        kind, "weight_in", lambda self, section: weight_in(self, section) * (1 + 1e-3)
    )
    sections = [dict(other.sections) for other in network.weight_stores]
    with pytest.raises(TaskStateError, match=r"task 1 is not finished.*answers the last"):
        network.commit()
    assert network.open_task == 1
    assert network.tasks == [0]
    assert [dict(other.sections) for other in network.weight_stores] == sections
    monkeypatch.undo()
    network.commit()
    assert network.tasks == [0, 1]
    assert torch.equal(logits_of(network, x, 0), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_commit_refuses_answers_that_are_not_finite_and_the_task_stays_open(value):
    class Diverging(nn.Module):
        """Answers well in training only, as norms whose statistics do not fit do."""

        def forward(self, x):
            return x if self.training else x * value

    x, network = torch.randn(8, 6), TaskNetwork(nn.Sequential(Diverging(), *mlp()))
    network.open(0, [0, 1])
    network.train()(x, 0).sum().backward()
    with pytest.raises(NonFiniteError, match=r"task 0 is not finished.*lower the learning rate"):
        network.commit()
    assert network.open_task == 0
    assert network.tasks == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_commit_refuses_bytes_that_answer_without_an_end(value, monkeypatch):
    x, network = torch.randn(8, 6), TaskNetwork(mlp())
    network.open(0, [0, 1])
    network.train()(x, 0).sum().backward()
    kind = type(network.weight_stores[0])
    monkeypatch.setattr(
        kind, "weight_in", lambda self, section: torch.full_like(self.scratch, value)
    )
    with pytest.raises(TaskStateError, match=r"task 0 is not finished.*answers the last"):
        network.commit()
    assert network.open_task == 0


class Sensitive(nn.Module):
    """Makes the rounding of its weights some thousand times larger, as deep models do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(6, 48), nn.Linear(48, 48), nn.Linear(48, 2)

    def forward(self, x):
        return self.head(torch.sin(2000 * self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_a_commit_takes_what_rounding_explains_and_no_more(store, monkeypatch):
    network, x = TaskNetwork(Sensitive(), store), torch.randn(8, 6)
    kind, weight_in = type(network.weight_stores[0]), type(network.weight_stores[0]).weight_in

    def train(task):
        for other in network.weight_stores:
            get_ready(other)
        network.open(task, [0, 1])
        network.train()(x, task).sum().backward()

    for task in range(3):
        train(task)
        finish(network)
    train(3)
    monkeypatch.setattr(
        kind, "weight_in", lambda self, section: weight_in(self, section) * (1 + 1e-4)
    )
    with pytest.raises(TaskStateError, match=r"task 3 is not finished.*answers the last"):
        finish(network)


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_a_section_is_looked_into_without_a_change(store):
    x = torch.randn(8, 6)
    network = TaskNetwork(mlp(), store)
    learn(network, x, 0)
    network.open(1, [0, 1])
    network.train()(x, 1).sum().backward()
    for kept in network.weight_stores:
        section, before = kept.encode(), kept.state_dict()
        weight = kept.weight_in(section)
        after = kept.state_dict()
        if kept.kind == "factored":  # in training, terms are added on to the earlier ones' sum
            torch.testing.assert_close(weight, kept.weight().detach())
        else:
            assert torch.equal(weight, kept.weight().detach())
        assert [*before] == [*after]
        assert kept.encode() == section
        assert all(
            torch.equal(before[name], after[name])
            for name in before
            if isinstance(before[name], torch.Tensor)
        )


def test_an_attribute_that_changes_late_is_noticed_at_the_commit():
    class Warming(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps, self.scale = 0, 1.0

        def forward(self, x):
            self.steps += self.training
            if self.steps > 2:
                self.scale = 1.5
            return x * self.scale

    network = TaskNetwork(nn.Sequential(Warming(), *mlp()))
    with pytest.raises(TaskStateError, match=r"depend on '0.steps', '0.scale'"):
        learn(network, torch.randn(8, 6), 0, steps=4)
    assert network.open_task == 0


def test_a_task_that_was_never_run_is_committed():
    network = TaskNetwork(mlp())
    network.open(0, [0, 1])
    network.commit()
    assert network.tasks == [0]
