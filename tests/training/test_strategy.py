"""PackNet, WSN and TinySubNets as Avalanche strategies."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    nc_benchmark,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, ReplayPlugin
from PIL import Image
from streams_for_tests import (
    OURS,
    check_old_logits_stay,
    conv_net,
    inputs_of,
    logits,
    make_stream,
    mlp,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.transforms import ToTensor

from avalanche_compress import (
    WSN,
    CapacityExhaustedError,
    MaskedStore,
    MaskingPlugin,
    PackNet,
    QuantizationPlugin,
    TaskLabelError,
    TaskNetwork,
    TaskStateError,
    TinySubNets,
    TrainingDataError,
    UnsupportedModuleError,
    ValidationDataError,
    ValidationPlugin,
    load_archive,
    save_archive,
)
from avalanche_compress.codec import kept_count
from avalanche_compress.core.registry import method_named

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": partial(torch.optim.Adam, lr=5e-3),
    "adamw": partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.1),
}
METHODS = {
    "packnet": partial(PackNet, prune_proportion=0.6, post_prune_epochs=1),
    "wsn": partial(WSN, density=0.4),
    "tinysubnets": partial(TinySubNets, density=0.4, prune_rounds=3, bits=4),
    "tinysubnets_auto": partial(TinySubNets, density=0.4, prune_rounds=3, tolerance=2.0),
}


def build(method, model, optimizer="adam", epochs=3, **arguments):
    return METHODS[method](
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=64,
        **{"evaluator": None, **arguments},
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [mlp, conv_net])
def test_old_logits_stay_bit_identical(method, optimizer, model, tmp_path):
    torch.manual_seed(0)
    stream = make_stream(tasks=4)
    check_old_logits_stay(lambda: build(method, model(), optimizer), stream, model, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_each_task_is_learned(method):
    torch.manual_seed(0)
    stream = make_stream(tasks=3)
    strategy = build(method, mlp(), epochs=8)
    for experience in stream.train_stream:
        strategy.train(experience)
    for experience, out in zip(
        stream.test_stream, logits(strategy.model, stream.test_stream, range(3))
    ):
        targets = torch.tensor([int(y) for _, y, *_ in experience.dataset])
        assert (out.argmax(1) == targets).float().mean() > 0.85


@pytest.mark.parametrize("name", OURS)
def test_every_strategy_trains_with_avalanches_defaults(name):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    strategy = method_named(name).strategy(model=model, optimizer=optimizer)
    stream = make_stream(2, samples=20)
    for experience in stream.train_stream:
        strategy.train(experience)
    assert strategy.network.tasks == [0, 1]
    assert strategy.train_epochs == strategy.train_mb_size == 1


def test_a_plain_script_changes_in_one_line_and_reports_metrics():
    stream = make_stream()
    model = mlp()
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True), forgetting_metrics(experience=True)
    )
    strategy = build("packnet", model, evaluator=evaluator)
    for experience in stream.train_stream:
        strategy.train(experience)
        results = strategy.eval(stream.test_stream)
    forgetting = [v for k, v in results.items() if k.startswith("ExperienceForgetting")]
    assert forgetting == [0.0, 0.0]


def test_the_optimiser_object_groups_and_schedule_stay():
    model = conv_net()
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.1}, {"params": others}], lr=0.1, momentum=0.9
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    strategy = WSN(
        model=model,
        optimizer=optimizer,
        density=0.5,
        train_mb_size=16,
        train_epochs=2,
        evaluator=None,
        plugins=[LRSchedulerPlugin(scheduler, reset_scheduler=False, reset_lr=False)],
    )
    for experience in make_stream(2).train_stream:
        strategy.train(experience)
    assert strategy.optimizer is optimizer
    assert scheduler.optimizer is optimizer
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trained = [id(p) for p in strategy.model.parameters()]
    assert sorted(grouped) == sorted(trained)
    first = {id(p) for p in optimizer.param_groups[0]["params"]}
    for store in strategy.network.weight_stores:
        assert {id(store.scratch), id(store.scores)} <= first


def test_optimiser_state_starts_anew_at_each_task():
    model = mlp()
    strategy = build("packnet", model, "adam", epochs=1, plugins=[])
    steps = []
    for experience in make_stream(2).train_stream:
        strategy.train(experience)
        steps.append(max(int(s["step"]) for s in strategy.optimizer.state.values()))
    assert steps[0] == steps[1] == 4


def test_users_plugins_are_called_and_their_list_is_left_alone():
    class Counter(SupervisedPlugin):
        calls = 0

        def after_training_iteration(self, strategy, **kwargs):
            self.calls += 1

    counter, mine = Counter(), []
    mine.append(counter)
    strategy = build("tinysubnets", mlp(), plugins=mine)
    strategy.train(make_stream(1, samples=40).train_stream[0])
    assert counter.calls > 0
    assert mine == [counter]


def test_periodic_evaluation_sees_the_compressed_task():
    stream = make_stream(1)
    seen = []

    class Look(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            seen.append(list(strategy.model.tasks))

    strategy = build("wsn", mlp(), plugins=[Look()])
    strategy.train(stream.train_stream[0])
    assert seen == [[0]]


def test_replay_of_finished_tasks_leaves_them_as_they_are():
    stream = make_stream()
    strategy = build("wsn", conv_net(), plugins=[ReplayPlugin(mem_size=30)])
    strategy.train(stream.train_stream[0])
    (before,) = logits(strategy.model, stream.test_stream, [0])
    for experience in stream.train_stream[1:]:
        strategy.train(experience)
    (after,) = logits(strategy.model, stream.test_stream, [0])
    assert torch.equal(before, after)


@pytest.mark.parametrize("scored", [False, True])
def test_plugins_work_on_naive(scored):
    stream = make_stream()
    network = TaskNetwork(mlp(), partial(MaskedStore, scored=scored))
    strategy = Naive(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=5e-3),
        train_mb_size=16,
        train_epochs=3,
        evaluator=None,
        plugins=[ValidationPlugin(0.2), MaskingPlugin(0.4), QuantizationPlugin("auto")],
    )
    known = []
    for task, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        now = logits(network, stream.test_stream, range(task + 1))
        assert all(torch.equal(a, b) for a, b in zip(known, now))
        known = now
    assert network.tasks == [0, 1, 2]


# ------------------------------------------------------------------ invariants of the methods


def test_own_weights_are_disjoint_and_fill_the_union():
    stream = make_stream(3)
    strategy = build("wsn", mlp())
    unions = []
    for experience in stream.train_stream:
        strategy.train(experience)
        unions.append([store.free == 0 for store in strategy.network.weight_stores])
    for index, store in enumerate(strategy.network.weight_stores):
        union = torch.zeros_like(store.free, dtype=torch.bool)
        owned = 0
        for task in range(3):
            mask = store.mask_of(task)
            assert int(mask.sum()) == kept_count(0.4, mask.numel())
            owned += int((mask & ~union).sum())
            union |= mask
            assert torch.equal(union, unions[task][index])
        assert owned == int(union.sum())


def test_frozen_values_never_change():
    stream = make_stream(3)
    strategy = build("packnet", mlp(), "adamw")
    kept = []
    for experience in stream.train_stream:
        strategy.train(experience)
        for (used, value), store in zip(kept, strategy.network.weight_stores):
            assert torch.equal(store.value[used], value)
        stores = strategy.network.weight_stores
        kept = [((s.free == 0), s.value[s.free == 0].clone()) for s in stores]


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_quantised_values_are_few(bits):
    strategy = TinySubNets(
        model=mlp(),
        optimizer=torch.optim.Adam(mlp().parameters()),
        bits=bits,
        prune_rounds=0,
        train_mb_size=16,
        evaluator=None,
    )
    strategy.train(make_stream(1).train_stream[0])
    for store in strategy.network.weight_stores:
        values = store.committed(0)[store.mask_of(0)]
        assert len(values.unique()) <= 2**bits


def test_sharing_none_makes_masks_disjoint_until_no_slots_are_left():
    stream = make_stream(3)
    strategy = build("wsn", mlp())
    strategy = TinySubNets(
        model=mlp(),
        optimizer=torch.optim.Adam(mlp().parameters()),
        density=[0.4, 1.0, 0.4],
        sharing="none",
        bits=8,
        prune_rounds=0,
        train_mb_size=16,
        evaluator=None,
    )
    strategy.train(stream.train_stream[0])
    strategy.train(stream.train_stream[1])
    for store in strategy.network.weight_stores:
        assert not (store.mask_of(0) & store.mask_of(1)).any()
    before = copy.deepcopy(strategy.model.state_dict())
    with pytest.raises(CapacityExhaustedError, match="density"):
        strategy.train(stream.train_stream[2])
    after = strategy.model.state_dict()
    assert all(
        torch.equal(before[key], after[key])
        for key in before
        if isinstance(before[key], torch.Tensor)
    )


def test_similar_tasks_share_and_dissimilar_ones_do_not():
    stream = make_stream(2, samples=400)
    twin = make_stream(1, samples=400)  # the first task again, other noise

    def train(second):
        torch.manual_seed(0)
        model = mlp()
        strategy = TinySubNets(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=5e-3),
            density=0.4,
            sharing="similar",
            score_init="random",
            bits=8,
            prune_rounds=0,
            train_mb_size=16,
            train_epochs=3,
            evaluator=None,
        )
        strategy.train(stream.train_stream[0])
        strategy.train(second)
        shared = sum(
            int((store.mask_of(0) & store.mask_of(1)).sum())
            for store in strategy.network.weight_stores
        )
        return shared

    assert train(stream.train_stream[1]) == 0
    relabelled = make_stream(1, samples=400, labels=[1]).train_stream[0]
    assert twin is not None
    assert train(relabelled) > 0


def test_post_pruning_frees_own_weights_only_and_holds_its_tolerance():
    stream = make_stream(2, samples=200)
    model = mlp()
    validation = ValidationPlugin(0.3)
    strategy = TinySubNets(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=5e-3),
        density=0.5,
        bits=8,
        tolerance=100.0,
        prune_rounds=0,
        train_mb_size=16,
        train_epochs=4,
        evaluator=None,
        plugins=[validation],
    )
    strategy.train(stream.train_stream[0])
    accuracies = []

    class Measure(MaskingPlugin):
        def _prune_further(self, strategy):
            network = strategy.network
            masks = [store.mask.clone() for store in network.weight_stores]
            accuracies.append(validation.accuracy(network))
            super()._prune_further(strategy)
            accuracies.append(validation.accuracy(network))
            for store, before in zip(network.weight_stores, masks):
                shared = before & (store.free == 0)
                assert torch.equal(store.mask & (store.free == 0), shared)
                assert int(store.mask.sum()) <= int(before.sum())

    index = [isinstance(p, MaskingPlugin) for p in strategy.plugins].index(True)
    strategy.plugins[index] = Measure(0.5, prune_rounds=15, prune_tolerance=1.0)
    (old,) = logits(strategy.model, stream.test_stream, [0])
    strategy.train(stream.train_stream[1])
    assert accuracies[0] - accuracies[1] < 1.0
    store = strategy.network.weight_stores[0]
    assert int(store.mask_of(1).sum()) < kept_count(0.5, store.free.numel())
    assert torch.equal(old, logits(strategy.model, stream.test_stream, [0])[0])


@pytest.mark.parametrize("method", ["packnet", "wsn"])
def test_the_best_epoch_is_restored_with_its_mask(method):
    losses, states = [], []

    class Watch(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            network = strategy.network
            losses.append(validation.loss(strategy))
            states.append([(s.scratch.detach().clone(), s.mask) for s in network.weight_stores])
            if len(losses) == 2:  # from here on it gets worse
                for group in strategy.optimizer.param_groups:
                    group["lr"] = 1.0

    validation = ValidationPlugin(0.3, keep_best=True)
    strategy = build(method, mlp(), epochs=4, plugins=[validation, Watch()])
    if method == "packnet":
        next(p for p in strategy.plugins if isinstance(p, MaskingPlugin)).post_prune_epochs = 3
    strategy.train(make_stream(1, samples=200).train_stream[0])
    first = 1 if method == "packnet" else 0  # the epoch before pruning does not count
    best = min(range(first, 4), key=losses.__getitem__)
    assert best < 3
    for store, (scratch, mask) in zip(strategy.network.weight_stores, states[best]):
        assert torch.equal(store.mask_of(0), mask)
        assert torch.equal(store.committed(0), torch.where(mask, scratch, 0.0))


def test_one_unpruned_task_is_plain_training():
    stream = make_stream(1)
    torch.manual_seed(1)
    plain = mlp()
    masked = copy.deepcopy(plain)
    losses = []
    for strategy_class, model, arguments in (
        (Naive, plain, {}),
        (TinySubNets, masked, {"density": 1.0, "sharing": "none", "prune_rounds": 0, "bits": 16}),
    ):
        seen = []

        class Record(SupervisedPlugin):
            def after_backward(self, strategy, _seen=seen, **kwargs):
                _seen.append(float(strategy.loss))

        strategy = strategy_class(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
            train_mb_size=16,
            train_epochs=2,
            evaluator=None,
            plugins=[ValidationPlugin(0.2), Record()]
            if strategy_class is TinySubNets
            else [Record()],
            **arguments,
        )
        experience = stream.train_stream[0]
        if strategy_class is Naive:
            order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
            experience = copy.copy(experience)
            experience._dataset = experience.dataset.subset(order[12:])
        torch.manual_seed(2)
        strategy.train(experience)
        losses.append(seen)
    assert losses[0] == losses[1]


# ------------------------------------------------------------------ bad input


def test_no_free_weights_is_an_error_that_leaves_the_network_usable():
    stream = make_stream(2)
    model = mlp()
    strategy = PackNet(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        prune_proportion=0,
        train_mb_size=16,
        evaluator=None,
    )
    strategy.train(stream.train_stream[0])
    before = logits(strategy.model, stream.test_stream, [0])[0]
    with pytest.raises(CapacityExhaustedError, match="no free weights"):
        strategy.train(stream.train_stream[1])
    assert torch.equal(before, logits(strategy.model, stream.test_stream, [0])[0])


def test_a_network_with_other_stores_is_refused():
    network = TaskNetwork(mlp(), MaskedStore)
    with pytest.raises(TaskStateError, match="scored"):
        WSN(model=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1), evaluator=None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskingPlugin(prune_fraction=1.0),
        lambda: MaskingPlugin(post_prune_epochs=-1),
        lambda: QuantizationPlugin(bits=17),
        lambda: QuantizationPlugin(bits=0),
        lambda: QuantizationPlugin(method="nonsense"),
        lambda: QuantizationPlugin(tolerance=-1),
        lambda: ValidationPlugin(fraction=1.5),
        lambda: MaskingPlugin(density=1.5).density_at(0, "w"),
        lambda: MaskingPlugin(density=[0.5]).density_at(1, "w"),
    ],
)
def test_arguments_outside_their_range_are_refused(make):
    with pytest.raises((TaskStateError, ValidationDataError)):
        make()


def test_decisions_by_accuracy_ask_for_validation_data():
    network = TaskNetwork(mlp(), partial(MaskedStore, scored=True))
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        train_mb_size=16,
        evaluator=None,
        plugins=[QuantizationPlugin("auto")],
    )
    with pytest.raises(ValidationDataError, match="ValidationPlugin"):
        strategy.train(make_stream(1).train_stream[0])


def test_a_stream_split_for_validation_keeps_its_tasks():
    stream = benchmark_with_validation_stream(make_stream(2), 0.25, shuffle=True, seed=0)
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True))
    strategy = build("wsn", mlp(), epochs=6, evaluator=evaluator)
    for experience in stream.train_stream:
        assert not hasattr(experience, "task_labels")  # Avalanche has dropped them
        strategy.train(experience)
    assert strategy.model.tasks == [0, 1]
    for held_out in (stream.valid_stream, stream.test_stream):
        results = strategy.eval(held_out)
        assert sum("Top1_Acc_Exp" in name for name in results) >= 2
        assert min(v for name, v in results.items() if "Top1_Acc_Exp" in name) > 0.8


def test_evaluation_without_task_labels_is_refused():
    stream = make_stream(1)
    strategy = build("wsn", mlp(), epochs=1)
    strategy.train(stream.train_stream[0])
    data = TensorDataset(inputs_of(stream.test_stream[0]), torch.zeros(30).long())
    data.targets = [0] * 30
    unlabelled = benchmark_from_datasets(test=[as_classification_dataset(data)])
    with pytest.raises(TaskLabelError, match=r"no task labels.*task_inference='triangular@first'"):
        strategy.eval(unlabelled.streams["test"])


def test_labels_that_are_not_remapped_and_old_style_benchmarks_work():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = torch.utils.data.TensorDataset(x, torch.tensor(digits.target))
    data.targets = digits.target.tolist()
    stream = nc_benchmark(data, data, 5, task_labels=True, seed=1)
    strategy = build("wsn", mlp(), epochs=2)
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(stream.test_stream)
    network = strategy.network
    for experience in stream.test_stream:
        numbers = sorted(experience.classes_in_this_experience)
        assert network.classes_of(experience.task_label) == tuple(numbers)
        out = network(inputs_of(experience)[:8], experience.task_label)
        assert out.shape[1] == numbers[-1] + 1
        others = [c for c in range(out.shape[1]) if c not in numbers]
        assert (out[:, others] == -1000).all()
    assert isinstance(network.head, nn.Linear)


@pytest.mark.parametrize("name", OURS)
def test_a_model_with_layers_without_a_shape_is_refused_by_name(name):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(UnsupportedModuleError, match=r"1 \(LazyLinear\) has no shape yet"):
        OURS[name](model=model, optimizer=optimizer, evaluator=None)


class ChangesGradients(SupervisedPlugin):
    """Works on the gradient of a layer's weight between backward pass and step."""

    def __init__(self, layer, change):
        super().__init__()
        self.layer, self.change = layer, change

    def before_update(self, strategy, **kwargs):
        self.change(self.layer.weight)


