"""Mini-batches from tensors are those that Avalanche's loaders give, bit for bit."""

from __future__ import annotations

import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.benchmarks import dataset_benchmark, nc_benchmark
from avalanche.benchmarks.classic.cmnist import PixelsPermutation
from avalanche.benchmarks.datasets.external_datasets.mnist import TensorMNIST
from avalanche.benchmarks.utils import DefaultTransformGroups, make_avalanche_dataset
from avalanche.benchmarks.utils.classification_dataset import (
    _make_taskaware_classification_dataset,
)
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.data_loader import (
    GroupBalancedInfiniteDataLoader,
    ReplayDataLoader,
    SingleDatasetDataLoader,
    TaskBalancedDataLoader,
)
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import as_multitask
from avalanche.training import EWC, Naive, Replay
from avalanche.training.plugins import EvaluationPlugin
from streams_for_tests import OURS, make_stream, mlp
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import CIFAR10, MNIST, SVHN
from torchvision.transforms import v2

from avalanche_compress import (
    ByteValues,
    NoTensorsError,
    PackNet,
    TensorDataPlugin,
    TensorSamples,
    ValidationPlugin,
)
from avalanche_compress.host.tensor_data import read_samples
from avalanche_compress.host.tensor_data.plugin import TensorLoader
from avalanche_compress.shaping.validation import load_batches

CPU = torch.device("cpu")
GIGABYTE = 2**30


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_epochs(loader):
    """All mini-batches of two epochs, and the state of torch's random numbers after them."""
    torch.manual_seed(3)
    batches = [batch for _ in range(2) for batch in loader]
    return batches, torch.get_rng_state()


def check_same_batches(loader, memory: int = GIGABYTE) -> None:
    fast = TensorLoader(loader, CPU, memory)
    expected, expected_state = two_epochs(loader)
    batches, state = two_epochs(fast)
    assert len(fast) == len(loader)
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected):
        assert type(batch) is type(other) is list
        assert len(batch) == len(other)
        for ours, wanted in zip(batch, other):
            assert ours.dtype == wanted.dtype
            assert torch.equal(ours, wanted)
    assert torch.equal(state, expected_state)


def tensors(count: int, seed: int = 0, shape=(1, 8, 8)):
    source = generator(seed)
    return torch.randn(count, *shape, generator=source), torch.arange(count) % 4


def labelled(count: int, task: int, **arguments):
    """An Avalanche data set of floats, all of one task."""
    return _make_taskaware_classification_dataset(
        TensorDataset(*tensors(count, task)), targets=(torch.arange(count) % 4).tolist(),
        task_labels=task, **arguments,
    )  # fmt: skip


def images(kind, count: int = 24):
    """One of torchvision's data sets with random images, without its files."""
    dataset = kind.__new__(kind)
    draw = np.random.default_rng(0)
    dataset.transform = dataset.target_transform = None
    targets = np.arange(count) % 4
    if issubclass(kind, MNIST):
        dataset.data = torch.from_numpy(draw.integers(0, 256, (count, 6, 5), dtype=np.uint8))
        dataset.targets = torch.from_numpy(targets)
    elif kind is CIFAR10:
        dataset.data = draw.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
        dataset.targets = targets.tolist()
    else:
        dataset.data = draw.integers(0, 256, (count, 3, 6, 5), dtype=np.uint8)
        dataset.labels = dataset.targets = targets
    return dataset


