"""Ada-QPacknet as an Avalanche strategy."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from streams_for_tests import check_old_logits_stay, conv_net, logits, make_stream, mlp

from avalanche_compress import (
    AdaQPackNet,
    CapacityExhaustedError,
    DensityRange,
    DensitySearch,
    ShapingPlugin,
    Stage,
    TaskStateError,
    ValidationPlugin,
)

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": partial(torch.optim.Adam, lr=5e-3, weight_decay=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.1),
}
SEARCHING = {"tolerance": 2.0, "max_bits": 6}


def build(model=None, optimizer="adam", epochs=3, **arguments):
    model = mlp() if model is None else model
    return AdaQPackNet(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=64,
        **{"evaluator": None, "density": 0.5, **arguments},
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "arguments",
    [SEARCHING, {"bits": 3, "method": "fixed_point"}, {"bits": 2, "reference_compat": True}],
    ids=["auto", "linear", "reference"],
)
@pytest.mark.parametrize("model", [mlp, conv_net])
def test_old_logits_stay_bit_identical(arguments, optimizer, model, tmp_path):
    torch.manual_seed(0)
    stream = make_stream(tasks=3, samples=80)
    check_old_logits_stay(lambda: build(model(), optimizer, **arguments), stream, model, tmp_path)


@pytest.mark.parametrize("arguments", [SEARCHING, {"bits": 3}, {"reference_compat": True}])
def test_each_task_is_learned(arguments):
    torch.manual_seed(0)
    stream = make_stream(tasks=3)
    strategy = build(epochs=8, **arguments)
    for experience in stream.train_stream:
        strategy.train(experience)
    outputs = logits(strategy.model, stream.test_stream, range(3))
    for experience, out in zip(stream.test_stream, outputs):
        targets = torch.tensor([int(y) for _, y, *_ in experience.dataset])
        assert (out.argmax(1) == targets).float().mean() > 0.85


def admitted(tasks, **arguments):
    """How many tasks are trained until one is refused, at most ``tasks``."""
    stream = make_stream(tasks, samples=20)
    strategy = build(epochs=1, density=1.0, codebook_finetune_epochs=0, **arguments)
    for experience in stream.train_stream:
        before = logits(strategy.model, stream.test_stream, range(len(strategy.network.tasks)))
        try:
            strategy.train(experience)
        except CapacityExhaustedError:
            now = logits(strategy.model, stream.test_stream, range(len(before)))
            assert all(torch.equal(a, b) for a, b in zip(before, now))
            return len(before)
    return tasks


@pytest.mark.parametrize(
    ("arguments", "tasks"),
    [
        ({"bits": 4}, 8),
        ({"bits": 6}, 5),
        ({"bits": 8}, 4),
        # the public code is strict: a task that would fit exactly is refused
        ({"bits": 4, "reference_compat": True}, 7),
        ({"bits": 6, "reference_compat": True}, 5),
        ({"bits": 8, "reference_compat": True}, 3),
    ],
)
def test_unpruned_tasks_are_admitted_until_the_slots_are_full(arguments, tasks):
    assert admitted(10, **arguments) == tasks


def test_pruned_weights_are_charged_in_the_public_code_only():
    stream = make_stream(5, samples=20)
    for compat in (False, True):
        strategy = build(epochs=1, density=0.2, bits=8, reference_compat=compat)
        for experience in stream.train_stream[:3]:
            strategy.train(experience)
        if compat:
            with pytest.raises(CapacityExhaustedError, match="24 of 32 bits"):
                strategy.train(stream.train_stream[3])
        else:
            strategy.train(stream.train_stream[3])
            strategy.train(stream.train_stream[4])


@pytest.mark.parametrize("policy", ["grow_copy", "reuse_frozen"])
def test_other_policies_admit_more_tasks_than_fit(policy):
    assert admitted(5, bits=16, capacity_policy=policy) == 5


def test_slots_hold_what_the_tasks_use_and_no_value_is_shared():
    stream = make_stream(3)
    strategy = build(bits=4)
    for experience in stream.train_stream:
        strategy.train(experience)
    for store in strategy.network.weight_stores:
        used = sum(4 * store.mask_of(task).long() for task in range(3))
        assert torch.equal(store.occupancy.long(), used)
        for task in range(3):
            weight, mask = store.committed(task), store.mask_of(task)
            assert len(weight[mask].unique()) <= 16
            assert not weight[~mask].any()


@pytest.mark.parametrize("density", [DensityRange(0.2, 0.4), DensitySearch(0.2, 0.4, candidates=3)])
@pytest.mark.parametrize("compat", [False, True])
def test_layers_keep_a_density_of_their_own(density, compat):
    strategy = build(density=density, reference_compat=compat)
    strategy.train(make_stream(1).train_stream[0])
    kept = [float(s.mask_of(0).float().mean()) for s in strategy.network.weight_stores]
    assert all(0.19 <= part <= 0.41 for part in kept)
    assert kept[0] != kept[1]


def test_widths_chosen_layer_by_layer_stay_within_the_tolerance():
    accuracies = []

    class Measured(ValidationPlugin):
        def accuracy(self, network):
            accuracies.append(super().accuracy(network))
            return accuracies[-1]

    class Last(ShapingPlugin):
        stage = Stage.ESTIMATE_NORMS

        def shape(self, strategy):
            validation.accuracy(strategy.network)

    validation = Measured(0.4)
    strategy = build(
        epochs=6,
        density=0.1,
        tolerance=3.0,
        codebook_finetune_epochs=0,
        plugins=[validation, Last()],
    )
    strategy.train(make_stream(1, samples=300).train_stream[0])
    assert accuracies[0] - accuracies[-1] <= 3.0
    for store in strategy.network.weight_stores:
        assert 1 <= store.value_bits(0) // store.stored_values(0) <= 8


def test_a_users_validation_plugin_is_the_only_one():
    for plugins in ([ValidationPlugin(0.3)], None):
        strategy = build(plugins=plugins)
        assert sum(isinstance(p, ValidationPlugin) for p in strategy.plugins) == 1


@pytest.mark.parametrize("arguments", [{"bits": 17}, {"bits": 0}, {"tolerance": -1.0}])
def test_arguments_outside_their_range_are_refused(arguments):
    with pytest.raises(TaskStateError, match=next(iter(arguments))):
        build(**arguments)


# ------------------------------------------------------------------ the public code's ways


def test_b1_the_mask_is_that_of_the_initial_weights():
    torch.manual_seed(0)
    model = mlp()
    initial = [model[1].weight.detach().clone(), model[3].weight.detach().clone()]
    strategy = build(model, density=0.5, reference_compat=True, bits=4)
    strategy.train(make_stream(1).train_stream[0])
    for weight, store in zip(initial, strategy.network.weight_stores):
        largest = weight.abs().flatten().argsort(descending=True)[: weight.numel() // 2]
        expected = torch.zeros(weight.numel(), dtype=torch.bool)
        expected[largest] = True
        assert torch.equal(store.mask_of(0).flatten(), expected)


@pytest.mark.parametrize(
    ("changes", "bits"),
    [
        ([0, 0, 0, 0, 0, 0], 1),
        ([0, 0, 0, 2.0, 0, 0], 4),
        ([0, 1.9, -1.9, 0, 2.5, 0], 3),
        ([0, -2.5, 0, 0, 0, 0], 6),  # a gain ends the search too
        ([9.0, 0, 0, 0, 0, 0], 6),
    ],
)
def test_b12_centroids_are_halved_until_accuracy_moves_by_two_points(changes, bits):
    class Scripted(ValidationPlugin):
        def accuracy(self, network):
            asked.append(None)
            return 90 - [0, *changes][len(asked) - 1]

    asked = []
    strategy = build(reference_compat=True, plugins=[Scripted(0.2)])
    strategy.train(make_stream(1).train_stream[0])
    assert {s.value_bits(0) // s.stored_values(0) for s in strategy.network.weight_stores} == {bits}


def test_b13_zeros_of_pruned_weights_take_part_in_k_means():
    smallest = []
    for compat in (False, True):
        torch.manual_seed(0)
        strategy = build(
            density=0.5, bits=2, reference_compat=compat, codebook_finetune_epochs=0, epochs=1
        )
        strategy.train(make_stream(1).train_stream[0])
        store = strategy.network.weight_stores[0]
        smallest.append(float(store.committed(0)[store.mask_of(0)].abs().min()))
    assert smallest[1] < smallest[0]
