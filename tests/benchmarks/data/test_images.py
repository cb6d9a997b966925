"""TinyImageNet from small files of its true layout: decoding, caching, damage that is named."""

import io
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.data import images
from benchmarks.data.image_streams import split_tiny_imagenet
from benchmarks.data.images import (
    DamagedDataError,
    MissingDataError,
    decode,
    load_tiny_imagenet,
    user_cache,
)
from benchmarks.data.splits import StreamRequest

WNIDS = ["n03", "n01", "n02", "n00"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def data_dir(tmp_path):
    """Four classes, three training and two validation images each; one image is grey."""
    generator = np.random.RandomState(0)
    root = tmp_path / "tiny-imagenet-200"
    for wnid in WNIDS:
        for i in range(3):
            grey = (wnid, i) == ("n01", 1)
            write_image(root / f"train/{wnid}/images/{wnid}_{i}.JPEG", generator, grey)
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text("not an image")
    annotations = []
    for i in range(8):
        write_image(root / f"val/images/val_{i}.JPEG", generator)
        annotations.append(f"val_{i}.JPEG\t{WNIDS[i % 4]}\t0\t0\t63\t63\n")
    (root / "val/val_annotations.txt").write_text("".join(annotations))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    write_image(root / "test/images/test_0.JPEG", generator)
    return tmp_path


@pytest.fixture
def archive(data_dir, tmp_path_factory):
    """The same as one file, with the list of the classes last, as in the true one."""
    path = tmp_path_factory.mktemp("archive") / "tiny-imagenet-200.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for name in ("val", "test", "train", "wnids.txt"):
            file.add(data_dir / "tiny-imagenet-200" / name, f"tiny-imagenet-200/{name}")
    return path


def write_image(path, generator, grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = generator.randint(0, 256, (64, 64) if grey else (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG")


def test_classes_are_numbered_in_the_order_of_the_list(data_dir):
    data = load_tiny_imagenet(data_dir, classes=3, size=64)
    (train, labels), (test, test_labels) = data.train, data.test
    assert (train.dtype, train.shape, test.shape) == (np.uint8, (9, 3 * 64 * 64), (6, 3 * 64 * 64))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    root = data_dir / "tiny-imagenet-200"
    assert np.array_equal(train[5], pixels_of(root / "train/n01/images/n01_2.JPEG"))
    assert np.array_equal(test[3], pixels_of(root / "val/images/val_5.JPEG"))


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).flatten()


def test_a_grey_image_has_three_equal_channels(data_dir):
    channels = load_tiny_imagenet(data_dir, 2, 32).train[0][4].reshape(3, -1)
    assert np.array_equal(channels[0], channels[1])
    assert np.array_equal(channels[0], channels[2])


def test_half_the_size_is_the_mean_of_two_by_two(data_dir):
    path = data_dir / "tiny-imagenet-200/train/n02/images/n02_0.JPEG"
    means = pixels_of(path).reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
    # PIL rounds twice, after the rows and after the columns.
    assert np.abs(decode(path.read_bytes(), 32).reshape(3, 32, 32) - means).max() <= 1


def test_the_archive_gives_what_the_folder_gives(data_dir, archive):
    ours, theirs = load_tiny_imagenet(archive.parent, 4, 32), load_tiny_imagenet(data_dir, 4, 32)
    for part in ("train", "test"):
        for array, same in zip(getattr(ours, part), getattr(theirs, part)):
            assert np.array_equal(array, same)
    assert {path.suffix for path in archive.parent.iterdir()} == {".gz", ".npy"}


def test_the_second_load_needs_only_the_cache(archive):
    first = load_tiny_imagenet(archive.parent, 2, 32)
    archive.unlink()
    again = load_tiny_imagenet(archive.parent, 2, 32)
    assert np.array_equal(first.train[0], again.train[0])
    assert not again.train[0].flags.owndata
    for other in ((3, 32), (2, 16)):
        with pytest.raises(FileNotFoundError):
            load_tiny_imagenet(archive.parent, *other)


def test_a_read_only_folder_stays_as_it_is(archive, own_cache):
    folder = archive.parent
    folder.chmod(0o555)
    try:
        first = load_tiny_imagenet(folder, 2, 32)
        assert os.listdir(folder) == [archive.name]
    finally:
        folder.chmod(0o755)
    assert own_cache in user_cache(folder).parents
    assert len(list(user_cache(folder).iterdir())) == 2
    archive.unlink()
    assert np.array_equal(load_tiny_imagenet(folder, 2, 32).test[0], first.test[0])


def test_without_a_cache_variable_the_cache_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path / ".cache" / "avalanche_compress" in user_cache(tmp_path).parents
    assert user_cache(tmp_path) != user_cache(tmp_path / "other")


def test_absent_data_say_where_to_put_them(tmp_path):
    with pytest.raises(MissingDataError) as error:
        load_tiny_imagenet(tmp_path)
    for part in (images.TINY_IMAGENET_URL, tmp_path / "tiny-imagenet-200/wnids.txt"):
        assert str(part) in str(error.value)
    assert str(tmp_path / "tiny-imagenet-200.tar.gz") in str(error.value)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_cut_archive_is_named(archive, kept):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DamagedDataError, match=r"damaged.*get it again"):
        load_tiny_imagenet(archive.parent, 4, 32)
    assert os.listdir(archive.parent) == [archive.name]


def test_an_archive_with_flipped_bytes_is_named(archive):
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(255 - byte for byte in content[middle : middle + 2000])
    archive.write_bytes(bytes(content))
    with pytest.raises(DamagedDataError, match="damaged"):
        load_tiny_imagenet(archive.parent, 4, 32)


def test_a_missing_image_is_named(data_dir):
    (data_dir / "tiny-imagenet-200/train/n03/images/n03_1.JPEG").unlink()
    with pytest.raises(DamagedDataError, match=r"\[2, 3\] images in train"):
        load_tiny_imagenet(data_dir, 4, 32)


def test_a_missing_list_is_named(data_dir):
    (data_dir / "tiny-imagenet-200/wnids.txt").unlink()
    with pytest.raises(DamagedDataError, match="no wnids"):
        load_tiny_imagenet(data_dir, 4, 32)


@pytest.mark.parametrize("keep", [0, 100, 1500])
def test_an_image_that_is_none_is_named(data_dir, keep):
    path = data_dir / "tiny-imagenet-200/val/images/val_0.JPEG"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedDataError, match="an image of val"):
        load_tiny_imagenet(data_dir, 4, 32)


def test_more_classes_than_there_are_is_refused(data_dir):
    with pytest.raises(ValueError, match="1 to 4 classes"):
        load_tiny_imagenet(data_dir, 5, 32)


def test_names_in_an_archive_write_nothing(archive):
    inside = tarfile.TarInfo("tiny-imagenet-200/train/n03/images/../../../../../escaped.JPEG")
    link = tarfile.TarInfo("tiny-imagenet-200/train/n03/images/link.JPEG")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(archive) as old:
        content = [(m, old.extractfile(m).read()) for m in old if m.isfile()]
    with tarfile.open(archive, "w:gz") as new:
        for member, data in [*content, (inside, b""), (link, b"")]:
            new.addfile(member, io.BytesIO(data))
    assert len(load_tiny_imagenet(archive.parent, 4, 32).train[0]) == 12
    assert not list(archive.parent.parent.rglob("escaped.JPEG"))


def test_split_tiny_imagenet_normalises_each_channel(data_dir):
    request = StreamRequest("split_tiny_imagenet", data_dir, tasks=2, order=[1, 0])
    stream = split_tiny_imagenet(request, per_task=2)
    assert (stream.tasks, stream.order) == ([[2, 3], [0, 1]], [1, 0])
    assert (stream.input_shape, stream.max_classes) == ((3, 32, 32), 2)
    experience = stream.benchmark.test_stream[0]
    assert experience.task_labels == [0]
    assert [experience.dataset[i][1] for i in range(4)] == [0, 0, 1, 1]
    path = data_dir / "tiny-imagenet-200/val/images/val_6.JPEG"
    pixels = torch.from_numpy(decode(path.read_bytes(), 32)).view(3, 32, 32) / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(experience.dataset[1][0], (pixels - mean) / std)


def test_held_out_images_are_of_the_training_set(data_dir):
    request = StreamRequest("split_tiny_imagenet", data_dir, held_out=0.5, tasks=2)
    stream = split_tiny_imagenet(request, per_task=2)
    assert [len(e.dataset) for e in stream.benchmark.train_stream] == [3, 3]
    assert [len(e.dataset) for e in stream.benchmark.test_stream] == [4, 4]
