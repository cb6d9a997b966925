"""Any model converts without a change of what it computes, or is refused before it is touched."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from avalanche.models import (
    IncrementalClassifier,
    MTSimpleMLP,
    MTSlimResNet18,
    MultiHeadClassifier,
    SimpleMLP,
    SlimResNet18,
    as_multitask,
)
from stores_for_tests import get_ready, of_methods, prune
from torch import nn
from torchvision.models import VisionTransformer, mobilenet_v3_small, resnet18

from avalanche_compress import TaskNetwork, UnsupportedModuleError, load_archive, save_archive
from avalanche_compress.core.heads import HeadAdapter
from avalanche_compress.methods.subnetworks.store import MaskedStore


def train(network, x, y, task, steps=2, lr=0.05):
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x, task), y).backward()
        optimizer.step()
    return network.eval()


def learn(network, x, task, classes=(0, 1), prune=None, **options):
    network.open(task, classes)
    y = torch.tensor(sorted(classes))[torch.randint(len(classes), (len(x),))]
    train(network, x, y, task, **options)
    for store in network.weight_stores:
        if prune is not None and not store.scored:
            store.prune(prune)
    network.commit()


@torch.no_grad()
def logits_of(network, x, task):
    return network.eval()(x, task)


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def package_objects(module):
    """Modules, and values of their attributes, whose class is one of this package's."""
    things = [thing for part in module.modules() for thing in (part, *vars(part).values())]
    kinds = [type(thing) for thing in things]
    return [kind.__name__ for kind in kinds if kind.__module__.startswith("avalanche_compress")]


class Twice(nn.Module):
    """One layer used two times."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.again = self.first
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.norm(self.again(torch.relu(self.first(x)))))


class Nested(nn.Module):
    """The head lies inside a Sequential, and only on demand it is the last layer."""

    def __init__(self, in_order=False):
        super().__init__()
        top = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(5, 2)))
        if not in_order:
            self.top = top
        self.body = nn.ModuleDict({"a": nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 5))})
        self.top = top

    def forward(self, x):
        return self.top(self.body["a"](x))


class Bare(nn.Module):
    """Parameters of its own: a scale without dimensions, an empty one, a list; and buffers."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0))
        self.shifts = nn.ParameterList([nn.Parameter(torch.randn(6)) for _ in range(2)])
        self.table = nn.Embedding(3, 6)
        self.register_buffer("signs", torch.tensor([1, -1, 1, 1, -1, 1]))
        self.register_buffer("cache", torch.rand(6), persistent=False)
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = x * self.scale + self.shifts[0] + self.empty.sum() + self.table.weight.sum(0)
        return self.head(torch.tanh(self.body(x * self.signs + self.cache)) + self.shifts[1])


def conv(dimensions, **options):
    kind = getattr(nn, f"Conv{dimensions}d")
    return nn.Sequential(
        kind(4, 6, 3, **{"padding": 1, **options}), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )


