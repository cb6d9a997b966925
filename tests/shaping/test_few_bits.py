"""Codes at their entropy, and few bits for what tasks do not share: smaller files."""

from __future__ import annotations

import io
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from streams_for_tests import conv_net, inputs_of, make_stream, mlp
from torch import nn

from avalanche_compress import (
    CACL,
    HALRP,
    WSN,
    AdaQPackNet,
    MaskedStore,
    PackNet,
    QuantizationPlugin,
    TaskNetwork,
    TaskStateError,
    ValidationPlugin,
    load_archive,
    save_archive,
)
from avalanche_compress.archive import archive_bytes
from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    EntropyCoded,
    Half,
    read_values,
    write_values,
)
from avalanche_compress.shaping.quantization import Layer
from avalanche_compress.shaping.validation import Comparison


def train(kind, quantization, build=conv_net, tasks=2, **arguments):
    torch.manual_seed(0)
    model = build()
    strategy = kind(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01),
        train_mb_size=20,
        train_epochs=3,
        evaluator=None,
        plugins=[] if quantization is None else [ValidationPlugin(0.2), quantization],
        **arguments,
    )
    stream = make_stream(tasks)
    for experience in stream.train_stream:
        strategy.train(experience)
    return strategy, stream


@pytest.mark.parametrize("kind", [PackNet, WSN, CACL, HALRP])
@pytest.mark.parametrize("method", ["kmeans", "entropy"])
def test_old_logits_stay_and_the_archive_answers_alike(kind, method, tmp_path):
    quantization = QuantizationPlugin(4, method=method, private_bits=6)
    strategy, stream = train(kind, quantization, tasks=1)
    x = inputs_of(stream.test_stream[0])
    network = strategy.network.eval()
    before = network(x, 0).detach()
    strategy.train(make_stream(2).train_stream[1])
    with torch.no_grad():
        assert torch.equal(network.eval()(x, 0), before)
        save_archive(network, tmp_path / "archive")
        loaded = load_archive(tmp_path / "archive", conv_net)
        assert torch.equal(loaded(x, 0), before)
        assert torch.equal(loaded(x, 1), network(x, 1))


def test_heads_and_vectors_of_few_bits_are_what_a_task_computes_with():
    strategy, _ = train(PackNet, QuantizationPlugin(4, private_bits=3))
    network = strategy.network
    for task in network.tasks:
        for place, tensor in zip(network.private.places, network.private.committed(task)):
            if tensor.dim() > 1:
                assert tensor.unique().numel() <= 8, place
            elif tensor.is_floating_point():
                assert torch.equal(tensor.bfloat16().float(), tensor), place


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_private_bits_make_the_file_smaller_though_a_head_is_small(bits):
    plain, _ = train(PackNet, QuantizationPlugin(4), build=mlp)
    small, _ = train(PackNet, QuantizationPlugin(4, private_bits=bits), build=mlp)
    saved = len(archive_bytes(plain.model)) - len(archive_bytes(small.model))
    head = 2 * 24 * 2  # classes, features, tasks
    # a tenth and eight bytes a task for what describes the codes; or a codebook that fits
    assert saved > head * (4 - bits / 8) * 0.9 - 2 * 8 - (2 * 4 * 4 if bits == 2 else 0)


def test_what_is_changed_after_rounding_is_kept_as_floats():
    strategy, _ = train(PackNet, None, tasks=1)
    network = strategy.network
    network.open(7, [0, 1])
    private = network.private
    private.keep_values({0: Half.of(private.places[0].tensor)})
    with torch.no_grad():
        private.places[0].tensor.add_(0.1234567)
    expected = private.places[0].tensor.clone()
    network.commit()
    assert torch.equal(private.committed(7)[0], expected)


@pytest.mark.parametrize("bits", [1, 3])
def test_codes_at_their_entropy_fit_the_bits_that_a_slot_has_for_them(bits):
    strategy, stream = train(AdaQPackNet, None, method="entropy", bits=bits, density=0.5)
    network = strategy.network.eval()
    (store, *_) = network.weight_stores
    assert store.slot_words().max() < 2 ** (2 * (bits + 2))  # two tasks
    for task in network.tasks:
        assert store.value_bits(task) <= (bits + 2) * store.stored_values(task)
    x = inputs_of(stream.test_stream[0])
    with torch.no_grad():
        loaded = load_archive(io.BytesIO(archive_bytes(network)), conv_net)
        assert torch.equal(loaded(x, 0), network(x, 0))


def test_where_a_slot_cannot_hold_rare_codes_there_is_a_codebook_of_fewer():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=generator) ** 5  # most are small, a few are very large
    plugin, kept = QuantizationPlugin(2, method="entropy"), []
    store = SimpleNamespace(counts_bits=False, keep_values=kept.extend)
    plugin.quantise([Layer(store, [values])], 2)
    assert kept[0].word_bits > 4
    store.counts_bits, store.reserved_bits = True, 4
    plugin.quantise([Layer(store, [values])], 2)
    assert kept[1].word_bits == 2


