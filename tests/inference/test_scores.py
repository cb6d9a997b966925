"""The scores by which tasks are told apart, and from scores to logits; no model is needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avalanche_compress.inference.choice import choose, spread_chosen
from avalanche_compress.inference.energy import energy
from avalanche_compress.inference.entropy import entropy
from avalanche_compress.inference.moments import Moments
from avalanche_compress.inference.prototype import FLOOR, prototype_distance, prototypes


def gathered(features, classes, count):
    moments = Moments(count, features.shape[1], diagonal=True)
    moments.add(features, classes)
    return moments


def softmax(logits):
    parts = np.exp(logits - logits.max(1, keepdims=True))
    return parts / parts.sum(1, keepdims=True)


def test_entropy_is_that_of_the_softmax_in_parts_of_the_largest():
    logits = 5 * torch.randn(40, 7)
    p = softmax(logits.double().numpy())
    expected = -(p * np.log(p)).sum(1) / np.log(7)
    np.testing.assert_allclose(entropy(logits).numpy(), expected, atol=1e-5)
    assert entropy(torch.tensor([[500.0, -500.0]])).item() == 0


def test_energy_is_minus_the_log_of_summed_exponentials():
    logits = 5 * torch.randn(40, 7, dtype=torch.float64)  # an energy may be near zero
    expected = -np.log(np.exp(logits.numpy()).sum(1))
    np.testing.assert_allclose(energy(logits).numpy(), expected, rtol=1e-9)


def test_prototype_distance_by_brute_force():
    features, means, variance = torch.randn(30, 9), torch.randn(4, 9), torch.rand(9) + 0.1
    squares = (features[:, None].numpy() - means.numpy()) ** 2 / variance.numpy()
    np.testing.assert_allclose(
        prototype_distance(features, means, variance).numpy(), squares.mean(2).min(1), rtol=1e-4
    )


def test_prototypes_are_class_means_and_a_distance_of_one_on_average():
    features, classes = torch.randn(200, 5) * torch.arange(1.0, 6.0), torch.arange(200) % 3
    means, variance = prototypes(gathered(features, classes, 3))
    for number in range(3):
        torch.testing.assert_close(means[number], features[classes == number].mean(0))
    distances = ((features - means[classes]) ** 2 / variance).mean(1)
    assert distances.mean().item() == pytest.approx(1, abs=1e-4)
    within = ((features - means[classes]) ** 2).mean(0)
    shape = within + FLOOR * within.mean()
    torch.testing.assert_close(variance / variance[0], shape / shape[0])


def test_features_that_never_fire_give_finite_distances():
    means, variance = prototypes(gathered(torch.zeros(6, 3), torch.arange(6) % 2, 2))
    assert torch.isfinite(prototype_distance(torch.randn(4, 3), means, variance)).all()


def test_the_batch_votes_by_its_mean_score():
    scores = torch.rand(50, 6)
    assert choose(scores).tolist() == scores.numpy().argmin(1).tolist()
    together = choose(scores, batchwise=True)
    assert together.tolist() == [int(scores.numpy().mean(0).argmin())] * 50


def test_logits_go_to_the_columns_of_the_chosen_task_even_if_classes_overlap():
    logits, classes = [torch.randn(20, 2), torch.randn(20, 3)], [[1, 4], [0, 1, 2]]
    chosen = torch.arange(20) % 2
    out = spread_chosen(logits.__getitem__, classes, chosen, width=7)
    assert out.shape == (20, 7)
    for row, task in enumerate(chosen.tolist()):
        expected = torch.full((7,), -1000.0)
        expected[classes[task]] = logits[task][row]
        assert torch.equal(out[row], expected)
