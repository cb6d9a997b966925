"""What a plugin changes of a model and no task keeps: said after the epoch, refused at the end."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from avalanche.core import SupervisedPlugin
from streams_for_tests import make_stream
from torch import nn

from avalanche_compress import CACL, PackNet, TaskStateError
from avalanche_compress.errors import UnsupportedModuleError


class Annealed(nn.Module):
    """Answers by an attribute, a buffer and a frozen part."""

    def __init__(self):
        super().__init__()
        self.temperature, self.steps = 1.0, 0
        self.register_buffer("scale", torch.ones(()))
        self.body, self.teacher, self.head = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(8, 2)
        self.teacher.requires_grad_(False)

    def forward(self, x):
        self.steps += self.training
        hidden = self.body(x.flatten(1)) + self.teacher(x.flatten(1))
        return self.head(torch.relu(hidden) * self.scale / self.temperature)


class Change(SupervisedPlugin):
    """Changes a model after the first epoch, and puts it back after the third."""

    def __init__(self, change, back=False):
        super().__init__()
        self.change, self.back = change, back

    def after_training_epoch(self, strategy, *args, **kwargs):
        if strategy.clock.train_exp_epochs == 0:
            self.change(strategy.network.backbone, 0.5)
        elif self.back and strategy.clock.train_exp_epochs == 2:
            self.change(strategy.network.backbone, 2.0)


def anneal(model, by):
    model.temperature *= by


def scale(model, by):
    model.scale *= by


def move(model, by):
    with torch.no_grad():
        model.teacher.weight *= by


def train(method, *plugins, seen=None):
    torch.manual_seed(0)
    model = Annealed()
    strategy = method(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05), train_mb_size=20,
        train_epochs=4, evaluator=None, plugins=list(plugins),
    )  # fmt: skip
    stream = make_stream(2).train_stream
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for experience in stream:
                strategy.train(experience)
        finally:
            said = [str(w.message) for w in caught if "is refused at its end" in str(w.message)]
            if seen is not None:
                seen += said
    return strategy.network


@pytest.mark.parametrize("method", [PackNet, CACL])
@pytest.mark.parametrize(
    ("change", "said", "error"),
    [
        (anneal, "depend on 'temperature', 'steps'", "depend on 'temperature', 'steps'"),
        (scale, "'scale' has changed.*put it into a module", "scale changed.*put it into a module"),
        (move, r"'teacher.weight' has changed.*exclude=\('teacher',\)", "teacher.weight changed"),
    ],
)
def test_it_is_said_after_the_epoch_and_refused_at_the_end(method, change, said, error):
    seen = []
    with pytest.raises(TaskStateError, match=error):
        train(method, Change(change), seen=seen)
    assert len(seen) == 1
    assert re.search(said, seen[0])


@pytest.mark.parametrize("change", [anneal, scale, move])
def test_what_is_as_before_at_the_end_is_kept(change):
    seen = []
    assert train(PackNet, Change(change, back=True), seen=seen).tasks == [0, 1]
    assert len(seen) == 2  # once a task


def test_nothing_is_said_of_what_answers_do_not_depend_on():
    seen = []
    assert train(PackNet, seen=seen).tasks == [0, 1]
    assert not seen


def test_the_whole_model_cannot_be_excluded():
    model = Annealed()
    with pytest.raises(UnsupportedModuleError, match="names the model itself"):
        PackNet(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), exclude=("",))


def test_what_all_tasks_share_may_be_of_inference_mode():
    """Such a tensor has no count of changes."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 2)
            with torch.inference_mode():
                self.register_buffer("scale", torch.ones(64))

        def forward(self, x):
            return self.head(torch.relu(self.body(x.flatten(1) * self.scale.clone())))

    model = Scaled()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    strategy = PackNet(model=model, optimizer=sgd, train_mb_size=20, evaluator=None)
    assert strategy.network.static_tensors().keys() == {"scale"}
