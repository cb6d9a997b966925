"""Which tasks are alike: an overlap that is what it says, on a scale that tells a task again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from avalanche_compress import TinySubNets
from avalanche_compress.shaping.sharing import SharingPlugin, gaussian, overlap

means, deviations = st.floats(-3, 3), st.floats(0.1, 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(means, deviations, means, deviations), min_size=1, max_size=4))
def test_overlap_is_the_integral_of_the_root_of_both_densities(features):
    x = np.linspace(-25, 25, 200_001)

    def density(mean, deviation):
        return np.exp(-((x - mean) ** 2) / (2 * deviation**2)) / (deviation * (2 * np.pi) ** 0.5)

    expected = np.mean(
        [np.trapezoid(np.sqrt(density(*f[:2]) * density(*f[2:])), x) for f in features]
    )
    p, q = (
        torch.tensor([[f[i] for f in features], [f[i + 1] ** 2 for f in features]]) for i in (0, 2)
    )
    assert float(overlap(p, q)) == pytest.approx(expected, abs=1e-4)
    assert float(overlap(p, q)) == pytest.approx(float(overlap(q, p)))


def test_features_that_are_never_active_do_not_count():
    values = torch.randn(50, 3)
    values[:, 1] = 0.0
    p, q = gaussian(values), gaussian(values + torch.tensor([2.0, 0.0, 0.0]))
    assert torch.equal(overlap(p, q), overlap(p[:, [0, 2]], q[:, [0, 2]]))
    assert float(overlap(gaussian(torch.zeros(9, 2)), gaussian(torch.zeros(9, 2)))) == 1.0


def digits(task):
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(task))
    return (x.float() / 16)[:, order], y


def test_a_task_that_comes_again_is_similar_and_another_is_not():
    found = []

    class Recorded(SharingPlugin):
        def similarity(self, network, task):
            found.append(super().similarity(network, task))
            return found[-1]

    streams = [digits(0), digits(1), digits(0)]
    first, second = ([(x[i::2], y[i::2]) for x, y in streams] for i in (0, 1))
    # the third is the first task's permutation, by images that this one has not seen
    train = [first[0], first[1], second[2]]
    benchmark = tensors_benchmark(train, train, task_labels=[0, 1, 2])
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 10)
    )
    strategy = TinySubNets(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
        sharing="similar",
        bits=4,
        prune_rounds=0,
        train_mb_size=32,
        train_epochs=6,
        evaluator=None,
    )
    index = next(i for i, p in enumerate(strategy.plugins) if isinstance(p, SharingPlugin))
    strategy.plugins[index] = Recorded("similar", threshold=0.95)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    other, again, also_other = found
    assert again > 0.97 > 0.95 > max(other, also_other)
    store = strategy.network.weight_stores[1]
    masks = [store.mask_of(task) for task in range(3)]
    assert bool((masks[2] & masks[0]).any())
    assert not bool((masks[2] & masks[1] & ~masks[0]).any())
