"""CIFAR and mini-ImageNet from small files of their true formats; pickles that want more."""

import os
import pickle
import shutil
import subprocess

import numpy as np
import pytest
import torchvision
from published_files import few_shot, pixels, write_cifar10, write_cifar100, write_mini_imagenet
from published_files import write_pickle as write

from benchmarks.data.images import DamagedDataError, MissingDataError
from benchmarks.data.pickled_images import (
    CIFAR_URL,
    MINI_IMAGENET_FILES,
    load_cifar10,
    load_cifar100,
    load_mini_imagenet,
    load_pickle,
)

PROTOCOLS = [None, *range(2, pickle.HIGHEST_PROTOCOL + 1)]


class Call:
    """Pickled, it asks for a function to be called."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_arrays_survive_the_careful_unpickler(tmp_path, protocol, dtype):
    array = np.random.RandomState(0).randint(0, 2, (3, 4, 2)).astype(dtype)
    for layout in (array, np.asfortranarray(array), array[:, ::2]):
        held = {"array": layout, "number": layout.dtype.type(1), "list": [1, 2.5, ("a", None)]}
        write(tmp_path / "held.pkl", held, protocol)
        again = load_pickle(tmp_path / "held.pkl")
        assert again["array"].dtype == layout.dtype
        assert np.array_equal(again["array"], layout)
        assert (again["number"], again["list"]) == (1, held["list"])


@pytest.mark.parametrize("protocol", PROTOCOLS[1:])
@pytest.mark.parametrize(
    "wanted",
    [
        Call(os.system, "touch escaped"),
        Call(eval, "__import__('os').system('touch escaped')"),
        Call(subprocess.Popen, ["touch", "escaped"]),
        Call(getattr, np.ndarray, "tofile"),
        os.getcwd,
        np.array([os.getcwd], dtype=object),
        np.array([1, "a", None], dtype=object),
    ],
)
def test_a_pickle_that_asks_for_more_than_arrays_is_refused(
    tmp_path, monkeypatch, protocol, wanted
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "held.pkl", {"data": wanted}, protocol)
    with pytest.raises(pickle.UnpicklingError, match=r"it asks for|it holds an array of object"):
        load_pickle(tmp_path / "held.pkl")
    assert not (tmp_path / "escaped").exists()


def test_bytes_are_decoded_as_latin_1_only(tmp_path):
    write(tmp_path / "held.pkl", {"name": b"\xe9"}, 2)
    assert load_pickle(tmp_path / "held.pkl") == {"name": b"\xe9"}
    content = (tmp_path / "held.pkl").read_bytes().replace(b"latin1", b"rot_13")
    (tmp_path / "held.pkl").write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match="encoding 'rot_13'"):
        load_pickle(tmp_path / "held.pkl")


def test_cifar100_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    write_cifar100(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_load_meta", lambda self: None)
    data = load_cifar100(tmp_path)
    assert data.shape == (3, 32, 32)
    for train, (images, labels) in ((True, data.train), (False, data.test)):
        theirs = torchvision.datasets.CIFAR100(str(tmp_path), train=train)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        assert np.array_equal(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), theirs.data)
        assert labels.tolist() == theirs.targets


def test_cifar_is_normalised_by_the_published_statistics(tmp_path):
    write_cifar100(tmp_path)
    values = load_cifar100(tmp_path).values
    for channel, (mean, std) in enumerate([(0.507, 0.267), (0.487, 0.256), (0.441, 0.276)]):
        assert np.allclose(values[channel], (np.arange(256) / 255 - mean) / std)


def test_the_batches_of_cifar10_are_joined_in_order(tmp_path):
    write_cifar10(tmp_path)
    images, labels = load_cifar10(tmp_path).train
    assert images.shape == (100, 3072)
    assert np.array_equal(images[40:60], pixels(2, 20, 3072))
    assert labels.tolist() == [*range(10)] * 10


def test_the_second_load_maps_what_the_first_has_kept(tmp_path):
    write_cifar100(tmp_path)
    first = load_cifar100(tmp_path)
    shutil.rmtree(tmp_path / "cifar-100-python")
    again = load_cifar100(tmp_path)
    for part in ("train", "test"):
        (images, labels), (same, numbers) = getattr(first, part), getattr(again, part)
        assert np.array_equal(images, same)
        assert np.array_equal(labels, numbers)
        assert not same.flags.owndata


def test_absent_cifar_is_downloaded_by_torchvision(tmp_path, monkeypatch):
    asked = []

    def download(self):
        asked.append(self.root)
        write_cifar100(tmp_path)

    monkeypatch.setattr(torchvision.datasets.CIFAR100, "download", download)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_load_meta", lambda self: None)
    assert len(load_cifar100(tmp_path).train[0]) == 200
    assert asked == [str(tmp_path)]


@pytest.mark.parametrize(
    ("load", "names", "folder"),
    [
        (load_cifar100, ["train", "test"], "cifar-100-python"),
        (load_cifar10, ["data_batch_1", "data_batch_5", "test_batch"], "cifar-10-batches-py"),
    ],
)
def test_absent_cifar_says_where_to_put_the_files(tmp_path, monkeypatch, load, names, folder):
    def no_network(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
    with pytest.raises(MissingDataError, match="no network") as error:
        load(tmp_path)
    for part in (tmp_path / folder, CIFAR_URL, *names):
        assert str(part) in str(error.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-500]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(1000)),
        lambda path: write(path, {"data": pixels(0, 4, 3072)}),
        lambda path: write(path, {"data": pixels(0, 4, 3072), "fine_labels": [1, 2, 3]}),
        lambda path: write(path, {"data": pixels(0, 3, 3000), "fine_labels": [1, 2, 3]}),
        lambda path: write(path, {"data": np.zeros((3, 3072)), "fine_labels": [1, 2, 3]}),
        lambda path: write(path, {"data": pixels(0, 1, 3072), "fine_labels": ["a"]}),
        lambda path: write(path, [1, 2]),
        lambda path: write(path, {"data": Call(os.system, "true")}, 2),
    ],
)
def test_a_damaged_file_is_named(tmp_path, spoil):
    write_cifar100(tmp_path)
    path = tmp_path / "cifar-100-python" / "test"
    spoil(path)
    with pytest.raises(DamagedDataError, match=r"is damaged.*get it again") as error:
        load_cifar100(tmp_path)
    assert str(path) in str(error.value)
    assert os.listdir(tmp_path) == ["cifar-100-python"]


def test_mini_imagenet_of_the_few_shot_files_is_their_classes_in_turn(tmp_path):
    held = write_mini_imagenet(tmp_path)
    data = load_mini_imagenet(tmp_path)
    (train, labels), (test, test_labels) = data.train, data.test
    assert (data.shape, train.shape, test.shape) == ((3, 84, 84), (500, 21168), (100, 21168))
    assert labels.tolist() == np.repeat(np.arange(100), 5).tolist()
    assert test_labels.tolist() == list(range(100))
    for number, content, place in ((0, held[0], 0), (70, held[1], 6), (99, held[2], 19)):
        rows = list(content["class_dict"].values())[place]
        images = content["image_data"][rows].transpose(0, 3, 1, 2).reshape(6, -1)
        assert np.array_equal(train[labels == number], images[:5])
        assert np.array_equal(test[test_labels == number], images[5:])


@pytest.mark.parametrize("listed", [False, True])
def test_mini_imagenet_of_acl_is_taken_as_it_is(tmp_path, listed):
    content = {}
    for seed, part in enumerate(("train", "test")):
        images, labels = pixels(seed, 9, 84, 84, 3), [2, 0, 1, 1, 0, 2, 2, 1, 0]
        content[part] = images
        held = {"images": list(images) if listed else images, "labels": labels}
        write(tmp_path / f"mini-imagenet/{part}.pkl", held, 4)
    data = load_mini_imagenet(tmp_path)
    for part, (images, numbers) in (("train", data.train), ("test", data.test)):
        theirs = images.reshape(9, 3, 84, 84).transpose(0, 2, 3, 1)
        assert np.array_equal(theirs, content[part])
        assert numbers.tolist() == [2, 0, 1, 1, 0, 2, 2, 1, 0]


def test_absent_mini_imagenet_says_what_to_put_where(tmp_path):
    with pytest.raises(MissingDataError, match="cannot be downloaded") as error:
        load_mini_imagenet(tmp_path)
    for part in (tmp_path / "mini-imagenet", *MINI_IMAGENET_FILES, "class_dict", "train.pkl"):
        assert str(part) in str(error.value)


@pytest.mark.parametrize("rows", [{"a": [0, 99]}, {"a": ["x"]}, {}])
def test_damaged_mini_imagenet_is_named(tmp_path, rows):
    write_mini_imagenet(tmp_path)
    path = tmp_path / "mini-imagenet/mini-imagenet-cache-val.pkl"
    write(path, {**few_shot(2, 6, 0), "class_dict": rows})
    with pytest.raises(DamagedDataError, match="mini-ImageNet") as error:
        load_mini_imagenet(tmp_path)
    assert str(path) in str(error.value)
