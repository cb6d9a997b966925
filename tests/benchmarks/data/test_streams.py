"""Streams: shapes, labels, determinism, the promise about held-out examples."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.utils
import torch
from PIL import Image

from avalanche_compress import ValidationPlugin
from benchmarks.choices import SCENARIOS
from benchmarks.data import splits, streams
from benchmarks.data.images import MNIST_FILES, load_mnist
from benchmarks.data.splits import StreamRequest, kept_rows
from benchmarks.data.streams import (
    STREAMS,
    build_stream,
    nearest,
    task_orders,
    wsn_permutations,
)
from benchmarks.runs.backbones import BACKBONES


def stream_of(name, data_dir, seed=0, **changes):
    return build_stream(StreamRequest(name, data_dir, seed, **changes))


def split_digits(data_dir, seed=0, **changes):
    return stream_of("split_digits", data_dir, seed, **changes)


def tensors(experience):
    data = experience.dataset
    return torch.stack([data[i][0] for i in range(len(data))]), torch.tensor(list(data.targets))


@pytest.fixture
def tiny_mnist(tmp_path):
    """MNIST's files with random images, 200 for training and 50 for testing."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.RandomState(0)
    for name in MNIST_FILES:
        count = 200 if name.startswith("train") else 50
        if "images" in name:
            header = np.array([2051, count, 28, 28], dtype=">i4")
            body = generator.randint(0, 256, count * 784)
        else:
            header = np.array([2049, count], dtype=">i4")
            body = np.arange(count) % 10
        (raw / name).write_bytes(header.tobytes() + body.astype(np.uint8).tobytes())
    return tmp_path


def test_streams_that_follow_one_another_share_the_data_set(tmp_path, monkeypatch):
    load, read = streams.load_digits, []

    def counted(seed):
        read.append(seed)
        return load(seed)

    monkeypatch.setattr(streams, "load_digits", counted)
    first, second = split_digits(tmp_path, seed=3), split_digits(tmp_path, seed=3, held_out=0.1)
    stream_of("permuted_digits", tmp_path, seed=3)
    assert read == [3]
    assert first.benchmark is not second.benchmark
    split_digits(tmp_path, seed=4)
    split_digits(tmp_path, seed=3)
    assert read == [3, 4, 3]  # the last one is kept, no more


def test_split_digits_is_five_tasks_of_two_remapped_classes(tmp_path):
    stream = split_digits(tmp_path, seed=0)
    assert stream.tasks == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert stream.order == [0, 1, 2, 3, 4]
    assert (stream.input_shape, stream.max_classes) == ((1, 8, 8), 2)
    sizes = {"train": 0, "test": 0}
    for name in sizes:
        for task, experience in enumerate(getattr(stream.benchmark, f"{name}_stream")):
            x, y = tensors(experience)
            assert x.shape[1:] == (1, 8, 8)
            assert x.dtype == torch.float32
            assert set(y.tolist()) == {0, 1}
            assert experience.task_labels == [task]
            assert list(experience.classes_in_this_experience) == [0, 1]
            assert experience.dataset[0][2] == task
            sizes[name] += len(x)
    assert sizes == {"train": 1257, "test": 540}


def test_class_scenario_is_the_same_examples_with_global_classes_and_one_label(tmp_path):
    labelled = split_digits(tmp_path, seed=3, held_out=0.1)
    stream = split_digits(tmp_path, seed=3, held_out=0.1, scenario="class")
    assert (stream.max_classes, stream.tasks) == (10, labelled.tasks)
    for part in ("train_stream", "test_stream"):
        pairs = zip(getattr(labelled.benchmark, part), getattr(stream.benchmark, part))
        for task, (with_label, without) in enumerate(pairs):
            (x, y), (same, numbers) = tensors(with_label), tensors(without)
            assert torch.equal(x, same)
            assert torch.equal(y + 2 * task, numbers)
            assert without.task_labels == [0]
            assert list(without.classes_in_this_experience) == [2 * task, 2 * task + 1]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_order_moves_tasks_and_labels_count_positions(tmp_path, scenario):
    order = [3, 0, 4, 2, 1]
    canonical = split_digits(tmp_path, 0, scenario=scenario)
    stream = split_digits(tmp_path, 0, scenario=scenario, order=order)
    assert stream.order == order
    assert stream.tasks == [[2 * task, 2 * task + 1] for task in order]
    for part in ("train_stream", "test_stream"):
        for position, experience in enumerate(getattr(stream.benchmark, part)):
            x, y = tensors(experience)
            same, labels = tensors(getattr(canonical.benchmark, part)[order[position]])
            assert torch.equal(x, same)
            assert torch.equal(y, labels)
            assert experience.task_labels == [position if scenario == "task" else 0]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 4, 5], []])
