"""Backbones: sizes known from the literature, heads where Avalanche expects them."""

import pytest
import torch
import torchvision
from torch import nn

from avalanche_compress import FactoredStore, MaskedStore, TaskNetwork
from benchmarks.runs.backbones import (
    BACKBONES,
    alexnet,
    alexnet_wsn,
    cacl_net,
    float_bytes,
    lenet,
    lenet_bn,
    lenet_large,
    mlp,
    resnet18,
    resnet18_torchvision,
    tinynet,
    vit,
)


def test_mlp_784_100_100_has_88400_weights_and_its_head():
    model = mlp(784, 10)
    body = sum(p.numel() for p in model.body.parameters())
    assert body == 88_400
    assert sum(p.numel() for p in model.parameters()) == 88_400 + 10 * 100


def test_lenet_has_the_layers_of_the_public_wsn_code():
    shapes = [tuple(p.shape) for p in lenet((3, 32, 32), 5).parameters()]
    assert shapes == [(20, 3, 5, 5), (50, 20, 5, 5), (800, 3200), (500, 800), (5, 500)]


@pytest.mark.parametrize(
    ("build", "input_shape", "body", "inputs"),
    [
        (tinynet, (3, 64, 64), 2_743_520, 640),
        (alexnet_wsn, (3, 32, 32), 6_499_328, 2048),
        (lenet_large, (1, 32, 32), 24_436_400, 1500),
        (resnet18_torchvision, (3, 64, 64), 11_176_512, 512),
        (vit, (3, 32, 32), 544_640, 128),
    ],
)
def test_bodies_have_the_parameters_that_are_published(build, input_shape, body, inputs):
    model = build(input_shape, 5)
    inner = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("head."))
    assert (inner, model.head.in_features) == (body, inputs)


def test_alexnet_and_tinynet_have_the_layers_of_the_public_wsn_code():
    shapes = [tuple(p.shape) for p in alexnet_wsn((3, 32, 32), 10).parameters()]
    assert shapes == [
        (64, 3, 4, 4),
        (128, 64, 3, 3),
        (256, 128, 2, 2),
        (2048, 1024),
        (2048, 2048),
        (10, 2048),
    ]
    shapes = [tuple(p.shape) for p in tinynet((3, 64, 64), 5).parameters()]
    assert shapes == [(160, 3, 3, 3), *[(160, 160, 3, 3)] * 3, (640, 2560), (640, 640), (5, 640)]


def test_resnet18_torchvision_is_torchvisions():
    ours, theirs = resnet18_torchvision((3, 64, 64), 1000).eval(), torchvision.models.resnet18()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values())))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs.eval()(x))


def test_the_vit_sees_where_a_patch_is():
    model = vit((3, 32, 32), 5).eval()
    x = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(model(x), model(x.roll(4, 3)))
    with torch.no_grad():
        model.positions.zero_()
    torch.testing.assert_close(model(x), model(x.roll(4, 3)))


@pytest.mark.parametrize("name", ["tinynet", "alexnet_wsn", "resnet18_torchvision", "vit"])
@pytest.mark.parametrize("store", [MaskedStore, FactoredStore])
def test_a_task_network_trains_and_commits_a_backbone(name, store):
    model = BACKBONES[name]((3, 32, 32), 3)
    weights = sum(p.ndim > 1 for n, p in model.named_parameters() if n != "head.weight")
    network = TaskNetwork(model, store)
    assert len(network.weight_stores) == weights - (name == "vit")  # positions are no weight
    network.open(0, classes=[0, 1, 2])
    x = torch.randn(6, 3, 32, 32)
    nn.functional.cross_entropy(network(x, 0), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    trained = [p for s in network.weight_stores for p in s.parameters()]
    trained = trained or [s.place.tensor for s in network.weight_stores]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    network.commit()
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(x, 0), network.materialise(0)(x))


def test_cacl_net_has_390848_weights_and_a_head_with_biases():
    model = cacl_net((3, 32, 32), 5)
    assert sum(p.numel() for p in model.body.parameters()) == 390_848
    assert sum(p.numel() for p in model.head.parameters()) == 5_125
    assert cacl_net((3, 84, 84), 5).head.in_features == 16_384


@pytest.mark.parametrize(
    ("build", "pixels", "classes", "parameters"),
    [
        (lenet_bn, 32, 10, 2_995_620),
        (lenet_bn, 32, 5, 2_993_115),
        (alexnet, 32, 10, 6_533_450),
        (alexnet, 64, 10, 23_310_666),
        (resnet18, 32, 10, 2_807_690),
        (resnet18, 64, 10, 2_838_410),
    ],
)
def test_networks_of_the_public_halrp_code_have_its_parameters(build, pixels, classes, parameters):
    model = build((3, pixels, pixels), classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_backbone_ends_in_one_linear_head(name, bias):
    model = BACKBONES[name]((1, 32, 32), 7, bias)
    assert isinstance(model.head, nn.Linear)
    assert list(model.modules())[-1] is model.head
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mlp", "lenet", "lenet_large", "alexnet_wsn", "tinynet"])
@pytest.mark.parametrize("bias", [False, True])
def test_networks_of_the_public_wsn_code_have_biases_on_demand(name, bias):
    model = BACKBONES[name]((1, 32, 32), 7, bias)
    assert all(hasattr(m, "bias") and (m.bias is not None) == bias for m in layers(model))


@pytest.mark.parametrize("name", ["lenet_bn", "alexnet", "resnet18"])
def test_networks_of_the_public_halrp_code_always_have_biases(name):
    assert all(m.bias is not None for m in layers(BACKBONES[name]((3, 32, 32), 7, False)))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_uses_each_module_and_each_tensor_once(name):
    model = BACKBONES[name]((3, 32, 32), 5)
    modules = [m for _, m in model.named_modules(remove_duplicate=False)]
    parameters = [p for _, p in model.named_parameters(remove_duplicate=False)]
    assert len(modules) == len(set(map(id, modules)))
    assert len(parameters) == len({p.data_ptr() for p in parameters})


@pytest.mark.parametrize("name", BACKBONES)
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(name):
    model = BACKBONES[name]((3, 32, 32), 5).eval()
    x = torch.randn(6, 3, 32, 32)
    torch.testing.assert_close(model(x)[:2], model(x[:2]))


def test_building_leaves_running_statistics_as_they_begin():
    model = lenet_bn((3, 32, 32), 5)
    assert model.training
    assert all(m.training for m in model.modules())
    assert not any(b.any() for name, b in model.named_buffers() if name.endswith("running_mean"))
    assert not any(b.any() for name, b in model.named_buffers() if "num_batches" in name)


def layers(model):
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def test_float_bytes_counts_parameters_and_float_buffers():
    # 3 * 2 weights, 2 biases, 4 vectors of 2 in the norm; its batch counter is an integer.
    assert float_bytes(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))) == 4 * (6 + 2 + 8)
