"""CACL as an Avalanche strategy."""

from __future__ import annotations

import copy
import json
import pickle
from functools import partial

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from streams_for_tests import check_old_logits_stay, conv_net, inputs_of, logits, make_stream, mlp
from torch import nn

from avalanche_compress import (
    CACL,
    ArchiveError,
    FactoredStore,
    MaskedStore,
    NonFiniteError,
    QuantizationPlugin,
    SharingPlugin,
    TaskNetwork,
    TaskStateError,
    ValidationPlugin,
    archive,
    load_archive,
    load_checkpoint,
    save_archive,
    save_checkpoint,
)
from avalanche_compress.archive import archive_bytes
from benchmarks.runs.backbones import resnet18

OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=5e-3),
    "sgd": partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.1),
}


def build(model=None, optimizer="adam", epochs=2, **arguments):
    model = mlp() if model is None else model
    return CACL(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=64,
        **{"evaluator": None, **arguments},
    )


def learned(stream, tasks=3, **arguments):
    torch.manual_seed(0)
    strategy = build(**arguments)
    for experience in stream.train_stream[:tasks]:
        strategy.train(experience)
    return strategy


def small_layers() -> nn.Module:
    """Convolutions of which the first is too small to be factored."""
    return nn.Sequential(
        nn.Conv2d(1, 1, 1),
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 36, 2),
    )


