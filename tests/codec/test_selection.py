"""Which weights stay: against the reference's numbers and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_compress.codec import (
    ThresholdWindow,
    kept_count,
    kth_smallest,
    magnitude_mask,
    top_mask_,
    top_threshold,
)

SCORES = [0.9, -0.1, 0.4, -0.7, 0.2, 0.0, 0.6, -0.3, 0.8, 0.5]
WEIGHTS = [0.9, -0.1, 0.4, -0.7, 0.2, 0.05, 0.6, -0.3, 0.8, 0.5]


def bits(mask) -> str:
    return "".join(str(int(b)) for b in mask)


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [(0.1, "1111101111"), (0.25, "1011101111"), (0.5, "1011001011"), (1.0, "1000000000")],
)
def test_score_masks_are_those_of_the_public_code(sparsity, expected):
    assert bits(top_mask_(torch.tensor(SCORES).abs(), 1 - sparsity)) == expected


@pytest.mark.parametrize(
    ("count", "density", "kept"),
    [(100, 0.5, 50), (1000, 0.5, 500), (10, 0.5, 6), (7, 1, 7), (7, 0, 1)],
)
def test_kept_counts_are_those_of_the_public_code(count, density, kept):
    assert kept_count(density, count) == kept
    magnitude = torch.rand(count, generator=torch.Generator().manual_seed(count))
    assert int(top_mask_(magnitude, density).sum()) == kept


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.1, "1111101111"),
        (0.25, "1011101111"),
        (0.5, "1001001011"),
        (0.6, "1001001010"),
        (0.75, "1000000010"),
        (0.9, "1000000000"),
    ],
)
def test_magnitude_masks_are_those_of_packnet(fraction, expected):
    assert bits(magnitude_mask(torch.tensor(WEIGHTS), fraction)) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=60), st.floats(0, 1))
def test_top_mask_keeps_the_largest_and_all_ties(values, density):
    magnitude = torch.tensor(values)
    mask = top_mask_(magnitude.clone(), density)
    order = np.sort(magnitude.numpy())
    threshold = order[len(values) - kept_count(density, len(values))]
    assert mask.tolist() == [float(v >= threshold) for v in magnitude.numpy()]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), st.data())
def test_kth_smallest_is_that_of_a_sort(values, data):
    k = data.draw(st.integers(1, len(values)))
    assert kth_smallest(torch.tensor(values), k) == sorted(torch.tensor(values).tolist())[k - 1]


def test_no_weights_need_no_mask():
    assert magnitude_mask(torch.empty(0), 0.5).numel() == 0
    assert kept_count(0.5, 0) == 0


KINDS = {
    "normal": lambda draw: draw.normal(size=30_000),
    "ascending": lambda draw: np.arange(20_000.0),
    "few values": lambda draw: draw.integers(0, 3, 20_000),
    "constant": lambda draw: np.zeros(9_000),
    # every value that a sample at even distances would take is far above all others
    "misleading": lambda draw: np.where(np.arange(40_960) % 10 == 0, 9.0, draw.random(40_960)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.0, 1e-4, 0.1, 0.5, 0.9, 0.9999, 1.0])
def test_kth_smallest_of_many_is_that_of_a_sort(kind, part):
    values = KINDS[kind](np.random.default_rng(0)).astype(np.float32)
    k = max(1, round(part * len(values)))
    assert kth_smallest(torch.from_numpy(values), k) == np.sort(values)[k - 1]
    low = torch.from_numpy(values).bfloat16()
    assert kth_smallest(low, k) == low.float().sort().values[k - 1]


WAYS = {
    "slowly": lambda step: 1e-3,
    "not at all": lambda step: 0.0,
    "in jumps": lambda step: 1.0 if step % 5 == 0 else 1e-4,
    "far": lambda step: 10.0**step,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["normal", "few values", "constant"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_threshold_that_is_followed_is_that_of_a_sort(way, kind, dtype):
    draw, window = np.random.default_rng(0), ThresholdWindow()
    scores = KINDS[kind](draw).astype(dtype)
    for step in range(20):
        scores += (WAYS[way](step) * draw.normal(size=len(scores))).astype(dtype)
        magnitude, kept = np.abs(scores), kept_count(0.5, len(scores))
        expected = np.sort(magnitude)[len(scores) - kept]
        assert top_threshold(torch.from_numpy(magnitude), 0.5, window) == expected


def test_where_a_threshold_hardly_moves_few_values_are_looked_through(monkeypatch):
    draw, window = np.random.default_rng(0), ThresholdWindow()
    scores = draw.random(40_000).astype(np.float32)
    window.kth_smallest(scores, 20_000)
    sizes = []
    partition = np.partition
    monkeypatch.setattr(
        np,
        "partition",
        lambda values, place: (sizes.append(len(values)), partition(values, place))[1],
    )
    for _ in range(10):
        scores += (1e-4 * draw.normal(size=len(scores))).astype(np.float32)
        window.kth_smallest(scores, 20_000)
    assert len(sizes) == 10
    assert max(sizes) < 0.05 * len(scores)


def test_a_window_knows_the_weights_that_a_task_may_not_use():
    window = ThresholdWindow()
    magnitude = torch.tensor([-torch.inf, 0.5, 0.25, -torch.inf])
    for _ in range(3):
        assert top_threshold(magnitude, 1 / 3, window) == 0.25
        assert top_threshold(magnitude, 2 / 3, window) == -torch.inf
