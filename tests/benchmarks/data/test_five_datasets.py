"""The five data sets from small files of their true formats, all as 3 x 32 x 32."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from published_files import (
    pixels,
    write_cifar10,
    write_mnist,
    write_notmnist,
    write_svhn,
)
from torchvision.transforms import Compose, Normalize, Pad, ToTensor

from benchmarks.data.five_datasets import SVHN_FILES, SVHN_URL, load_five_datasets, load_svhn
from benchmarks.data.images import DamagedDataError, MissingDataError
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import build_stream

SVHN = ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197))


@pytest.fixture
def data_dir(tmp_path):
    write_cifar10(tmp_path)
    write_mnist(tmp_path)
    write_svhn(tmp_path)
    write_mnist(tmp_path, "FashionMNIST", train=50)
    write_notmnist(tmp_path)
    return tmp_path


def test_five_tasks_of_ten_classes_in_any_order(data_dir):
    stream = build_stream(StreamRequest("five_datasets", data_dir, order=[2, 0, 4, 1, 3]))
    assert (stream.name, stream.order) == ("five_datasets", [2, 0, 4, 1, 3])
    assert stream.tasks == [list(range(10))] * 5
    assert (stream.input_shape, stream.max_classes) == ((3, 32, 32), 10)
    sizes = [len(e.dataset) for e in stream.benchmark.train_stream]
    assert sizes == [30, 100, 180, 40, 50]
    for position, experience in enumerate(stream.benchmark.test_stream):
        assert experience.task_labels == [position]
        assert experience.dataset[0][0].shape == (3, 32, 32)
        assert list(experience.classes_in_this_experience) == list(range(10))


def test_held_out_images_are_of_the_training_sets(data_dir):
    stream = build_stream(StreamRequest("five_datasets", data_dir, held_out=0.2))
    assert [len(e.dataset) for e in stream.benchmark.train_stream] == [80, 32, 24, 40, 144]
    assert [len(e.dataset) for e in stream.benchmark.test_stream] == [20, 20, 30, 20, 20]


def test_images_are_what_torchvision_makes_of_them(data_dir):
    stream = build_stream(StreamRequest("five_datasets", data_dir))
    colour = [
        (0, pixels(5, 20, 3, 32, 32)[3], (0.4913725, 0.4823529, 0.4466667), (63.0, 62.1, 66.7)),
        (2, pixels(1, 32, 32, 3, 30)[..., 3].transpose(2, 0, 1), *SVHN),
    ]
    for task, image, mean, std in colour:
        std = [number / 255 if number > 1 else number for number in std]
        expected = Compose([ToTensor(), Normalize(mean, std)])(image.transpose(1, 2, 0))
        ours = stream.benchmark.test_stream[task].dataset[3][0]
        torch.testing.assert_close(ours, expected.float(), rtol=0, atol=1e-5)
    grey = [
        (1, pixels(2, 20, 28, 28)[3], 0.1, 0.2752),
        (3, pixels(2, 20, 28, 28)[3], 0.219, 0.3318),
        (4, pixels(119, 28, 28), 0.4254, 0.4501),
    ]
    for task, image, mean, std in grey:
        steps = Compose([Pad(2), ToTensor(), Normalize(mean, std)])
        expected = steps(Image.fromarray(image)).expand(3, 32, 32)
        ours = stream.benchmark.test_stream[task].dataset[3][0]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_nothing_is_kept_as_floats_and_grey_images_in_one_channel(data_dir):
    sets = load_five_datasets(data_dir)
    assert [images.train[0].dtype for images in sets] == [np.uint8] * 5
    assert [images.train[0].shape[1] for images in sets] == [3072, 1024, 3072, 1024, 1024]
    assert not any(images.train[0].flags.owndata for images in sets[:4])


def test_svhn_says_ten_for_the_digit_zero(data_dir):
    images, labels = load_svhn(data_dir).train
    assert labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 3
    assert np.array_equal(images[4].reshape(3, 32, 32)[2], pixels(0, 32, 32, 3, 30)[:, :, 2, 4])


def test_absent_svhn_says_where_to_put_the_files(tmp_path, monkeypatch):
    def no_network(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.SVHN, "download", no_network)
    with pytest.raises(MissingDataError, match="no network") as error:
        load_svhn(tmp_path)
    for part in (tmp_path, *SVHN_FILES, SVHN_URL):
        assert str(part) in str(error.value)


def test_damaged_svhn_is_named(data_dir):
    path = data_dir / "test_32x32.mat"
    for content in (b"", path.read_bytes()[:5000], b"\0" * 500):
        path.write_bytes(content)
        with pytest.raises(DamagedDataError, match=r"test_32x32\.mat is damaged"):
            load_svhn(data_dir)


def test_the_second_load_needs_no_published_file_of_the_large_sets(data_dir):
    first = load_five_datasets(data_dir)
    for path in (*data_dir.glob("*.mat"), *data_dir.glob("*/raw/*"), *data_dir.glob("cifar*/*")):
        path.unlink()
    for ours, again in zip(first, load_five_datasets(data_dir)):
        assert np.array_equal(ours.train[0], again.train[0])
        assert np.array_equal(ours.test[1], again.test[1])