class Scaled(nn.Module):
    """A perceptron whose hidden units a bare vector scales."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 16)
        self.scale = nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(torch.relu(self.first(x.flatten(1)) * self.scale))


def state_of(network) -> dict:
    """A copy of all tensors and sections of a network."""
    tensors = {k: v.clone() for k, v in network.state_dict().items() if torch.is_tensor(v)}
    buffers = {k: v.clone() for k, v in network.named_buffers()}
    return {**buffers, **tensors}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def sections_of(network) -> list:
    return [dict(store.sections) for store in [network.private, *network.weight_stores]]


# ------------------------------------------------------------------ zero forgetting


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [mlp, conv_net])
def test_old_logits_stay_bit_identical(model, optimizer, tmp_path):
    torch.manual_seed(0)
    check_old_logits_stay(lambda: build(model(), optimizer), make_stream(3), model, tmp_path)


VARIANTS = {
    "8 bits": lambda: {"plugins": [QuantizationPlugin(8)]},
    "4 bits": lambda: {"plugins": [QuantizationPlugin(4)]},
    "fixed point": lambda: {"plugins": [QuantizationPlugin(6, method="fixed_point")]},
    "searched bits": lambda: {
        "plugins": [QuantizationPlugin("auto", tolerance=2.0, max_bits=6), ValidationPlugin(0.2)]
    },
    "trained codebooks": lambda: {"plugins": [QuantizationPlugin(3, codebook_finetune_epochs=1)]},
    "spatial": lambda: {"decomposition": "spatial"},
    "spatial, 4 bits": lambda: {"decomposition": "spatial", "plugins": [QuantizationPlugin(4)]},
    "sharing none": lambda: {"plugins": [SharingPlugin("none")]},
    "sharing similar": lambda: {"plugins": [SharingPlugin("similar", threshold=0.3)]},
    "exact": lambda: {"truncation": "exact", "energy": 0.05, "energy_scope": "cumulative"},
    "full rank": lambda: {"rank": "full", "init": "svd", "grow": "fixed"},
    "full rank as factors": lambda: {"rank": "full", "grow": "fixed", "storage": "factors"},
    "full rank, trained codebooks": lambda: {
        "rank": "full",
        "plugins": [QuantizationPlugin(3, codebook_finetune_epochs=1)],
    },
    "residual of zero": lambda: {"residual": 0.0, "grow": "r0", "init": "orthogonal"},
    "no growth": lambda: {"grow": "none", "reg_scope": "new", "sparsity": "l1"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_old_logits_stay_bit_identical_in_every_variant(variant, tmp_path):
    torch.manual_seed(0)
    stream = make_stream(4)
    check_old_logits_stay(
        lambda: build(conv_net(), epochs=1, **VARIANTS[variant]()), stream, conv_net, tmp_path
    )


def test_old_logits_of_a_resnet_stay_bit_identical(tmp_path):
    torch.manual_seed(0)
    model = partial(resnet18, (3, 16, 16), 2)
    stream = make_stream(3, samples=16, shape=(3, 16, 16))
    check_old_logits_stay(lambda: build(model(), epochs=1, rank=0.25), stream, model, tmp_path)


@pytest.mark.parametrize("model", [mlp, conv_net])
def test_old_logits_stay_though_training_ran_under_autocast(model):
    stream = make_stream(3)
    torch.manual_seed(0)
    strategy, known = build(model(), epochs=1, storage="factors"), []
    for task, experience in enumerate(stream.train_stream):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            strategy.train(experience)
        now = logits(strategy.model, stream.test_stream, range(task + 1))
        assert all(torch.equal(a, b) for a, b in zip(known, now))
        known = now


def test_logits_do_not_depend_on_an_evaluation_under_autocast_before():
    stream = make_stream(3)
    network = learned(stream).network
    expected = logits(network, stream.test_stream, [0])
    network.activate(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits(network, stream.test_stream, [0])
    assert torch.equal(logits(network, stream.test_stream, [0])[0], expected[0])


def test_under_autocast_logits_are_finite_and_training_goes_on():
    losses = []

    class Watch(SupervisedPlugin):
        def after_backward(self, strategy, **kwargs):
            losses.append(float(strategy.loss))
            dtypes.update(p.dtype for store in network.weight_stores for p in store.parameters())
            dtypes.update(store.weight().dtype for store in network.weight_stores)

    stream, dtypes = make_stream(3), set()
    torch.manual_seed(0)
    strategy = build(conv_net(), plugins=[Watch()])
    network = strategy.network
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for experience in stream.train_stream:
            strategy.train(experience)
            for out in logits(network, stream.test_stream, [0, 1, 2]):
                assert bool(torch.isfinite(out).all())
    assert dtypes == {torch.float32}
    assert torch.isfinite(torch.tensor(losses)).all()


# ------------------------------------------------------------------ learning


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
@pytest.mark.parametrize("model", [mlp, conv_net])
def test_each_task_is_learned(model, decomposition):
    stream = make_stream(3)
    strategy = learned(stream, model=model(), epochs=12, decomposition=decomposition)
    for experience, out in zip(
        stream.test_stream, logits(strategy.model, stream.test_stream, range(3))
    ):
        targets = torch.tensor([int(y) for _, y, *_ in experience.dataset])
        assert (out.argmax(1) == targets).float().mean() > 0.85


def test_stronger_sparsity_never_makes_the_network_larger():
    stream = make_stream(2, samples=200)
    sizes = []
    for lambda_sparse in (0.0, 0.4, 20.0):
        network = learned(
            stream, 2, epochs=6, lambda_sparse=lambda_sparse, energy=0.01, storage="factors"
        ).network
        sizes.append(sum(sum(store.ranks.values()) for store in network.weight_stores))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def test_layers_too_small_to_factor_learn_too():
    stream = make_stream(3)
    strategy = learned(stream, model=small_layers(), epochs=6)
    network = strategy.network
    stores = network.weight_stores
    assert [store.factored for store in stores] == [False, True, True]
    small = stores[0]
    values = [float(small.committed(task)) for task in range(3)]
    assert len(set(values)) == 3
    assert [small.stored_values(task) for task in range(3)] == [1, 1, 1]


def test_a_bare_vector_can_be_compressed_by_name():
    stream, known = make_stream(3), []
    torch.manual_seed(0)
    network = TaskNetwork(Scaled(), FactoredStore, include=["scale"])
    strategy = build(network)
    for task, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        now = logits(network, stream.test_stream, range(task + 1))
        assert all(torch.equal(a, b) for a, b in zip(known, now))
        known = now
    weights = [network.weight_of("scale", task) for task in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_small_layers_one_after_another_learn_without_sharing():
    """A task that builds on nothing must not start with a product of zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False),
        nn.Conv2d(1, 1, 1, bias=False),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )
    stream = make_stream(2)
    strategy = learned(stream, 2, model=model, epochs=6, plugins=[SharingPlugin("none")])
    small = strategy.network.weight_stores[:2]
    assert all(store.committed(0).any() for store in small)
    assert all(store.committed(1).any() for store in small)


@pytest.mark.parametrize("labels", [[7, -2, 5], [100], [3, 1]])
def test_labels_need_no_order_and_one_task_is_enough(labels, tmp_path):
    stream = make_stream(len(labels), labels=labels)
    strategy = learned(stream, len(labels), model=conv_net())
    network = strategy.network
    assert network.tasks == labels
    now = [network.eval()(inputs_of(e), e.task_label) for e in stream.test_stream]
    save_archive(network, tmp_path / "archive")
    loaded = load_archive(tmp_path / "archive", conv_net)
    for experience, out in zip(stream.test_stream, now):
        assert torch.equal(loaded(inputs_of(experience), experience.task_label), out)