def transposed(dimensions, **options):
    kind = getattr(nn, f"ConvTranspose{dimensions}d")
    return nn.Sequential(kind(4, 6, 3, **options), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def norm(kind, dimensions, *arguments, **options):
    layer = getattr(nn, f"Conv{dimensions}d")(4, 6, 1)
    return nn.Sequential(layer, kind(*arguments, **options), nn.Flatten(), nn.LazyLinear(2))


LAYERS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (6,)),
    "linear without bias": (
        lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 2, bias=False)),
        (6,),
    ),
    "only a head": (lambda: nn.Linear(6, 2), (6,)),
    "shared": (Twice, (6,)),
    "nested": (lambda: Nested(True), (6,)),
    "bare parameters": (Bare, (6,)),
    **{f"conv{d}d": (partial(conv, d), (4, *[5] * d)) for d in (1, 2, 3)},
    **{f"transposed {d}d": (partial(transposed, d), (4, *[3] * d)) for d in (1, 2, 3)},
    "grouped": (partial(conv, 2, groups=2), (4, 5, 5)),
    "depthwise transposed": (partial(transposed, 2, groups=2, bias=False), (4, 3, 3)),
    "dilated": (partial(conv, 2, dilation=2, padding="same"), (4, 5, 5)),
    "circular": (partial(conv, 1, padding_mode="circular"), (4, 5)),
    "conv without bias": (partial(conv, 1, bias=False), (4, 5)),
    **{
        f"batch norm {d}d": (partial(norm, getattr(nn, f"BatchNorm{d}d"), d, 6), (4, *[3] * d))
        for d in (1, 2, 3)
    },
    "batch norm without statistics": (
        partial(norm, nn.BatchNorm2d, 2, 6, track_running_stats=False),
        (4, 3, 3),
    ),
    "batch norm without weights": (partial(norm, nn.BatchNorm1d, 1, 6, affine=False), (4, 3)),
    "cumulative batch norm": (partial(norm, nn.BatchNorm1d, 1, 6, momentum=None), (4, 3)),
    "instance norm": (
        partial(norm, nn.InstanceNorm1d, 1, 6, affine=True, track_running_stats=True),
        (4, 3),
    ),
    "layer norm": (partial(norm, nn.LayerNorm, 1, [6, 3]), (4, 3)),
    "group norm": (partial(norm, nn.GroupNorm, 2, 3, 6), (4, 3, 3)),
}


def built(name):
    build, shape = LAYERS[name]
    model, x = build(), torch.randn(8, *shape)
    model.eval()(x)  # gives lazy heads their shape
    return model, x


@pytest.mark.parametrize("name", LAYERS)
def test_an_unpruned_task_computes_what_the_plain_model_computes(name):
    model, x = built(name)
    plain = copy.deepcopy(model)
    network = TaskNetwork(model)
    network.open(0, [0, 1])
    assert torch.equal(logits_of(network, x, 0), logits_of_plain(plain, x))
    network.train(), plain.train()
    assert torch.equal(network(x, 0), plain(x))
    network.commit()
    assert torch.equal(logits_of(network, x, 0), logits_of_plain(plain, x))


@torch.no_grad()
def logits_of_plain(model, x):
    return model.eval()(x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_trains_what_plain_training_trains(name):
    model, x = built(name)
    plain, y = copy.deepcopy(model), torch.randint(2, (8,))
    network = TaskNetwork(model)
    network.open(0, [0, 1])
    network.train(), plain.train()
    nn.functional.cross_entropy(network(x, 0), y).backward()
    nn.functional.cross_entropy(plain(x), y).backward()
    expected = dict(plain.named_parameters())
    found = dict(network.backbone.named_parameters())
    assert found.keys() == expected.keys()
    for parameter, wanted in zip(found.values(), expected.values()):
        torch.testing.assert_close(parameter.grad, wanted.grad, rtol=1e-5, atol=1e-7)
    outside = {n: p for n, p in network.named_parameters() if not n.startswith("backbone")}
    assert not outside


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_keeps_its_logits_through_later_tasks(name, scored):
    model, x = built(name)
    network = TaskNetwork(model, partial(MaskedStore, scored=scored))
    for store in network.weight_stores:
        store.density = 0.5
    old = {}
    for task, classes in ((3, (0, 1)), (0, (4, 1, 2)), (7, (0, 1))):
        network.open(task, classes)
        y = torch.tensor(classes)[torch.randint(len(classes), (8,))]
        train(network, x, y, task)
        for store in network.weight_stores:
            if not scored:
                store.prune(0.5)
        before = logits_of(network, x, task)
        network.commit()
        old[task] = logits_of(network, x, task)
        assert torch.equal(old[task], before)
        assert all(torch.equal(logits_of(network, x, t), logits) for t, logits in old.items())


def small_vit():
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48,
        num_classes=2,
    )  # fmt: skip


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.attention(x, x[..., : self.attention.kdim], x)[0].mean(1))


