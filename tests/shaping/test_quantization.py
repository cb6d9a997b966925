"""Widths chosen by accuracy, layer by layer, and codebooks trained after that."""

from __future__ import annotations

import itertools
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from hypothesis import given, settings
from hypothesis import strategies as st
from streams_for_tests import conv_net, inputs_of, logits, make_stream, mlp
from torch import nn

from avalanche_compress import (
    MaskedStore,
    MaskingPlugin,
    QuantizationPlugin,
    TaskNetwork,
    TaskStateError,
    ValidationDataError,
    ValidationPlugin,
)
from avalanche_compress.codec import quantise_codebook
from avalanche_compress.shaping.codebook_training import STEP, train_centroids
from avalanche_compress.shaping.validation import Quality

FLOAT = 32


class Scripted(ValidationPlugin):
    """Held-out accuracy and the loss as functions of the layers' widths, and nothing else."""

    batches = ((None, torch.arange(1000)),)

    def __init__(self, lost, added=lambda found: 0.0):
        super().__init__()
        self.lost, self.added, self.asked = lost, added, []

    def quality(self, strategy):
        self.asked.append(widths(strategy.model))
        return Quality(90 - self.lost(self.asked[-1]), self.added(self.asked[-1]))


def widths(network):
    """Of the open task, from how many different values each layer has."""
    found = []
    for store in network.weight_stores:
        (values,) = store.kept_values()
        different = len(values.unique())
        found.append((different - 1).bit_length() if different <= 2**8 else FLOAT)
    return found


def choose(loss, added=lambda found: 0.0, **arguments):
    """The widths that the search leaves, and those that it tried."""
    network = TaskNetwork(mlp())
    network.open(0, [0, 1])
    validation = Scripted(loss, added)
    plugin = QuantizationPlugin("auto", **arguments)
    plugin.shape(SimpleNamespace(model=network, plugins=[validation]))
    return widths(network), validation.asked


def one_step_lower(chosen):
    for index, bits in enumerate(chosen):
        if bits > 1:
            yield [*chosen[:index], bits - 1, *chosen[index + 1 :]]


# ------------------------------------------------------------------ search


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 20), min_size=8, max_size=8).map(partial(sorted, reverse=True)),
    st.floats(0, 20),
    st.integers(1, 8),
)
def test_the_search_finds_the_smallest_width_within_tolerance_and_terminates(
    losses, tolerance, max_bits
):
    def loss(found):
        return 0.0 if FLOAT in found else losses[max(found) - 1]

    chosen, asked = choose(loss, tolerance=tolerance, max_bits=max_bits)
    expected = [b for b in range(1, max_bits + 1) if 90 - (90 - losses[b - 1]) <= tolerance]
    assert chosen == [min(expected, default=max_bits)] * 2
    tried = asked[1:]
    assert tried == sorted(tried)
    assert len(tried) <= max_bits


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 3), min_size=7, max_size=7), min_size=2, max_size=2),
    st.floats(0, 6),
)
def test_lowering_layers_stays_within_tolerance_only_lowers_and_leaves_nothing(drops, tolerance):
    def loss(found):  # each bit that a layer gives up costs something of its own
        return sum(sum(of_layer[b - 1 :]) for of_layer, b in zip(drops, found) if b != FLOAT)

    uniform, _ = choose(loss, tolerance=tolerance)
    chosen, _ = choose(loss, tolerance=tolerance, per_layer=True)
    if loss(uniform) > tolerance + 1e-9:
        assert chosen == uniform == [8, 8]
        return
    assert loss(chosen) <= tolerance + 1e-9
    assert all(mine <= common for mine, common in zip(chosen, uniform))
    assert all(loss(lower) > tolerance - 1e-9 for lower in one_step_lower(chosen))


def test_the_least_sensitive_layer_is_lowered_first():
    def loss(found):  # at 3 bits nothing is lost; the budget allows one of the two to have 2
        return sum(rate * max(0, 3 - b) for rate, b in zip(rates, found))

    rates = [0.4, 0.3]
    assert choose(loss, per_layer=True)[0] == [3, 2]
    rates = [0.3, 0.4]
    assert choose(loss, per_layer=True)[0] == [2, 3]


