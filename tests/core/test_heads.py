"""Every layer that gives logits is a head for each task, wherever the model has registered it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from avalanche.core import SupervisedPlugin
from streams_for_tests import CLASSES, OURS, check_old_logits_stay, make_stream
from torch import nn
from torch.nn import functional as F

from avalanche_compress import (
    TaskNetwork,
    TrainingStatePlugin,
    UnsupportedModuleError,
    load_archive,
    load_training_state,
    save_archive,
)
from avalanche_compress.core.heads import layers_behind


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True))


class ConvHead(Body):
    def __init__(self, classes=CLASSES):
        super().__init__()
        self.classifier = nn.Conv2d(6, classes, 1)

    def forward(self, x):
        return torch.relu_(self.classifier(self.body(x))).mean((2, 3))


class TwoHeads(Body):
    def __init__(self, classes=CLASSES):
        super().__init__()
        self.head, self.head_dist = nn.Linear(6, classes), nn.Linear(6, classes)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return (self.head(x) + self.head_dist(x)) / 2


class Unused(Body):
    """A layer that pretraining uses is registered last; another one scales the logits."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.fc, self.scale = nn.Linear(6, classes), nn.Linear(6, 1)
        self.projection = nn.Linear(6, classes)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.fc(x) * self.scale(x).exp()


class Cosine(Body):
    """The head is not called: its weight is read."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.head = nn.Linear(6, classes, bias=False)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return 5 * F.linear(F.normalize(x), F.normalize(self.head.weight))


class ScaledLinear(nn.Linear):
    """A head with a parameter that has no row for each class."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.scale * super().forward(x)


class Scaled(Body):
    def __init__(self, classes=CLASSES):
        super().__init__()
        self.head = ScaledLinear(6, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


HEADS = {
    ConvHead: ["classifier"],
    TwoHeads: ["head", "head_dist"],
    Unused: ["fc"],
    Cosine: ["head"],
    Scaled: ["head"],
}


def build(name, model, **options):
    return OURS[name](
        model=model, optimizer=torch.optim.Adam(model.parameters(), 0.01), train_mb_size=20,
        train_epochs=2, evaluator=None, **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("classes", [CLASSES, 5])
def test_the_heads_are_the_layers_that_logits_come_from(kind, classes):
    model, x = kind(classes), torch.randn(3, 1, 8, 8)
    assert layers_behind(model, lambda: model(x)) == HEADS[kind]
    network = TaskNetwork(model, example=x)
    assert network.head_names == HEADS[kind]
    for layer in HEADS[kind]:
        assert f"{layer}.weight" in network.private.names
    shared = {store.name for store in network.weight_stores}
    assert shared.isdisjoint(f"{layer}.weight" for layer in HEADS[kind])
    assert "body.0.weight" in shared
    assert ("projection.weight" in shared) == (kind is Unused)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", OURS)
def test_strategies_find_the_heads_before_the_first_step(kind, name, tmp_path):
    torch.manual_seed(0)
    check_old_logits_stay(
        lambda: build(name, kind(5)), make_stream(samples=40), lambda: kind(5), tmp_path
    )
    watch = Optimised()
    strategy = build(name, kind(5), plugins=[watch])
    strategy.train(make_stream(1).train_stream[0])
    assert strategy.network.head_names == HEADS[kind]
    assert watch.seen


class Optimised(SupervisedPlugin):
    """The optimiser trains all parameters of the network, and no others."""

    seen = False

    def before_training_iteration(self, strategy, *args, **kwargs):
        self.seen = True
        trained = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
        assert trained <= {id(p) for p in strategy.network.parameters()}
        for store in strategy.network.weight_stores:
            assert {id(store.scratch), *map(id, store.parameters())} <= trained


@pytest.mark.parametrize("kind", HEADS)
def test_a_task_has_its_own_heads_of_the_size_of_its_classes(kind, tmp_path):
    network, x = TaskNetwork(kind(), example=torch.randn(2, 1, 8, 8)), torch.randn(4, 1, 8, 8)
    for task, classes in enumerate([(0, 1), (0, 1, 2)]):
        network.open(task, classes)
        assert network(x, task).shape == (4, len(classes))
        network.weight_stores[0].prune(0.5)
        for store in network.weight_stores[1:]:
            store.prune(0.5)
        network.commit()
    old = [network.eval()(x, task) for task in (0, 1)]
    save_archive(network, tmp_path / "file")
    again = TaskNetwork(kind())
    again.load_state_dict(network.state_dict())
    others = [load_archive(tmp_path / "file", kind), again, copy.deepcopy(network)]
    for other in (*others, pickle.loads(pickle.dumps(network))):
        assert other.head_names == HEADS[kind]
        for task in (0, 1):
            assert torch.equal(other.eval()(x, task), old[task])
    for task, width in ((0, 2), (1, 3)):
        plain = network.materialise(task)
        assert torch.equal(plain(x), old[task])
        for name in HEADS[kind]:
            layer = plain.get_submodule(name)
            assert getattr(layer, "out_features", getattr(layer, "out_channels", 0)) == width


@pytest.mark.parametrize("name", OURS)
def test_a_training_state_knows_the_heads(name, tmp_path):
    torch.manual_seed(0)
    stream = make_stream(2, samples=40)
    plugin = TrainingStatePlugin(tmp_path)
    strategy = build(name, Unused(5), plugins=[plugin])
    strategy.train(stream.train_stream[0])
    resumed = build(name, Unused(5), plugins=[TrainingStatePlugin(tmp_path)])
    position = load_training_state(resumed, tmp_path)
    for experience in stream.train_stream[position.experience :]:
        resumed.train(experience)
    assert resumed.network.head_names == ["fc"]
    assert resumed.network.tasks == [0, 1]


class Normalised(Body):
    """Its classifier is no layer: a bare weight that features are compared with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 6))

    def forward(self, x):
        return nn.functional.linear(self.body(x).mean((2, 3)), self.weight)


def test_logits_that_no_layer_gives_are_refused_by_name_before_the_first_step():
    message = r"logits of shape \(2, 2\).*the last layers are \['body\.0'\].*end the model with one"
    with pytest.raises(UnsupportedModuleError, match=message):
        TaskNetwork(Normalised(), example=torch.randn(2, 1, 8, 8))
    strategy = build("packnet", Normalised())
    with pytest.raises(UnsupportedModuleError, match=message):
        strategy.train(make_stream(1).train_stream[0])


def test_a_wrong_guess_is_named_where_a_task_is_opened_by_hand():
    network = TaskNetwork(TwoHeads())
    network.open(0, [0, 1])
    with pytest.raises(UnsupportedModuleError, match=r"only one.*head=\('head', 'head_dist'\)"):
        network(torch.randn(2, 1, 8, 8), 0)
    named = TaskNetwork(TwoHeads(), head=["head", "head_dist"])
    named.open(0, [0, 1, 2])
    assert named(torch.randn(2, 1, 8, 8), 0).shape == (2, 3)


def test_looking_for_the_heads_leaves_no_trace():
    model, x = nn.Sequential(Unused(5), nn.Identity()), torch.randn(4, 1, 8, 8)
    model.insert(1, nn.Dropout(0.5))
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    network = TaskNetwork(model.train(), example=x)
    assert network.head_names == ["0.fc"]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
