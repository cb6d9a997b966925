"""How a task is judged on held-out samples, and in batches of what size."""

from __future__ import annotations

import pytest
import torch
from avalanche.core import SupervisedPlugin
from streams_for_tests import make_stream, mlp
from torch import nn

from avalanche_compress import PackNet, ValidationPlugin


class Judge(SupervisedPlugin):
    """Asks how good the open task is, and computes it by hand, before the first epoch ends."""

    def __init__(self, validation):
        super().__init__()
        self.validation = validation
        self.asked, self.by_hand, self.sizes = [], [], []

    def before_training_epoch(self, strategy, *args, **kwargs):
        network, held_out = strategy.network, self.validation.batches
        quality = self.validation.quality(strategy)
        alone = self.validation.accuracy(network), self.validation.loss(strategy)
        self.asked.append((*quality, *alone))
        self.sizes.append([len(y) for _, y in held_out])
        network.eval()
        with torch.no_grad():
            new = self._columns(network, *map(torch.cat, zip(*held_out)))
            data = strategy.adapted_dataset.eval()
            x = torch.stack([data[i][0] for i in range(len(data))])
            y = torch.tensor([int(data[i][1]) for i in range(len(data))])
            familiar = self._columns(network, x, y)
        network.train()
        summed = [nn.functional.cross_entropy(*part, reduction="sum") for part in (new, familiar)]
        accuracy = 100 * float((new[0].argmax(1) == new[1]).float().mean())
        samples = len(new[1]) + len(y)
        loss = float(sum(summed)) / samples
        self.by_hand.append((accuracy, loss, accuracy, float(summed[0]) / len(new[1])))

    def _columns(self, network, x, y):
        classes = network.classes_of(network.open_task)
        return network.own_logits(x, network.open_task), y - classes[0]


@pytest.mark.parametrize("eval_mb_size", [None, 1, 7])
def test_the_quality_of_a_task_is_that_of_all_samples_in_one_batch(eval_mb_size):
    stream = make_stream()
    validation = ValidationPlugin(0.3)
    judge = Judge(validation)
    model = mlp()
    sizes = {} if eval_mb_size is None else {"eval_mb_size": eval_mb_size}
    strategy = PackNet(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=5,
        plugins=[validation, judge],
        evaluator=None,
        **sizes,
    )
    strategy.train(stream.train_stream[0])
    for asked, by_hand in zip(judge.asked, judge.by_hand, strict=True):
        assert asked == pytest.approx(by_hand, rel=1e-5)
    # samples one by one, Avalanche's eval_mb_size if none is given, would take many times as long
    assert max(judge.sizes[0]) == max(5, eval_mb_size or 1)