@pytest.mark.parametrize("name", ["packnet", "wsn", "halrp"])
def test_a_plugin_finds_gradients_at_a_layers_own_weight(name):
    torch.manual_seed(0)
    model = mlp()
    frozen, other = (model[layer].weight.detach().clone() for layer in (1, 3))
    strategy = OURS[name](
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        plugins=[ChangesGradients(model[1], lambda weight: weight.grad.zero_())],
        evaluator=None,
    )
    strategy.train(make_stream(1).train_stream[0])
    assert torch.equal(model[1].weight, frozen)
    assert not torch.equal(model[3].weight, other)


def test_hooks_on_parameters_are_called_once_a_step_from_the_first_one_on():
    calls = []
    torch.manual_seed(0)
    model = mlp()
    strategy = PackNet(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=15,
        prune_proportion=0.0,
        evaluator=None,
    )
    model[1].weight.register_hook(lambda gradient: calls.append(gradient))
    strategy.train(make_stream(1).train_stream[0])
    assert len(calls) == strategy.clock.train_iterations == 4


@pytest.mark.parametrize("name", OURS)
def test_an_interruption_while_a_task_is_kept_leaves_the_tasks_before(name, tmp_path, monkeypatch):
    stream = make_stream(3)
    strategy = build_ours(name)
    strategy.train(stream.train_stream[0])
    before = logits(strategy.model, stream.test_stream, [0])
    stores = strategy.network.weight_stores
    takes = type(stores[1]).accept

    def interrupted(store, task, content):
        takes(store, task, content)
        if store is stores[1]:
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(type(stores[1]), "accept", interrupted)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream.train_stream[1])
    assert strategy.network.tasks == [0]
    assert all(list(store.sections) == [0] for store in stores)
    for experience in stream.train_stream[1:]:
        strategy.train(experience)
    after = logits(strategy.model, stream.test_stream, [0, 1, 2])
    assert torch.equal(before[0], after[0])
    save_archive(strategy.model, tmp_path / "archive")
    loaded = logits(load_archive(tmp_path / "archive", mlp), stream.test_stream, [0, 1, 2])
    assert all(map(torch.equal, after, loaded))