@pytest.mark.parametrize(("method", "least"), [("kmeans", 1), ("fixed_point", 2)])
@pytest.mark.parametrize("per_layer", [False, True])
def test_any_loss_accepted_or_no_loss_at_all_gives_the_smallest_width(method, least, per_layer):
    arguments = {"method": method, "per_layer": per_layer}
    # fixed point of 2 bits has the values -1, 0 and 1 times a power of two: also 2 bits
    assert choose(lambda found: 80.0, tolerance=float("inf"), **arguments)[0] == [least] * 2
    assert choose(lambda found: 0.0, tolerance=0, **arguments)[0] == [least] * 2


def test_a_gain_of_accuracy_is_no_loss():
    assert choose(lambda found: -9.0 if max(found) == 1 else 0.0, tolerance=0.5)[0] == [1, 1]


@pytest.mark.parametrize(("tolerance", "chosen"), [(0.05, 4), (0.2, 2), (float("inf"), 1), (0, 5)])
def test_a_width_that_accuracy_does_not_see_is_judged_by_the_loss(tolerance, chosen):
    added = [0.9, 0.15, 0.06, 0.05, 0.0, 0.0, 0.0, 0.0]  # by bits, from 1 on
    found, _ = choose(
        lambda found: 0.0,
        lambda found: 0.3 + (0.0 if FLOAT in found else added[max(found) - 1]),
        loss_tolerance=tolerance,
    )
    assert found == [chosen] * 2
    assert choose(lambda found: 0.0, lambda found: float("nan"), max_bits=6)[0] == [6, 6]


def test_the_layer_whose_bit_costs_less_loss_is_lowered_first():
    for rates, chosen in (([0.04, 0.03], [3, 2]), ([0.03, 0.04], [2, 3])):

        def added(found, rates=rates):  # the budget allows one of the two to have 2 bits
            return sum(rate * max(0, 3 - bits) for rate, bits in zip(rates, found))

        assert choose(lambda found: 0.0, added, per_layer=True)[0] == chosen


def test_held_out_samples_that_are_too_few_for_the_tolerance_are_named():
    network = TaskNetwork(mlp())
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        plugins=[ValidationPlugin(0.1), QuantizationPlugin("auto", tolerance=0.5)],
        evaluator=None,
    )
    with pytest.warns(UserWarning, match=r"0\.5 points .* one of 6 held-out samples is 16\.7"):
        strategy.train(make_stream(1).train_stream[0])


def test_when_no_width_is_within_tolerance_the_widest_is_taken():
    chosen, _ = choose(
        lambda found: 0.0 if FLOAT in found else 50.0, max_bits=5, per_layer=True, tolerance=1.0
    )
    assert chosen == [5, 5]


def test_a_layer_that_keeps_nothing_is_no_obstacle():
    network = TaskNetwork(mlp())
    network.open(0, [0, 1])
    network.weight_stores[0].prune(1.0)
    validation = Scripted(lambda found: 0.0 if found[1] > 2 else 9.0)
    plugin = QuantizationPlugin(per_layer=True)
    plugin.shape(SimpleNamespace(model=network, plugins=[validation]))
    assert widths(network)[1] == 3


def test_of_layers_that_lose_the_same_the_larger_is_lowered_first():
    """Its bits weigh more; whichever of the two layers of the model it is."""
    for build in (
        mlp,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 90), nn.Linear(90, 2)),
    ):
        network = TaskNetwork(build())
        network.open(0, [0, 1])
        counts = [store.kept_values()[0].numel() for store in network.weight_stores]

        def loss(found):  # at 3 bits nothing is lost; the budget allows one of the two to have 2
            return 0.0 if FLOAT in found else sum(0.4 * max(0, 3 - bits) for bits in found)

        plugin = QuantizationPlugin("auto", per_layer=True)
        plugin.shape(SimpleNamespace(model=network, plugins=[Scripted(loss)]))
        larger = counts.index(max(counts))
        assert widths(network)[larger] == 2
        assert widths(network)[1 - larger] == 3


# ------------------------------------------------------------------ training of codebooks


def test_centroid_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, bias=False)
    network = TaskNetwork(nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2)))
    network.open(0, [0, 1])
    (store,) = network.weight_stores
    store.prune(0.4)
    book = quantise_codebook(store.kept_values()[0], bits=2)
    store.keep_values([book])
    x, y = torch.randn(7, 5), torch.arange(7) % 2

    nn.functional.cross_entropy(network(x, 0), y).backward()
    (members,) = store.kept_gradients()
    ours = book.parameter_gradient(members)

    centroids = book.centroids.clone().requires_grad_()
    weight = torch.zeros(3, 5).index_put((store.mask,), centroids[book.codes.long()])
    hidden = torch.tanh(x @ weight.T)
    nn.functional.cross_entropy(network.head(hidden), y).backward()
    torch.testing.assert_close(ours, centroids.grad)