WHOLE = {
    "resnet18": (partial(resnet18, num_classes=2), (3, 32, 32)),
    "mobilenet_v3_small": (partial(mobilenet_v3_small, num_classes=2), (3, 32, 32)),
    "vision transformer": (small_vit, (3, 32, 32)),
    "encoder layer": (Encoder, (5, 8)),
    "encoder layer, norm first": (partial(Encoder, norm_first=True), (5, 8)),
    "attention": (Attention, (5, 8)),
    "attention of other keys": (partial(Attention, kdim=6, add_bias_kv=True), (5, 8)),
    "SimpleMLP": (partial(SimpleMLP, num_classes=2, input_size=9, hidden_size=16), (3, 3)),
    "SlimResNet18": (partial(SlimResNet18, 2, nf=4), (3, 32, 32)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_models_learn_two_tasks_and_leave_as_plain_models(name):
    build, shape = WHOLE[name]
    model, x = build(), torch.randn(4, *shape)
    original = type(model)
    network = TaskNetwork(model)
    learn(network, x, 0, prune=0.5, steps=1)
    old = logits_of(network, x, 0)
    learn(network, x, 1, classes=(0, 1, 2), prune=0.5, steps=1)
    assert torch.equal(logits_of(network, x, 0), old)
    for task, width in ((0, 2), (1, 3)):
        plain = network.materialise(task)
        assert type(plain) is original
        assert not package_objects(plain)
        data = pickle.dumps(plain)
        assert b"avalanche_compress" not in data
        for copied in (plain, pickle.loads(data)):
            logits = logits_of_plain(copied, x)
            assert logits.shape == (4, width)
            assert torch.equal(logits, logits_of(network, x, task))


def test_a_materialised_model_shares_no_memory_with_the_network():
    x = torch.randn(4, 6)
    network = TaskNetwork(Bare())
    learn(network, x, 0)
    old = logits_of(network, x, 0)
    for parameter in network.materialise(0).parameters():
        nn.init.constant_(parameter, 9.0)
    assert torch.equal(logits_of(network, x, 0), old)


def test_attention_projections_are_compressed_and_bare_parameters_kept_per_task():
    network = TaskNetwork(small_vit())
    compressed = {store.name for store in network.weight_stores}
    layer = "encoder.layers.encoder_layer_1"
    assert f"{layer}.self_attention.in_proj_weight" in compressed
    assert f"{layer}.self_attention.out_proj.weight" in compressed
    assert f"{layer}.mlp.0.weight" in compressed
    assert "conv_proj.weight" in compressed
    private = set(network.private.names)
    assert {"class_token", "encoder.pos_embedding", "encoder.ln.weight"} <= private
    assert {"heads.head.weight", "heads.head.bias"} <= private
    assert network.head_name == "heads.head"


def test_keys_of_another_size_are_compressed_too():
    network = TaskNetwork(Attention(kdim=6))
    names = {store.name for store in network.weight_stores}
    assert names == {
        *(f"attention.{n}_proj_weight" for n in "qkv"),
        "attention.out_proj.weight",
    }


def test_names_move_tensors_between_shared_and_private():
    network = TaskNetwork(Bare(), include=["table.weight"], exclude=["body"])
    assert [store.name for store in network.weight_stores] == ["table.weight"]
    assert {"body.weight", "body.bias", "scale", "shifts.0"} <= set(network.private.names)
    x = torch.randn(4, 6)
    learn(network, x, 0, prune=0.3)
    old = logits_of(network, x, 0)
    learn(network, x, 1, prune=0.3)
    assert torch.equal(logits_of(network, x, 0), old)


def test_the_head_can_be_named():
    model = Nested()
    network, x = TaskNetwork(model, head="top.1.0"), torch.randn(8, 6)
    assert network.head is model.top[1][0]
    learn(network, x, 0, classes=(0, 1, 2))
    assert logits_of(network, x, 0).shape == (8, 3)


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(6, 6), nn.Linear(6, 2), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(x))


def test_a_wrong_guess_of_the_head_is_named():
    network = TaskNetwork(Auxiliary())
    network.open(0, [0, 1, 2])
    with pytest.raises(UnsupportedModuleError, match=r"'unused' is not the layer.*head="):
        network(torch.randn(2, 6), 0)


# ---------------------------------------------------------------- frozen parameters


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 40), nn.ReLU()).requires_grad_(False)
        self.twin = self.body[0].bias  # frozen and tied is fine: nothing changes it
        self.middle, self.head = nn.Linear(40, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.middle(self.body(x) + self.twin)))


