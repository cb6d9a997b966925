"""What changes in plain attributes goes on after a kill, to the same bits."""

from __future__ import annotations

import functools
import random
from collections import deque

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from streams_for_tests import logits, make_stream, mlp
from torch import nn
from torch.nn import functional as F

from avalanche_compress import HALRP, PackNet, TrainingStatePlugin, load_training_state
from avalanche_compress.errors import TrainingStateError
from avalanche_compress.training.state.tree import pack, unpack


class KilledError(Exception):
    """In the middle of the second epoch of the second task."""


class Kill(SupervisedPlugin):
    state_attributes = ()
    kills = True

    def before_training_iteration(self, strategy, *args, **kwargs):
        clock = strategy.clock
        if self.kills and (clock.train_exp_counter, clock.train_exp_epochs) == (1, 1):
            raise KilledError


class Noisy(nn.Module):
    """Noise that fades, by a counter or by a generator of its own."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.kind, self.steps = nn.Linear(64, 8), kind, 0
        self.torch, self.python = torch.Generator().manual_seed(1), random.Random(1)
        self.mean, self.array, self.last = torch.zeros(()), np.zeros(2), deque([1.0], maxlen=3)
        self.scalar = np.float32(0)
        self.seen = {"steps": [0]}
        self.endless, self.foreign = [0], np.zeros(2, ">f4")
        self.endless.append(self.endless)
        self.complex, self.words = torch.zeros(1, dtype=torch.complex64), {"a": b"b", 1: 1j}
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        hidden = torch.relu(self.body(x.flatten(1)))
        if not self.training:
            return self.head(hidden)
        self.steps += 1
        self.seen["steps"][0] += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean()
        self.array += 1
        self.scalar += 1
        self.endless[0] = self.complex = self.complex + 1
        self.last.append(1 / self.steps)
        scale = {
            "counter": 1 / self.steps,
            "torch": torch.rand((), generator=self.torch),
            "python": self.python.random(),
            "tensor": self.mean,
            "array": 1 / self.array[1],
            "scalar": 1 / self.scalar,
            "deque": self.last[0],
            "nested": 1 / self.seen["steps"][0],
            "first set in training": 1 / getattr(self, "late", 1),
        }
        self.late = getattr(self, "late", 1) + 1
        return self.head(hidden + scale[self.kind])


class Warming(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps, self.inner = 0, nn.Identity()
        self.inner.smoothing = 0.3

    def forward(self, output, target):
        self.steps += 1
        self.inner.smoothing *= 0.9
        return F.cross_entropy(output, target, label_smoothing=self.inner.smoothing) / self.steps


class Callable:
    def __init__(self):
        self.mean = None

    def loss(self, output, target):
        loss = F.cross_entropy(output, target)
        self.mean = loss.item() if self.mean is None else 0.9 * self.mean + 0.1 * loss.item()
        return loss * self.mean

    __call__ = loss


def closure():
    steps, total = 0, [0.0]

    def criterion(output, target):
        nonlocal steps
        steps += 1
        total[0] += 1.0
        return F.cross_entropy(output, target) * (1 + 1 / steps + 1 / total[0])

    return criterion


def scaled(scale, output, target):
    scaled.steps = getattr(scaled, "steps", 0) + 1
    return F.cross_entropy(output, target) * scale / scaled.steps


class Counting(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        result = super().step(closure)
        self.steps += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.steps
        return result


class Own(PackNet):
    def __init__(self, **options):
        super().__init__(**options)
        self.calls = 0

    def criterion(self):
        self.calls += self.is_training
        return super().criterion() / max(1, self.calls)


class Annealing(SupervisedPlugin):
    """Lowers the probability of a dropout, and freezes a layer after an epoch."""

    state_attributes = ()

    def before_training_exp(self, strategy, *args, **kwargs):
        strategy.network.backbone.first.requires_grad_(True)

    def after_training_epoch(self, strategy, *args, **kwargs):
        strategy.network.backbone.drop.p *= 0.7
        if strategy.clock.train_exp_epochs == 0:
            strategy.network.backbone.first.requires_grad_(False)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.first(x.flatten(1)))))


def build(folder, method=PackNet, model=mlp, criterion=nn.CrossEntropyLoss, optimizer=None, *rest):
    torch.manual_seed(0)
    random.seed(0)
    scaled.__dict__.clear()
    model = model()
    optimizer = (optimizer or functools.partial(torch.optim.SGD, lr=0.1))(model.parameters())
    plugins = [TrainingStatePlugin(folder), Kill(), *(plugin() for plugin in rest)]
    return method(
        model=model, optimizer=optimizer, criterion=criterion(), train_mb_size=10,
        train_epochs=3, plugins=plugins, evaluator=None,
    )  # fmt: skip


def trained(strategy, start=0, kills=False):
    next(plugin for plugin in strategy.plugins if isinstance(plugin, Kill)).kills = kills
    stream = make_stream(2)
    for experience in stream.train_stream[start:]:
        strategy.train(experience)
    return logits(strategy.network, stream.test_stream, [0, 1])


KINDS = ["counter", "torch", "python", "tensor", "array", "scalar", "deque", "nested"]
PARTS = {
    **{kind: {"model": functools.partial(Noisy, kind)} for kind in KINDS},
    "first set in training": {"model": functools.partial(Noisy, "first set in training")},
    "module": {"criterion": Warming},
    "object": {"criterion": Callable},
    "method": {"criterion": lambda: Callable().loss},
    "closure": {"criterion": closure},
    "partial": {"criterion": lambda: functools.partial(scaled, 2.0)},
    "optimizer": {"optimizer": functools.partial(Counting, lr=0.1)},
    "strategy": {"method": Own},
    "halrp": {"method": HALRP, "model": functools.partial(Noisy, "counter")},
}


@pytest.mark.parametrize("name", PARTS)
def test_it_goes_on_to_the_same_bits(name, tmp_path):
    alone = trained(build(tmp_path / "alone", **PARTS[name]))
    killed = build(tmp_path / "killed", **PARTS[name])
    with pytest.raises(KilledError):
        trained(killed, kills=True)
    goes_on = build(tmp_path / "killed", **PARTS[name])
    position = load_training_state(goes_on, tmp_path / "killed")
    assert position == (1, 1)
    assert all(map(torch.equal, alone, trained(goes_on, 1)))


def test_options_that_a_plugin_changes_are_kept(tmp_path):
    parts = (PackNet, Dropping, nn.CrossEntropyLoss, None, Annealing)
    alone = trained(build(tmp_path / "alone", *parts))
    killed = build(tmp_path / "killed", *parts)
    with pytest.raises(KilledError):
        trained(killed, kills=True)
    goes_on = build(tmp_path / "killed", *parts)
    load_training_state(goes_on, tmp_path / "killed")
    assert goes_on.network.backbone.drop.p == pytest.approx(0.5 * 0.7**4)
    assert all(map(torch.equal, alone, trained(goes_on, 1)))


def test_only_what_training_has_changed_is_kept(tmp_path):
    """So that whoever builds another criterion for the rest has it."""
    strategy = build(tmp_path, criterion=Warming)
    trained(strategy)
    state = unpack(newest(tmp_path).read_bytes(), "file")
    assert state["attributes"].keys() <= {"criterion", "criterion.inner", "model.4"}
    assert state["attributes"]["criterion"].keys() == {"steps"}
    assert state["attributes"]["criterion.inner"].keys() == {"smoothing"}


def newest(folder):
    return max(folder.glob("*.state"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"model.9": {"steps": 1}}, "there is no model.9"),
        ({"dataset": {"steps": 1}}, "there is no dataset"),
        ({"model": {"forward": 1}}, "model.forward cannot be set"),
        ({"model": {"_parameters": {}}}, "model._parameters cannot be set"),
        ({"model": {"__class__": 1}}, "model.__class__ cannot be set"),
        ({"model.head": {"weight": 1}}, "model.head.weight cannot be set"),
        ({"model": {"steps": "1"}}, "model.steps is '1'"),
        ({"model": {"torch": torch.zeros(5056, dtype=torch.uint8)}}, "model.torch has no such"),
        ({"model": {"python": (3, (1, 2), None)}}, "model.python has no such"),
        ({"model": {"array": torch.zeros(3)}}, "does not fit"),
        ({"optimizer": {"state": {}}}, "optimizer.state cannot be set"),
        ({"optimizer": {"step": 1}}, "optimizer.step cannot be set"),
        ({"strategy": {"plugins": []}}, "strategy.plugins cannot be set"),
        ({"strategy": {"new": 1}}, "strategy.new cannot be set"),
        ([], "no state of this strategy"),
    ],
)
def test_a_file_cannot_set_anything_else(attributes, message, tmp_path):
    make = functools.partial(build, tmp_path, model=functools.partial(Noisy, "counter"))
    trained(make())
    for path in tmp_path.glob("*.state"):
        state = unpack(path.read_bytes(), path)
        path.write_bytes(pack({**state, "attributes": attributes}))
    strategy = make()
    with pytest.raises(TrainingStateError, match=message):
        load_training_state(strategy, tmp_path)
    assert strategy.network.tasks == []
    assert strategy.network.backbone.steps == 0


def test_states_of_earlier_versions_are_read(tmp_path):
    trained(build(tmp_path))
    for path in tmp_path.glob("*.state"):
        state = unpack(path.read_bytes(), path)
        del state["attributes"], state["frozen"]
        path.write_bytes(pack(state))
    assert load_training_state(build(tmp_path), tmp_path) == (1, 3)


def test_a_run_has_one_folder_wherever_the_script_goes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    strategy = build("states")
    monkeypatch.chdir(tmp_path / "elsewhere")
    trained(strategy)
    assert load_training_state(build(tmp_path / "states"), tmp_path / "states") == (1, 3)
    assert not list((tmp_path / "elsewhere").iterdir())