def normalised(kind):
    """What users apply to one of torchvision's data sets."""
    grey = issubclass(kind, MNIST)
    normalise = transforms.Normalize((0.1307,), (0.3081,))
    if not grey:
        normalise = transforms.Normalize((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    first = [] if kind is TensorMNIST else [transforms.ToTensor()]
    return transforms.Compose([*first, normalise])


def second_api(kind):
    first = [] if kind is TensorMNIST else [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*first, v2.Normalize(*([0.3], [0.2]) if issubclass(kind, MNIST) else
                                            ([0.3, 0.4, 0.5], [0.2, 0.3, 0.4]))])  # fmt: skip


# --- the same batches ----------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_of_one_task_are_the_same(shuffle, drop_last):
    loader = TaskBalancedDataLoader(
        labelled(23, 2), batch_size=5, shuffle=shuffle, drop_last=drop_last
    )
    check_same_batches(loader)


def test_of_fewer_samples_than_a_mini_batch_no_empty_one_is_made():
    loader = TaskBalancedDataLoader(labelled(3, 2), batch_size=5, drop_last=True)
    assert list(TensorLoader(loader, CPU, GIGABYTE)) == list(loader) == []


@pytest.mark.parametrize("oversample", [True, False])
def test_batches_of_several_tasks_are_the_same(oversample):
    data = labelled(23, 2).concat(labelled(5, 0)).concat(labelled(11, 7))
    loader = TaskBalancedDataLoader(
        data, batch_size=8, shuffle=True, oversample_small_groups=oversample
    )
    check_same_batches(loader)


def test_evaluation_batches_are_the_same():
    check_same_batches(SingleDatasetDataLoader(labelled(23, 2), batch_size=6, shuffle=False), 0)


def test_batches_with_replay_are_the_same():
    memory = labelled(9, 0).concat(labelled(7, 1)).subset([12, 3, 3, 0, 15])
    check_same_batches(
        ReplayDataLoader(
            labelled(23, 2), memory, batch_size=4, batch_size_mem=3, shuffle=True,
            oversample_small_tasks=True,
        )
    )  # fmt: skip


def test_batches_of_torchs_loader_are_the_same():
    data = make_avalanche_dataset(
        TensorDataset(*tensors(23)),
        data_attributes=[DataAttribute((torch.arange(23) % 4).tolist(), "targets")],
    )
    check_same_batches(DataLoader(data, batch_size=4, shuffle=True))
    fast = TensorLoader(
        DataLoader(data, batch_size=4, shuffle=True, generator=generator(5)), CPU, GIGABYTE
    )
    seeded = DataLoader(data, batch_size=4, shuffle=True, generator=generator(5))
    for batch, other in zip(two_epochs(fast)[0], two_epochs(seeded)[0]):
        assert all(torch.equal(ours, wanted) for ours, wanted in zip(batch, other))


def test_an_endless_loader_gives_the_same_batches():
    loader = GroupBalancedInfiniteDataLoader([labelled(5, 0), labelled(3, 1)], 2, shuffle=True)
    batches = []
    for one in (loader, TensorLoader(loader, CPU, GIGABYTE)):
        torch.manual_seed(0)
        batches.append([batch for batch, _ in zip(one, range(9))])
    for batch, other in zip(*batches):
        assert all(torch.equal(ours, wanted) for ours, wanted in zip(batch, other))


def test_subsets_of_subsets_and_concatenations_are_followed():
    x, y = tensors(40)
    inner = ConcatDataset([Subset(TensorDataset(x, y), range(30, 2, -3)), TensorDataset(x, y)])
    data = _make_taskaware_classification_dataset(
        inner, targets=[int(inner[i][1]) for i in range(len(inner))], task_labels=1
    )
    data = data.subset(list(range(3, 45, 2))).concat(labelled(6, 0)).subset([0, 26, 25, 3, 3, 1])
    check_same_batches(TaskBalancedDataLoader(data, batch_size=2, shuffle=True))


def test_indices_that_count_from_the_end_are_followed():
    x, y = tensors(20)
    inner = ConcatDataset([Subset(TensorDataset(x, y), [-1, 3, -20]), TensorDataset(x, y)])
    chosen = Subset(inner, [-1, 0, 2, -23, -21, 5])
    data = _make_taskaware_classification_dataset(
        chosen, targets=[int(chosen[i][1]) for i in range(len(chosen))], task_labels=0
    )
    check_same_batches(TaskBalancedDataLoader(data, batch_size=4))


def test_normalised_floats_are_the_same():
    normalise = transforms.Normalize((0.5, 0.1), (0.3, 0.7))
    data = _make_taskaware_classification_dataset(
        TensorDataset(*tensors(23, shape=(2, 4, 3))), targets=[0] * 23, task_labels=0,
        transform_groups={"train": (normalise, None), "eval": (None, None)},
    )  # fmt: skip
    for memory in (0, GIGABYTE):
        check_same_batches(TaskBalancedDataLoader(data.train(), batch_size=5), memory)
        check_same_batches(TaskBalancedDataLoader(data.eval(), batch_size=5), memory)


@pytest.mark.parametrize("kind", [MNIST, TensorMNIST, CIFAR10, SVHN])
@pytest.mark.parametrize("transform", [normalised, second_api])
@pytest.mark.parametrize("memory", [0, GIGABYTE])
def test_images_are_the_same_bits(kind, transform, memory):
    benchmark = nc_benchmark(
        images(kind), images(kind), n_experiences=2, task_labels=True, seed=1,
        class_ids_from_zero_in_each_exp=True, train_transform=transform(kind),
        eval_transform=transform(kind),
    )  # fmt: skip
    for experience in benchmark.train_stream:
        check_same_batches(
            TaskBalancedDataLoader(experience.dataset.train(), batch_size=5, shuffle=True), memory
        )


@pytest.mark.parametrize("kind", [MNIST, TensorMNIST])
def test_permuted_images_are_the_same_bits(kind):
    order = PixelsPermutation(torch.randperm(30, generator=generator()).tolist())
    groups = DefaultTransformGroups((order, None))
    parts = [
        make_avalanche_dataset(
            _make_taskaware_classification_dataset(images(kind)), frozen_transform_groups=groups
        )
        for _ in range(2)
    ]
    benchmark = nc_benchmark(
        parts[:1], parts[1:], n_experiences=1, task_labels=True, one_dataset_per_exp=True,
        class_ids_from_zero_in_each_exp=True, train_transform=normalised(kind),
        eval_transform=normalised(kind),
    )  # fmt: skip
    check_same_batches(TaskBalancedDataLoader(benchmark.train_stream[0].dataset, batch_size=5))


class Wings(Dataset):
    """A data set that hands out its samples as tensors."""

    def __init__(self, order=None):
        draw = generator()
        self.bytes = torch.randint(0, 256, (20, 12), generator=draw, dtype=torch.uint8)
        self.rows = torch.randperm(20, generator=draw)[:11]
        self.targets = (torch.arange(11) % 3).tolist()
        self.values = ByteValues(torch.randn(3, 256, generator=draw), (3, 2, 2), order)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.bytes[self.rows[index]]
        row = row if self.values.order is None else row[self.values.order]
        values = [self.values.table[i // 4, int(byte)] for i, byte in enumerate(row)]
        return torch.stack(values).view(3, 2, 2), self.targets[index]

    def tensor_samples(self):
        return TensorSamples(self.bytes, torch.tensor(self.targets), self.values, self.rows)


@pytest.mark.parametrize("order", [None, torch.tensor([3, 3, 0, 11, 7, 5, 1, 2, 4, 6, 8, 9])])
def test_a_data_set_may_hand_out_its_samples(order):
    normalise = transforms.Normalize((0.5, 0.1, 0.2), (0.3, 0.7, 0.2))
    plain = _make_taskaware_classification_dataset(Wings(order), task_labels=4)
    changed = _make_taskaware_classification_dataset(
        Wings(order), task_labels=4, transform=normalise
    )
    for data in (plain, changed.subset([4, 3, 9, 10, 0])):
        for memory in (0, GIGABYTE):
            check_same_batches(TaskBalancedDataLoader(data, batch_size=4, shuffle=True), memory)


def changed_tensors():
    data = TensorDataset(*tensors(20))

    def change():
        data.tensors[0][3] = 5.0
        data.tensors[1][:10] = 1

    return data, change


def changed_images(kind, replaces=False):
    data = images(kind)
    data.transform = normalised(kind)

    def change():
        name = "labels" if kind is SVHN else "targets"
        if replaces:
            setattr(data, name, [1] * len(data))
        else:
            getattr(data, name)[3] = 1
        if issubclass(kind, MNIST):
            data.data[4] = 7

    return data, change


def changed_samples():
    data = Wings()
    return data, lambda: data.targets.__setitem__(3, 2)


@pytest.mark.parametrize(
    "data",
    [
        changed_tensors,
        *(partial(changed_images, kind) for kind in (MNIST, TensorMNIST, CIFAR10, SVHN)),
        partial(changed_images, CIFAR10, replaces=True),
        changed_samples,
    ],
)
def test_labels_and_inputs_that_change_between_epochs_are_those_of_the_next(data):
    data, change = data()
    wrapped = _make_taskaware_classification_dataset(data, task_labels=0)
    loader = TaskBalancedDataLoader(wrapped, batch_size=4, shuffle=True)
    strategy, plugin = SimpleNamespace(dataloader=loader, device=CPU), TensorDataPlugin()
    plugin.before_training_epoch(strategy)
    first = strategy.dataloader
    plugin.before_training_epoch(strategy)
    assert strategy.dataloader is first
    before, _ = two_epochs(first)
    change()
    plugin.before_training_epoch(strategy)
    batches, expected = two_epochs(strategy.dataloader)[0], two_epochs(loader)[0]
    assert not all(all(map(torch.equal, *pair)) for pair in zip(before, batches))
    for batch, other in zip(batches, expected):
        assert all(map(torch.equal, batch, other))


def test_held_out_batches_are_the_same(monkeypatch):
    data = labelled(23, 2).subset(list(range(20, 0, -1))).eval()
    fast = load_batches(data, 6)

    def refuse(datasets):
        raise NoTensorsError("not this time")

    monkeypatch.setattr("avalanche_compress.shaping.validation.read_samples", refuse)
    for batch, other in zip(fast, load_batches(data, 6)):
        assert torch.equal(batch[0], other[0])
        assert torch.equal(batch[1], other[1])


# --- whole runs ----------------------------------------------------------------------------------


@pytest.fixture
def loaders(monkeypatch):
    """The loaders that tensors have replaced."""
    replaced = []
    start = TensorLoader.__init__

    def counted(self, loader, *arguments):
        start(self, loader, *arguments)
        replaced.append(loader)

    monkeypatch.setattr(TensorLoader, "__init__", counted)
    return replaced


def trained(build, stream, **arguments):
    """Weights, metrics and random state after all tasks, with evaluations in between."""
    torch.manual_seed(0)
    strategy = build(
        criterion=nn.CrossEntropyLoss(), train_mb_size=7, eval_mb_size=8, train_epochs=3,
        eval_every=2, evaluator=EvaluationPlugin(
            accuracy_metrics(epoch=True, experience=True), loss_metrics(epoch=True), loggers=[]
        ), **arguments,
    )  # fmt: skip
    metrics = {}
    for experience in stream.train_stream:
        metrics.update(strategy.train(experience))
        metrics.update(strategy.eval(stream.test_stream))
    weights = {n: w for n, w in strategy.model.state_dict().items() if torch.is_tensor(w)}
    return weights, metrics, torch.get_rng_state()


def check_same_run(build, stream, off, on, loaders) -> None:
    weights, metrics, random = trained(build, stream, **off)
    assert not loaders
    fast_weights, fast_metrics, fast_random = trained(build, stream, **on)
    # three tasks; per task the epochs' loader, two evaluations while training, and three after it
    assert len(loaders) >= 3 * (1 + 2 + 3)
    assert metrics == fast_metrics
    assert torch.equal(random, fast_random)
    assert list(weights) == list(fast_weights)
    for name, weight in weights.items():
        assert torch.equal(weight, fast_weights[name]), name


AVALANCHES = {
    "naive": Naive,
    "ewc": partial(EWC, ewc_lambda=1.0),
    "replay": partial(Replay, mem_size=30),
}


@pytest.mark.parametrize("name", AVALANCHES)
def test_strategies_of_avalanche_end_with_the_same_weights(name, loaders):
    def build(**arguments):
        model = as_multitask(mlp(), "5")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return AVALANCHES[name](model=model, optimizer=optimizer, **arguments)

    on = {"plugins": [TensorDataPlugin()]}
    check_same_run(build, make_stream(samples=40), {"plugins": []}, on, loaders)


@pytest.mark.parametrize("name", OURS)
def test_our_strategies_end_with_the_same_weights(name, loaders):
    def build(**arguments):
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        plugins = [ValidationPlugin(0.2)]
        return OURS[name](model=model, optimizer=optimizer, plugins=plugins, **arguments)

    check_same_run(build, make_stream(samples=40), {"tensor_data": False}, {}, loaders)


def test_a_pixel_data_set_is_known():
    from benchmarks.data.splits import PixelDataset

    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (30, 12), dtype=np.uint8)
    rows = draw.permutation(30)[:17]
    permutation = draw.permutation(12)
    for values in (draw.normal(size=256), draw.normal(size=(3, 256))):
        shape = (1, 3, 4) if values.ndim == 1 else (3, 2, 2)
        for order in (None, permutation):
            dataset = PixelDataset(
                pixels, rows, np.arange(17) % 3, 5, values.astype(np.float32), shape, order
            )
            experience = dataset_benchmark([dataset], [dataset]).train_stream[0]
            loader = TaskBalancedDataLoader(experience.dataset, batch_size=4, shuffle=True)
            check_same_batches(loader)
            check_same_batches(loader, memory=0)


# --- what stays with Avalanche's loader ----------------------------------------------------------


class OwnSamples(MNIST):
    """Builds its samples otherwise than the class that it comes from."""

    def __getitem__(self, index):
        return super().__getitem__(index)


def of_task_zero(dataset, **arguments):
    return _make_taskaware_classification_dataset(dataset, task_labels=0, **arguments)


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("RandomCrop", lambda: of_task_zero(images(MNIST), transform=transforms.RandomCrop(4))),
        ("Lambda", lambda: of_task_zero(images(MNIST), transform=transforms.Lambda(np.asarray))),
        ("on tensors", lambda: labelled(9, 0, transform=transforms.RandomCrop(4))),
        ("target", lambda: labelled(9, 0, target_transform=lambda y: y)),
        ("OwnSamples", lambda: of_task_zero(images(OwnSamples))),
        ("collate", lambda: labelled(9, 0, collate_fn=lambda samples: samples)),
        ("in place", lambda: labelled(9, 0, transform=transforms.Normalize(0.1, 0.2, True))),
    ],
)
def test_what_is_not_known_is_refused_by_name(reason, data):
    if reason == "in place":
        reason = "Normalize"
    with pytest.raises(NoTensorsError, match=reason):
        read_samples([data()])