def test_an_order_that_is_no_permutation_is_refused(tmp_path, order):
    with pytest.raises(ValueError, match="no permutation of 5 tasks: give each number from 0 to 4"):
        split_digits(tmp_path, 0, order=order)


def test_published_orders_come_first_and_all_differ():
    for tasks, second in ((10, 1), (20, 15), (7, None)):
        orders = task_orders(tasks, 12)
        assert orders[0] == list(range(tasks))
        assert second is None or orders[1][0] == second
        assert all(sorted(order) == orders[0] for order in orders)
        assert len({tuple(order) for order in orders}) == 12
        assert orders[:3] == task_orders(tasks, 3)
    assert task_orders(20, 5)[4][:3] == [6, 14, 0]
    assert task_orders(7, 9, seed=1) != task_orders(7, 9, seed=2)


def test_two_tasks_have_two_orders():
    assert sorted(task_orders(2, 3)[:2]) == [[0, 1], [1, 0]]
    assert len(task_orders(2, 3)) == 3


def test_digits_are_standardised_by_their_training_pixels(tmp_path):
    stream = split_digits(tmp_path, seed=0)
    pixels = torch.cat([tensors(e)[0] for e in stream.benchmark.train_stream])
    assert pixels.mean().item() == pytest.approx(0, abs=1e-5)
    assert pixels.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_a_seed_gives_the_same_stream_and_another_seed_another(tmp_path):
    first, again, other = (
        tensors(split_digits(tmp_path, seed, held_out=0.1).benchmark.train_stream[2])[0]
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize("order", [None, [2, 0, 4, 1, 3]])
def test_baselines_train_on_what_the_validation_plugin_leaves(tmp_path, order):
    benchmark = split_digits(tmp_path, 5, order=order).benchmark
    for task, experience in enumerate(benchmark.train_stream):
        strategy = SimpleNamespace(
            adapted_dataset=experience.dataset,
            experience=experience,
            clock=SimpleNamespace(train_exp_counter=task),
            eval_mb_size=100,
            train_mb_size=16,
            device="cpu",
        )
        ValidationPlugin(0.1, seed=5).after_train_dataset_adaptation(strategy)
        theirs = [strategy.adapted_dataset[i][0] for i in range(len(strategy.adapted_dataset))]
        held_out = split_digits(tmp_path, 5, held_out=0.1, order=order)
        ours = tensors(held_out.benchmark.train_stream[task])[0]
        assert sorted(x.flatten().tolist() for x in theirs) == sorted(ours.flatten(1).tolist())


def test_held_out_examples_leave_the_rest_untouched():
    kept = kept_rows(50, 0.1, seed=1)
    assert len(kept) == 45
    assert (np.diff(kept) > 0).all()
    assert np.array_equal(kept_rows(50, 0.0, seed=1), np.arange(50))


def test_permutations_are_those_of_the_public_wsn_code():
    drawn = sklearn.utils.shuffle(np.arange(10), random_state=2)
    image = np.random.RandomState(0).rand(784)
    for task, permutation in enumerate(wsn_permutations(2, 10, 784)):
        expected = sklearn.utils.shuffle(image, random_state=drawn[task] * 100 + task)
        assert np.array_equal(image[permutation], expected)


def test_permuted_mnist_permutes_the_normalised_images(tiny_mnist):
    stream = stream_of("permuted_mnist", tiny_mnist, seed=1, tasks=3)
    assert stream.tasks == [list(range(10))] * 3
    source = torch.from_numpy(
        np.frombuffer((tiny_mnist / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8)
        .reshape(50, 784)
        .copy()
    )
    normalised = (source / 255 - 0.1307) / 0.3081
    for task, permutation in enumerate(wsn_permutations(1, 3, 784)):
        experience = stream.benchmark.test_stream[task]
        x, y = tensors(experience)
        assert experience.task_labels == [task]
        assert y.tolist() == (np.arange(50) % 10).tolist()
        torch.testing.assert_close(x.flatten(1), normalised[:, permutation], rtol=0, atol=1e-6)


def test_permuted_mnist_in_another_order_has_the_same_tasks(tiny_mnist):
    canonical = stream_of("permuted_mnist", tiny_mnist, seed=1, tasks=3)
    stream = stream_of("permuted_mnist", tiny_mnist, seed=1, tasks=3, order=(2, 0, 1))
    assert stream.order == [2, 0, 1]
    for position, task in enumerate(stream.order):
        experience = stream.benchmark.test_stream[position]
        expected = tensors(canonical.benchmark.test_stream[task])[0]
        assert torch.equal(tensors(experience)[0], expected)
        assert experience.task_labels == [position]


def test_permuted_mnist_32_is_what_the_public_halrp_code_makes(tiny_mnist):
    stream = stream_of("permuted_mnist_32", tiny_mnist, seed=0)
    assert (stream.input_shape, len(stream.tasks)) == ((3, 32, 32), 5)
    grey = load_mnist(tiny_mnist).test[0][7].reshape(28, 28)
    resized = np.asarray(Image.fromarray(grey).resize((32, 32), Image.BILINEAR))
    image = np.concatenate([((resized / 255 - 0.1307) / 0.3081).flatten()] * 3)
    for position, task_id in enumerate([2, 8, 4, 9, 1]):
        expected = sklearn.utils.shuffle(image, random_state=100 * task_id + position)
        x = stream.benchmark.test_stream[position].dataset[7][0]
        assert x.shape == (3, 32, 32)
        torch.testing.assert_close(x.flatten(), torch.tensor(expected).float())


def test_permuted_mnist_32_keeps_one_grey_image_for_all_channels(tiny_mnist, monkeypatch):
    cut = []
    monkeypatch.setattr(splits, "dataset_benchmark", lambda *parts: cut.extend(parts))
    stream_of("permuted_mnist_32", tiny_mnist, seed=0, held_out=0.2, tasks=2)
    first, second = cut[0]
    assert first.pixels.shape == (200, 1024)
    assert first.pixels is second.pixels
    assert len(first) == 160


@pytest.mark.parametrize("name", STREAMS)
def test_a_registered_stream_names_a_backbone(name):
    assert STREAMS[name].backbone in BACKBONES


@pytest.mark.parametrize(
    "name",
    ["split_digits", "permuted_digits", "recurring_digits", "split_mnist", "permuted_mnist_32"],
)
def test_a_stream_has_the_tasks_that_its_entry_says(tiny_mnist, name):
    stream = stream_of(name, tiny_mnist)
    assert (stream.name, len(stream.tasks)) == (name, STREAMS[name].tasks)


def test_permuted_digits_are_the_same_images_in_other_orders_of_the_pixels(tmp_path):
    whole = split_digits(tmp_path, seed=2, tasks=1).benchmark.test_stream[0]
    stream = stream_of("permuted_digits", tmp_path, seed=2, tasks=4)
    assert stream.tasks == [list(range(10))] * 4
    images, labels = tensors(whole)
    for task, permutation in enumerate(wsn_permutations(2, 4, 64)):
        experience = stream.benchmark.test_stream[task]
        x, y = tensors(experience)
        assert torch.equal(x.flatten(1), images.flatten(1)[:, permutation])
        assert torch.equal(y, labels)
        assert experience.task_labels == [task]


def test_permuted_digits_without_labels_are_ten_classes_in_one_head(tmp_path):
    stream = stream_of("permuted_digits", tmp_path, seed=2, tasks=3, scenario="class")
    assert (stream.scenario, stream.max_classes) == ("class", 10)
    assert [e.task_labels for e in stream.benchmark.train_stream] == [[0]] * 3
    labelled = stream_of("permuted_digits", tmp_path, seed=2, tasks=3)
    pairs = zip(stream.benchmark.train_stream, labelled.benchmark.train_stream)
    assert all(torch.equal(tensors(a)[0], tensors(b)[0]) for a, b in pairs)


def test_recurring_digits_come_again_with_other_training_images(tmp_path):
    stream = stream_of("recurring_digits", tmp_path, seed=2)
    trained = [tensors(experience)[0].flatten(1) for experience in stream.benchmark.train_stream]
    tested = [tensors(experience)[0] for experience in stream.benchmark.test_stream]
    drawn = wsn_permutations(2, 5, 64)
    for first, again, permutation in zip(trained[:5], trained[5:], drawn):
        images = {tuple(x[np.argsort(permutation)].tolist()) for x in first}
        others = {tuple(x[np.argsort(permutation)].tolist()) for x in again}
        assert len(images) == len(first) > 600
        assert not images & others
    assert all(torch.equal(x, y) for x, y in zip(tested[:5], tested[5:]))
    assert not torch.equal(tested[0], tested[1])


def test_split_mnist_has_ten_tasks_of_one_digit_too(tiny_mnist):
    stream = stream_of("split_mnist_10", tiny_mnist, scenario="class")
    assert stream.tasks == [[digit] for digit in range(10)]
    assert [set(e.dataset.targets) for e in stream.benchmark.train_stream] == [
        {digit} for digit in range(10)
    ]


def test_a_stream_to_tune_on_is_the_first_tasks_without_a_look_at_the_test_images(tmp_path):
    whole = split_digits(tmp_path, seed=1)
    stream = split_digits(tmp_path, seed=1, first=2, tuning=0.2, held_out=0.1)
    assert (len(stream.benchmark.train_stream), len(stream.tasks)) == (2, 5)
    for task in range(2):
        everything = tensors(whole.benchmark.train_stream[task])[0].flatten(1).tolist()
        trained = tensors(stream.benchmark.train_stream[task])[0].flatten(1).tolist()
        asked = tensors(stream.benchmark.test_stream[task])[0].flatten(1).tolist()
        kept = len(everything) - round(0.2 * len(everything))
        assert len(asked) == len(everything) - kept
        assert len(trained) == kept - round(0.1 * kept)
        assert len({*map(tuple, trained), *map(tuple, asked)}) == len(trained) + len(asked)
        assert {*map(tuple, trained), *map(tuple, asked)} <= {*map(tuple, everything)}


def test_what_a_stream_does_not_have_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="permuted_mnist has no class scenario"):
        stream_of("permuted_mnist", tmp_path, scenario="class")
    with pytest.raises(ValueError, match="10 classes do not make 3 equal tasks"):
        split_digits(tmp_path, tasks=3)
    request = StreamRequest("split_digits", tmp_path, tasks=4)
    with pytest.raises(ValueError, match="split_digits has 5 tasks here, but 4 are asked"):
        splits.split_classes(request, streams.load_digits(0), [[0, 1]] * 5)


def test_split_mnist_holds_out_a_part_of_the_training_set_only(tiny_mnist):
    stream = stream_of("split_mnist", tiny_mnist, seed=0, held_out=0.1)
    assert [len(e.dataset) for e in stream.benchmark.train_stream] == [36] * 5
    assert [len(e.dataset) for e in stream.benchmark.test_stream] == [10] * 5
    assert stream.input_shape == (1, 28, 28)


def test_absent_mnist_says_where_to_put_the_files(tmp_path, monkeypatch):
    def no_network(self):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", no_network)
    with pytest.raises(FileNotFoundError, match="no network") as error:
        stream_of("split_mnist", tmp_path, seed=0)
    assert str(tmp_path / "MNIST" / "raw") in str(error.value)
    assert all(name in str(error.value) for name in MNIST_FILES)


def test_a_dataset_survives_pickling(tiny_mnist):
    images = load_mnist(tiny_mnist)
    permutation = wsn_permutations(0, 1, 784)[0]
    data = splits.cut(images, images.test, [1, 2], 4, permutation=permutation)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[3][0], data[3][0])
    assert copy.targets == data.targets
    assert set(copy.targets_task_labels) == {4}


def test_nearest_name():
    assert nearest("tiny_subnets", ["wsn", "tinysubnets"]) == "tinysubnets"
    assert nearest("?", ["wsn"]) == "wsn"