def test_training_codebooks_lowers_the_loss_and_keeps_the_codes():
    torch.manual_seed(1)
    stream = make_stream(1, samples=120)
    network = TaskNetwork(mlp())
    network.open(0, [0, 1])
    x = inputs_of(stream.train_stream[0])
    y = torch.arange(len(x)) % 2
    before = []
    for store in network.weight_stores:
        before.append([quantise_codebook(v, bits=2) for v in store.kept_values()])
        store.keep_values(before[-1])

    def loss():
        return nn.functional.cross_entropy(network(x, 0), y)

    def losses():
        for _ in range(30):
            network.zero_grad(set_to_none=True)
            yield loss()

    start = float(loss())
    after = train_centroids(network.weight_stores, before, losses(), 30)
    assert float(loss()) < start - 0.01
    for old, new, store in zip(before, after, network.weight_stores):
        assert torch.equal(old[0].codes, new[0].codes)
        assert not torch.equal(old[0].centroids, new[0].centroids)
        assert torch.equal(store.kept_values()[0], new[0].decode())


def test_steps_of_centroids_fall_linearly_to_zero_from_a_part_of_the_layers_size():
    """Under a gradient of one sign Adam's step is the learning rate itself."""
    network = TaskNetwork(mlp())
    network.open(0, [0, 1])
    stores = network.weight_stores
    before = [[quantise_codebook(v, bits=2) for v in store.kept_values()] for store in stores]
    for store, values in zip(stores, before):
        store.keep_values(values)
    seen = []

    def losses():
        for _ in range(8):
            network.zero_grad(set_to_none=True)
            seen.append([store.kept_values()[0].clone() for store in stores])
            yield sum(store.weight().sum() for store in stores)

    after = train_centroids(stores, before, losses(), 8)
    seen.append([values[0].decode() for values in after])
    for index, (book,) in enumerate(before):
        size = STEP * float(book.decode().square().mean().sqrt())
        for step, (now, following) in enumerate(itertools.pairwise(seen)):
            moved = now[index] - following[index]
            expected = torch.full_like(moved, size * (1 - step / 8))
            torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-7)


def train_one(stream, plugins, model=mlp, tasks=1, store=MaskedStore, exclude=()):
    torch.manual_seed(0)
    network = TaskNetwork(model(), store, exclude=exclude)
    strategy = Naive(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=5e-3),
        train_mb_size=16,
        train_epochs=2,
        evaluator=None,
        plugins=plugins,
    )
    for experience in stream.train_stream[:tasks]:
        strategy.train(experience)
    return strategy


@pytest.mark.parametrize("model", [mlp, conv_net])
@pytest.mark.parametrize("held_out", [False, True])
def test_fine_tuning_in_a_strategy_lowers_the_training_loss(model, held_out):
    stream = make_stream(1, samples=200)
    y = torch.arange(200) % 2
    losses, partitions = [], []
    for epochs in (0, 4):
        plugins = [ValidationPlugin(0.1)] * held_out
        plugins += [
            MaskingPlugin(0.3),
            QuantizationPlugin(bits=2, codebook_finetune_epochs=epochs),
        ]
        network = train_one(stream, plugins, model).model
        (out,) = logits(network, stream.train_stream, [0])
        losses.append(float(nn.functional.cross_entropy(out, y)))
        partitions.append(
            [
                s.committed(0)[s.mask_of(0)].unique(return_inverse=True)[1]
                for s in network.weight_stores
            ]
        )
    assert losses[1] < losses[0]
    if model is mlp:  # centroids of the small kernels may pass each other, which renames codes
        assert all(torch.equal(a, b) for a, b in zip(*partitions))


def test_fine_tuning_that_raises_validation_loss_is_undone():
    class Rising(ValidationPlugin):
        calls = 0

        def loss(self, strategy):
            self.calls += 1
            return float(self.calls)

    stream, weights = make_stream(1), []
    for epochs in (0, 2):
        plugins = [
            Rising(0.2),
            MaskingPlugin(0.3),
            QuantizationPlugin(bits=2, codebook_finetune_epochs=epochs),
        ]
        network = train_one(stream, plugins).model
        weights.append([store.committed(0) for store in network.weight_stores])
    assert all(torch.equal(a, b) for a, b in zip(*weights))


