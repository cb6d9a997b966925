"""What the optimiser is given, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from streams_for_tests import OURS, logits, make_stream
from torch import nn

from avalanche_compress import TaskStateError


def with_biases() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)
    )


def muon(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    return torch.optim.Muon(matrices, lr=0.02)


@pytest.mark.parametrize("build", OURS.values(), ids=OURS)
def test_what_an_optimiser_cannot_hold_stays_out_of_it(build):
    stream, model = make_stream(2), with_biases()
    optimizer = muon(model)
    strategy, known = (
        build(model=model, optimizer=optimizer, train_mb_size=16, train_epochs=1, evaluator=None),
        [],
    )
    for task, experience in enumerate(stream.train_stream):
        with pytest.warns(UserWarning, match=r"Muon takes no parameters of the shape of"):
            strategy.train(experience)
        now = logits(strategy.model, stream.test_stream, range(task + 1))
        for before, after in zip(known, now):
            assert torch.equal(before, after)
        known = now
    assert {p.dim() for group in optimizer.param_groups for p in group["params"]} == {2}
    trained, start = strategy.network.materialise(0), with_biases()
    assert torch.equal(trained[1].bias, start[1].bias)
    assert not torch.equal(trained[1].weight, start[1].weight)


class MuonWithAdam(torch.optim.Adam):
    """As the public ones: groups say ``use_muon``, and those that do take matrices only."""

    def step(self, closure=None):
        for group in self.param_groups:
            assert not group["use_muon"] or all(p.dim() > 1 for p in group["params"])
        return super().step(closure)


@pytest.mark.parametrize("build", OURS.values(), ids=OURS)
def test_vectors_do_not_join_a_group_that_is_flagged_for_matrices(build):
    stream, model = make_stream(2), with_biases()
    matrices = [model[1].weight, model[3].weight]
    others = [model[1].bias, model[3].bias, *model[5].parameters()]
    optimizer = MuonWithAdam(
        [{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}], lr=0.01
    )
    options = {"train_mb_size": 16, "train_epochs": 2, "evaluator": None}
    strategy = build(model=model, optimizer=optimizer, **options)
    for experience in stream.train_stream:
        strategy.train(experience)
    trained, start = strategy.network.materialise(0), with_biases()
    for layer in (1, 3):
        assert not torch.equal(trained[layer].weight, start[layer].weight)
        assert not torch.equal(trained[layer].bias, start[layer].bias)


@pytest.mark.parametrize("build", OURS.values(), ids=OURS)
def test_an_optimiser_that_asks_for_a_closure_is_refused_by_name(build):
    model = with_biases()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(TaskStateError, match="LBFGS computes the loss several times"):
        build(model=model, optimizer=torch.optim.LBFGS(model.parameters()))
    for parameter, value in zip(model.parameters(), before):
        assert torch.equal(parameter, value)
