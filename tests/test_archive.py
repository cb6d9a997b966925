"""A file gives back every task bit for bit, or says what is wrong with it."""

from __future__ import annotations

import errno
import json
import os
import pickletools
import random
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from disk_for_tests import largest_file
from safetensors import safe_open
from torch import nn
from torchvision.models import resnet18

from avalanche_compress import (
    ArchiveError,
    TaskLabelError,
    TaskNetwork,
    archive,
    container,
    load_archive,
    save_archive,
)
from avalanche_compress.archive import archive_bytes
from avalanche_compress.codec import (
    ByteWriter,
    CorruptStreamError,
    quantise_codebook,
    quantise_fixed_point,
)
from avalanche_compress.core import checks
from avalanche_compress.methods.halrp.store import PerturbedStore
from avalanche_compress.methods.subnetworks.store import MaskedStore
from benchmarks.stress.examples import SmallNet, inputs

Scored = partial(MaskedStore, scored=True)


def mlp(width=12, classes=2, inputs=6):
    return nn.Sequential(
        nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes)
    )


def learn(network, x, task, classes=(0, 1), quantise=None, steps=2, lr=0.05):
    for store in network.weight_stores:
        store.density = 0.5
    network.open(task, classes)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    y = torch.tensor(sorted(classes))[torch.randint(len(classes), (len(x),))]
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x, task), y).backward()
        optimizer.step()
    for store in network.weight_stores:
        if not store.scored:
            store.prune(0.5)
        if quantise is not None:
            store.keep_values([quantise(values) for values in store.kept_values()])
    network.commit()


@torch.no_grad()
def logits_of(network, x, task):
    return network.eval()(x, task)


def trained(store=MaskedStore, quantise=None, build=mlp):
    """Three tasks: heads of different sizes, labels out of order, classes with gaps."""
    network, x = TaskNetwork(build(), store), torch.randn(8, 6)
    for task, classes in ((5, (0, 1)), (-1, (7, 3, 4)), (2, (300,))):
        learn(network, x, task, classes, quantise)
    return network, x


QUANTISERS = {
    "floats": None,
    "codebook": partial(quantise_codebook, bits=3),
    "fixed point": partial(quantise_fixed_point, bits=5),
}


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    network, x = trained(quantise=QUANTISERS["codebook"])
    path = tmp_path_factory.mktemp("archive") / "file"
    save_archive(network, path)
    return network, x, path.read_bytes()


def refused(path, data, build=mlp):
    path.write_bytes(data)
    with pytest.raises(ArchiveError) as caught:
        load_archive(path, build)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("store", [MaskedStore, Scored], ids=["pruned", "scored"])
@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_logits_of_every_task_come_back_bit_for_bit(quantiser, store, tmp_path):
    network, x = trained(store, QUANTISERS[quantiser])
    before = {task: logits_of(network, x, task) for task in network.tasks}
    written = save_archive(network, tmp_path / "file")
    assert written == (tmp_path / "file").stat().st_size
    loaded = load_archive(tmp_path / "file", mlp)
    assert not loaded.training
    assert loaded.tasks == network.tasks
    assert loaded.classes == network.classes
    assert loaded.max_class_label == 301
    for task, logits in before.items():
        assert torch.equal(logits_of(loaded, x, task), logits)
        assert torch.equal(logits_of(network, x, task), logits)
    assert torch.equal(logits_of(loaded, x, 99), logits_of(network, x, 99))


@pytest.mark.parametrize("store", [MaskedStore, Scored], ids=["pruned", "scored"])
def test_a_loaded_network_learns_a_further_task(store, tmp_path):
    network, x = trained(store)
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", mlp)
    old = {task: logits_of(loaded, x, task) for task in loaded.tasks}
    learn(loaded, x, 77, (0, 1, 2, 3))
    save_archive(loaded, tmp_path / "file")
    again = load_archive(tmp_path / "file", mlp)
    assert again.tasks == [5, -1, 2, 77]
    for task, logits in {**old, 77: logits_of(loaded, x, 77)}.items():
        assert torch.equal(logits_of(loaded, x, task), logits)
        assert torch.equal(logits_of(again, x, task), logits)


