"""Models take mappings of tensors and return objects: logits are found, or a way out is named."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from streams_for_tests import OURS
from torch import nn

from avalanche_compress import (
    TaskInference,
    TaskNetwork,
    TrainingDataError,
    UnsupportedModuleError,
    load_archive,
    save_archive,
)
from avalanche_compress.core.batches import first_tensor, logits_of, moved_to, rows_of, size_of

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


def test_batches_are_cut_moved_and_counted_whatever_they_are_made_of():
    x = [{"a": torch.arange(3)}, (torch.arange(6).view(3, 2), "text")]
    assert size_of(x) == 3
    assert first_tensor(x) is x[0]["a"]
    cut = rows_of(x, torch.tensor([2, 0]))
    assert cut[0]["a"].tolist() == [2, 0]
    assert cut[1][0].tolist() == [[4, 5], [0, 1]]
    moved = moved_to(x, "meta")
    assert moved[0]["a"].is_meta
    assert moved[1][0].is_meta
    assert moved[1][1] == "text"
    with pytest.raises(TrainingDataError, match="str without a tensor"):
        size_of("text")


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
