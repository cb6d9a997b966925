"""Penalties in training, truncation after it, and how the network grows."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from streams_for_tests import conv_net, logits, make_stream, mlp
from torch import nn

from avalanche_compress import (
    FactoredStore,
    FactorizationPlugin,
    MaskedStore,
    NonFiniteError,
    QuantizationPlugin,
    SharingPlugin,
    TaskNetwork,
    TaskStateError,
    ValidationPlugin,
)


def network_of(tasks=0, model=mlp, dtype=torch.float64, rank=None) -> TaskNetwork:
    """Some finished tasks and an open one."""
    torch.manual_seed(0)
    network = TaskNetwork(model(), FactoredStore).to(dtype)
    for task in range(tasks + 1):
        for store in network.weight_stores:
            store.rank = rank
        network.open(task, [0, 1])
        if task < tasks:
            for store in network.weight_stores:
                store.truncate(0.02)
            network.commit()
    return network


def strategy_of(network, *plugins):
    return SimpleNamespace(model=network, plugins=list(plugins), loss=torch.zeros(1).double())


def train(stream, plugins, model=mlp, tasks=3, optimizer=torch.optim.Adam, epochs=1, **options):
    """Naive with a converted network: what a user of the plugin alone writes."""
    torch.manual_seed(0)
    network = TaskNetwork(model(), partial(FactoredStore, **options))
    strategy = Naive(
        model=network,
        optimizer=optimizer(network.parameters(), lr=5e-3),
        train_mb_size=16,
        train_epochs=epochs,
        evaluator=None,
        plugins=plugins,
    )
    for experience in stream.train_stream[:tasks]:
        strategy.train(experience)
    return strategy


# ------------------------------------------------------------------ penalties


def naive_orthogonality(rows):
    gram = rows @ rows.t() if rows.shape[0] <= rows.shape[1] else rows.t() @ rows
    return (gram - torch.eye(gram.shape[0]).to(rows)).square().mean()


def naive_penalty(network, lambda_orth, lambda_sparse, scope):
    """The formula on all terms of each layer together, or on those of the open task."""
    total = 0.0
    for store in network.weight_stores:
        if not store.factored or not store.sigma.numel():
            continue
        blocks = [*(store.frozen_terms() if scope == "all" else []), store.terms]
        left, sigma, right = (torch.cat(parts) for parts in zip(*blocks))
        total = total + lambda_orth * (naive_orthogonality(left) + naive_orthogonality(right))
        total = total + lambda_sparse * (sigma.abs().sum() / sigma.norm() - 1)
    return total


def prepared(network, plugin):
    plugin.before_training_exp(strategy_of(network, plugin))
    return plugin


@pytest.mark.parametrize("scope", ["all", "new"])
@pytest.mark.parametrize(
    ("tasks", "rank"), [(0, None), (0, 24), (1, None), (1, 2), (2, 24), (4, 24), (2, 3)]
)
def test_the_penalty_is_the_formula_on_the_terms_together(tasks, rank, scope):
    """Few terms and more than a layer is wide, without frozen ones and with many."""
    network = network_of(tasks, rank=rank)
    plugin = prepared(network, FactorizationPlugin(0.7, 0.3, reg_scope=scope))
    parameters = [p for store in network.weight_stores for p in store.parameters()]
    ours = plugin.penalty(network)
    expected = naive_penalty(network, 0.7, 0.3, scope)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters)
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_penalty_of_tasks_that_build_on_some_counts_those_alone():
    network = network_of(2)
    network.discard()
    network.plan_reuse([1])
    network.open(2, [0, 1])
    plugin = prepared(network, FactorizationPlugin())
    torch.testing.assert_close(
        plugin.penalty(network), naive_penalty(network, 1.0, 0.1, "all"), rtol=1e-9, atol=1e-12
    )
    assert all(len(store.frozen_terms()) == 1 for store in network.weight_stores)


def test_dense_differences_and_small_layers_have_no_penalty():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Linear(1, 2), nn.Flatten()
    )
    network = TaskNetwork(model, FactoredStore, head="3").double()
    assert [store.factored for store in network.weight_stores] == [True, False]
    network.weight_stores[0].rank = 6
    network.open(0, [0, 1])
    network.weight_stores[0].truncate(0.0)
    network.commit()
    network.open(1, [0, 1])
    assert network.weight_stores[0].low_rank(0) is None
    plugin = prepared(network, FactorizationPlugin())
    expected = naive_penalty(network, 1.0, 0.1, "new")
    torch.testing.assert_close(plugin.penalty(network), expected, rtol=1e-9, atol=1e-12)


def test_no_terms_and_no_weights_of_penalties_are_zero():
    network = network_of(1, rank=0)
    assert prepared(network, FactorizationPlugin()).penalty(network).item() == 0
    network = network_of(1)
    assert prepared(network, FactorizationPlugin(0, 0)).penalty(network).item() == 0


def test_the_penalty_joins_the_loss_that_is_back_propagated():
    seen = []

    class Watch(SupervisedPlugin):
        """Stands after the plugin that it watches."""

        def before_backward(self, strategy, **kwargs):
            plain = strategy._criterion(strategy.mb_output, strategy.mb_y)
            seen.append((float(strategy.loss - plain), float(plugin.penalty(strategy.model))))

    plugin = FactorizationPlugin(reg_interval=1)
    train(make_stream(2), [plugin, Watch()], tasks=2)
    assert len(seen) == 8
    for added, penalty in seen:
        assert penalty > 0
        assert added == pytest.approx(penalty, abs=1e-5)


@pytest.mark.parametrize("interval", [1, 2, 3, 16])
def test_between_two_computations_of_the_penalty_a_bound_stands_for_it(interval):
    """Computed at an epoch's first step and at every so many further ones, and never too little."""
    above: dict = {True: [], False: []}

    class Watch(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            plain = strategy._criterion(strategy.mb_output, strategy.mb_y)
            exact = naive_penalty(strategy.model, 1.0, 0.0, "all")
            computed = strategy.clock.train_epoch_iterations % interval == 0
            above[computed].append(float(strategy.loss - plain - exact))

    plugin = FactorizationPlugin(lambda_sparse=0.0, reg_interval=interval)
    train(make_stream(3, samples=160), [plugin, Watch()], tasks=3)
    assert above[True] == pytest.approx([0] * len(above[True]), abs=1e-5)
    assert len(above[False]) == 30 - len(above[True])
    assert all(gap > -1e-5 for gap in above[False])
    assert interval == 1 or max(above[False]) > 1e-4


@pytest.mark.parametrize("scope", ["all", "new"])
def test_a_step_reads_no_finished_task(scope, monkeypatch):
    reads = []
    original = FactoredStore._block_at

    def read(self, position, section):
        reads.append(position)
        return original(self, position, section)

    class Count(SupervisedPlugin):
        in_steps = 0
        sums: tuple = ()

        def before_training_epoch(self, strategy, **kwargs):
            self.before = len(reads)
            self.sums = tuple(store.shared for store in strategy.model.weight_stores)

        def after_training_epoch(self, strategy, **kwargs):
            self.in_steps += len(reads) - self.before
            for store, shared in zip(strategy.model.weight_stores, self.sums):
                assert store.shared is shared

    monkeypatch.setattr(FactoredStore, "_block_at", read)
    count = Count()
    train(make_stream(4), [FactorizationPlugin(reg_scope=scope), count], tasks=4)
    assert count.in_steps == 0
    assert len(reads) > 0


def test_a_bound_is_never_older_than_its_epoch():
    """The penalty of every epoch's first step is computed from the terms as they are then."""
    gaps = []

    class Watch(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.clock.train_epoch_iterations == 0:
                plain = strategy._criterion(strategy.mb_output, strategy.mb_y)
                exact = naive_penalty(strategy.model, 1.0, 0.0, "all")
                gaps.append(float(strategy.loss - plain - exact))

    plugin = FactorizationPlugin(lambda_sparse=0.0, reg_interval=10_000)
    train(make_stream(2, samples=160), [plugin, Watch()], tasks=2, epochs=3)
    assert gaps == pytest.approx([0] * 6, abs=1e-5)


def test_training_with_the_penalties_makes_rows_more_orthonormal_and_sigma_sparser():
    class Look(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            measured.append(naive_penalty(strategy.model, 1.0, 1.0, "new").item())

    measured: list = []
    for weight in (0.0, 1.0):
        plugin = FactorizationPlugin(weight, weight, init="random")
        train(make_stream(1, samples=200), [plugin, Look()], tasks=1)
    assert measured[1] < 0.9 * measured[0]


# ------------------------------------------------------------------ truncation


@pytest.mark.parametrize("mode", ["raw", "exact"])
def test_the_plugin_truncates_each_layer_by_its_energy(mode):
    network = network_of(1)
    plugin = prepared(network, FactorizationPlugin(energy=0.2, truncation=mode))
    before = [store.sigma.detach().square().clone() for store in network.weight_stores]
    plugin.shape(strategy_of(network, plugin))
    for store, squares in zip(network.weight_stores, before):
        kept = store.sigma.detach().square()
        assert 0 < kept.numel() < squares.numel()
        if mode == "raw":
            assert float(kept.sum()) >= 0.8 * float(squares.sum())
            assert float(kept.sum() - kept.min()) < 0.8 * float(squares.sum())


@pytest.mark.parametrize(("scope", "ranks"), [("new", [18, 12]), ("cumulative", [0, 0])])
def test_a_task_of_little_energy_keeps_nothing_where_frozen_energy_counts(scope, ranks):
    network = network_of(1)
    with torch.no_grad():
        for store in network.weight_stores:
            store.sigma.mul_(1e-4)
    plugin = prepared(network, FactorizationPlugin(energy=1e-5, energy_scope=scope))
    plugin.shape(strategy_of(network, plugin))
    kept = [store.sigma.numel() for store in network.weight_stores]
    assert all(k <= r for k, r in zip(kept, ranks))
    assert (sum(kept) > 0) == (scope == "new")
    network.commit()
    for store in network.weight_stores:
        if scope == "cumulative":
            assert store.stored_values(1) == 0
            assert torch.equal(store.committed(1), store.committed(0))


def test_the_best_epoch_is_restored_before_it_is_truncated():
    states, losses = [], []

    class Watch(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            if len(losses) == 2:  # from here on it is worse
                with torch.no_grad():
                    strategy.model.head.weight.neg_()
                    for store in strategy.model.weight_stores:
                        store.sigma.add_(1)
                for group in strategy.optimizer.param_groups:
                    group["lr"] = 0.0

        def after_training_epoch(self, strategy, **kwargs):
            losses.append(validation.loss(strategy))
            states.append([store.weight().detach() for store in strategy.model.weight_stores])

    validation = ValidationPlugin(0.3, keep_best=True)
    torch.manual_seed(0)
    network = TaskNetwork(mlp(), FactoredStore)
    strategy = Naive(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=5e-3),
        train_mb_size=16,
        train_epochs=4,
        evaluator=None,
        plugins=[Watch(), FactorizationPlugin(energy=0.0), validation],
    )
    strategy.train(make_stream(1, samples=100).train_stream[0])
    best = min(range(4), key=losses.__getitem__)
    assert best < 2
    for store, weight in zip(network.weight_stores, states[best]):
        torch.testing.assert_close(store.committed(0), weight, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ growth


def test_ranks_and_starts_are_set_before_a_task_opens():
    seen = []

    class Watch(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            seen.append([store.sigma.numel() for store in strategy.model.weight_stores])

    initial = [64 * 24 // 88, 12]
    plugin = FactorizationPlugin(grow="r0", residual=0.5)
    strategy = train(make_stream(3), [plugin, Watch()])
    assert seen == [initial] * 3
    assert all(store.residual_strength == 0.5 for store in strategy.model.weight_stores)


def test_a_first_task_that_is_hardly_smaller_than_its_weights_says_what_to_set(recwarn):
    with pytest.warns(UserWarning, match=r"first task keeps .* numbers.*rank=0\.25.*energy="):
        train(make_stream(2), [FactorizationPlugin()], tasks=1)
    recwarn.clear()
    train(make_stream(2), [FactorizationPlugin(rank=0.25)], tasks=2)
    assert not any("numbers where" in str(warning.message) for warning in recwarn)


def test_an_svd_start_is_the_models_own_weights():
    class Watch(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            if strategy.model.tasks:
                return
            for store in strategy.model.weight_stores:
                torch.testing.assert_close(store.weight(), store.scratch, rtol=0, atol=1e-5)

    strategy = train(make_stream(2), [FactorizationPlugin(rank="full", init="svd"), Watch()])
    assert strategy.model.tasks == [0, 1]


@pytest.mark.parametrize(
    ("rank", "first"),
    [
        (3, [3, 3]),
        (0.6, [10, 7]),
        (1e-3, [1, 1]),
        (1.0, [17, 12]),
        (999, [24, 24]),
        ("full", [24, 24]),
    ],
)
def test_the_first_rank_is_a_number_or_a_part_of_the_break_even_rank(rank, first):
    plugin = FactorizationPlugin(rank=rank)
    network = TaskNetwork(mlp(), FactoredStore)
    assert [plugin.free_rank(store) for store in network.weight_stores] == first


def test_the_penalty_leaves_an_orthogonal_start_alone():
    stream, penalties = make_stream(1), []

    class Watch(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            penalties.append(float(plugin.penalty(strategy.model)))

    for init in ("orthogonal", "random"):
        plugin = FactorizationPlugin(1.0, 0.0, init=init)
        train(stream, [plugin, Watch()], tasks=1)
    assert penalties[0] == pytest.approx(0, abs=1e-6)
    assert penalties[1] > 1e-2


def test_a_fixed_rank_is_that_of_every_task():
    strategy = train(make_stream(3), [FactorizationPlugin(grow="fixed", rank=4, energy=0.0)])
    for store in strategy.model.weight_stores:
        assert store.ranks == {0: 4, 1: 4, 2: 4}


def test_a_network_that_may_not_grow_trains_heads_when_its_budget_is_used():
    stream = make_stream(3)
    heads, gradients = [], []

    class Watch(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            heads.append(strategy.model.head.weight.detach().clone())

        def after_backward(self, strategy, **kwargs):
            gradients.append(float(strategy.model.head.weight.grad.abs().sum()))

    plugin = FactorizationPlugin(grow="none", energy=0.0)
    strategy = train(stream, [plugin, QuantizationPlugin(4), Watch()], storage="factors")
    network = strategy.model
    for store in network.weight_stores:
        assert list(store.ranks.values()) == [store.initial_rank, 0, 0]
        assert store.stored_values(1) == 0
        assert torch.equal(store.committed(0), store.committed(2))
    assert min(gradients) > 0
    assert not torch.equal(strategy.model.head.weight, heads[-1])


# ------------------------------------------------------------------ on a plain strategy


@pytest.mark.parametrize("model", [mlp, conv_net])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9)])
def test_the_plugin_works_on_naive_and_old_logits_stay(model, optimizer):
    stream = make_stream()
    known = []

    class Watch(SupervisedPlugin):
        def after_training(self, strategy, **kwargs):
            tasks = strategy.model.tasks
            now = logits(strategy.model, stream.test_stream, tasks)
            assert all(torch.equal(a, b) for a, b in zip(known, now))
            known[:] = now

    # whatever their order in the list, truncation comes before the codes
    plugins = [QuantizationPlugin("auto"), FactorizationPlugin(), ValidationPlugin(0.2), Watch()]
    strategy = train(stream, plugins, model, optimizer=optimizer)
    assert strategy.model.tasks == [0, 1, 2]
    for store in strategy.model.weight_stores:
        assert store.value_bits(2) <= 8 * store.stored_values(2)


def test_sharing_none_starts_from_nothing_and_all_from_the_sum():
    for sharing in ("none", "all"):
        plugins = [SharingPlugin(sharing), FactorizationPlugin()]
        strategy = train(make_stream(2), plugins, tasks=2, storage="factors")
        for store in strategy.model.weight_stores:
            parents = store.ranks[0] if sharing == "all" else 0
            assert store.low_rank(1).factors.rank == parents + store.ranks[1]


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "arguments",
    [
        {"energy": 1.0},
        {"energy": -1e-9},
        {"energy": float("nan")},
        {"rank": 0},
        {"rank": -2},
        {"rank": 0.0},
        {"rank": 1.5},
        {"rank": "half"},
        {"rank": None},
        {"lambda_orth": -1},
        {"lambda_sparse": -0.1},
        {"lambda_sparse": float("nan")},
        {"residual": -1},
        {"sparsity": "l2"},
        {"reg_scope": "old"},
        {"reg_interval": 0},
        {"reg_interval": 2.5},
        {"truncation": "svd"},
        {"energy_scope": "all"},
        {"grow": "always"},
        {"init": "zeros"},
    ],
    ids=str,
)
def test_arguments_outside_their_range_are_refused_by_name(arguments):
    (name,) = arguments
    with pytest.raises(TaskStateError, match=name):
        FactorizationPlugin(**arguments)


def test_a_network_of_other_stores_is_refused_before_training():
    trained = []

    class Watch(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            trained.append(strategy)

    network = TaskNetwork(mlp(), MaskedStore)
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        evaluator=None,
        plugins=[FactorizationPlugin(), Watch()],
    )
    with pytest.raises(TaskStateError, match="FactoredStore"):
        strategy.train(make_stream(1).train_stream[0])
    assert not trained
    assert not network.tasks


def test_non_finite_terms_are_refused_and_the_task_can_be_trained_again():
    class Spoil(SupervisedPlugin):
        on = True

        def after_training_epoch(self, strategy, **kwargs):
            if self.on and strategy.model.tasks:
                with torch.no_grad():
                    strategy.model.weight_stores[1].sigma[0] = float("inf")

    stream, spoil = make_stream(2), Spoil()
    strategy = train(stream, [FactorizationPlugin(), spoil], tasks=1)
    (old,) = logits(strategy.model, stream.test_stream, [0])
    with pytest.raises(NonFiniteError, match=r"3\.weight"):
        strategy.train(stream.train_stream[1])
    network = strategy.model
    assert network.tasks == [0]
    assert all(list(s.sections) == [0] for s in network.weight_stores)
    spoil.on = False
    strategy.train(stream.train_stream[1])
    assert network.tasks == [0, 1]
    assert torch.equal(old, logits(network, stream.test_stream, [0])[0])


def test_a_training_step_under_autocast_works_with_any_number_of_frozen_terms():
    """From about half as many rows as a layer is wide on, their Gram matrix is what is kept."""
    stream = make_stream(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        strategy = train(stream, [FactorizationPlugin(grow="r0")], tasks=4)
    assert strategy.model.tasks == [0, 1, 2, 3]
