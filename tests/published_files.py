"""Small files of random images in the formats that data sets are published in."""

from __future__ import annotations

import pickle
import struct
from typing import ClassVar

import numpy as np
from PIL import Image
from scipy.io import savemat

from benchmarks.data.five_datasets import SVHN_FILES
from benchmarks.data.images import MNIST_FILES
from benchmarks.data.png_folders import LETTERS


class Python2Pickler(pickle._Pickler):
    """Writes strings and bytes alike, as Python 2 did: CIFAR and mini-ImageNet are such files."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def write_pickle(path, held, protocol=None):
    """A pickle of Python 2 and an old NumPy, or of this Python in the given protocol."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        (Python2Pickler(file, 2) if protocol is None else pickle.Pickler(file, protocol)).dump(held)
    if protocol is None:
        path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))


def pixels(seed, *shape):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def write_cifar100(data_dir, train=2, test=1):
    """So many images of each class, the classes mixed."""
    for seed, (part, count) in enumerate((("train", train), ("test", test))):
        labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(100), count)).tolist()
        held = {
            "data": pixels(seed, len(labels), 3072),
            "fine_labels": labels,
            "coarse_labels": [0] * len(labels),
            "filenames": [f"{number}.png" for number in range(len(labels))],
            "batch_label": "training batch 1 of 1",
        }
        write_pickle(data_dir / "cifar-100-python" / part, held)


def write_cifar10(data_dir):
    folder = data_dir / "cifar-10-batches-py"
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        held = {"data": pixels(seed, 20, 3072), "labels": [*range(10), *range(10)]}
        write_pickle(folder / name, held)


def write_mnist(data_dir, name="MNIST", train=40, test=20):
    raw = data_dir / name / "raw"
    raw.mkdir(parents=True)
    for seed, file in enumerate(MNIST_FILES):
        count = train if file.startswith("train") else test
        if "images" in file:
            header, body = (2051, count, 28, 28), pixels(seed, count * 784)
        else:
            header, body = (2049, count), np.arange(count, dtype=np.uint8) % 10
        (raw / file).write_bytes(np.array(header, dtype=">i4").tobytes() + body.tobytes())


def write_svhn(data_dir, count=30):
    for seed, name in enumerate(SVHN_FILES):
        labels = (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None]
        savemat(str(data_dir / name), {"X": pixels(seed, 32, 32, 3, count), "y": labels})


def write_png(path, image, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    (picture if mode is None else picture.convert(mode)).save(path)


def write_notmnist(data_dir, count=20):
    for number, letter in enumerate(LETTERS):
        for i in range(count):
            path = data_dir / "notMNIST_small" / letter / f"font{i:02d}.png"
            write_png(path, pixels(100 * number + i, 28, 28))


def write_omniglot(data_dir, background=15, evaluation=9, drawings=4):
    """Three characters in each alphabet; black strokes on white, one bit a pixel."""
    for part, characters in (("background", background), ("evaluation", evaluation)):
        for number in range(characters):
            folder = data_dir / f"omniglot-py/images_{part}/Alphabet{number // 3:02d}"
            for i in range(drawings):
                path = folder / f"character{number % 3:02d}" / f"{number:04d}_{i:02d}.png"
                write_png(path, pixels(1000 * len(part) + 10 * number + i, 105, 105), "1")


def few_shot(classes, count, seed):
    """What a file of the few-shot literature holds, the classes in descending order of name."""
    rows = np.random.RandomState(seed).permutation(classes * count).reshape(classes, count)
    names = [f"n{classes - number:04d}" for number in range(classes)]
    return {
        "image_data": pixels(seed, classes * count, 84, 84, 3),
        "class_dict": dict(zip(names, rows.tolist())),
    }


def write_mini_imagenet(data_dir, count=6):
    """The three files of the few-shot literature; returns what they hold."""
    parts = {"train": 64, "val": 16, "test": 20}
    held = [few_shot(classes, count, seed) for seed, classes in enumerate(parts.values())]
    for part, content in zip(parts, held):
        write_pickle(data_dir / f"mini-imagenet/mini-imagenet-cache-{part}.pkl", content)
    return held


def write_tiny_imagenet(data_dir, classes=200):
    """One training and one validation image a class."""
    root = data_dir / "tiny-imagenet-200"
    wnids = [f"n{number:04d}" for number in range(classes)]
    for number, wnid in enumerate(wnids):
        write_png(root / f"train/{wnid}/images/{wnid}_0.JPEG", pixels(number, 64, 64, 3))
        write_png(root / f"val/images/val_{number}.JPEG", pixels(1000 + number, 64, 64, 3))
    rows = [f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n" for number, wnid in enumerate(wnids)]
    (root / "val/val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("\n".join(wnids))