def build_ours(name):
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return OURS[name](
        model=model, optimizer=optimizer, train_mb_size=20, train_epochs=2, evaluator=None
    )


def test_images_that_only_training_transforms_make_tensors_are_refused_by_name():
    class Images(torch.utils.data.Dataset):
        targets = (0, 1, 0, 1)

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return Image.new("L", (8, 8), index), self.targets[index]

    stream = nc_benchmark(Images(), Images(), 1, task_labels=True, train_transform=ToTensor())
    with pytest.raises(TrainingDataError, match="eval_transform="):
        build_ours("packnet").train(stream.train_stream[0])


@pytest.mark.parametrize("name", OURS)
def test_a_loader_that_does_not_know_its_length_is_trained_on(name):
    class OfUnknownLength(IterableDataset):
        def __init__(self, dataset):
            self.dataset = dataset

        def __iter__(self):
            return (self.dataset[index] for index in range(len(self.dataset)))

    def streaming(**kwargs):
        strategy.dataloader = DataLoader(OfUnknownLength(strategy.adapted_dataset), batch_size=16)

    strategy = build_ours(name)
    strategy.make_train_dataloader = streaming
    for experience in make_stream(2).train_stream:
        strategy.train(experience)
    assert strategy.network.tasks == [0, 1]
    assert strategy.clock.train_iterations > 0