@pytest.mark.parametrize("epochs", [1, 3])
def test_fine_tuning_leaves_modes_gradients_optimiser_and_random_numbers_alone(epochs):
    stream = make_stream(2)
    looked_at = {}

    class Look(SupervisedPlugin):
        """Stands last, so that it sees the strategy after the task was shaped."""

        def after_training_exp(self, strategy, **kwargs):
            network = strategy.model
            assert all(module.training for module in network.modules())
            if plugin.codebook_finetune_epochs:
                assert all(p.grad is None for p in network.parameters())
            state = strategy.optimizer.state
            moments = [state[p]["exp_avg"].clone() for p in state]
            steps = [int(state[p]["step"]) for p in state]
            looked_at.setdefault(plugin.codebook_finetune_epochs, []).append(
                (torch.get_rng_state(), moments, steps)
            )

    for count in (0, epochs):
        plugin = QuantizationPlugin(bits=2, codebook_finetune_epochs=count)
        train_one(stream, [MaskingPlugin(0.3), plugin, Look()], conv_net, tasks=2)
    for without, with_training in zip(looked_at[0], looked_at[epochs]):
        assert torch.equal(without[0], with_training[0])
        assert without[2] == with_training[2]
    assert all(torch.equal(a, b) for a, b in zip(looked_at[0][0][1], looked_at[epochs][0][1]))


def test_fine_tuning_passes_through_recurrent_layers():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Linear(8, 16)
            self.lstm = nn.LSTM(16, 12, batch_first=True)
            self.head = nn.Linear(12, 2)

        def forward(self, x):
            return self.head(self.lstm(self.embedding(x.view(-1, 8, 8)))[0][:, -1])

    plugins = [MaskingPlugin(0.5), QuantizationPlugin(bits=3, codebook_finetune_epochs=1)]
    network = train_one(make_stream(1), plugins, Reader, exclude=("lstm",)).model
    assert network.tasks == [0]


def test_fixed_point_has_no_centroids_to_train():
    stream, weights = make_stream(1), []
    for epochs in (0, 1):
        plugin = QuantizationPlugin(bits=3, method="fixed_point", codebook_finetune_epochs=epochs)
        network = train_one(stream, [MaskingPlugin(0.5), plugin]).model
        weights.append([store.committed(0) for store in network.weight_stores])
    assert all(torch.equal(a, b) for a, b in zip(*weights))


# ------------------------------------------------------------------ hooks and bad input


@pytest.mark.parametrize(("bits", "reserved_bits"), [(4, 4), ("auto", 6)])
def test_stores_hear_of_the_most_bits_before_a_task_opens(bits, reserved_bits):
    class Reserving(MaskedStore):
        reserved_bits, at_opening = FLOAT, ()

        def open(self, reusable):
            self.at_opening = (*self.at_opening, self.reserved_bits)
            super().open(reusable)

    plugins = [ValidationPlugin(0.2), QuantizationPlugin(bits, max_bits=6), MaskingPlugin(0.3)]
    network = train_one(make_stream(2), plugins, tasks=2, store=Reserving).model
    assert all(
        store.at_opening == (reserved_bits, reserved_bits) for store in network.weight_stores
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "from 1 to 16"),
        ({"bits": 17}, "from 1 to 16"),
        ({"bits": 2.5}, "from 1 to 16"),
        ({"bits": 1, "method": "fixed_point"}, "from 2 to 16"),
        ({"max_bits": 17}, "max_bits"),
        ({"max_bits": "auto"}, "max_bits"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"method": "logarithmic"}, "logarithmic"),
        ({"codebook_finetune_epochs": -1}, "codebook_finetune_epochs"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, message):
    with pytest.raises(TaskStateError, match=message):
        QuantizationPlugin(**arguments)


def test_a_search_without_validation_data_is_refused_before_training():
    trained = []

    class Watch(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            trained.append(strategy)

    with pytest.raises(ValidationDataError, match="ValidationPlugin"):
        train_one(make_stream(1), [QuantizationPlugin("auto"), MaskingPlugin(), Watch()])
    assert not trained
