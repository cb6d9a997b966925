"""A loaded network has read nothing, and cannot be told from one that has read everything."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from avalanche_compress import load_archive
from avalanche_compress.archive import archive_bytes
from avalanche_compress.codec import CorruptStreamError
from avalanche_compress.core.store import Store
from avalanche_compress.metrics.compression import union_density
from benchmarks.stress.examples import SmallNet, inputs

WRITTEN = sorted((Path(__file__).parent / "archives").glob("*.v1"))


@pytest.fixture(params=WRITTEN, ids=lambda path: path.stem)
def path(request):
    return request.param


def stores_of(network):
    return [network.private, *network.weight_stores]


def loaded(path):
    """A network that has read nothing; what training starts from is always the same."""
    torch.manual_seed(0)
    return load_archive(path, SmallNet)


def read(path):
    """A network that has read every task the way in which one is committed."""
    network = loaded(path)
    for store in stores_of(network):
        sections = dict(store.sections)
        store.forget()
        for task, section in sections.items():
            store.restore(task, section)
    return network


@torch.no_grad()
def logits_of(network, task):
    return network.eval()(inputs(), task)


def learn(network, task):
    """A further task; what comes out of it."""
    torch.manual_seed(3)
    for store in network.weight_stores:
        store.reserved_bits = 32
    network.open(task, [0, 1])
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    nn.functional.cross_entropy(network(inputs(), task), torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()
    network.commit()
    return archive_bytes(network)


def test_loading_reads_no_section(path, monkeypatch):
    monkeypatch.setattr(Store, "_take", None)
    network = loaded(path)
    assert network.tasks == [0, 1, 2]
    assert archive_bytes(network) == path.read_bytes()


def test_every_task_is_the_same_whatever_was_read_before_it(path):
    whole = read(path)
    for first in whole.tasks:
        network = loaded(path)
        for task in (first, *reversed(whole.tasks)):
            assert torch.equal(logits_of(network, task), logits_of(whole, task))
            tensors = zip(network.views[task].tensors, whole.views[task].tensors)
            assert all(torch.equal(tensor, other) for (_, tensor), (_, other) in tensors)


def test_what_stores_tell_of_a_task_is_the_same(path):
    whole = read(path)
    for task in reversed(whole.tasks):
        network = loaded(path)
        assert network.private.stored_values(task) == whole.private.stored_values(task)
        for ours, theirs in zip(network.weight_stores, whole.weight_stores):
            assert ours.value_bits(task) == theirs.value_bits(task)
            assert ours.stored_values(task) == theirs.stored_values(task)
            assert ours.rank_of(task) == theirs.rank_of(task)
    free = [store.free_weights for store in whole.weight_stores]
    assert [store.free_weights for store in loaded(path).weight_stores] == free
    assert union_density(loaded(path)) == union_density(whole)


def test_training_goes_on_to_the_same_bits(path):
    ours, theirs = loaded(path), read(path)
    assert learn(ours, 3) == learn(theirs, 3)


def test_a_state_dict_is_the_same(path):
    ours, theirs = loaded(path).state_dict(), read(path).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if isinstance(tensor, torch.Tensor):
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name
    network = loaded(path)
    network.load_state_dict(ours)
    for task in network.tasks:
        assert torch.equal(logits_of(network, task), logits_of(read(path), task))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))]
)
def test_a_copy_reads_on_where_the_original_was(path, copied):
    whole = read(path)
    network = loaded(path)
    network.activate(1)
    other = copied(network)
    for task in whole.tasks:
        assert torch.equal(logits_of(other, task), logits_of(whole, task))


def crafted(path, place, task, section):
    """A file that fits its checksum, with another section."""
    network = loaded(path)
    stores_of(network)[place].sections[task] = section
    return archive_bytes(network)


@pytest.mark.parametrize("cut", [1, 4])
def test_a_crafted_section_is_refused_by_name_when_its_task_is_used(path, cut, tmp_path):
    good = loaded(path)
    for place, store in enumerate(good.weight_stores, 1):
        for task in good.tasks:
            data = crafted(path, place, task, store.sections[task][:-cut])
            (tmp_path / "file").write_bytes(data)
            network = load_archive(tmp_path / "file", SmallNet)
            with pytest.raises(CorruptStreamError):
                network.verify()
            for _ in range(2):
                with pytest.raises(CorruptStreamError, match=f"task {task} cannot be used"):
                    network.activate(task)
                with pytest.raises(CorruptStreamError):
                    network.open(3, [0, 1])
            assert network.open_task is None
            assert network.tasks == good.tasks
            assert archive_bytes(network) == data


def test_what_does_not_need_a_damaged_task_is_as_it_was(path, tmp_path):
    good = loaded(path)
    section = good.weight_stores[0].sections[2]
    (tmp_path / "file").write_bytes(crafted(path, 1, 2, section + b"\0"))
    network = load_archive(tmp_path / "file", SmallNet)
    for task in (1, 0):
        assert torch.equal(logits_of(network, task), logits_of(good, task))
        with pytest.raises(CorruptStreamError):
            network.activate(2)


def test_verifying_changes_nothing(path):
    network = loaded(path)
    network.activate(1)
    taken = [store._taken for store in stores_of(network)]
    network.verify()
    assert [store._taken for store in stores_of(network)] == taken
    assert archive_bytes(network) == path.read_bytes()
