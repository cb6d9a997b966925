"""A finished task answers from a module of its own, whatever else is evaluated or trained."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections import deque
from functools import cached_property, partial

import pytest
import torch
from stores_for_tests import get_ready, of_methods, prune
from torch import nn

from avalanche_compress import TaskNetwork, load_archive, save_archive
from avalanche_compress.core.store import Place
from avalanche_compress.core.structure import Structure
from avalanche_compress.core.views import run_with_features
from avalanche_compress.errors import UnsupportedModuleError
from avalanche_compress.inference.task_inference import TaskInference
from avalanche_compress.methods.subnetworks.store import MaskedStore

STORES = of_methods()


def finish(network):
    for store in network.weight_stores:
        prune(store)
    network.commit()


def learn(network, x, task, classes=(0, 1), steps=2):
    for store in network.weight_stores:
        get_ready(store)
    network.open(task, classes)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    y = torch.tensor(sorted(classes))[torch.arange(len(x)) % len(classes)]
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x, task), y).backward()
        optimizer.step()
    finish(network)
    network.eval()


def learned(model, x, store=MaskedStore, tasks=3):
    network = TaskNetwork(model, store)
    for task in range(tasks):
        learn(network, x + task, task)
    return network


@torch.no_grad()
def logits_of(network, x, task):
    return network.eval()(x, task).clone()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
    )


# ---------------------------------------------------------------- threads


@pytest.fixture
def switching():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run_threads(*functions):
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_threads_answer_tasks_mixed_and_evict_each_other(store, switching):
    x = torch.randn(16, 6)
    network = learned(mlp(), x, store)
    wanted = [logits_of(network, x, task) for task in range(3)]
    labels = torch.arange(16) % 3
    mixed = logits_of(network, x, labels)
    inferred = TaskInference("energy")(network, x).logits
    features = [run_with_features(network, x, task)[1] for task in range(3)]

    def serve(task):
        with torch.no_grad():
            for _ in range(25):
                assert torch.equal(network(x, task), wanted[task])

    def serve_mixed():
        for _ in range(15):
            assert torch.equal(logits_of(network, x, labels), mixed)

    def infer():
        for _ in range(15):
            assert torch.equal(TaskInference("energy")(network, x).logits, inferred)

    def read_features(task):
        for _ in range(15):
            assert torch.equal(run_with_features(network, x, task)[1], features[task])

    run_threads(partial(serve, 0), partial(serve, 1), serve_mixed, infer, partial(read_features, 2))


def test_a_task_is_served_while_the_next_one_is_trained(switching):
    x = torch.randn(16, 6)
    network = learned(nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.3), *mlp()), x, tasks=2)
    wanted = [logits_of(network, x, task) for task in range(2)]
    done = threading.Event()

    def serve(task):
        while not done.is_set():
            with torch.no_grad():
                assert torch.equal(network(x, task), wanted[task])

    def train():
        try:
            learn(network, x, 2, steps=30)
        finally:
            done.set()

    run_threads(train, partial(serve, 0), partial(serve, 1))


# ---------------------------------------------------------------- models that derive and cache


class Cached(nn.Module):
    """Keeps a table of its weights while it is evaluated, as LeViT does."""

    def __init__(self, eager):
        super().__init__()
        torch.manual_seed(0)
        self.eager = eager
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 2)
        self.table = nn.Parameter(torch.randn(16))
        self.kept = None

    def train(self, mode=True):
        super().train(mode)
        self.kept = self.derive() if self.eager and not mode else None
        return self

    def derive(self):
        return nn.functional.normalize(self.body.weight), self.table.exp()

    def forward(self, x):
        weight, scale = self.derive() if self.kept is None else self.kept
        if not self.training:
            self.kept = weight, scale
        return self.head(torch.relu(nn.functional.linear(x, weight, self.body.bias)) * scale)


class ComputedOnce(nn.Module):
    """Derives a weight in a property that is computed once and never dropped."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 2)

    @cached_property
    def normalised(self):
        return nn.functional.normalize(self.body.weight).detach()

    def forward(self, x):
        weight = nn.functional.normalize(self.body.weight) if self.training else self.normalised
        return self.head(torch.relu(nn.functional.linear(x, weight, self.body.bias)))


