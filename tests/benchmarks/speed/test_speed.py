"""The speed table has a line for every method, with the references that it is read against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published_files import write_mnist

from avalanche_compress import registered_methods
from benchmarks.data.images import load_mnist
from benchmarks.speed import command, training
from benchmarks.speed.figures import clock_of, figure_of, seconds_of

NAMES = [method.name for method in registered_methods()]


@pytest.fixture(scope="module")
def figures():
    images = training.random_images(600)
    return training.epochs(images, "random", batch=100, rounds=1, own_loader=True)


def test_epochs_compare_every_method_with_a_plain_loop_and_with_naive(figures):
    what = " epoch of 600 random images, mlp, batch 100"
    assert all(figure.what.endswith(what) for figure in figures)
    compared = [(figure.what[: -len(what)], figure.reference) for figure in figures]
    assert sorted(compared) == sorted(
        [
            *((name, "plain loop") for name in (*NAMES, "naive", "naive on its own loader")),
            *((name, "naive") for name in (*NAMES, "naive on its own loader")),
            *((name, "naive on its own loader") for name in (*NAMES, "naive")),
        ]
    )


@pytest.mark.parametrize("options", [[], ["--quick"]])
def test_a_folder_gives_epochs_its_training_images_of_mnist(options, tmp_path, monkeypatch):
    write_mnist(tmp_path, train=40)
    given = []
    monkeypatch.setattr(command, "epochs", lambda *args, **more: given.append((args, more)) or [])
    for name in ("steps", "task_inference", "kmeans", "rank_estimation"):
        monkeypatch.setattr(command, name, lambda *arguments, **options: [])
    figure = figure_of("ours", [1.0], "theirs", [1.0])
    for name in ("evaluation", "growing", "threshold", "mask_coding"):
        monkeypatch.setattr(command, name, lambda *arguments: figure)
    assert command.main(["--data", str(tmp_path), *options]) == 0
    assert command.main(options) == 0
    assert len(given) == 4  # at two batch sizes each
    assert {more.get("batch", 256) for _, more in given} == {10, 256}
    for (images, kind), _ in given[:2]:
        assert kind == "MNIST"
        for ours, theirs in zip(images.train, load_mnist(tmp_path).train):
            assert np.array_equal(ours, theirs)
    for (images, kind), _ in given[2:]:
        assert kind == "random"
        assert images.train[0].shape == (60_000, 784)


@pytest.mark.parametrize("count", [None, 20])
def test_an_epoch_trains_on_the_images_that_it_was_given(count, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "OURS", {})
    monkeypatch.setattr(training, "learner", lambda *given: (Watch(seen), Watch(seen)))
    images = training.random_images(50)
    training.epochs(images, "random", batch=10, rounds=1, count=count, own_loader=True)
    assert len(seen) == 4  # two loaders, in the round that warms up and in one more
    values = images.values[images.train[0]]
    for dataset in seen:
        x, y, _ = dataset[7]
        assert y == images.train[1][7]
        assert len(dataset) == (count or 50)
        assert np.array_equal(np.sort(x.numpy().ravel()), np.sort(values[7]))


class Watch:
    """Stands for a strategy and for its timer."""

    seconds = 1.0

    def __init__(self, seen):
        self.seen = seen

    def train(self, experience):
        self.seen.append(experience.dataset)


def test_steps_are_compared_with_naives_and_with_a_plain_loops():
    figures = training.steps("lenet", 4, 1, ["wsn"], rounds=1)
    compared = {(figure.what, figure.reference) for figure in figures}
    what = "{} step, lenet, batch 4"
    assert compared == {
        (what.format("naive"), "plain loop"),
        (what.format("wsn"), "plain loop"),
        (what.format("wsn"), "naive"),
    }


def test_an_evaluation_is_timed_by_the_pass():
    figure = training.evaluation("mlp", 2, passes=3)
    assert figure.what == "evaluation of an active task, mlp, batch 2"
    assert 0 < figure.milliseconds < 1
    assert figure.reference == "plain backbone"


def test_on_a_gpu_the_clock_waits_for_what_is_queued(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    assert seconds_of(lambda: waits.append(0), clock_of("cuda")) >= 0
    assert waits == [1, 0, 1]


def test_every_figure_is_a_time_and_a_ratio(figures):
    for figure in figures:
        assert figure.milliseconds > 0
        assert figure.reference_milliseconds > 0
        assert figure.ratio == pytest.approx(figure.milliseconds / figure.reference_milliseconds)
