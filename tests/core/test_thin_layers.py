"""Two thin layers compute what one layer of few terms computes, and stand in where that is less."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from avalanche_compress import FactoredStore, MaskedStore, TaskNetwork, TaskStateError
from avalanche_compress.codec import Factors, LowRankWeight
from avalanche_compress.core.thin_layers import thin_layers, work_of

GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2)},
    {"kernel_size": (2, 3), "dilation": (2, 1), "padding": "same"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "bias": False},
    {"kernel_size": 5, "stride": 3, "padding": "valid"},
]


def terms(rank, rows, columns):
    generator = torch.Generator().manual_seed(0)
    sides = (torch.randn(rank, n, generator=generator, dtype=torch.double) for n in (rows, columns))
    left, right = sides
    scale = torch.linspace(-1, 1, rank, dtype=torch.double)  # negative ones count as positive
    return Factors(left, scale, right)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_convolution(geometry, spatial):
    layer = nn.Conv2d(3, 4, **geometry).double()
    high, wide = layer.kernel_size
    if spatial:
        factors = terms(5, 3 * high, 4 * wide)
        dense = factors.compose().view(3, high, 4, wide).permute(2, 0, 1, 3)
    else:
        factors = terms(5, 4, 3 * high * wide)
        dense = factors.compose().view(4, 3, high, wide)
    with torch.no_grad():
        layer.weight.copy_(dense)
    pair = thin_layers(layer, LowRankWeight(factors, spatial))
    x = torch.randn(2, 3, 11, 12, dtype=torch.double)
    assert [type(part) for part in pair] == [nn.Conv2d, nn.Conv2d]
    assert torch.allclose(pair(x), layer(x), rtol=0, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in pair.parameters())


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_a_convolution_of_other_dimensions(kind):
    layer = kind(2, 3, 2, stride=2, padding=1).double()
    factors = terms(4, 3, layer.weight[0].numel())
    with torch.no_grad():
        layer.weight.copy_(factors.compose().view(layer.weight.shape))
    x = torch.randn(2, 2, *[7] * (layer.weight.dim() - 2), dtype=torch.double)
    pair = thin_layers(layer, LowRankWeight(factors, spatial=False))
    assert torch.allclose(pair(x), layer(x), rtol=0, atol=1e-12)


def test_what_cannot_be_split_stays_whole():
    weight = LowRankWeight(terms(1, 4, 6), spatial=False)

    class Own(nn.Linear):
        """A subclass may compute something else."""

    for layer in (nn.Conv2d(4, 4, 1, groups=2), nn.ConvTranspose2d(4, 2, 3), Own(6, 4)):
        assert thin_layers(layer, weight) is None


def test_a_spatial_pair_pays_for_the_columns_that_a_stride_skips():
    factors = terms(2, 3 * 3, 4 * 3)
    plain = work_of(nn.Conv2d(3, 4, 3), LowRankWeight(factors, spatial=True))
    strided = work_of(nn.Conv2d(3, 4, 3, stride=2), LowRankWeight(factors, spatial=True))
    assert plain == (108, 2 * (9 + 12))
    assert strided == (108, 2 * (18 + 12))


def network_of_ranks(first, second):
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 20), nn.Linear(20, 3))
    network = TaskNetwork(model, partial(FactoredStore, storage="factors")).eval()
    for store, rank in zip(network.weight_stores, (first, second)):
        store.rank = rank
    network.open(0, [0, 1, 2])
    network.commit()
    return network


def test_auto_splits_only_where_that_is_less_work():
    network = network_of_ranks(first=3, second=15)
    x = torch.randn(4, 30)
    for form, split in (("dense", [False] * 2), ("auto", [True, False]), ("factored", [True] * 2)):
        plain = network.materialise(0, form)
        assert [isinstance(plain[i], nn.Sequential) for i in (0, 2)] == split
        assert torch.allclose(plain(x), network(x, 0), rtol=1e-5, atol=1e-6)
    assert torch.equal(network.materialise(0)(x), network(x, 0))


def test_weights_that_are_not_terms_stay_dense_in_any_form():
    network = TaskNetwork(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), MaskedStore).eval()
    network.open(0, [0, 1])
    network.commit()
    assert isinstance(network.materialise(0, "factored")[0], nn.Linear)


def test_an_unknown_form_is_refused():
    with pytest.raises(TaskStateError, match="form='thin'"):
        network_of_ranks(1, 1).materialise(0, "thin")


# ------------------------------------------------------------------ layers that others read


class Reading(nn.Module):
    """A block of two layers, one of which is called and one read in some way."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.called, self.read = nn.Linear(24, 24), nn.Linear(24, 24)
        self.way, self.head = way, nn.Linear(24, 2)

    def forward(self, x):
        return self.head(self.way(self, torch.relu(self.called(x))))


def directly(block, x):
    return nn.functional.linear(x, block.read.weight, block.read.bias)


def by_another_name(block, x):
    layer = block.read
    return layer(x).view(-1, layer.out_features)


@pytest.mark.parametrize("way", [directly, by_another_name])
@pytest.mark.parametrize("form", ["factored", "auto"])
def test_a_layer_that_the_model_reads_stays_whole_and_others_do_not(form, way):
    network, x = TaskNetwork(Reading(way), FactoredStore), torch.randn(5, 24)
    for store in network.weight_stores:
        store.rank = 2
    network.open(0, [0, 1])
    network.commit()
    plain = network.materialise(0, form)
    assert isinstance(plain.called, nn.Sequential)
    assert isinstance(plain.read, nn.Linear)
    torch.testing.assert_close(plain(x), network.eval()(x, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["factored", "auto"])
def test_an_encoder_of_torch_answers_in_every_form(form):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    network = TaskNetwork(
        nn.Sequential(nn.Linear(8, 32), body, nn.Flatten(), nn.Linear(192, 2)), FactoredStore
    )
    network.open(0, [0, 1])
    network.commit()
    x = torch.randn(5, 6, 8)
    torch.testing.assert_close(
        network.materialise(0, form)(x), network.eval()(x, 0), rtol=1e-4, atol=1e-5
    )
