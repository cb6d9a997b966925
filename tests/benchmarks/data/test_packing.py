"""Images come out of their parts as they went in, and a part that is missing is named."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from benchmarks.data.images import DamagedDataError, MissingDataError
from benchmarks.data.packing import FOLDER, NAME, pack_cifar100, unpack_cifar100
from benchmarks.data.pickled_images import load_cifar100


@pytest.fixture
def published(tmp_path):
    """Images in the published form, half of them noise and half of them smooth."""
    draw = np.random.default_rng()
    (tmp_path / "data" / FOLDER).mkdir(parents=True)
    for part, count in (("train", 40), ("test", 10)):
        images = draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        images[::2] = np.cumsum(images[::2] % 5, axis=3, dtype=np.uint8) + 90
        labels = {
            key: draw.integers(0, 20, count).tolist() for key in ("fine_labels", "coarse_labels")
        }
        held = {"data": images.reshape(count, -1), **labels}
        (tmp_path / "data" / FOLDER / part).write_bytes(pickle.dumps(held))
    return tmp_path / "data"


def test_images_and_labels_come_back_to_the_bit_in_their_order(published, tmp_path):
    paths = pack_cifar100(published, tmp_path / "parts", most_bytes=40_000)
    assert len(paths) > 2
    assert all(path.stat().st_size <= 40_000 for path in paths)
    assert unpack_cifar100(tmp_path / "parts", tmp_path / "new")
    for part in ("train", "test"):
        before, after = (
            pickle.loads((data / FOLDER / part).read_bytes())
            for data in (published, tmp_path / "new")
        )
        assert before.keys() == after.keys()
        assert np.array_equal(before.pop("data"), after.pop("data"))
        assert before == after
    assert len(load_cifar100(tmp_path / "new").train[0]) == 40


def test_smooth_images_take_less_than_their_bytes(published, tmp_path):
    (path,) = pack_cifar100(published, tmp_path / "parts")
    assert path.stat().st_size < 0.85 * 50 * 3072  # half of them are noise


def test_what_is_there_already_is_left_alone(published, tmp_path):
    assert not unpack_cifar100(tmp_path, published)


def test_a_part_that_is_missing_or_damaged_is_named(published, tmp_path):
    parts = tmp_path / "parts"
    with pytest.raises(MissingDataError, match="--pack"):
        unpack_cifar100(parts, tmp_path / "new")
    with pytest.raises(MissingDataError, match="train"):
        pack_cifar100(tmp_path, parts)
    pack_cifar100(published, parts, most_bytes=40_000)
    whole = (parts / f"{NAME}1").read_bytes()
    for damage in (whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], None):
        (parts / f"{NAME}1").unlink()
        if damage is not None:
            (parts / f"{NAME}1").write_bytes(damage)
        with pytest.raises(DamagedDataError, match=r"parts.*copy all of them anew"):
            unpack_cifar100(parts, tmp_path / "new")
        (parts / f"{NAME}1").write_bytes(whole)