def test_frozen_parameters_are_shared_unchanged_and_stored_once(tmp_path):
    network, x = TaskNetwork(Frozen()), torch.randn(8, 6)
    before = state_of(network.backbone.body)
    sizes = []
    for task in range(3):
        learn(network, x, task, prune=0.5)
        sizes.append(save_archive(network, tmp_path / "file"))
    frozen_bytes = 4 * (6 * 40 + 40)
    assert sum(t.numel() * t.element_size() for t in network.static_tensors().values()) == (
        frozen_bytes
    )
    assert sizes[0] > frozen_bytes
    assert sizes[2] - sizes[0] < frozen_bytes
    after = network.backbone.body.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    loaded = load_archive(tmp_path / "file", Frozen)
    for task in range(3):
        assert torch.equal(logits_of(loaded, x, task), logits_of(network, x, task))


def test_a_frozen_head_is_refused_since_later_tasks_would_have_random_ones():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    model[1].requires_grad_(False)
    network = TaskNetwork(model)
    with pytest.raises(UnsupportedModuleError, match="head '1' is frozen"):
        network.open(0, [0, 1])
    assert network.open_task is None
    model[1].requires_grad_(True)
    learn(network, torch.randn(4, 6), 0, prune=0.5)


# ---------------------------------------------------------------- refusals


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(6, 6), nn.Linear(6, 6)
        self.up.weight = self.down.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.up(torch.relu(self.down(x))))