def test_a_resnet_comes_back(tmp_path):
    build, x = partial(resnet18, num_classes=2), torch.randn(2, 3, 32, 32)
    network = TaskNetwork(build())
    for task, classes in ((0, (0, 1)), (1, (0, 1, 2))):
        # batch norm over two samples has huge gradients
        learn(network, x, task, classes, partial(quantise_fixed_point, bits=4), steps=1, lr=1e-6)
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", build)
    for task in (0, 1):
        logits = logits_of(network, x, task)
        assert bool(torch.isfinite(logits).all())
        assert torch.equal(logits_of(loaded, x, task), logits)


def test_options_and_statistics_come_back(tmp_path):
    network = TaskNetwork(mlp(), head="0", exclude=["1"], include=["3.weight"])
    network.open(3, range(12))
    network.commit()
    network.statistics[3] = {"similarity": torch.randn(5)}
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", mlp)
    assert loaded.options == network.options
    assert torch.equal(loaded.statistics[3]["similarity"], network.statistics[3]["similarity"])


def test_statistics_of_a_double_network_come_back_as_floats(tmp_path):
    network, values = TaskNetwork(mlp().double()), torch.randn(5).double()
    network.open(3, [0, 1])
    network.commit()
    network.statistics[3] = {"similarity": values}
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", lambda: mlp().double())
    assert torch.equal(loaded.statistics[3]["similarity"], values.float())


def test_a_network_without_tasks_comes_back(tmp_path):
    save_archive(TaskNetwork(mlp()), tmp_path / "file")
    loaded = load_archive(tmp_path / "file", mlp)
    assert loaded.tasks == []
    learn(loaded, torch.randn(8, 6), 0)


def test_the_task_in_training_is_not_in_the_file(tmp_path):
    network, _ = trained()
    finished = archive_bytes(network)
    network.open(8, [0, 1])
    assert archive_bytes(network) == finished
    save_archive(network, tmp_path / "file")
    assert load_archive(tmp_path / "file", mlp).tasks == [5, -1, 2]


def test_the_same_network_gives_the_same_bytes(tmp_path):
    network, _ = trained()
    first = archive_bytes(network)
    save_archive(network, tmp_path / "file")
    assert archive_bytes(load_archive(tmp_path / "file", mlp)) == first


# ---------------------------------------------------------------- what the file is


def test_the_file_is_a_safetensors_file_of_bytes_and_holds_no_pickle(example, tmp_path):
    _, _, data = example
    path = tmp_path / "file"
    path.write_bytes(data)
    with safe_open(str(path), framework="pt") as file:
        assert set(file.keys()) == {"tasks", "static"}
        assert all(file.get_tensor(name).dtype == torch.uint8 for name in ("tasks", "static"))
        manifest = json.loads(file.metadata()["avalanche_compress"])
    assert manifest["version"] == 1
    assert len(manifest["sha256"]) == 64
    assert not data.startswith((b"PK", b"\x80"))
    with pytest.raises(ValueError, match=r"opcode|pickle"):
        list(pickletools.genops(data))


def test_the_file_is_its_sections_and_a_little(tmp_path):
    network, _ = trained()
    stores = [network.private, *network.weight_stores]
    sections = sum(len(section) for store in stores for section in store.sections.values())
    size = save_archive(network, tmp_path / "file")
    assert sections < size < sections + 1000


class Projected(nn.Module):
    """Has a random projection that is neither a parameter nor in a state_dict."""

    def __init__(self, way, seed):
        super().__init__()
        drawn = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
        self.way, self.head = way, nn.Linear(6, 2)
        if way == "buffer":
            self.register_buffer("projection", drawn, persistent=False)
        elif way == "module":
            self.projection = [nn.Linear(6, 6, bias=False)]
            self.projection[0].weight.data.copy_(drawn)
        else:
            self.projection = {
                "attribute": drawn,
                "array": drawn.numpy(),
                "containers": {"a": [drawn]},
            }[way]

    def forward(self, x):
        way, kept = self.way, self.projection
        if way == "module":
            return self.head(kept[0](x))
        if way == "containers":
            kept = kept["a"][0]
        return self.head(x @ torch.as_tensor(kept))


