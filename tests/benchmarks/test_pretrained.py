"""The benchmark from pretrained weights: ways are what they say, rows are kept and not repeated."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from streams_for_tests import inputs_of
from torch import nn

from avalanche_compress import load_archive, save_archive
from benchmarks import pretrained
from benchmarks.data import pretrained_features
from benchmarks.data.images import Images
from benchmarks.data.pretrained_features import Pretrained, cifar100_features
from benchmarks.runs.pretrained_ways import WAYS

SETTING = pretrained.Setting(tasks=2, images=6, epochs=1, train_mb_size=4)
WIDTH = 16


def build_tail():
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 12, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, WIDTH, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def stem():
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(3, 3, 8, stride=8), nn.ReLU()).eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    labels = np.arange(40) % 4
    parts = [
        (torch.randn(40, 3, 2, 2, generator=generator).half().numpy(), labels),
        (torch.randn(40, 3, 2, 2, generator=generator).half().numpy(), labels),
    ]
    fake = Pretrained("fake", stem(), build_tail, WIDTH)
    return pretrained.Data(fake, parts, [[0, 1], [2, 3]])


@pytest.mark.parametrize("name", WAYS)
def test_a_way_trains_what_it_says_and_its_archive_loads(data, name, tmp_path):
    model = nn.Sequential(build_tail(), nn.Linear(WIDTH, 2))
    strategy = pretrained.build(model, WAYS[name], 0.01, SETTING)
    given = {key: tensor.clone() for key, tensor in build_tail().state_dict().items()}
    for experience in data.benchmark(SETTING, 0).train_stream:
        strategy.train(experience)
    way = WAYS[name]
    for task in (0, 1):
        learned = strategy.network.materialise(task)[0].state_dict()
        same = {key for key in learned if torch.equal(given[key], learned[key])}
        assert ("0.weight" in same) == (way.trains != "all")
        shared = way.norms == "nothing"
        assert ("1.weight" in same) == (way.trains in ("head", "biases") or shared)
        assert ("1.bias" in same) == (way.trains == "head" or shared)
        mean = learned["1.running_mean"]
        kept = torch.allclose(mean, given["1.running_mean"], atol=1e-6)
        assert kept == (way.norms != "statistics")
    file = io.BytesIO()
    assert save_archive(strategy.network, file) > 0
    path = tmp_path / "archive"
    path.write_bytes(file.getvalue())

    def build():
        fresh = nn.Sequential(build_tail(), nn.Linear(WIDTH, 2))
        WAYS[name].freeze(fresh[0])
        return fresh

    x = torch.randn(3, 3, 2, 2)
    loaded = load_archive(path, build).eval()
    strategy.network.eval()
    with torch.no_grad():
        assert torch.equal(loaded(x, 1), strategy.network(x, 1))


def test_a_row_that_has_finished_is_not_repeated(data, tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    (first,) = pretrained.measure(data, "head", SETTING, [0], out)
    assert first.rate in pretrained.RATES
    assert 0 < first.added < first.archive
    monkeypatch.setattr(pretrained, "best_rate", lambda *_: pytest.fail("the rate is known"))
    rows = pretrained.measure(data, "head", SETTING, [0, 1], out)
    assert rows[0] == first
    assert rows[1].seed == 1
    assert pretrained.read_rows(out) == rows
    text = pretrained.table(rows).splitlines()
    assert len(text) == 3
    assert text[2].startswith("| head |")


def test_rows_of_other_pixels_are_other_rows(data, tmp_path):
    out = tmp_path / "rows.jsonl"
    pretrained.measure(data, "head", SETTING, [0], out)
    larger = dataclasses.replace(SETTING, pixels=96)
    pretrained.measure(data, "head", larger, [0], out)
    assert [row.setting.pixels for row in pretrained.read_rows(out)] == [64, 96]


def test_rows_of_a_way_with_other_options_are_other_rows(data, tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    for rank in (1, 2, 2):
        way = dataclasses.replace(
            WAYS["LoRA rank 2, 8 bits"], options={"base": "given", "rank": rank}
        )
        monkeypatch.setitem(WAYS, "LoRA rank 2, 8 bits", way)
        pretrained.measure(data, "LoRA rank 2, 8 bits", SETTING, [0], out)
    assert len({row.key for row in pretrained.read_rows(out)}) == 2
    assert len(pretrained.read_rows(out)) == 2


def test_images_are_drawn_by_the_seed_and_none_is_both_trained_on_and_held_out(data):
    def inputs(stream):
        return {tuple(x.flatten().tolist()) for x in inputs_of(stream[0])}

    whole, again, other = (inputs(data.benchmark(SETTING, s).train_stream) for s in (0, 0, 1))
    assert whole == again != other
    assert len(whole) == 12
    parted = data.benchmark(SETTING, 0, held_out=True)
    trained, held_out = inputs(parted.train_stream), inputs(parted.test_stream)
    assert trained == whole
    assert not trained & held_out
    assert len(held_out) == 2 * (10 - SETTING.images)
    tested = {tuple(x.ravel().tolist()) for x in data.parts[1][0].astype(np.float32)}
    assert not held_out & tested


def test_features_are_those_of_the_enlarged_images_and_are_computed_once(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3 * 32 * 32), dtype=np.uint8)
    labels = np.arange(7)
    images = Images((pixels, labels), (pixels[:3], labels[:3]), np.zeros(256), (3, 32, 32))
    monkeypatch.setattr(pretrained_features, "load_cifar100", lambda folder: images)
    fake = Pretrained("fake", stem(), build_tail, WIDTH)
    (train, known), (test, _) = cifar100_features(fake, 48, 9, tmp_path, tmp_path / "out")
    assert train.shape == (7, 3, 6, 6)
    assert known.tolist() == labels.tolist()
    image = torch.from_numpy(pixels[2]).view(1, 3, 32, 32).float() / 255
    larger = nn.functional.interpolate(image, size=(48, 48), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        expected = fake.stem(2 * larger - 1)[0]
    torch.testing.assert_close(torch.from_numpy(train[2]).float(), expected, rtol=2e-3, atol=2e-3)
    assert np.array_equal(test, train[:3])
    monkeypatch.setattr(pretrained_features, "_through", lambda *_: pytest.fail("computed again"))
    again = cifar100_features(fake, 48, 9, tmp_path, tmp_path / "out")
    assert np.array_equal(again[0][0], train)