class TiedEmbedding(nn.Module):
    """The projection to words and back is one matrix, as in language models."""

    def __init__(self):
        super().__init__()
        self.words, self.back = nn.Embedding(9, 6, padding_idx=2), nn.Linear(6, 9, bias=False)
        self.back.weight = self.words.weight
        self.head = nn.Linear(9, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.back(self.words(x).mean(1))))


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.randn(6))
        self.other = self.one
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(x * self.one + self.other)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.memory = kind(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        if isinstance(self.memory, nn.RNNCellBase):
            out = self.memory(x)
            return self.head(out[0] if isinstance(out, tuple) else out)
        return self.head(self.memory(x[:, None])[0][:, 0])


def words(count=8, length=5):
    return torch.randint(0, 9, (count, length))


def texts(kind=nn.Embedding, **options):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = kind(9, 6, **options), nn.Linear(6, 2)

        def forward(self, x):
            x = self.words(x)
            return self.head(x.mean(1) if kind is nn.Embedding else x)

    return Bag()


class Pairing(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair, self.head = nn.Bilinear(6, 6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.pair(x, x))


def points(count=8):
    return torch.randn(count, 6)


COMPRESSED = {
    "tied": (Tied, points, {"down.weight"}),
    "tied embedding": (TiedEmbedding, words, {"words.weight"}),
    "embedding": (texts, words, {"words.weight"}),
    "embedding with padding": (partial(texts, padding_idx=2), words, {"words.weight"}),
    "embedding bag": (partial(texts, nn.EmbeddingBag, padding_idx=2), words, {"words.weight"}),
    "bilinear": (Pairing, points, {"pair.weight"}),
    "one bare parameter of two names": (TwoNames, points, set()),
    **{
        kind.__name__: (
            partial(Recurrent, kind),
            points,
            {
                f"memory.weight_{side}{'_l0' if issubclass(kind, nn.RNNBase) else ''}"
                for side in ("ih", "hh")
            },
        )
        for kind in (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
    },
}
STORES = of_methods()


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("name", COMPRESSED)
def test_every_weight_matrix_is_compressed_by_every_store(name, kind, tmp_path):
    build, inputs, compressed = COMPRESSED[name]
    network, x = TaskNetwork(build(), STORES[kind]), inputs()
    assert {store.name for store in network.weight_stores} == compressed
    old = {}
    for task, classes in enumerate([(0, 1), (0, 1, 2), (0, 1)]):
        for store in network.weight_stores:
            get_ready(store, density=0.5)
        network.open(task, classes)
        y = torch.tensor(classes)[torch.randint(len(classes), (len(x),))]
        train(network, x, y, task)
        for store in network.weight_stores:
            prune(store)
        before = logits_of(network, x, task)
        network.commit()
        old[task] = logits_of(network, x, task)
        torch.testing.assert_close(old[task], before)
    save_archive(network, tmp_path / "file")
    loaded = load_archive(tmp_path / "file", build)
    for task, expected in old.items():
        assert torch.equal(logits_of(network, x, task), expected)
        assert torch.equal(logits_of(loaded, x, task), expected)
        assert torch.equal(logits_of_plain(network.materialise(task), x), expected)


@pytest.mark.parametrize("name", COMPRESSED)
def test_every_weight_matrix_is_trained_as_in_the_plain_model(name):
    build, inputs, _ = COMPRESSED[name]
    model, x = build(), inputs()
    plain, y = copy.deepcopy(model), torch.randint(2, (8,))
    network = TaskNetwork(model)
    network.open(0, [0, 1])
    assert torch.equal(network(x, 0), plain(x))
    nn.functional.cross_entropy(network(x, 0), y).backward()
    nn.functional.cross_entropy(plain(x), y).backward()
    found = dict(network.backbone.named_parameters())
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(found[key].grad, parameter.grad, rtol=1e-5, atol=1e-7)


def test_tied_weights_are_stored_once_and_tied_when_they_leave(tmp_path):
    network, x = TaskNetwork(TiedEmbedding()), words()
    learn(network, x, 0, prune=0.5)
    plain = network.materialise(0)
    assert plain.back.weight is plain.words.weight
    untied = TiedEmbedding()
    untied.back.weight = nn.Parameter(untied.back.weight.clone())
    twice = TaskNetwork(untied)
    learn(twice, x, 0, prune=0.5)
    assert save_archive(network, tmp_path / "a") < save_archive(twice, tmp_path / "b") - 50


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("index", [2, -1])
def test_the_row_of_padding_is_zero_in_every_task(kind, index):
    network, x = TaskNetwork(texts(padding_idx=index), STORES[kind]), words()
    for task in range(2):
        get_ready(network.weight_stores[0])
        network.open(task, [0, 1])
        train(network, x, torch.randint(2, (8,)), task)
        with torch.no_grad():
            padded = network(torch.full((2, 3), index % 9), task)
        assert torch.equal(padded[0], network.head.bias)
        prune(network.weight_stores[0])
        network.commit()
        assert not network.weight_of("words.weight", task)[index].any()
        assert not network.materialise(task).words.weight[index].any()


def test_a_tied_head_is_refused_by_name():
    model = TiedEmbedding()
    model.back = nn.Linear(6, 2)
    model.head = nn.Linear(6, 2)
    model.head.weight = model.back.weight
    with pytest.raises(
        UnsupportedModuleError, match=r"head\.weight.*tied.*deepcopy\(model\.head\)"
    ):
        TaskNetwork(model)


def test_layers_of_transformers_that_are_stored_transposed_are_compressed():
    utils = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(utils.Conv1D(5, 6), nn.Tanh(), nn.Linear(5, 2))
    assert [store.name for store in TaskNetwork(model).weight_stores] == ["0.weight"]


UNSTORABLE = {
    "sparse": torch.eye(3).to_sparse(),
    "float8": torch.zeros(3, dtype=torch.float8_e4m3fn),
    "uint16": torch.zeros(3, dtype=torch.uint16),
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_a_buffer_that_no_archive_can_hold_is_refused_by_name(name):
    model = two_layers()
    model[0].register_buffer("table", UNSTORABLE[name])
    with pytest.raises(UnsupportedModuleError, match=r"0 \(Linear\).*'table'.*persistent=False"):
        TaskNetwork(model)
    model[0].register_buffer("table", UNSTORABLE[name], persistent=False)
    assert TaskNetwork(model).weight_stores


def test_a_model_without_values_is_refused_by_name():
    with torch.device("meta"):
        model = two_layers()
    with pytest.raises(UnsupportedModuleError, match=r"no values.*'meta'.*to_empty"):
        TaskNetwork(model)


def mlp_with(change):
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 5)), nn.Linear(5, 2))
    change(model[1][0])
    return model


def pruned(layer):
    nn.utils.prune.l1_unstructured(layer, "weight", amount=0.5)


REFUSED = {
    **{
        change.__name__ + " " + change.__module__: (
            partial(mlp_with, change),
            r"1\.0.*exclude=\('1\.0',\)",
            ("1.0",),
        )
        for change in (
            nn.utils.weight_norm,
            nn.utils.parametrizations.weight_norm,
            nn.utils.spectral_norm,
            nn.utils.parametrizations.spectral_norm,
            pruned,
        )
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name_before_anything_changes(name):
    build, message, _ = REFUSED[name]
    model = build()
    before, attributes = state_of(model), [set(vars(m)) for m in model.modules()]
    with pytest.raises(UnsupportedModuleError, match=message):
        TaskNetwork(model)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [set(vars(m)) for m in model.modules()] == attributes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_the_proposed_exclude_keeps_old_logits_and_archives(name, tmp_path):
    build, _, exclude = REFUSED[name]
    network, x = TaskNetwork(build(), exclude=exclude), torch.randn(8, 6)
    learn(network, x, 0, prune=0.5)
    old = logits_of(network, x, 0)
    learn(network, x, 1, classes=(0, 1, 2), steps=3, lr=0.5)
    assert torch.equal(logits_of(network, x, 0), old)
    assert not torch.equal(logits_of(network, x, 1)[:, :2], old)
    save_archive(network, tmp_path / "file")
    assert torch.equal(logits_of(load_archive(tmp_path / "file", build), x, 0), old)
    assert torch.equal(logits_of_plain(network.materialise(0), x), old)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(6, dtype=torch.cfloat))
        self.head = nn.Linear(6, 2)


def without_head():
    return nn.Sequential(nn.Embedding(3, 4), nn.AdaptiveAvgPool1d(1), nn.Flatten())


def head_with_weight_norm():
    return nn.Sequential(nn.Linear(6, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)))


def two_layers():
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), {}, "0 .*no shape.*one batch"),
        (
            lambda: nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(4, 2)),
            {"exclude": ["0"]},
            "0 .*no shape",
        ),
        (without_head, {}, "Sequential has no nn.Linear.*end the model"),
        (two_layers, {"head": "classifier"}, "'classifier' does not exist"),
        (two_layers, {"head": "1"}, "'1' is a BatchNorm1d"),
        (two_layers, {"exclude": ["3"]}, "exclude= names '3'"),
        (two_layers, {"include": ["0.weigth"]}, r"include= names '0.weigth'.*mean '0.weight'"),
        (two_layers, {"include": ["2.weight"]}, r"include= names '2.weight'.*the head's"),
        (head_with_weight_norm, {}, r"1 \(.*is the head.*remove that"),
        (head_with_weight_norm, {"exclude": ["1"]}, r"1 \(.*is the head.*remove that"),
        (Complex, {}, "complex.*view_as_real"),
        (
            lambda: nn.Sequential(torch.jit.script(nn.Linear(6, 6)), nn.Linear(6, 2)),
            {"exclude": ["0"]},
            "0 .*compiled.*before",
        ),
        (lambda: TaskNetwork(two_layers()), {}, "TaskNetwork already"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_mistakes_are_named(build, options, message):
    with pytest.raises(UnsupportedModuleError, match=message):
        TaskNetwork(build(), **options)


def test_a_refused_model_keeps_its_avalanche_classifier():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), MultiHeadClassifier(5)
    )
    with pytest.raises(UnsupportedModuleError):
        TaskNetwork(model)
    assert isinstance(model[1], MultiHeadClassifier)
    assert not any(isinstance(module, HeadAdapter) for module in model.modules())


