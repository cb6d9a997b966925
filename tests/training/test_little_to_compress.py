"""Models of which nothing, or little, is compressed or trained, such as heads on frozen bodies."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from avalanche.core import SupervisedPlugin
from streams_for_tests import CLASSES, OURS, check_old_logits_stay, make_stream
from torch import nn

from avalanche_compress import TaskStateError


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 2)
    )


def frozen_body():
    model = mlp()
    model[:5].requires_grad_(False)
    return model


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(16, 64) / 8), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(torch.relu(nn.functional.linear(x.flatten(1), self.weight)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 12, num_layers=2, bidirectional=True, proj_size=6, batch_first=True)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.head(self.rnn(x.squeeze(1))[0][:, -1])


def build(name, model, epochs=2, plugins=(), **options):
    return OURS[name](
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=32,
        evaluator=None,
        plugins=list(plugins),
        **options,
    )


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    ("model", "options", "stores"),
    [
        (frozen_body, {}, 0),
        (Bare, {}, 0),
        (Bare, {"include": ("weight",)}, 1),
        (Recurrent, {"exclude": ("rnn",)}, 0),
        (Recurrent, {}, 12),
        (partial(nn.Sequential, nn.Flatten(), nn.Linear(64, CLASSES)), {}, 0),
    ],
    ids=["frozen body", "bare", "included", "excluded LSTM", "LSTM", "head alone"],
)
def test_a_stream_is_learned_without_forgetting(name, model, options, stores, tmp_path):
    torch.manual_seed(0)
    assert len(build(name, copy.deepcopy(model()), **options).network.weight_stores) == stores
    check_old_logits_stay(
        lambda: build(name, copy.deepcopy(model()), **options), make_stream(), model, tmp_path
    )


class FrozenAtFirst(SupervisedPlugin):
    """The body trains from the second epoch of each task on."""

    def before_training_epoch(self, strategy, *args, **kwargs):
        trained = strategy.clock.train_exp_epochs > 0
        for module in strategy.model.backbone[:5]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(trained)


@pytest.mark.parametrize("name", OURS)
def test_a_body_that_is_frozen_at_first_trains_later(name):
    torch.manual_seed(0)
    strategy, before = build(name, mlp(), epochs=4, plugins=[FrozenAtFirst()]), {}
    for task, experience in enumerate(make_stream(2).train_stream):
        strategy.train(experience)
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        before[task] = strategy.network.own_logits(x, task)
        assert torch.equal(strategy.network.own_logits(x, 0), before[0])
    weights = [strategy.network.weight_of("1.weight", task) for task in (0, 1)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("name", OURS)
def test_a_body_that_is_frozen_after_a_task_stays_as_it_is(name):
    torch.manual_seed(0)
    strategy = build(name, mlp(), epochs=3)
    first, second = make_stream(2).train_stream
    strategy.train(first)
    strategy.network.backbone[:5].requires_grad_(False)
    x = torch.randn(4, 1, 8, 8)
    old = strategy.network.own_logits(x, 0)
    strategy.train(second)
    assert torch.equal(strategy.network.own_logits(x, 0), old)
    assert torch.equal(strategy.network.eval().own_logits(x, 0), old)
    for store in strategy.network.weight_stores:
        assert store.scratch.grad is None
    if name in ("cacl", "halrp"):  # the others keep a part of what is there
        first, second = (strategy.network.weight_of("1.weight", task) for task in (0, 1))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_what_was_frozen_before_the_conversion_must_stay_so(name):
    strategy = build(name, frozen_body())
    first = make_stream(1).train_stream[0]
    strategy.network.backbone.requires_grad_(True)
    with pytest.raises(TaskStateError, match=r"1\.weight was frozen.*freeze it again"):
        strategy.train(first)
    strategy = build(name, frozen_body(), plugins=[FrozenAtFirst()])
    with pytest.raises(TaskStateError, match=r"1\.weight was frozen.*freeze it again"):
        strategy.train(first)