@pytest.mark.parametrize(
    "arguments",
    [
        {"collate_fn": lambda samples: samples},
        {"num_workers": 1, "persistent_workers": True},
        {"num_workers": 1, "worker_init_fn": print},
    ],
)
def test_a_loader_that_does_more_than_to_collate_is_refused(arguments):
    with pytest.raises(NoTensorsError):
        TensorLoader(TaskBalancedDataLoader(labelled(9, 0), **arguments), CPU, GIGABYTE)


def test_a_loader_of_the_users_own_is_refused():
    class Own(DataLoader):
        pass

    for loader in (Own(labelled(9, 0)), [], ["a batch"]):
        with pytest.raises(NoTensorsError):
            TensorLoader(loader, CPU, GIGABYTE)


def test_the_plugin_says_once_why_a_loader_stays():
    data = of_task_zero(images(MNIST), transform=transforms.Compose(
        [transforms.RandomCrop(4), transforms.ToTensor()]
    ))  # fmt: skip
    stream = dataset_benchmark([data], [data])
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 4))
    strategy = PackNet(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_mb_size=5,
        train_epochs=3, evaluator=None,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"RandomCrop.*tensor_samples") as said:
        strategy.train(stream.train_stream[0])
    with warnings.catch_warnings(record=True) as said_later:
        warnings.simplefilter("always")
        strategy.eval(stream.test_stream)
    messages = [str(one.message) for one in [*said, *said_later]]
    assert sum("RandomCrop" in message for message in messages) == 1


def test_samples_are_held_only_as_far_as_memory_goes():
    samples = read_samples([labelled(20, 0).subset([1, 2]), labelled(20, 1)])
    size = 22 * 64 * 4
    assert samples.held(CPU, size - 1) is samples
    assert samples.held(CPU, size) is not samples


def test_a_mini_batch_is_not_the_data_itself():
    data = labelled(6, 0)
    loader = TensorLoader(SingleDatasetDataLoader(data, batch_size=6), CPU, GIGABYTE)
    before = data[0][0].clone()
    next(iter(loader))[0].zero_()
    assert torch.equal(data[0][0], before)


def test_classes_of_a_mini_batch_are_known_as_long_as_nobody_changes_its_targets():
    loader = TensorLoader(TaskBalancedDataLoader(labelled(23, 2), batch_size=5), CPU, 2**20)
    known = frozenset(int(sample[1]) for sample in labelled(23, 2))
    for batch in loader:
        assert loader.classes_of(batch[1]) == known
        assert loader.classes_of(batch[1].clone()) is None
        batch[1][0] += 1
        assert loader.classes_of(batch[1]) is None
    with torch.inference_mode():  # where torch does not count changes
        assert [loader.classes_of(batch[1]) for batch in loader] == [None] * 5
