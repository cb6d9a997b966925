"""Mini-batches of several tasks give what each task's samples give, and pass the body once."""

from __future__ import annotations

import copy

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import as_multitask
from avalanche.models.utils import avalanche_model_adaptation
from torch import nn

from benchmarks.runs.multi_head import MultiHead

TASKS = torch.tensor([2, 0, 1, 0, 2, 0])


class Net(nn.Module):
    def __init__(self, norm: bool):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7) if norm else nn.ReLU())
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.body(x))


def both(norm):
    """The host's model and ours with the same weights, which have met three tasks."""
    torch.manual_seed(0)
    net = Net(norm)
    models = as_multitask(copy.deepcopy(net), "head"), MultiHead(net, "head")
    samples = [(torch.zeros(task + 1, 5), torch.arange(task + 1)) for task in range(3)]
    stream = tensors_benchmark(samples, samples, task_labels=[0, 1, 2]).train_stream
    for model in models:
        for experience in stream:
            avalanche_model_adaptation(model, experience)
    models[1].load_state_dict(models[0].state_dict())
    return models


@pytest.mark.parametrize("norm", [False, True])
def test_the_logits_are_those_of_the_host_s_model(norm):
    host, ours = (model.eval() for model in both(norm))
    x = torch.randn(6, 5)
    torch.testing.assert_close(ours(x, TASKS), host(x, TASKS))
    assert torch.equal(ours(x, torch.ones(6).long()), host(x, torch.ones(6).long()))
    assert torch.equal(ours(x, 2), host(x, 2))


def test_a_task_s_only_sample_passes_a_batch_norm_with_the_others():
    host, ours = both(norm=True)
    x = torch.randn(6, 5)
    with pytest.raises(ValueError, match="more than 1 value"):
        host(x, TASKS)
    ours(x, TASKS).sum().backward()
    assert ours.model.body[1].num_batches_tracked == 1
    expected = 0.1 * ours.model.body[0](x).mean(dim=0)
    torch.testing.assert_close(ours.model.body[1].running_mean, expected)