@pytest.mark.parametrize("way", ["buffer", "attribute", "array", "containers", "module"])
def test_a_builder_of_other_constants_is_warned_of(way, tmp_path, recwarn):
    network, x = TaskNetwork(Projected(way, 0)), torch.randn(8, 6)
    learn(network, x, 0)
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", partial(Projected, way, 0))
    with torch.no_grad():
        assert torch.equal(loaded(x, 0), network.eval()(x, 0))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="other values in 'projection'"):
        load_archive(tmp_path / "file", partial(Projected, way, 1))


# ---------------------------------------------------------------- damage


def test_a_truncated_file_is_refused_at_every_length(example, tmp_path):
    _, _, data = example
    for length in [*range(0, 16), *range(16, len(data), 23), len(data) - 1]:
        refused(tmp_path / "file", data[:length])


def test_a_file_with_more_at_its_end_is_refused(example, tmp_path):
    _, _, data = example
    for more in (b"\0", data):
        refused(tmp_path / "file", data + more)


def test_a_flipped_byte_is_refused_wherever_it_is(example, tmp_path):
    _, _, data = example
    path = tmp_path / "file"
    header = 8 + struct.unpack("<Q", data[:8])[0]
    in_header = random.sample(range(header), 150)
    for position in [*range(8), *in_header, *random.sample(range(header, len(data)), 150)]:
        changed = bytearray(data)
        changed[position] ^= random.randrange(1, 256)
        if (
            position < header
            and chr(data[position]).isspace()
            and not changed[position:][:1].strip()
        ):
            continue  # one blank for another after the header: the same file to any reader
        refused(path, bytes(changed))


def test_random_bytes_are_refused(tmp_path):
    for length in (0, 1, 7, 8, 9, 100, 5000):
        refused(tmp_path / "file", random.randbytes(length))
    refused(tmp_path / "file", b"\x80\x04K\x01.")


