"""What an archive is said to hold is what it holds; strange files get an answer and run nothing."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from avalanche_compress import (
    ArchiveError,
    TaskNetwork,
    inspection,
    layer_bits,
    layer_densities,
    layer_ranks,
    load_archive,
    registered_methods,
    save_archive,
)
from avalanche_compress.codec import CorruptStreamError, quantise_codebook
from avalanche_compress.container import pack, unpack
from avalanche_compress.inspection import diff_archives, inspect_archive, verify_archive
from avalanche_compress.methods.cacl.store import FactoredStore
from avalanche_compress.methods.halrp.store import PerturbedStore
from avalanche_compress.methods.lora.store import AdaptedStore
from avalanche_compress.methods.subnetworks.store import MaskedStore
from benchmarks.stress.examples import SmallNet

WRITTEN = sorted((Path(__file__).parent / "archives").glob("*.v1"))
EVERY_FILE = pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)


def resealed(path, **changes):
    """A file with another manifest and a checksum that fits."""
    manifest, content = unpack(path)
    manifest.pop("version")
    return pack({**manifest, **changes}, {name: bytes(part) for name, part in content.items()})


@EVERY_FILE
@pytest.mark.parametrize("build", [None, SmallNet], ids=["no model", "the model"])
def test_what_is_said_is_what_the_network_says(path, build):
    contents = inspect_archive(path, build)
    network = load_archive(path, SmallNet)
    assert [task.label for task in contents.tasks] == network.tasks
    assert [task.classes for task in contents.tasks] == list(network.classes.values())
    assert contents.total_bytes == path.stat().st_size
    for layer, store in zip(contents.layers, network.weight_stores):
        assert (layer.name, layer.kind, layer.shape) == (store.name, store.kind, store.shape)
        assert layer.section_bytes == [len(section) for section in store.sections.values()]
        assert layer.values == [store.stored_values(task) for task in network.tasks]
        assert layer.bits == layer_bits(network)[layer.name]
        assert layer.density == layer_densities(network).get(layer.name, [None] * 3)
        assert layer.ranks == layer_ranks(network).get(layer.name, [None] * 3)
        assert layer.unread is None
    for number, task in enumerate(contents.tasks):
        parts = sum(layer.section_bytes[number] for layer in contents.layers)
        assert task.total_bytes == parts + task.private_bytes + task.statistics_bytes
        assert task.private_bytes == len(network.private.sections[task.label])


STORES = {
    "masked": MaskedStore,
    "factored": partial(FactoredStore, decomposition="spatial"),
    "perturbed": partial(PerturbedStore, conv_mode="flatten", base="given"),
    "adapted": partial(AdaptedStore, base="given"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", STORES)
def test_number_types_and_groups_are_found_without_the_model(kind, groups, dtype, tmp_path):
    def build():
        body = nn.Sequential(nn.Conv2d(2 * groups, 8, 3, groups=groups), nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(body, nn.Flatten(), nn.Linear(8, 2)).to(dtype)

    network = TaskNetwork(build(), STORES[kind])
    for task in range(2):
        network.open(task, [0, 1])
        for store in network.weight_stores:
            if kind == "masked":
                store.prune(0.5)
            if kind == "perturbed":
                left, right = torch.ones(groups, store.rows, 2), torch.ones(groups, 2, 18)
                store.perturb(*store.scalings(), left, right)
            if task:
                store.keep_values([quantise_codebook(v, 3) for v in store.kept_values()])
        network.commit()
    save_archive(network, tmp_path / "file")
    expected = inspect_archive(tmp_path / "file", build)
    assert inspect_archive(tmp_path / "file") == expected
    assert len(verify_archive(tmp_path / "file")) == 1
    assert verify_archive(tmp_path / "file", build) == []


def test_every_registered_method_can_be_inspected():
    known = {method.store_class.kind for method in registered_methods()}
    assert {"masked", "slotted", "factored", "perturbed", "adapted"} <= known
    assert {layer.kind for path in WRITTEN for layer in inspect_archive(path).layers} < known


@EVERY_FILE
def test_every_changed_byte_is_found(path, tmp_path):
    data = path.read_bytes()
    for place in torch.randint(len(data), (20,)).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(torch.randint(8, ()))
        (tmp_path / "file").write_bytes(damaged)
        with pytest.raises((ArchiveError, CorruptStreamError)):
            verify_archive(tmp_path / "file")


@EVERY_FILE
def test_damage_that_has_a_checksum_is_found_in_the_sections(path, tmp_path):
    manifest, content = unpack(path)
    manifest.pop("version")
    parts = {name: bytearray(part) for name, part in content.items()}
    parts["tasks"] = parts["tasks"][:-3]  # of the last section of the last task
    (tmp_path / "file").write_bytes(pack(manifest, {n: bytes(p) for n, p in parts.items()}))
    with pytest.raises((ArchiveError, CorruptStreamError)):
        verify_archive(tmp_path / "file")


def test_a_layer_that_does_not_fit_is_named_and_the_others_are_read(tmp_path):
    path = WRITTEN[0]
    weights = [list(weight) for weight in unpack(path)[0]["weights"]]
    weights[1][2] = [6, 2, 3, 4]
    (tmp_path / "file").write_bytes(resealed(path, weights=weights))
    layers = inspect_archive(tmp_path / "file").layers
    assert [layer.unread is None for layer in layers] == [True, False, True]
    assert layers[1].name in layers[1].unread
    assert layers[1].section_bytes
    with pytest.raises(CorruptStreamError, match=layers[1].name):
        verify_archive(tmp_path / "file")


@pytest.mark.parametrize(
    "shape", [[1 << 40], [1 << 20, 1 << 20], [-1, 4], [0], [1 << 25, 1, 1], [1] * 70]
)
def test_a_file_cannot_ask_for_memory(shape, tmp_path):
    path = WRITTEN[0]
    weights = [list(weight) for weight in unpack(path)[0]["weights"]]
    weights[0][2] = shape
    (tmp_path / "file").write_bytes(resealed(path, weights=weights))
    assert inspect_archive(tmp_path / "file").layers[0].unread is not None


def test_a_method_that_is_not_installed_is_said_to_be_unread(tmp_path):
    path = WRITTEN[0]
    weights = [[name, "of_another_package", *rest] for name, _, *rest in unpack(path)[0]["weights"]]
    (tmp_path / "file").write_bytes(resealed(path, weights=weights))
    contents = inspect_archive(tmp_path / "file")
    assert all("of_another_package" in str(layer.unread) for layer in contents.layers)
    assert len(verify_archive(tmp_path / "file")) == 1 + len(contents.layers)


def test_layers_beyond_the_bound_are_left_out(monkeypatch):
    sizes = [layer.shape for layer in inspect_archive(WRITTEN[0]).layers]
    monkeypatch.setattr(inspection, "MOST_WEIGHTS", torch.Size(sizes[0]).numel())
    first, *others = inspect_archive(WRITTEN[0]).layers
    assert first.unread is None
    assert all("model" in str(layer.unread) for layer in others)


def test_a_file_does_not_differ_from_itself():
    assert all(diff_archives(path, path) == [] for path in WRITTEN)


def test_a_task_that_was_learned_otherwise_differs(tmp_path):
    files = []
    for name in ("a", "b"):
        network = load_archive(WRITTEN[3], SmallNet)
        network.open(7, [0, 1])
        for store in network.weight_stores:
            store.prune(0.5)
        if name == "b":
            with torch.no_grad():
                network.head.bias += 1
        network.commit()
        save_archive(network, tmp_path / name)
        files.append(tmp_path / name)
    assert [found.where for found in diff_archives(*files)] == ["task 7, private tensors"]
    (found,) = diff_archives(WRITTEN[3], files[0])
    assert found.where == "task 7"
    assert str(files[0]) in found.what


def test_archives_of_two_methods_differ_in_their_layers():
    found = diff_archives(WRITTEN[0], WRITTEN[1])
    assert sum(difference.where.startswith("layer ") for difference in found) == 3
    json.dumps([vars(difference) for difference in found])
