"""Densities that are drawn or searched for."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from avalanche.training import Naive
from streams_for_tests import make_stream, mlp

from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.errors import TaskStateError, ValidationDataError
from avalanche_compress.methods.ada_qpacknet.store import SlottedStore
from avalanche_compress.methods.subnetworks.plugin import (
    DensityRange,
    DensitySearch,
    MaskingPlugin,
)
from avalanche_compress.methods.subnetworks.store import MaskedStore
from avalanche_compress.shaping.validation import Quality, ValidationPlugin


def slotted(place, name):
    store = SlottedStore(place, name)
    store.reserved_bits = 32
    return store


def strategy_of(masking, *plugins, store=slotted, epochs=2, **arguments):
    torch.manual_seed(0)
    network = TaskNetwork(mlp(), store)
    return Naive(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=5e-3),
        train_mb_size=16,
        train_epochs=epochs,
        plugins=[masking, *plugins],
        evaluator=None,
        **arguments,
    )


def densities(network, task):
    return {s.name: float(s.mask_of(task).float().mean()) for s in network.weight_stores}


class Recording(MaskingPlugin):
    """Brute force: keeps every candidate's masks and score, computed apart from the plugin's."""

    def _search(self, network, search, validation):
        self.candidates = []
        at = copy.deepcopy(network)
        position = len(network.tasks)
        total = sum(store.shape.numel() for store in at.weight_stores)
        for number in range(search.candidates):
            masks = []
            for store in at.weight_stores:
                source = random.Random(repr((self.seed, position, store.name, number)))
                store.prune(1 - source.uniform(search.low, search.high))
                masks.append(store.mask.clone())
            right = count = 0
            with torch.no_grad():
                at.eval()
                for x, y in validation.batches:
                    right += int((at(x, at.open_task).argmax(1) == y).sum())
                    count += len(y)
            zeros = total - sum(int(mask.sum()) for mask in masks)
            self.candidates.append((0.8 * right / count + 0.2 * zeros / total, masks))
        super()._search(network, search, validation)
        self.chosen = [store.mask.clone() for store in network.weight_stores]


@pytest.mark.parametrize("store", [MaskedStore, slotted])
@pytest.mark.parametrize("post_prune_epochs", [0, 1])
def test_a_search_keeps_the_evaluated_mask_that_scores_best(store, post_prune_epochs):
    search = DensitySearch(0.01, 0.5, candidates=6)
    masking = Recording(search, post_prune_epochs=post_prune_epochs, seed=4)
    strategy = strategy_of(masking, ValidationPlugin(0.3), store=store)
    strategy.train(make_stream(1).train_stream[0])
    scores = [score for score, _ in masking.candidates]
    best = masking.candidates[scores.index(max(scores))][1]
    assert len(set(scores)) > 1
    for kept, expected, each in zip(masking.chosen, best, strategy.model.weight_stores):
        assert torch.equal(kept, expected)
        assert torch.equal(each.mask_of(0), expected)


def test_a_score_weighs_accuracy_four_times_sparsity():
    assert DensitySearch(0, 1).score(accuracy=0.5, sparsity=0.25) == pytest.approx(0.45)


def test_a_search_without_validation_data_is_refused_before_training():
    strategy = strategy_of(MaskingPlugin(DensitySearch(0.3, 0.6)))
    before = copy.deepcopy(strategy.model.backbone.state_dict())
    with pytest.raises(ValidationDataError, match="DensitySearch"):
        strategy.train(make_stream(1).train_stream[0])
    for name, tensor in strategy.model.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_search_of_learned_masks_is_refused():
    strategy = strategy_of(
        MaskingPlugin(DensitySearch(0.3, 0.6)),
        ValidationPlugin(0.2),
        store=lambda place, name: MaskedStore(place, name, scored=True),
    )
    with pytest.raises(TaskStateError, match="scores"):
        strategy.train(make_stream(1).train_stream[0])


def test_every_layer_of_every_task_draws_its_own_density():
    masking = MaskingPlugin(DensityRange(0.2, 0.7), seed=1)
    drawn = [masking.density_at(t, f"{layer}.weight") for t in range(30) for layer in "abc"]
    assert len(set(drawn)) == 90
    assert 0.2 <= min(drawn) < 0.25
    assert 0.65 < max(drawn) <= 0.7
    again = MaskingPlugin(DensityRange(0.2, 0.7), seed=1)
    assert again.density_at(17, "b.weight") == masking.density_at(17, "b.weight")
    other = MaskingPlugin(DensityRange(0.2, 0.7), seed=2)
    assert other.density_at(17, "b.weight") != masking.density_at(17, "b.weight")


def test_drawn_densities_are_those_of_the_masks():
    masking = MaskingPlugin({"1.weight": DensityRange(0.2, 0.4), "3.weight": 0.5})
    strategy = strategy_of(masking)
    strategy.train(make_stream(1).train_stream[0])
    kept = densities(strategy.model, 0)
    assert kept["1.weight"] == pytest.approx(masking.density_at(0, "1.weight"), abs=1e-3)
    assert kept["3.weight"] == 0.5


@pytest.mark.parametrize(
    ("low", "high"), [(-0.1, 0.5), (0.5, 1.1), (0.6, 0.4), (float("nan"), 0.5)]
)
@pytest.mark.parametrize("kind", [DensityRange, DensitySearch])
def test_a_range_that_is_none_is_an_error(kind, low, high):
    with pytest.raises(TaskStateError, match="low <= high"):
        kind(low, high)


def test_a_search_needs_a_candidate():
    with pytest.raises(TaskStateError, match="candidates=0"):
        DensitySearch(0.3, 0.6, candidates=0)


def test_a_search_among_other_densities_is_an_error():
    masking = MaskingPlugin({"1.weight": DensitySearch(0.3, 0.6)})
    with pytest.raises(TaskStateError, match="for all layers"):
        masking.density_at(0, "1.weight")


# ---------------------------------------------------------------------------- pruned further


@pytest.mark.parametrize(
    ("after", "undone"),
    [
        (Quality(89.75, 0.2), False),
        (Quality(89.5, 0.2), True),
        (Quality(89.0, 0.2), True),
        (Quality(95.0, 0.2), False),
        (Quality(90.0, 0.325), False),
        (Quality(90.0, 0.375), True),
        (Quality(90.0, float("nan")), True),
    ],
)
def test_a_round_is_undone_if_accuracy_falls_by_the_tolerance_or_the_loss_rises_by_more(
    monkeypatch, after, undone
):
    found = iter([Quality(90.0, 0.2), after])
    monkeypatch.setattr(ValidationPlugin, "quality", lambda self, strategy: next(found))
    masks = []

    class Watching(MaskingPlugin):
        def _prune_further(self, strategy):
            stores = strategy.model.weight_stores
            masks.append([store.mask.clone() for store in stores])
            super()._prune_further(strategy)
            masks.append([store.mask.clone() for store in stores])

    masking = Watching(0.5, prune_rounds=1, prune_tolerance=0.5, loss_tolerance=0.15)
    strategy_of(masking, ValidationPlugin(0.2)).train(make_stream(tasks=1).train_stream[0])
    before, after = masks
    same = [torch.equal(old, new) for old, new in zip(before, after)]
    assert same.count(False) == (0 if undone else 1)