def test_a_parameter_whose_name_looks_reparametrised_is_fine():
    model = two_layers()
    model[0].weight_g = nn.Parameter(torch.ones(1))
    assert "0.weight_g" in TaskNetwork(model).private.names


# ---------------------------------------------------------------- the host's models


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Linear(9, 8), IncrementalClassifier(8)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x.flatten(1))))


def multitask():
    mlp = SimpleMLP(num_classes=2, input_size=9, hidden_size=16)
    return as_multitask(mlp, "classifier")


HOSTS = {
    "as_multitask": (multitask, (3, 3)),
    "MTSimpleMLP": (partial(MTSimpleMLP, input_size=9, hidden_size=16), (3, 3)),
    "MTSlimResNet18": (partial(MTSlimResNet18, 2, nf=4), (3, 32, 32)),
    "IncrementalClassifier": (Growing, (3, 3)),
    "MultiHeadClassifier": (partial(MultiHeadClassifier, 9), (9,)),
}


@pytest.mark.parametrize("name", HOSTS)
def test_avalanche_models_take_int_and_tensor_labels(name):
    build, shape = HOSTS[name]
    network, x = TaskNetwork(build()), torch.randn(6, *shape)
    learn(network, x, 4, prune=0.5)
    old = logits_of(network, x, 4)
    learn(network, x, 1, classes=(0, 1, 2))
    assert torch.equal(logits_of(network, x, 4), old)
    for task in (4, 1):
        labels = torch.full((6,), task)
        assert torch.equal(logits_of(network, x, labels), logits_of(network, x, task))
    mixed = torch.tensor([4, 1, 4, 1, 1, 4])
    logits = logits_of(network, x, mixed)
    assert torch.allclose(logits[mixed == 4][:, :2], old[mixed == 4], atol=1e-6)
    copied = copy.deepcopy(network)
    assert torch.equal(logits_of(copied, x, 4), old)
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    assert torch.equal(logits_of(torch.load(buffer, weights_only=False), x, 4), old)


@pytest.mark.parametrize("name", HOSTS)
def test_a_materialised_avalanche_model_has_avalanche_classifiers(name):
    build, shape = HOSTS[name]
    network, x = TaskNetwork(build()), torch.randn(6, *shape)
    learn(network, x, 4, classes=(0, 1, 2))
    plain = network.materialise(4)
    assert not package_objects(plain)
    assert b"avalanche_compress" not in pickle.dumps(plain)
    expected = logits_of(network, x, 4)
    with torch.no_grad():
        if name == "IncrementalClassifier":
            assert torch.equal(plain(x), expected)
            return
        plain = plain[0] if name == "MultiHeadClassifier" else plain  # it came in a Sequential
        assert torch.equal(plain(x, 4), expected)
        assert torch.equal(plain(x, torch.full((6,), 4)), expected)