def test_evaluating_unseen_tasks_changes_nothing():
    stream = make_stream(3)
    strategy = learned(stream, 1, model=conv_net())
    before, sections = state_of(strategy.model), sections_of(strategy.model)
    parameters = [id(p) for p in strategy.model.parameters()]
    strategy.eval(stream.test_stream)
    assert same(before, state_of(strategy.model))
    assert sections == sections_of(strategy.model)
    assert parameters == [id(p) for p in strategy.model.parameters()]
    assert strategy.model.tasks == [0]
    assert strategy.model.open_task is None


def test_evaluation_within_training_changes_nothing():
    stream = make_stream(3)

    class Seed(SupervisedPlugin):  # the host's evaluation draws random numbers
        def before_train_dataset_adaptation(self, strategy, **kwargs):
            torch.manual_seed(4)

    found = []
    for eval_every in (-1, 1):
        torch.manual_seed(3)
        strategy = build(mlp(), eval_every=eval_every, plugins=[Seed()])
        for experience in stream.train_stream:
            strategy.train(experience, eval_streams=[stream.test_stream], shuffle=False)
        found.append(sections_of(strategy.model))
    assert found[0] == found[1]


# ------------------------------------------------------------------ freezing and the optimiser


class Inspect(SupervisedPlugin):
    """Looks at the optimiser before each task's first step and after its last one."""

    def __init__(self):
        super().__init__()
        self.optimizers, self.terms, self.frozen = [], [], []

    def before_training_epoch(self, strategy, **kwargs):
        network, optimizer = strategy.network, strategy.optimizer
        groups = [p for group in optimizer.param_groups for p in group["params"]]
        assert sorted(map(id, groups)) == sorted(map(id, network.parameters()))
        names = {name for name, _ in network.named_parameters()}
        for store in network.weight_stores:
            key = "stores." + store.name.replace(".", "/")
            assert {f"{key}.{part}" for part in ("left", "sigma", "right")} <= names
        used = {t.untyped_storage().data_ptr() for t in frozen_tensors(network)}
        assert not used & {p.untyped_storage().data_ptr() for p in groups if p.numel()}
        self.optimizers.append(optimizer)
        self.terms.append([p for store in network.weight_stores for p in store.parameters()])
        self.frozen.append([t.clone() for t in frozen_tensors(network)])

    def after_training_epoch(self, strategy, **kwargs):
        for before, now in zip(self.frozen[-1], frozen_tensors(strategy.network)):
            assert torch.equal(before, now)


def frozen_tensors(network) -> list:
    """All that finished tasks compute with, and what the open one builds on."""
    stores = network.weight_stores
    tensors = [store.shared for store in stores]
    for task in network.tasks:
        tensors += [store.committed(task) for store in stores]
        tensors += network.private.committed(task)
    return tensors


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimiser_stays_and_trains_new_terms_and_nothing_that_finished_tasks_use(optimizer):
    inspect = Inspect()
    strategy = learned(
        make_stream(3), model=conv_net(), optimizer=optimizer, epochs=1, plugins=[inspect]
    )
    assert all(found is strategy.optimizer for found in inspect.optimizers)
    first, second, third = inspect.terms
    assert not {map(id, first)} & {map(id, second)}
    assert not {map(id, second)} & {map(id, third)}
    # each term was moved by the optimiser
    for parameters in inspect.terms:
        assert all(p.grad is not None for p in parameters if p.numel())


def test_terms_join_the_group_of_their_weight_and_keep_its_schedule():
    model = conv_net()
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.1}, {"params": others}], lr=0.1, momentum=0.9
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    plugin = LRSchedulerPlugin(scheduler, reset_scheduler=False, reset_lr=False)
    strategy = CACL(
        model=model,
        optimizer=optimizer,
        train_mb_size=16,
        train_epochs=2,
        evaluator=None,
        plugins=[plugin, Inspect()],
    )
    groups = []

    class Watch(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            group = {id(p) for p in optimizer.param_groups[0]["params"]}
            groups.append(group)
            for store in strategy.network.weight_stores:
                assert {id(p) for p in (*store.parameters(), store.scratch)} <= group

    strategy.plugins.append(Watch())
    for experience in make_stream(3).train_stream:
        strategy.train(experience)
    assert len(groups) == 6
    assert strategy.optimizer is optimizer
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**6)


def test_optimiser_state_starts_anew_at_each_task():
    strategy, steps = build(epochs=1), []
    for experience in make_stream(3).train_stream:
        strategy.train(experience)
        steps.append(max(int(s["step"]) for s in strategy.optimizer.state.values()))
    assert steps == [4, 4, 4]