class NeverDropped(ComputedOnce):
    """Keeps it where nobody but its author knows what it is."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    @property
    def normalised(self):
        if "weight" not in self.kept:
            self.kept["weight"] = nn.functional.normalize(self.body.weight).detach()
        return self.kept["weight"]


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_a_property_that_is_computed_once_is_that_of_the_task(store, tmp_path):
    model, x = ComputedOnce(), torch.randn(8, 6)
    with torch.no_grad():
        model.eval()(x)  # a user looks at it before the training
    assert "normalised" in vars(model)
    network = learned(model, x, store)
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", ComputedOnce)
    for task in (2, 0, 1, 0):
        plain = ComputedOnce().eval()
        plain.load_state_dict(network.materialise(task).state_dict())
        with torch.no_grad():
            wanted = plain(x)
        for other in (network, loaded, copy.deepcopy(network)):
            assert torch.equal(logits_of(other, x, task), wanted)


def test_what_a_model_never_drops_is_refused_in_the_first_step():
    network = TaskNetwork(NeverDropped(), example=torch.randn(4, 6))
    network.open(0, [0, 1])
    with pytest.raises(UnsupportedModuleError, match="derived from weights of before"):
        network.train()(torch.randn(8, 6), 0)


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
@pytest.mark.parametrize("eager", [False, True])
def test_models_that_cache_answer_alike_in_any_order_and_in_any_copy(eager, store, tmp_path):
    x = torch.randn(8, 6)
    network = learned(Cached(eager), x, store)
    network.train()
    wanted = {task: logits_of(network, x, task) for task in (1, 0, 2)}
    assert not torch.equal(wanted[0], wanted[1])
    save_archive(network, tmp_path / "file")
    fresh = TaskNetwork(Cached(eager), store)
    fresh.load_state_dict(network.state_dict())
    others = {
        "itself": network,
        "archive": load_archive(tmp_path / "file", partial(Cached, eager)),
        "deepcopy": copy.deepcopy(network),
        "pickle": pickle.loads(pickle.dumps(network)),
        "state_dict": fresh,
    }
    for name, other in others.items():
        for task in (2, 0, 1, 0):
            assert torch.equal(logits_of(other, x, task), wanted[task]), name
    for task in (2, 0):
        with torch.no_grad():
            assert torch.equal(network.materialise(task)(x), wanted[task])


def test_a_cache_of_the_open_task_is_dropped_when_its_weights_change():
    network, x = TaskNetwork(Cached(False)), torch.randn(8, 6)
    network.open(0, [0, 1])
    network.eval()
    with torch.no_grad():
        network(x, 0)
        network.weight_stores[0].prune(0.8)
        pruned = network(x, 0)
    network.commit()
    assert torch.equal(logits_of(network, x, 0), pruned)


def test_a_cache_in_evaluation_is_trained_through_afresh():
    """Centroids are trained in evaluation mode; a graph that was kept would be freed by then."""
    network, x = TaskNetwork(Cached(False)), torch.randn(8, 6)
    network.open(0, [0, 1])
    network.eval()
    for _ in range(2):
        network(x, 0).sum().backward()


# ---------------------------------------------------------------- names, aliases, attributes


class Reflective(nn.Module):
    """Refers to its modules and to a weight in many ways."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.aliases = {"nested": [self.body.weight], "layers": (self.body,)}
        self.queue = deque([self.body.bias], maxlen=3)
        self.bound = self.scaled

    def scaled(self, x):
        return x * self.body.weight.abs().mean()

    def forward(self, x):
        return self.head(self.bound(self.aliases["layers"][0](x)))


def test_a_view_is_the_task_by_every_name():
    x = torch.randn(8, 6)
    network = learned(Reflective(), x, tasks=3)
    assert len({float(logits_of(network, x, task).mean()) for task in range(3)}) == 3
    network.activate(0, 1, 2)
    for task in range(3):
        view, weight = network.views[task].model, network.weight_of("body.weight", task)
        ways = [
            view.body.weight,
            dict(view.named_parameters())["body.weight"],
            view.get_parameter("body.weight"),
            next(view.parameters()),
            view.state_dict()["body.weight"],
            view.aliases["nested"][0],
            view.aliases["layers"][0].weight,
            view.bound.__self__.body.weight,
        ]
        assert all(torch.equal(way, weight) for way in ways)
        assert view.queue[0] is view.body.bias
        assert view.bound.__self__ is view
        assert not any(parameter.requires_grad for parameter in view.parameters())


