"""notMNIST and Omniglot from small folders of their true layouts."""

import os

import numpy as np
import pytest
import torchvision
from PIL import Image
from published_files import pixels, write_notmnist, write_omniglot, write_png

from benchmarks.data.images import DamagedDataError, MissingDataError
from benchmarks.data.png_folders import (
    NOTMNIST_URL,
    OMNIGLOT_URL,
    load_notmnist,
    load_omniglot_rotation,
)


def test_every_tenth_image_of_a_letter_is_tested_on(tmp_path):
    write_notmnist(tmp_path)
    data = load_notmnist(tmp_path)
    (train, labels), (test, test_labels) = data.train, data.test
    assert (train.dtype, train.shape, test.shape) == (np.uint8, (180, 784), (20, 784))
    assert labels.tolist() == np.repeat(np.arange(10), 18).tolist()
    assert test_labels.tolist() == np.repeat(np.arange(10), 2).tolist()
    assert np.array_equal(test[7], pixels(319, 28, 28).flatten())
    assert np.array_equal(train[18 * 3 + 9], pixels(310, 28, 28).flatten())


def test_files_that_are_no_images_are_left_out(tmp_path):
    write_notmnist(tmp_path)
    letter = tmp_path / "notMNIST_small/A"
    (letter / "empty.png").write_bytes(b"")
    (letter / "cut.png").write_bytes((letter / "font00.png").read_bytes()[:200])
    (letter / "notes.txt").write_text("none")
    assert len(load_notmnist(tmp_path).train[0]) == 180


def test_absent_notmnist_says_where_to_put_it(tmp_path):
    write_notmnist(tmp_path)
    os.rename(tmp_path / "notMNIST_small/J", tmp_path / "elsewhere")
    with pytest.raises(MissingDataError, match="cannot be downloaded") as error:
        load_notmnist(tmp_path)
    for part in (tmp_path / "notMNIST_small/A", tmp_path / "notMNIST_small/J", NOTMNIST_URL):
        assert str(part) in str(error.value)


def test_a_letter_without_images_of_28_pixels_is_named(tmp_path):
    write_notmnist(tmp_path)
    write_png(tmp_path / "notMNIST_small/C/other.png", pixels(0, 30, 30))
    with pytest.raises(DamagedDataError, match="notMNIST_small/C is damaged"):
        load_notmnist(tmp_path)


def test_characters_are_numbered_by_name_background_first_in_four_angles(tmp_path):
    write_omniglot(tmp_path)
    data = load_omniglot_rotation(tmp_path, 24)
    (train, labels), (test, test_labels) = data.train, data.test
    assert (train.dtype, train.shape, test.shape) == (np.uint8, (24 * 12, 784), (24 * 4, 784))
    assert labels.tolist() == np.repeat(np.arange(24), 12).tolist()
    assert test_labels.tolist() == np.repeat(np.arange(24), 4).tolist()
    folder = tmp_path / "omniglot-py/images_evaluation/Alphabet01/character02"
    drawn = [drawing(folder / f"0005_{i:02d}.png") for i in range(4)]
    for angle in range(4):
        for i in range(3):
            ours = train[labels == 15 + 5].reshape(4, 3, 28, 28)[angle, i]
            assert np.array_equal(ours, turned(drawn[i], angle))
        ours = test[test_labels == 15 + 5].reshape(4, 28, 28)[angle]
        assert np.array_equal(ours, turned(drawn[3], angle))


def drawing(path):
    return Image.open(path).convert("L").resize((28, 28), Image.BOX)


def turned(image, angle):
    return np.asarray(image.rotate(90 * angle))


def test_strokes_are_1_on_a_ground_of_0(tmp_path):
    write_omniglot(tmp_path)
    data = load_omniglot_rotation(tmp_path, 24)
    assert np.allclose(data.values, 1 - np.arange(256) / 255)


def test_fewer_characters_than_asked_for_are_named(tmp_path):
    write_omniglot(tmp_path)
    with pytest.raises(DamagedDataError, match="24 characters, not 1200"):
        load_omniglot_rotation(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_drawing_that_is_none_is_named(tmp_path, content):
    write_omniglot(tmp_path)
    folder = tmp_path / "omniglot-py/images_background/Alphabet00/character00"
    next(folder.iterdir()).write_bytes(content)
    with pytest.raises(DamagedDataError, match="character00 is damaged"):
        load_omniglot_rotation(tmp_path, 24)


def test_absent_omniglot_says_where_to_put_it(tmp_path, monkeypatch):
    def no_network(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.Omniglot, "download", no_network)
    with pytest.raises(MissingDataError, match="no network") as error:
        load_omniglot_rotation(tmp_path)
    for part in (tmp_path / "omniglot-py", "images_background, images_evaluation", OMNIGLOT_URL):
        assert str(part) in str(error.value)
