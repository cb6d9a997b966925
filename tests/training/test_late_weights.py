"""Weights that are set after a task is finished are warned of; before, they are kept."""

from __future__ import annotations

import pytest
import torch
from avalanche.core import SupervisedPlugin
from streams_for_tests import OURS, logits, make_stream, mlp


class Averaged(SupervisedPlugin):
    """Puts averaged weights into the model, as EMA and SWA do."""

    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self.put)

    @torch.no_grad()
    def put(self, strategy, *args, **kwargs):
        for parameter in strategy.network.backbone.parameters():
            parameter.mul_(0.9)


def trained(build, plugins):
    model = mlp()
    strategy = build(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_mb_size=16,
        train_epochs=1,
        evaluator=None,
        plugins=plugins,
    )
    stream = make_stream(1)
    strategy.train(stream.train_stream[0])
    return logits(strategy.network, stream.test_stream, [0])[0]


@pytest.mark.parametrize("build", OURS.values(), ids=OURS)
def test_weights_that_are_set_when_the_task_is_finished_are_warned_of(build, recwarn):
    torch.manual_seed(0)
    plain = trained(build, [])
    assert not [w for w in recwarn.list if "after_training_exp" in str(w.message)]
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="set them in after_training_epoch of the last"):
        late = trained(build, [Averaged("after_training_exp")])
    assert torch.equal(late, plain)