def test_views_are_in_no_state_and_in_no_copy():
    x = torch.randn(8, 6)
    network = learned(mlp(), x)
    names = [*network.state_dict()], [name for name, _ in network.named_modules()]
    network.activate(0, 1, 2)
    run_with_features(network, x, 0)
    assert names == ([*network.state_dict()], [name for name, _ in network.named_modules()])
    assert copy.deepcopy(network).views.active == {}
    assert pickle.loads(pickle.dumps(network)).views.active == {}


def test_what_all_tasks_share_is_in_memory_once():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.register_buffer("table", torch.randn(6), persistent=False)
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.body(self.frozen(x) + self.table))

    network = learned(Frozen(), torch.randn(8, 6), tasks=2)
    network.activate(0, 1)
    first, second = network.views[0].model, network.views[1].model
    there = network.backbone.frozen.weight.data_ptr()
    assert first.frozen.weight.data_ptr() == second.frozen.weight.data_ptr() == there
    assert first.table.data_ptr() == second.table.data_ptr()
    plain = network.materialise(0)
    assert plain.frozen.weight.data_ptr() != there
    assert plain.table.data_ptr() != first.table.data_ptr()


def test_an_activated_task_is_built_once():
    network, x = learned(mlp(), torch.randn(8, 6)), torch.randn(8, 6)
    network.activate(0, 1)
    views = [network.views[task].model for task in range(2)]
    logits_of(network, x, 0), logits_of(network, x, 1)
    assert [network.views[task].model for task in range(2)] == views
    network.activate(1, 2)
    assert [*network.views.active] == [1, 2]
    assert network.views[1].model is views[1]


# ---------------------------------------------------------------- hooks


def test_hooks_of_the_user_see_finished_tasks_and_can_be_removed():
    x = torch.randn(8, 6)
    network = learned(mlp(), x, tasks=2)
    seen = []
    network.activate(0)
    handle = network.backbone[0].register_forward_hook(lambda module, args, out: seen.append(out))
    logits_of(network, x, 0)
    with torch.no_grad():
        expected = nn.functional.linear(x, network.weight_of("0.weight", 0))
    assert len(seen) == 1
    assert torch.allclose(seen[0] - seen[0].mean(0), expected - expected.mean(0), atol=1e-5)
    handle.remove()
    logits_of(network, x, 1), logits_of(network, x, 0)
    assert len(seen) == 1


