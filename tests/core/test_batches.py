"""Models take mappings of tensors and return objects: logits are found, or a way out is named."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections import UserDict, UserList, defaultdict, namedtuple
from collections.abc import MutableMapping
from functools import partial
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from streams_for_tests import OURS
from torch import nn
from torch.nested import nested_tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from avalanche_compress import (
    TaskInference,
    TaskNetwork,
    TrainingDataError,
    UnsupportedModuleError,
    load_archive,
    save_archive,
)
from avalanche_compress.core.batches import (
    contiguous,
    is_finite,
    logits_of,
    moved_to,
    rows_of,
    size_of,
)

Both = namedtuple("Both", "logits aux_logits")


class Returning(nn.Module):
    """Returns its logits in something."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.head, self.wrap = nn.Linear(6, 5), nn.Linear(5, 2), wrap

    def forward(self, x):
        return self.wrap(self.head(torch.relu(self.body(x))))


OUTPUTS = {
    "object": lambda out: SimpleNamespace(logits=out, loss=None),
    "mapping": lambda out: {"loss": None, "logits": out},
    "tuple": lambda out: (out, torch.zeros(len(out), 7)),
    "list": lambda out: [out],
    "named tuple": lambda out: Both(out, None),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_are_taken_from_what_a_model_returns(name):
    network, x = TaskNetwork(Returning(OUTPUTS[name])), torch.randn(4, 6)
    plain = copy.deepcopy(network.backbone)
    for task in (0, 1):
        network.open(task, [0, 1])
        nn.functional.cross_entropy(network(x, task), torch.tensor([0, 1, 0, 1])).backward()
        if task == 0:
            assert torch.equal(network(x, 0), plain.head(torch.relu(plain.body(x))))
        network.weight_stores[0].prune(0.5)
        network.commit()
    for task in (0, 1):
        found = logits_of(network.materialise(task)(x))
        assert torch.equal(network.eval()(x, task), found)
    assert torch.equal(network(x, torch.tensor([0, 1, 1, 0]))[1:3], network(x[1:3].clone(), 1))


REFUSED_OUTPUTS = {
    "auxiliary logits": (lambda out: Both(out, out * 1), "'aux_logits'.*aux_logits=False"),
    "auxiliary in a mapping": (lambda out: {"logits": out, "aux": out}, "'aux'.*auxiliary"),
    "several of a kind": (lambda out: (out, out + 1), r"2 tensors of the shape \(3, 2\)"),
    "none": (lambda out: None, "NoneType in which there are no logits"),
    "a mapping without": (lambda out: {"scores": out}, "dict in which there are no logits"),
    "a scalar first": (lambda out: (out.sum(), out), "tuple in which there are no logits"),
}


@pytest.mark.parametrize("name", REFUSED_OUTPUTS)
def test_outputs_without_clear_logits_are_refused_by_name(name):
    wrap, message = REFUSED_OUTPUTS[name]
    network = TaskNetwork(Returning(wrap))
    network.open(0, [0, 1])
    with pytest.raises(UnsupportedModuleError, match=message):
        network(torch.randn(3, 6), 0)


class Named(nn.Module):
    """Takes its inputs by name, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, tokens=None, mask=None):
        return self.head(torch.relu(self.body(tokens * mask)))


class Whole(Named):
    """Takes the mapping itself."""

    def forward(self, x):
        return super().forward(x["tokens"], x["mask"])


class OpenEnded(Named):
    def forward(self, tokens, **others):
        return super().forward(tokens, others["mask"])


def batch(count=6):
    mask = (torch.rand(count, 6) < 0.7).float()
    return {"tokens": torch.randn(count, 6), "mask": mask}


@pytest.mark.parametrize("kind", [Named, Whole, OpenEnded])
def test_a_mapping_is_given_as_the_model_takes_it(kind, tmp_path):
    network, x = TaskNetwork(kind()), batch()
    network.open(0, [0, 1])
    expected = Named.forward(network.backbone, **x)
    assert torch.equal(network(x, 0), expected)
    network.weight_stores[0].prune(0.5)
    network.commit()
    network.open(1, [0, 1, 2])
    network.commit()
    network.eval()
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    mixed = network(x, labels)
    for task in (0, 1):
        chosen = labels == task
        part = network({name: values[chosen] for name, values in x.items()}, task)
        torch.testing.assert_close(mixed[chosen][:, : part.shape[1]], part)
    save_archive(network, tmp_path / "file")
    for other in (load_archive(tmp_path / "file", kind), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(x, 1), network(x, 1))
    inferred = TaskInference("energy")(network, x)
    assert inferred.logits.shape == (6, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": torch.zeros(6)}, "none called 'labels'"), ({"position": torch.zeros(6)}, "leave")],
)
def test_inputs_that_the_model_does_not_take_are_named(change, message):
    network = TaskNetwork(Named())
    network.open(0, [0, 1])
    with pytest.raises(TrainingDataError, match=message):
        network({**batch(), **change}, 0)
    network = TaskNetwork(OpenEnded())
    network.open(0, [0, 1])
    with pytest.raises(TrainingDataError, match="'labels' among its inputs"):
        network({**batch(), "labels": torch.zeros(6)}, 0)


class Samples(torch.utils.data.Dataset):
    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.targets = [index % 2 for index in range(48)]
        signs = torch.tensor(self.targets).view(-1, 1) * 2.0 - 1
        self.x = signs + 0.5 * torch.randn(48, 6, generator=generator)
        self.mask = (torch.rand(48, 6, generator=generator) < 0.8).float()

    def __len__(self):
        return 48

    def __getitem__(self, index):
        return {"tokens": self.x[index], "mask": self.mask[index]}, self.targets[index]


def test_batches_are_cut_moved_and_counted_whatever_they_are_made_of():
    x = [{"a": torch.arange(3), "scale": torch.tensor(2.0)}, (torch.arange(6).view(3, 2), "text")]
    assert size_of(x) == 3
    cut = rows_of(x, torch.tensor([2, 0]))
    assert cut[0]["a"].tolist() == [2, 0]
    assert cut[0]["scale"] == 2
    assert cut[1][0].tolist() == [[4, 5], [0, 1]]
    moved = moved_to(x, "meta")
    assert moved[0]["a"].is_meta
    assert moved[1][0].is_meta
    assert moved[1][1] == "text"
    with pytest.raises(TrainingDataError, match="str without a tensor"):
        size_of("text")


class Encoding(UserDict):
    """As that of transformers: items are attributes, too."""

    origin = "none"

    def __init__(self, items=()):
        super().__init__(items)
        self.data["note"] = "text"

    def __getattr__(self, name):
        return self.data[name]


class MovingEncoding(Encoding):
    """Moves itself in place, to devices alone."""

    def to(self, device):
        self.data["rows"] = self.data["rows"].to(device)
        return self


class ItemsAreAttributes(dict):
    def __init__(self, items):
        super().__init__(items)
        self.__dict__ = self


class HoldsItems(MutableMapping):
    """A mapping whose copies by copy.copy share its items."""

    def __init__(self, *, rows):
        self._items = {"rows": rows}

    def __getitem__(self, name):
        return self._items[name]

    def __setitem__(self, name, value):
        self._items[name] = value

    def __delitem__(self, name):
        del self._items[name]

    def __iter__(self):
        return iter(self._items)

    def __len__(self):
        return len(self._items)


@dataclasses.dataclass(frozen=True)
class Record:
    name: str
    rows: torch.Tensor


class Graphs:
    """A class of its own, with all that a mini-batch needs."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, chosen):
        return Graphs(self.rows[chosen])

    def to(self, device, non_blocking=False):
        self.rows = self.rows.to(device, non_blocking=non_blocking)
        return self


class OfOneSize(dict):
    """Moves and cuts itself; its items must all be of its size."""

    def __init__(self, rows):
        super().__init__(rows=rows)
        self.size = len(rows)

    def __setitem__(self, name, value):
        if len(value) != self.size:
            raise RuntimeError("another size")
        super().__setitem__(name, value)

    def __getitem__(self, wanted):
        return super().__getitem__(wanted) if wanted == "rows" else OfOneSize(self["rows"][wanted])

    def to(self, device, non_blocking=False):
        return OfOneSize(self["rows"].to(device))


Pair = namedtuple("Pair", "name rows")
LENGTHS = [3, 6, 1, 6, 2]


def packed(rows, in_order=False):
    lengths = sorted(LENGTHS, reverse=True) if in_order else LENGTHS
    return pack_padded_sequence(rows, lengths[: len(rows)], True, enforce_sorted=in_order)


def unpacked(x):
    return pad_packed_sequence(x, batch_first=True, total_length=6)[0]


def by_item(x):
    return x["rows"]


def by_name(x):
    return x.rows


KINDS = {
    "tensor": (lambda rows: rows, lambda x: x),
    "mapping": (lambda rows: {"rows": rows}, by_item),
    "default dictionary": (lambda rows: defaultdict(int, rows=rows), by_item),
    "mapping of names": (lambda rows: Encoding({"rows": rows}), by_name),
    "mapping that moves itself": (lambda rows: MovingEncoding({"rows": rows}), by_name),
    "mapping that is its attributes": (lambda rows: ItemsAreAttributes({"rows": rows}), by_name),
    "mapping that holds its items": (lambda rows: HoldsItems(rows=rows), by_item),
    "mapping that cuts itself": (OfOneSize, by_item),
    "mapping that is read only": (lambda rows: MappingProxyType({"rows": rows}), by_item),
    "record": (lambda rows: Record("text", rows), by_name),
    "named tuple": (lambda rows: Pair("text", rows), by_name),
    "list of another class": (lambda rows: UserList(["text", rows]), lambda x: x[1]),
    "nested": (lambda rows: [{"a": Record("text", rows)}, None], lambda x: x[0]["a"].rows),
    "object": (Graphs, by_name),
    "packed": (packed, unpacked),
    "packed in order": (lambda rows: packed(rows, True), unpacked),
    "sparse": (torch.Tensor.to_sparse, torch.Tensor.to_dense),
    "sparse rows": (torch.Tensor.to_sparse_csr, torch.Tensor.to_dense),
    "sparse columns": (torch.Tensor.to_sparse_csc, torch.Tensor.to_dense),
    "jagged": (
        lambda rows: nested_tensor(list(rows), layout=torch.jagged),
        lambda x: x.to_padded_tensor(0.0),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    """A mini-batch of five samples, what reads its rows, and these rows."""
    make, read = KINDS[request.param]
    x = make(torch.randn(5, 6))
    return x, read, read(x).clone()


def test_a_mini_batch_says_its_size(kind):
    assert size_of(kind[0]) == 5


@pytest.mark.parametrize("index", [[4, 0, 0], [False, True, True, False, True], [3]])
def test_samples_taken_out_of_a_mini_batch_are_such_a_mini_batch(kind, index):
    x, read, rows = kind
    chosen = torch.tensor(index)
    found = rows_of(x, chosen)
    assert type(found) is type(x)
    assert torch.equal(read(found), rows[chosen])
    assert size_of(found) == len(rows[chosen])
    if isinstance(x, torch.Tensor):
        assert found.layout == x.layout
    again = rows_of(found, torch.tensor([0]))
    assert torch.equal(read(again), rows[chosen][:1])
    assert torch.equal(read(x), rows), "the mini-batch itself has changed"


def test_a_mini_batch_moves_as_what_it_is(kind):
    x, read, rows = kind
    moved = moved_to(x, "meta")
    assert type(moved) is type(x)
    assert (moved.data if isinstance(x, PackedSequence) else moved_rows(read, moved)).is_meta
    assert torch.equal(read(x), rows), "the mini-batch itself has moved"
    assert torch.equal(read(moved_to(x, "cpu")), rows)


def moved_rows(read, x):
    return x if isinstance(x, torch.Tensor) else read(x)


def test_layouts_of_memory_are_undone_and_values_stay(kind):
    x, read, rows = kind
    found = contiguous(x)
    assert type(found) is type(x)
    assert torch.equal(read(found), rows)
    images = {"rows": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)}
    assert contiguous(images)["rows"].is_contiguous()


@pytest.mark.parametrize("name", [name for name in KINDS if name != "object"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_found(name, value):
    make, _ = KINDS[name]
    rows = torch.randn(5, 6)
    assert is_finite(make(rows))
    rows[3, 0] = value
    assert not is_finite(make(rows))


def test_copies_of_a_mapping_keep_its_attributes():
    x = Encoding({"rows": torch.zeros(2, 3)})
    x.origin = "words"
    assert rows_of(x, torch.tensor([1])).origin == "words"


class Uncut:
    """Moves itself; nothing can be taken out of it."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, chosen):
        return list(self.rows[chosen])

    def to(self, device):
        return Uncut(self.rows.to(device))


class UncutAtAll(Uncut):
    __getitem__ = None


UNCUT = {
    "pieces of another class": (Uncut(torch.zeros(3, 2)), "out of a Uncut"),
    "no pieces": ({"graphs": UncutAtAll(torch.zeros(3, 2))}, "out of a UncutAtAll"),
    "blocks": (torch.eye(4).to_sparse_bsr((2, 2)), "tensor of the layout torch.sparse_bsr"),
    "a part of another size": ((torch.zeros(3, 2), torch.zeros(4)), "3 samples.*has 4 rows"),
    "a class without a tensor": (SimpleNamespace(rows=torch.zeros(3)), "SimpleNamespace without"),
}


@pytest.mark.parametrize("name", UNCUT)
def test_what_samples_cannot_be_taken_out_of_is_refused_by_name(name):
    x, message = UNCUT[name]
    with pytest.raises(TrainingDataError, match=message):
        rows_of(x, torch.tensor([0, 2]))


class Reads(nn.Module):
    """Reads its inputs as their kind does."""

    def __init__(self, read):
        super().__init__()
        self.read, self.body, self.head = read, nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x):
        hidden = torch.mm(self.read(x), self.body.weight.t()) + self.body.bias
        return self.head(torch.relu(hidden))


def itself(x):
    return x


@pytest.mark.parametrize("name", ["wsn", "cacl", "halrp"])
@pytest.mark.parametrize(
    "kind", ["mapping of names", "mapping that moves itself", "object", "packed", "sparse"]
)
def test_strategies_learn_from_mini_batches_of_any_kind(name, kind):
    make, read = KINDS[kind]
    sets = []
    for seed in (0, 1):
        samples = Samples(seed)
        samples.collate_fn = partial(collated, make)
        sets.append(as_classification_dataset(samples))
    benchmark = task_incremental_benchmark(benchmark_from_datasets(train=sets, test=sets))
    torch.manual_seed(0)
    model = Reads(itself if kind == "sparse" else read)
    strategy = OURS[name](
        model=model, optimizer=torch.optim.Adam(model.parameters(), 0.01), train_mb_size=5,
        train_epochs=2, eval_mb_size=5, evaluator=None,
    )  # fmt: skip
    x = make(Samples(0).x[:5])
    strategy.train(benchmark.train_stream[0])
    old = strategy.network.eval()(x, 0)
    strategy.train(benchmark.train_stream[1])
    strategy.eval(benchmark.test_stream)
    assert torch.equal(strategy.network.eval()(x, 0), old)
    labels = torch.tensor([0, 1, 1, 0, 1])
    mixed = strategy.network(x, labels)
    for task in (0, 1):
        part = strategy.network(x, task)[labels == task]
        torch.testing.assert_close(mixed[labels == task][:, : part.shape[1]], part)


def test_inference_refuses_samples_that_it_could_not_take_out_before_training():
    samples = Samples(0)
    samples.collate_fn = partial(collated, Uncut)
    sets = [as_classification_dataset(samples)]
    benchmark = task_incremental_benchmark(benchmark_from_datasets(train=sets, test=sets))
    model = Reads(by_name)
    strategy = OURS["wsn"](
        model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), train_mb_size=5,
        evaluator=None, task_inference="triangular@first",
    )  # fmt: skip
    with pytest.raises(TrainingDataError, match="out of a Uncut"):
        strategy.train(benchmark.train_stream[0])
    assert strategy.network.open_task is None


def collated(make, samples):
    inputs, *others = zip(*samples)
    return [make(torch.stack([x["tokens"] for x in inputs])), *map(torch.tensor, others)]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kind", [Named, Whole])
def test_strategies_learn_from_mini_batches_that_are_mappings(name, kind):
    sets = [as_classification_dataset(Samples(seed)) for seed in (0, 1)]
    benchmark = task_incremental_benchmark(benchmark_from_datasets(train=sets, test=sets))
    torch.manual_seed(0)
    model = kind()
    strategy = OURS[name](
        model=model, optimizer=torch.optim.Adam(model.parameters(), 0.01), train_mb_size=12,
        train_epochs=6, eval_mb_size=24, evaluator=None,
    )  # fmt: skip
    x, y = Samples(0)[:][0], torch.tensor(Samples(0).targets)
    strategy.train(benchmark.train_stream[0])
    old = strategy.network.eval()(x, 0)
    strategy.train(benchmark.train_stream[1])
    strategy.eval(benchmark.test_stream)
    assert torch.equal(strategy.network.eval()(x, 0), old)
    assert (old.argmax(1) == y).float().mean() > 0.8