# ------------------------------------------------------------------ size and file


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_what_is_stored_is_the_terms_and_what_each_task_has_for_itself(decomposition):
    stream = make_stream(3)
    network = learned(
        stream, model=conv_net(), decomposition=decomposition, storage="factors"
    ).network
    private = sum(place.tensor.numel() for place in network.private.places)
    numbers = 0
    for task in network.tasks:
        for store in network.weight_stores:
            expected = store.ranks[task] * (store.rows + store.columns + 1)
            assert store.stored_values(task) == expected
            numbers += expected
        assert network.private.stored_values(task) == private
        numbers += private
    sections = sum(
        len(section) for of_store in sections_of(network) for section in of_store.values()
    )
    # batch counters are not floats but 8 bytes each
    counters = 4 * 2 * len(network.tasks)
    assert 4 * numbers + counters <= sections <= 4 * numbers + counters + 100
    assert sections < len(archive_bytes(network)) < sections + 1500


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_a_loaded_network_learns_a_further_task(decomposition, tmp_path):
    stream = make_stream(4)
    arguments = {"decomposition": decomposition, "epochs": 1}
    strategy = learned(stream, model=conv_net(), **arguments)
    save_archive(strategy.model, tmp_path / "archive")
    loaded = load_archive(tmp_path / "archive", conv_net)
    known = logits(strategy.model, stream.test_stream, range(3))
    assert all(
        torch.equal(a, b) for a, b in zip(known, logits(loaded, stream.test_stream, range(3)))
    )
    trained = strategy.model
    del strategy  # which the network outlives
    for network in (trained, loaded):
        torch.manual_seed(5)
        build(network, **arguments).train(stream.train_stream[3])
        now = logits(network, stream.test_stream, range(4))
        assert all(torch.equal(a, b) for a, b in zip(known, now))
    assert loaded.tasks == [0, 1, 2, 3]
    for ours, theirs in zip(trained.weight_stores, loaded.weight_stores):
        assert ours.ranks.keys() == theirs.ranks.keys()
        assert all(ours.ranks[task] == theirs.ranks[task] for task in range(3))
    save_archive(loaded, tmp_path / "archive")
    again = load_archive(tmp_path / "archive", conv_net)
    assert archive_bytes(again) == archive_bytes(loaded)


def test_a_file_with_an_unknown_decomposition_is_refused_as_damaged(tmp_path):
    network = learned(make_stream(1), 1).network
    original = archive._layout

    def layout(network):
        entries = json.loads(json.dumps(original(network)))
        entries[0][3]["decomposition"] = "tucker"
        return entries

    path = tmp_path / "archive"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "_layout", layout)
        path.write_bytes(archive_bytes(network))
    with pytest.raises(ArchiveError):
        load_archive(path, mlp)


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_materialised_tasks_give_the_networks_logits(decomposition):
    stream = make_stream(3)
    network = learned(
        stream, model=conv_net(), decomposition=decomposition, storage="factors"
    ).network
    expected = logits(network, stream.test_stream, range(3))
    for task, experience in enumerate(stream.test_stream):
        x = inputs_of(experience)
        assert torch.equal(network.materialise(task)(x), expected[task])
        for form in ("factored", "auto"):
            out = network.materialise(task, form)(x)
            torch.testing.assert_close(out, expected[task], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ stop and resume


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_run_ends_with_the_tensors_of_an_uninterrupted_one(
    optimizer, decomposition, tmp_path
):
    stream = make_stream(3)
    arguments = {"optimizer": optimizer, "decomposition": decomposition, "epochs": 1}

    def started():
        return {"model": conv_net(), "plugins": [QuantizationPlugin(5)], **arguments}

    strategy = learned(stream, 1, **started())
    save_checkpoint(strategy, tmp_path / "checkpoint")
    for experience in stream.train_stream[1:]:
        strategy.train(experience)

    torch.manual_seed(77)
    fresh = build(**started())
    resumed, following = load_checkpoint(fresh, tmp_path / "checkpoint", trusted=True)
    assert following == 1
    for experience in stream.train_stream[following:]:
        resumed.train(experience)
    assert sections_of(resumed.model) == sections_of(strategy.model)
    assert same(state_of(resumed.model), state_of(strategy.model))
    assert archive_bytes(resumed.model) == archive_bytes(strategy.model)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "state_dict"])