class Gated(nn.Module):
    """A hook, a lambda and a bound method read the weights of modules that they refer to."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.gate, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        gate, inner = self.gate, self.body.forward
        if way == "hook":
            self.body.register_forward_hook(lambda module, args, out: out * gate.weight.mean(1))
        elif way == "method":
            self.body.register_forward_pre_hook(self.gated)
        elif way == "closure":
            self.body.forward = lambda x: inner(x) * gate.weight.mean(1)
        elif way == "default":
            self.act = lambda x, gate=gate: x * gate.weight.mean(1)

    def gated(self, module, args):
        return args[0] * self.gate.weight.mean(1)

    def forward(self, x):
        x = self.body(x)
        return self.head(self.act(x) if hasattr(self, "act") else x)


@pytest.mark.parametrize("way", ["hook", "method", "closure", "default"])
def test_functions_follow_to_the_weights_of_the_task(way, tmp_path):
    x = torch.randn(8, 6)
    network = learned(Gated(way), x, STORES["wsn"], tasks=1)
    before = logits_of(network, x, 0)
    learn(network, x, 1, steps=5)
    assert torch.equal(logits_of(network, x, 0), before)
    assert not torch.equal(logits_of(network, x, 1), before)
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", partial(Gated, way))
    assert torch.equal(logits_of(loaded, x, 0), before)


# ---------------------------------------------------------------- structure


def test_what_cannot_be_copied_is_shared():
    model = mlp()
    model.lock, model.generator = threading.Lock(), (number for number in range(3))
    twin, _ = Structure(model).copy([])
    assert twin.lock is model.lock
    assert twin.generator is model.generator


def test_a_copy_has_containers_and_cycles_of_its_own():
    model = mlp()
    model.cache = {"self": [model, model[0]]}
    model.cache["again"] = model.cache
    twin, parts = Structure(model).copy([])
    assert twin.cache["self"] == [twin, twin[0]]
    assert twin.cache["again"] is twin.cache
    assert parts[id(model[0])] is twin[0]
    assert twin[0] is not model[0]


def test_tied_parameters_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    new = torch.ones(4, 4)
    twin, _ = Structure(model).copy([(Place(model[i], "weight"), new) for i in range(2)])
    assert twin[0].weight is twin[1].weight
    assert torch.equal(twin[0].weight, new)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_compute_with_the_tensors_of_the_task(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(6, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    x = torch.randn(8, 5, 6)
    network = learned(Recurrent(), x, tasks=2)
    for task in range(2):
        with torch.no_grad():
            expected = network.materialise(task)(x)
        assert torch.equal(logits_of(network, x, task), expected)
    assert not torch.equal(logits_of(network, x, 0), logits_of(network, x, 1))


# ---------------------------------------------------------------- compilation


@pytest.mark.parametrize("active", [False, True])
def test_a_compiled_network_answers_every_task(active, tmp_path):
    torch._dynamo.reset()
    x = torch.randn(8, 6)
    network = learned(mlp(), x)
    wanted = [logits_of(network, x, task) for task in range(3)]
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", mlp)
    if active:
        loaded.activate(0, 1, 2)
    compiled = torch.compile(loaded, backend="eager")
    with torch.no_grad():
        for task in (0, 2, 1, 0):
            assert torch.allclose(compiled(x, task), wanted[task], atol=1e-6)


def images_net(last=False):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    model.append(nn.Linear(32, 2))
    model[3].requires_grad_(False)
    return model.to(memory_format=torch.channels_last) if last else model


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_memory_formats_of_models_change_no_bit(store, tmp_path):
    model = images_net(last=True)
    network, x = TaskNetwork(model, store), torch.randn(8, 3, 8, 8)
    for task in range(2):
        learn(network, x, task)
    save_archive(network, tmp_path / "file")
    with torch.no_grad():
        logits = [network.eval()(x, task) for task in network.tasks]
        for last in (False, True):
            loaded = load_archive(tmp_path / "file", partial(images_net, last))
            assert all(torch.equal(loaded(x, t), logits[t]) for t in network.tasks)
        network.to(memory_format=torch.channels_last)
        assert all(torch.equal(network(x, t), logits[t]) for t in network.tasks)


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_a_file_that_is_read_to_answer_can_be_trained_on(store, tmp_path):
    network, x = TaskNetwork(mlp(), store), torch.randn(8, 6)
    learn(network, x, 0)
    save_archive(network, tmp_path / "file")
    with torch.no_grad():
        logits = network.eval()(x, 0)
    with torch.inference_mode():
        loaded = load_archive(tmp_path / "file", mlp)
        assert torch.equal(loaded(x, 0), logits)
    learn(loaded, x, 1)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x, 0), logits)


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_the_default_device_is_of_no_account(store, tmp_path):
    network, x = TaskNetwork(mlp(), store), torch.randn(8, 6)
    learn(network, x, 0)
    with torch.no_grad():
        logits = network.eval()(x, 0)
    model = mlp()
    with torch.device("meta"), torch.no_grad():  # where a tensor has no values
        save_archive(network, tmp_path / "file")
        loaded = load_archive(tmp_path / "file", lambda: model)
        loaded.verify()
        assert torch.equal(loaded(x, 0), logits)
        network.views.clear()
        assert torch.equal(network(x, 0), logits)


@pytest.mark.parametrize("trained_compiled", [True, False])
@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_a_compiled_model_and_a_plain_one_read_each_others_files(store, trained_compiled, tmp_path):
    torch._dynamo.reset()

    def build(is_compiled):
        model = mlp()
        model[2].requires_grad_(False)
        return torch.compile(model, backend="eager") if is_compiled else model

    excluded = "_orig_mod.0" if trained_compiled else "0"
    network = TaskNetwork(build(trained_compiled), store, exclude=[excluded])
    x = torch.randn(8, 6)
    learn(network, x, 0)
    save_archive(network, tmp_path / "file")
    for is_compiled in (True, False):
        loaded = load_archive(tmp_path / "file", partial(build, is_compiled))
        with torch.no_grad():
            assert torch.equal(loaded(x, 0), network(x, 0))
