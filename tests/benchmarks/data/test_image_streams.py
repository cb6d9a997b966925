"""Streams of coloured images and of Omniglot: which classes each task has, and its images."""

import numpy as np
import pytest
import torch
from published_files import (
    write_cifar100,
    write_mini_imagenet,
    write_omniglot,
    write_tiny_imagenet,
)

from benchmarks.data.image_streams import SUPERCLASSES, split_cifar100, split_tiny_imagenet_200
from benchmarks.data.pickled_images import load_cifar100
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream


def stream_of(name, data_dir, **changes):
    return build_stream(StreamRequest(name, data_dir, **changes))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_cifar100(folder)
    write_mini_imagenet(folder)
    write_omniglot(folder)
    write_tiny_imagenet(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "split_cifar100_10",
        "split_cifar100_20",
        "cifar100_superclasses",
        "split_tiny_imagenet_10",
        "split_tiny_imagenet_20",
        "split_tiny_imagenet_40",
        "mini_imagenet",
    ],
)
def test_a_stream_has_the_tasks_that_its_entry_says(data_dir, name):
    entry = STREAMS[name]
    order = list(reversed(range(entry.tasks)))
    stream = stream_of(name, data_dir, order=order)
    assert (stream.name, stream.order, len(stream.tasks)) == (name, order, entry.tasks)
    assert len({number for classes in stream.tasks for number in classes}) in (100, 200)
    for part in (stream.benchmark.train_stream, stream.benchmark.test_stream):
        assert len(part) == entry.tasks
        for position, experience in enumerate(part):
            assert experience.task_labels == [position]
            assert set(experience.dataset.targets) == set(range(stream.max_classes))


@pytest.mark.parametrize("tasks", [10, 20])
def test_split_cifar100_takes_the_classes_as_they_are_numbered(data_dir, tasks):
    stream = stream_of(f"split_cifar100_{tasks}", data_dir)
    each = 100 // tasks
    assert stream.tasks[1] == list(range(each, 2 * each))
    images, labels = load_cifar100(data_dir).test
    mean, std = torch.tensor([0.507, 0.487, 0.441]), torch.tensor([0.267, 0.256, 0.276])
    rows = np.flatnonzero(labels // each == 1)
    experience = stream.benchmark.test_stream[1]
    for i, row in enumerate(rows):
        image, target, _ = experience.dataset[i]
        pixels = torch.from_numpy(images[row].copy()).view(3, 32, 32) / 255
        expected = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(image, expected)
        assert target == labels[row] - each


def test_superclasses_share_all_classes_among_them():
    groups = list(SUPERCLASSES.values())
    assert len(groups) == 20
    assert sorted(number for group in groups for number in group) == list(range(100))
    assert all(list(group) == sorted(group) and len(group) == 5 for group in groups)
    # apple, beaver, cattle, man, pine tree, tractor by their numbers
    names = {0: "fruit and vegetables", 4: "aquatic mammals", 46: "people", 59: "trees"}
    names.update({19: "large omnivores and herbivores", 89: "vehicles 2"})
    for number, name in names.items():
        assert number in SUPERCLASSES[name]


def test_a_superclass_is_numbered_within_itself_or_through_all_classes(data_dir):
    task = stream_of("cifar100_superclasses", data_dir)
    through = stream_of("cifar100_superclasses", data_dir, scenario="class")
    assert task.tasks == through.tasks == [list(group) for group in SUPERCLASSES.values()]
    assert (task.max_classes, through.max_classes) == (5, 100)
    pairs = zip(task.benchmark.test_stream, through.benchmark.test_stream)
    for classes, (labelled, same) in zip(task.tasks, pairs):
        assert [classes[target] for target in labelled.dataset.targets] == list(
            same.dataset.targets
        )
        assert torch.equal(labelled.dataset[0][0], same.dataset[0][0])
        assert same.task_labels == [0]


def test_tasks_that_do_not_divide_the_classes_are_refused(data_dir):
    for tasks in (0, 3, 101):
        with pytest.raises(ValueError, match=f"100 classes do not make {tasks} equal tasks"):
            split_cifar100(StreamRequest("split_cifar100_10", data_dir, tasks=tasks))


@pytest.mark.parametrize("size", [32, 64])
def test_tiny_imagenet_has_all_classes_at_either_size(data_dir, size):
    stream = split_tiny_imagenet_200(StreamRequest("tiny", data_dir, tasks=40), size=size)
    assert stream.tasks[-1] == [195, 196, 197, 198, 199]
    assert stream.input_shape == (3, size, size)
    assert stream.benchmark.train_stream[7].dataset[0][0].shape == (3, size, size)


def test_omniglot_rotation_is_twelve_characters_a_task(data_dir):
    stream = stream_of("omniglot_rotation", data_dir, tasks=2, order=[1, 0])
    assert stream.tasks == [list(range(12, 24)), list(range(12))]
    assert (stream.input_shape, stream.max_classes) == ((1, 28, 28), 12)
    first = stream.benchmark.train_stream[0].dataset
    assert len(first) == 12 * 4 * 3
    assert list(first.targets) == np.repeat(np.arange(12), 12).tolist()
    assert 0 <= first[0][0].min() < first[0][0].max() <= 1


def test_mini_imagenet_holds_out_a_part_of_the_training_set_only(data_dir):
    stream = stream_of("mini_imagenet", data_dir, held_out=0.2, scenario="class")
    assert [len(e.dataset) for e in stream.benchmark.train_stream] == [20] * 20
    assert [len(e.dataset) for e in stream.benchmark.test_stream] == [5] * 20
    assert stream.input_shape == (3, 84, 84)
    assert set(stream.benchmark.test_stream[19].dataset.targets) == {95, 96, 97, 98, 99}