def test_a_copy_of_the_network_in_the_middle_of_a_task_is_that_network(copied):
    copies = []

    class Copy(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            if strategy.network.tasks == [0] and not copies:
                network = strategy.network
                if copied == "deepcopy":
                    other = copy.deepcopy(network)
                elif copied == "pickle":
                    other = pickle.loads(pickle.dumps(network))
                else:
                    other = TaskNetwork(conv_net(), FactoredStore)
                    other.load_state_dict(network.state_dict())
                copies.append((other, *both_logits(network)))

    def both_logits(network):
        training = network.training
        found = logits(network, stream.test_stream, [0, 1])
        network.train(training)
        return found

    stream = make_stream(2)
    learned(stream, 2, model=conv_net(), plugins=[Copy()])
    ((other, *expected),) = copies
    assert other.open_task == 1
    assert all(torch.equal(a, b) for a, b in zip(both_logits(other), expected))
    for store in other.weight_stores:
        store.truncate(3e-5)
    other.commit()
    old, new = both_logits(other)
    assert torch.equal(old, expected[0])
    torch.testing.assert_close(new, expected[1], rtol=0.05, atol=0.05)


# ------------------------------------------------------------------ without labels


def test_tasks_are_inferred_on_a_class_incremental_stream():
    generator = torch.Generator().manual_seed(0)
    train, test = [], []
    for task in range(3):
        means = 1.5 * torch.randn(2, 1, 8, 8, generator=generator)
        for part, count in ((train, 60), (test, 30)):
            y = torch.arange(count) % 2
            x = means[y] + 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
            part.append((x, y + 2 * task))
    stream = tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=[0, 0, 0])
    strategy = learned(stream, epochs=6, task_inference="entropy")
    network = strategy.network
    assert network.classes == {0: (0, 1), 1: (2, 3), 2: (4, 5)}
    right = 0
    for task, experience in enumerate(stream.test_stream):
        strategy.eval([experience])
        right += int((strategy.inferred_tasks == task).sum())
    assert right / 90 > 0.6


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("energy", 1.0),
        ("energy", -0.1),
        ("rank", 0),
        ("rank", 0.0),
        ("rank", "most"),
        ("grow", "slowly"),
        ("sparsity", "l0"),
        ("reg_scope", "none"),
        ("truncation", "rough"),
        ("energy_scope", "old"),
        ("init", "pca"),
        ("decomposition", "tucker"),
        ("storage", "dense"),
        ("lambda_orth", -1.0),
        ("residual", -1.0),
    ],
)
def test_arguments_outside_their_range_are_refused_by_name(name, value):
    with pytest.raises(TaskStateError, match=name):
        build(**{name: value})


@pytest.mark.parametrize(
    ("store", "arguments"),
    [
        (MaskedStore, {}),
        (partial(FactoredStore, decomposition="spatial"), {}),
        (FactoredStore, {"decomposition": "spatial"}),
        (FactoredStore, {"storage": "factors"}),
    ],
)
def test_a_network_with_other_stores_is_refused(store, arguments):
    with pytest.raises(TaskStateError, match="FactoredStore"):
        build(TaskNetwork(conv_net(), store), **arguments)


def test_non_finite_terms_are_not_committed_and_the_task_can_be_trained_again():
    class Spoil(SupervisedPlugin):
        on = True

        def after_training_epoch(self, strategy, **kwargs):
            if self.on:
                with torch.no_grad():
                    strategy.network.weight_stores[1].left[0, 0] = float("nan")

    stream, spoil = make_stream(2), Spoil()
    strategy = learned(stream, 0, epochs=1, plugins=[spoil])
    with pytest.raises(NonFiniteError, match=r"3\.weight"):
        strategy.train(stream.train_stream[0])
    assert strategy.model.tasks == []
    assert not any(sections_of(strategy.model))
    spoil.on = False
    for experience in stream.train_stream:
        strategy.train(experience)
    assert strategy.model.tasks == [0, 1]


def test_a_loss_that_is_not_finite_stops_before_the_step_and_old_logits_stay():
    stream = make_stream(2)
    strategy = learned(stream, 1, model=conv_net(), epochs=1)
    (old,) = logits(strategy.model, stream.test_stream, [0])
    x, y = torch.full((60, 1, 8, 8), float("nan")), torch.arange(60) % 2
    bad = tensors_benchmark([(x, y)], [(x, y)], task_labels=[1])
    with pytest.raises(NonFiniteError, match="loss is nan"):
        strategy.train(bad.train_stream[0])
    assert all(bool(torch.isfinite(p).all()) for p in strategy.model.parameters())
    strategy.train(stream.train_stream[1])
    assert strategy.model.tasks == [0, 1]
    assert torch.equal(old, logits(strategy.model, stream.test_stream, [0])[0])