def rewritten(data, change):
    """The file with another header; what ``change`` does to it is seen by the reader."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    body = change(header, data[8 + length :]) or data[8 + length :]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def with_manifest(data, change, checksum=False):
    """The file with another manifest; on demand with a checksum that fits it."""

    def apply(header, body):
        manifest = json.loads(header["__metadata__"]["avalanche_compress"])
        change(manifest)
        if checksum:
            del manifest["sha256"]
            content = {n: body[slice(*header[n]["data_offsets"])] for n in ("tasks", "static")}
            manifest["sha256"] = container._checksum(manifest, content)
        header["__metadata__"]["avalanche_compress"] = json.dumps(manifest)

    return rewritten(data, apply)


def test_a_faithful_copy_of_the_header_is_read(example, tmp_path):
    network, x, data = example
    (tmp_path / "file").write_bytes(with_manifest(data, lambda manifest: None, checksum=True))
    loaded = load_archive(tmp_path / "file", mlp)
    assert torch.equal(logits_of(loaded, x, 5), logits_of(network, x, 5))


def test_swapped_sections_are_refused(example, tmp_path):
    def swap(header, body):
        header["tasks"], header["static"] = header["static"], header["tasks"]

    refused(tmp_path / "file", rewritten(example[2], swap))


def with_swapped_tasks():
    """A file that fits its checksum; what a task wrote is told by what was free before."""
    network, x = trained()
    store = network.weight_stores[0]
    store.sections[5], store.sections[-1] = store.sections[-1], store.sections[5]
    return archive_bytes(network), x


@pytest.mark.parametrize(
    "use",
    [
        lambda network, x: network.verify(),
        lambda network, x: network.activate(5),
        lambda network, x: network(x, 2),
        lambda network, x: network.open(8, [0, 1]),
        lambda network, x: network.state_dict(),
        lambda network, x: network.weight_of("0.weight", -1),
        lambda network, x: network.weight_stores[0].free_weights,
        lambda network, x: network.weight_stores[0].value_bits(5),
    ],
)
def test_swapped_tasks_are_refused_when_they_are_used_and_whenever_they_are(use, tmp_path):
    data, x = with_swapped_tasks()
    (tmp_path / "file").write_bytes(data)
    network = load_archive(tmp_path / "file", mlp)
    for _ in range(2):
        with pytest.raises(CorruptStreamError, match=r"0\.weight of task .* is damaged"):
            use(network, x)
    assert network.tasks == [5, -1, 2]
    assert network.open_task is None
    assert archive_bytes(network) == data


def test_a_header_that_claims_terabytes_is_refused_at_once(example, tmp_path):
    _, _, data = example

    def claim(name):
        def change(header, body):
            header[name] = {"dtype": "U8", "shape": [1 << 42], "data_offsets": [0, 1 << 42]}

        return change

    for name in ("tasks", "static"):
        refused(tmp_path / "file", rewritten(data, claim(name)))
    refused(tmp_path / "file", struct.pack("<Q", 1 << 42) + data[8:])
    refused(tmp_path / "file", struct.pack("<Q", (1 << 64) - 1) + data[8:])


@pytest.mark.parametrize("count", [1 << 20, 1 << 40, (1 << 63) - 1])
def test_a_section_that_claims_terabytes_is_refused_at_once(count, tmp_path, monkeypatch):
    network, _ = trained()
    for prefix in (0, 1, 2):  # number of tasks, length of a label, number of classes
        writer = ByteWriter()
        for part in (b"\x01", b"\x015")[:prefix]:
            writer.write_raw(part)
        writer.write_uint(count)
        monkeypatch.setattr(archive, "_write_tasks", lambda _, w=writer: w.getvalue())
        assert "damaged" in refused(tmp_path / "file", archive_bytes(network))


def test_a_newer_format_is_told_from_damage(example, tmp_path):
    data = with_manifest(
        example[2], lambda manifest: manifest.update(version=container.VERSION + 1)
    )
    assert "upgrade" in refused(tmp_path / "file", data)


@pytest.mark.parametrize(
    ("release", "named"), [("0.3.0", True), ("1.0", True), ("1.0\x1b[2J", False)]
)
def test_a_newer_format_says_which_release_reads_it(release, named, example, tmp_path):
    def change(manifest):
        manifest.clear()
        manifest.update(version=container.VERSION + 1, release=release, other="fields")

    message = refused(tmp_path / "file", with_manifest(example[2], change))
    assert (f"upgrade avalanche-compress to {release} or later" in message) == named


@pytest.mark.parametrize("version", [0, -1, 1.0, True, None, "1", [1], float("nan")])
def test_a_version_that_never_was_is_refused(version, example, tmp_path):
    data = with_manifest(example[2], lambda m: m.update(version=version), checksum=True)
    assert "damaged" in refused(tmp_path / "file", data)


def test_a_manifest_that_is_nested_without_end_is_refused(example, tmp_path):
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 5000, "null", "[]", "{}"):

        def change(header, body, text=text):
            header["__metadata__"]["avalanche_compress"] = text

        assert "damaged" in refused(tmp_path / "file", rewritten(example[2], change))


def test_a_long_header_is_refused_before_it_is_parsed(example, tmp_path):
    def change(header, body):
        header["__metadata__"]["more"] = "x" * (1 << 22)

    assert "header" in refused(tmp_path / "file", rewritten(example[2], change))


def test_a_manifest_that_nobody_would_read_is_not_written():
    network = TaskNetwork(mlp())
    network.options["exclude"] = ["x" * (1 << 22)]
    with pytest.raises(ArchiveError, match="manifest"):
        archive_bytes(network)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(version="x"),
        lambda m: m.update(version=0),
        lambda m: m.pop("version"),
        lambda m: m.pop("weights"),
        lambda m: m.pop("rest"),
        lambda m: m.pop("head"),
        lambda m: m.update(weights=[["0.weight"]]),
        lambda m: m.update(weights=7),
        lambda m: m.update(weights=[]),
        lambda m: m["weights"][0].__setitem__(1, "unknown kind"),
        lambda m: m["weights"][0].__setitem__(3, {"unknown": True}),
        lambda m: m["weights"][0].__setitem__(3, {"scored": True}),
        lambda m: m["weights"][0].__setitem__(2, [1, 2]),
        lambda m: m.update(head="nowhere"),
        lambda m: m.update(head=5),
        lambda m: m.update(exclude=3),
        lambda m: m.update(include=["nothing"]),
        lambda m: m.update(constants={"0": "1"}, version=2),
        lambda m: m.update(constants=[1], version=2),
        lambda m: m.update(constants={}),
    ],
)
def test_an_altered_manifest_is_refused_even_if_its_checksum_fits(example, change, tmp_path):
    refused(tmp_path / "file", with_manifest(example[2], change))
    try:
        data = with_manifest(example[2], change, checksum=True)
    except KeyError:
        return
    path = tmp_path / "file"
    path.write_bytes(data)
    try:
        loaded = load_archive(path, mlp)
    except ArchiveError:
        return
    # whoever computes checksums may also claim scores, which does no harm
    assert loaded.tasks == [5, -1, 2]


@pytest.mark.parametrize("kind", ["pickle", "folder", "other safetensors"])
def test_other_files_are_refused(kind, tmp_path):
    path = tmp_path / "file"
    if kind == "pickle":
        torch.save(mlp().state_dict(), path)
    elif kind == "folder":
        path.mkdir()
    else:
        from safetensors.torch import save_file

        save_file(mlp().state_dict(), str(path))
    with pytest.raises(ArchiveError, match="archive"):
        load_archive(path, mlp)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        load_archive(tmp_path / "nothing-here", mlp)


# ---------------------------------------------------------------- what a stranger may claim


def manifest_of(network):
    rest = archive._fingerprint(network)
    return {**network.options, "weights": archive._layout(network), "rest": rest}


def with_task(label=b"5", classes=(0, 1), statistics=(), private=None):
    """A file that fits its checksum, of one task of which something is not as it should be."""
    network, _ = trained()
    writer = ByteWriter()
    writer.write_uint(1)
    writer.write_bytes(label)
    writer.write_uint(len(classes))
    for number in classes:
        writer.write_uint(number)
    writer.write_uint(len(statistics))
    for name in statistics:
        writer.write_bytes(name)
        writer.write_uint(1)
        writer.write_tensor(torch.ones(1))
    writer.write_bytes(network.private.sections[5] if private is None else private)
    for store in network.weight_stores:
        writer.write_bytes(store.sections[5])
    return container.pack(manifest_of(network), {"tasks": writer.getvalue(), "static": b""})


def test_a_task_that_is_as_it_should_be_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(with_task(statistics=(b"a", b"b")))
    loaded = load_archive(path, mlp)
    assert loaded.classes == {5: (0, 1)}
    assert list(loaded.statistics[5]) == ["a", "b"]


@pytest.mark.parametrize(
    "label", [b"", b"-", b"-0", b"05", b" 5", b"5\n", b"\xd9\xa5", b"\xff", b"9" * 19, b"9" * 9999]
)
def test_a_label_that_no_task_has_is_refused(label, tmp_path):
    assert "damaged" in refused(tmp_path / "file", with_task(label))


@pytest.mark.parametrize(
    "classes", [(), (1, 0), (0, 0), (0,), (0, 1, 2), (0, 1 << 20), (0, (1 << 63) - 1)]
)
def test_classes_that_do_not_fit_the_head_or_make_rows_of_gigabytes_are_refused(classes, tmp_path):
    assert "damaged" in refused(tmp_path / "file", with_task(classes=classes))


def test_statistics_out_of_order_or_twice_there_are_refused(tmp_path):
    for names in ((b"b", b"a"), (b"a", b"a"), (b"\xff",)):
        assert "damaged" in refused(tmp_path / "file", with_task(statistics=names))


def test_private_tensors_of_other_sizes_are_refused(tmp_path):
    network, _ = trained()
    for place in network.private.places:
        tensor = place.tensor
        place.module._parameters.pop(place.name, None)
        place.module._buffers[place.name] = torch.zeros(len(tensor) - 1, *tensor.shape[1:])
        assert "shape" in refused(tmp_path / "file", with_task(private=network.private.encode()))
        place.module._buffers[place.name] = tensor.detach()


def test_what_no_archive_may_hold_is_refused_before_it_is_trained_and_before_a_file_is_touched(
    tmp_path, monkeypatch
):
    path = tmp_path / "file"
    for task, classes, named in ((1 << 63, [0, 1], "64 bits"), (0, [1, 1 << 20], "class number")):
        network = TaskNetwork(mlp())
        save_archive(network, path)
        before = path.read_bytes()
        with pytest.raises(TaskLabelError, match=named):
            network.open(task, classes)
        with monkeypatch.context() as patch:
            patch.setattr(checks, "check_classes", lambda *_: None)
            network.open(task, classes)
        network.commit()
        with pytest.raises(ArchiveError, match=named):
            save_archive(network, path)
        assert path.read_bytes() == before


def test_a_file_that_is_refused_leaves_the_users_model_as_it_was(tmp_path):
    network = TaskNetwork(with_buffer())
    network.open(0, [0, 1])
    network.commit()
    network.private.sections[0] = network.private.sections[0][:-1]
    data = archive_bytes(network)
    model = with_buffer()
    model.offset.fill_(7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refused(tmp_path / "file", data, lambda: model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---------------------------------------------------------------- files of earlier releases

WRITTEN = Path(__file__).parent / "archives"


@pytest.mark.parametrize("path", sorted(WRITTEN.glob("*.v1")), ids=lambda path: path.stem)
def test_files_of_the_first_format_are_read(path):
    loaded = load_archive(path, SmallNet)
    expected = json.loads((WRITTEN / "logits.json").read_text())[path.stem]
    assert [str(task) for task in loaded.tasks] == list(expected) == ["0", "1", "2"]
    for task, logits in expected.items():
        # other processors round sums in another way
        assert torch.allclose(
            logits_of(loaded, inputs(), int(task)), torch.tensor(logits), atol=1e-4
        )
    assert archive_bytes(loaded) == path.read_bytes()


# ---------------------------------------------------------------- other models


def renamed():
    model = nn.Sequential()
    for name, layer in mlp().named_children():
        model.add_module(f"layer{name}", layer)
    return model


def deeper():
    return nn.Sequential(*list(mlp())[:3], nn.Linear(12, 12), nn.Linear(12, 2))


def without_bias():
    model = mlp()
    model[0].bias = None
    return model


def other_scale(size):
    def build():
        model = mlp()
        model.register_parameter("scale", nn.Parameter(torch.ones(size)))
        return model

    return build


def with_buffer():
    model = mlp()
    model.register_buffer("offset", torch.zeros(3))
    return model


OTHERS = {
    "wider": partial(mlp, 13),
    "other inputs": partial(mlp, inputs=7),
    "renamed": renamed,
    "deeper": deeper,
    "double": lambda: mlp().double(),
    "half": lambda: mlp().half(),
    "without bias": without_bias,
    "with a buffer": with_buffer,
    "with a scale": other_scale(3),
    "frozen": lambda: mlp().requires_grad_(False),
    "no head": lambda: nn.Sequential(nn.Conv2d(1, 1, 1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_model_is_refused(name, example, tmp_path):
    assert "another model" in refused(tmp_path / "file", example[2], OTHERS[name])


def test_private_parameters_of_another_size_are_refused(tmp_path):
    network = TaskNetwork(other_scale(3)())
    network.open(0, [0, 1])
    network.commit()
    for other in (other_scale(4), other_scale(())):
        assert "another model" in refused(tmp_path / "file", archive_bytes(network), other)


def test_the_width_of_the_head_does_not_matter(example, tmp_path):
    network, x, data = example
    (tmp_path / "file").write_bytes(data)
    loaded = load_archive(tmp_path / "file", partial(mlp, classes=9))
    assert torch.equal(logits_of(loaded, x, -1), logits_of(network, x, -1))


def test_errors_of_build_model_are_the_users(example, tmp_path):
    def build():
        raise KeyError("theirs")

    (tmp_path / "file").write_bytes(example[2])
    with pytest.raises(KeyError, match="theirs"):
        load_archive(tmp_path / "file", build)


@pytest.mark.parametrize("build", [mlp(), None, lambda: None, lambda: nn.Linear])
def test_what_gives_no_model_is_refused(build, example, tmp_path):
    assert "must be a function" in refused(tmp_path / "file", example[2], build)


def test_what_is_no_network_is_not_saved(tmp_path):
    with pytest.raises(ArchiveError, match="Sequential is no TaskNetwork"):
        save_archive(mlp(), tmp_path / "file")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- failed writes


def failing_open(*args, **kwargs):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "failure", "reason"),
    [
        ("builtins.open", failing_open, "Permission denied"),
        ("os.fsync", full_disk, "No space left"),
        ("os.replace", full_disk, "No space left"),
    ],
)
def test_a_failed_write_leaves_the_previous_file(where, failure, reason, tmp_path, monkeypatch):
    network, x = trained()
    path = tmp_path / "file"
    save_archive(network, path)
    before = path.read_bytes()
    learn(network, x, 50)
    with monkeypatch.context() as patch:
        patch.setattr(where, failure)
        with pytest.raises(OSError, match=reason) as caught:
            save_archive(network, path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert load_archive(path, mlp).tasks == [5, -1, 2]


def test_a_full_disk_is_named_and_the_previous_file_stays(tmp_path):
    network, x = trained()
    path = tmp_path / "file"
    before = save_archive(network, path)
    learn(network, x, 50)
    with largest_file(before), pytest.raises(OSError, match="too large") as caught:
        save_archive(network, path)
    assert str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert load_archive(path, mlp).tasks == [5, -1, 2]


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        save_archive(TaskNetwork(mlp()), tmp_path / "file")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------------- what all tasks share


Given = partial(PerturbedStore, base="given")


def perturbed(tasks=2):
    """A network of a given base, whose tasks change it by random products."""
    network = TaskNetwork(mlp(), Given)
    for task in range(tasks):
        network.open(task, [0, 1])
        for store in network.weight_stores:
            g, n, m = store.groups, store.rows, store.columns
            store.perturb(*store.scalings(), torch.randn(g, n, 1), torch.randn(g, 1, m))
        network.commit()
    return network


def test_a_given_base_is_in_the_file_once_and_in_no_tasks_section(tmp_path):
    network, x = perturbed(), torch.randn(8, 6)
    size = save_archive(network, tmp_path / "file")
    with safe_open(str(tmp_path / "file"), framework="pt") as file:
        assert set(file.keys()) == {"tasks", "static", "shared"}
        assert json.loads(file.metadata()["avalanche_compress"])["version"] == 2
        weights = sum(store.shape.numel() for store in network.weight_stores)
        assert 4 * weights <= file.get_tensor("shared").numel() < 4 * weights + 20
    sizes = [len(network.weight_stores[0].sections[task]) for task in network.tasks]
    assert sizes[0] == sizes[1]
    loaded = load_archive(tmp_path / "file", mlp)
    for task in network.tasks:
        assert torch.equal(logits_of(loaded, x, task), logits_of(network, x, task))
    assert archive_bytes(loaded) == (tmp_path / "file").read_bytes()
    assert size > 4 * weights


def test_a_base_in_the_first_tasks_section_is_read_as_the_first_format_had_it(tmp_path):
    network, x = perturbed(), torch.randn(8, 6)
    before = [logits_of(network, x, task) for task in network.tasks]
    for store in network.weight_stores:
        base = ByteWriter()
        base.write_tensor(store.base)
        store.sections[0] = base.getvalue() + store.sections[0]
    content = {"tasks": archive._write_tasks(network), "static": b""}
    (tmp_path / "file").write_bytes(container.pack(manifest_of(network), content))
    loaded = load_archive(tmp_path / "file", mlp)
    other = perturbed(0)
    other.load_state_dict(loaded.state_dict())
    for task, logits in enumerate(before):
        assert torch.equal(logits_of(loaded, x, task), logits)
        assert torch.equal(logits_of(other, x, task), logits)


@pytest.mark.parametrize(
    "damage",
    [
        lambda shared: b"",
        lambda shared: shared[:-1],
        lambda shared: shared + b"\0",
        lambda shared: b"\1\0" + shared,
        lambda shared: b"\xff" * 8 + b"\x7f" + shared,
    ],
)
def test_a_damaged_base_is_refused_even_if_its_checksum_fits(damage, tmp_path):
    network = perturbed()
    shared = damage(archive._write_shared(network))
    content = {"tasks": archive._write_tasks(network), "static": b"", "shared": shared}
    (tmp_path / "file").write_bytes(container.pack(manifest_of(network), content))
    with pytest.raises((ArchiveError, CorruptStreamError), match="damaged"):
        load_archive(tmp_path / "file", mlp).verify()


def test_stores_that_share_nothing_refuse_what_a_file_says_is_shared(tmp_path):
    network, _ = trained()
    writer = ByteWriter()
    for _ in [network.private, *network.weight_stores]:
        writer.write_bytes(b"\0")
    content = {"tasks": archive._write_tasks(network), "static": b"", "shared": writer.getvalue()}
    assert "shares nothing" in refused(
        tmp_path / "file", container.pack(manifest_of(network), content)
    )
