"""A pretrained model keeps what it can until the first step, and for later tasks."""

from __future__ import annotations

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from streams_for_tests import OURS, inputs_of, make_stream
from torch import nn

from avalanche_compress import WSN


def pretrained(stream):
    """A model that has learned the first task of a stream by itself."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16),
        nn.ReLU(), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 2),
    )  # fmt: skip
    x, y = inputs_of(stream[0]), torch.tensor(stream[0].dataset.targets[:])
    adam = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(12):
        for rows in torch.randperm(len(x)).split(16):
            adam.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            adam.step()
    return model.eval()


class AtStart(SupervisedPlugin):
    """What a network's answers are with the pretrained head before the first step of each task."""

    def __init__(self, head, x):
        super().__init__()
        self.head, self.x, self.answers = copy.deepcopy(head.state_dict()), x, {}

    @torch.no_grad()
    def before_training_iteration(self, strategy, *args, **kwargs):
        network = strategy.network
        if network.open_task in self.answers:
            return
        fresh = copy.deepcopy(network.head.state_dict())
        network.head.load_state_dict(self.head)
        network.eval()
        self.answers[network.open_task] = network.own_logits(self.x, network.open_task).argmax(1)
        network.train()
        network.head.load_state_dict(fresh)


@pytest.mark.parametrize("name", OURS)
def test_every_task_starts_with_what_was_pretrained(name):
    stream = make_stream(2, samples=120, seed=3)
    model, test = pretrained(stream.train_stream), stream.test_stream[0]
    x, y = inputs_of(test), torch.tensor(test.dataset.targets[:])
    with torch.no_grad():
        before = (model(x).argmax(1) == y).float().mean()
    assert before > 0.9
    watch = AtStart(model[-1], x)
    strategy = OURS[name](
        model=model, optimizer=torch.optim.Adam(model.parameters(), 1e-4), train_mb_size=16,
        train_epochs=2, evaluator=None, plugins=[watch],
    )  # fmt: skip
    for experience in stream.train_stream:
        strategy.train(experience)
    tasks = (0, 1) if name != "ada_qpacknet" else (0,)  # its later tasks start where it has room
    for task in tasks:
        assert (watch.answers[task] == y).float().mean() >= 0.9 * before


def test_scores_may_start_at_random_as_in_the_public_code():
    weights = {}
    for how in ("magnitude", "random"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(30, 20), torch.nn.ReLU(), torch.nn.Linear(20, 2)
        )
        adam = torch.optim.Adam(model.parameters())
        strategy = WSN(model=model, optimizer=adam, score_init=how, evaluator=None)
        (store,) = strategy.network.weight_stores
        weights[how] = store.scratch.detach().abs(), store.scores.detach()
    assert torch.equal(*weights["magnitude"])
    weight, scores = weights["random"]
    assert not torch.equal(weight, scores.abs())
    assert scores.min() < 0 < scores.max() <= 30**-0.5


class FirstNorms(SupervisedPlugin):
    """The affine of a norm before the first step of each task."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.seen = norm, {}

    def before_training_iteration(self, strategy, *args, **kwargs):
        start = self.norm.weight.detach().clone(), self.norm.bias.detach().clone()
        self.seen.setdefault(strategy.network.open_task, start)


@pytest.mark.parametrize("name", ["lora", "halrp"])
def test_where_no_weight_is_compressed_every_task_starts_from_the_given_norms(name):
    stream = make_stream(3, samples=60, seed=3)
    model = pretrained(stream.train_stream)
    given = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    for layer in (model[0], model[3], model[7]):
        layer.weight.requires_grad_(False)
    watch = FirstNorms(model[1])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    strategy = OURS[name](
        model=model, optimizer=torch.optim.Adam(trained, 0.05), train_mb_size=16, train_epochs=2,
        base="given", evaluator=None, plugins=[watch],
    )  # fmt: skip
    for experience in stream.train_stream:
        strategy.train(experience)
        assert not torch.equal(
            strategy.network.materialise(experience.task_label)[1].bias, given[1]
        )
    for start in watch.seen.values():
        assert torch.equal(start[0], given[0])
        assert torch.equal(start[1], given[1])