class Recorded(QuantizationPlugin):
    """Which common widths were tried, and whether they were within the tolerances."""

    def __post_init__(self):
        super().__post_init__()
        self.tried = []

    def quantise(self, layers, bits):
        self.tried.append(bits)
        super().quantise(layers, bits)


@pytest.mark.parametrize(
    ("method", "enough", "tried"),
    [
        ("kmeans", 2.5, [1, 2, 3]),
        ("entropy", 2.5, [1, 2, 3, 2.25, 2.5]),
        ("entropy", 2.9, [1, 2, 3, 2.25, 2.5, 2.75, 3]),
        ("entropy", 1, [1]),
    ],
)
def test_a_search_ends_at_the_least_width_that_it_tries_and_that_will_do(
    method, enough, tried, monkeypatch
):
    plugin = Recorded("auto", method=method)
    monkeypatch.setattr(Comparison, "accepts", lambda self: plugin.tried[-1] >= enough)
    train(WSN, plugin, tasks=1)
    assert plugin.tried == tried


class Depthwise(nn.Module):
    """Kernels whose scales lie far apart, as those of a pretrained network do."""

    def __init__(self):
        super().__init__()
        self.kernels = nn.Conv2d(64, 64, 3, groups=64, bias=False)
        self.head = nn.Linear(64, 2)
        with torch.no_grad():
            self.kernels.weight.mul_(torch.logspace(-3, 0, 64).view(-1, 1, 1, 1))

    def forward(self, x):
        return self.head(
            self.kernels(x.flatten(1).view(-1, 64, 1, 1).expand(-1, -1, 3, 3))[..., 0, 0]
        )


@pytest.mark.parametrize(("bits", "lost"), [(3, True), (8, False)])
def test_depthwise_kernels_that_few_bits_lose_are_named(bits, lost):
    torch.manual_seed(0)
    plugin = QuantizationPlugin(bits)
    model = Depthwise()
    network = TaskNetwork(model, store=MaskedStore)
    network.open(0, [0, 1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plugin.shape(SimpleNamespace(model=network, network=network, plugins=[plugin]))
    named = [str(w.message) for w in caught if "rows of kernels.weight lose" in str(w.message)]
    assert bool(named) == lost
    assert not named or "exclude='kernels'" in named[0]


def test_a_search_names_them_too_and_leaves_the_codes_that_it_found(monkeypatch):
    monkeypatch.setattr(Comparison, "__init__", lambda self, *given: None)
    monkeypatch.setattr(Comparison, "accepts", lambda self: True)
    torch.manual_seed(0)
    plugin, network = QuantizationPlugin("auto"), TaskNetwork(Depthwise(), store=MaskedStore)
    network.open(0, [0, 1])
    with pytest.warns(UserWarning, match=r"rows of kernels.weight lose .* at 1 bits"):
        plugin.shape(SimpleNamespace(model=network, network=network, plugins=[plugin]))
    (store,) = network.weight_stores
    assert len(store.weight().unique()) == 2
    assert type(store._kept()).__name__ == "Codebook"


@pytest.mark.parametrize("kind", [PackNet, CACL])
def test_at_a_fixed_width_the_floats_of_one_layer_are_in_memory_at_a_time(kind, monkeypatch):
    floats, others = [], []
    layer_of = Layer.of

    def watched(store):
        others.append(sum(values() is not None for values in floats))
        layer = layer_of(store)
        floats.extend(map(weakref.ref, layer.originals))
        return layer

    monkeypatch.setattr(Layer, "of", watched)
    train(kind, QuantizationPlugin(4), tasks=1)
    assert len(others) > 1
    assert set(others) == {0}


@pytest.mark.parametrize("bits", [0, 17, "auto", 2.5])
def test_private_bits_out_of_range_are_refused(bits):
    with pytest.raises(TaskStateError, match="private_bits"):
        QuantizationPlugin(4, private_bits=bits)


@pytest.mark.parametrize("make", ["entropy", "half"])
def test_damaged_values_give_values_or_the_named_error(make):
    generator = torch.Generator().manual_seed(0)
    if make == "half":
        values = Half.of(torch.randn(40, generator=generator))
    else:
        codes = (torch.rand(300, generator=generator) ** 4 * 5).int()
        values = EntropyCoded(codes, torch.randn(5, generator=generator))
    count = values.decode().numel()
    writer = ByteWriter()
    write_values(values, writer)
    data = writer.getvalue()
    back = read_values(ByteReader(data), count, torch.float32)
    assert type(back) is type(values)
    assert torch.equal(back.decode(), values.decode())
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        try:
            read = read_values(ByteReader(bytes(damaged)), count, torch.float32)
        except CorruptStreamError:
            continue
        assert read.decode().shape == (count,)
