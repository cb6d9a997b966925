"""The speed table has a line for every strategy, with the references that it is read against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published_files import write_mnist

from benchmarks.data.images import load_mnist
from benchmarks.speed import steps as speed


@pytest.fixture(scope="module")
def figures():
    return speed.epochs(speed.random_images(600), "random", batch=100, rounds=1)


def test_epochs_compare_every_strategy_with_a_plain_loop_and_with_naive(figures):
    compared = {(figure.what.split(",")[0], figure.reference) for figure in figures}
    strategies = {"naive", *speed.OURS}
    assert compared == {
        ("naive on its own loader", "plain loop"),
        *((name, "plain loop") for name in strategies),
        *((name, "naive on its own loader") for name in strategies),
    }


def test_epochs_say_which_images_they_are_of(figures):
    assert {own.what.split(", ", 1)[1] for own in figures} == {
        "epoch of 600 random images, mlp, batch 100"
    }


def test_a_folder_gives_epochs_its_training_images_of_mnist(tmp_path, monkeypatch):
    write_mnist(tmp_path, train=40)
    given = []
    monkeypatch.setattr(speed, "epochs", lambda *arguments: given.append(arguments) or [])
    for name in ("training_steps", "task_inference", "kmeans", "rank_estimation", "on_gpu"):
        monkeypatch.setattr(speed, name, lambda *arguments, **options: [])
    figure = speed.figure_of("ours", [1.0], "theirs", [1.0])
    for name in ("evaluation", "growing", "threshold", "mask_coding"):
        monkeypatch.setattr(speed, name, lambda *arguments: figure)
    speed.main(["--data", str(tmp_path)])
    speed.main([])
    (mnist, kind), (random, other) = given
    assert (kind, other) == ("MNIST", "random")
    for ours, theirs in zip(mnist.train, load_mnist(tmp_path).train):
        assert np.array_equal(ours, theirs)
    assert random.train[0].shape == (60_000, 784)


def test_an_epoch_trains_on_the_images_that_it_was_given(monkeypatch):
    seen = []
    monkeypatch.setattr(speed, "OURS", {})
    monkeypatch.setattr(speed, "_trainer", lambda *given, **options: (Watch(seen), Watch(seen)))
    images = speed.random_images(50)
    speed.epochs(images, "random", batch=10, rounds=1)
    assert len(seen) == 4  # two loaders, in the round that warms up and in one more
    values = images.values[images.train[0]]
    for dataset in seen:
        x, y, _ = dataset[7]
        assert y == images.train[1][7]
        assert np.array_equal(np.sort(x.numpy().ravel()), np.sort(values[7]))


class Watch:
    """Stands for a strategy and for its timer."""

    seconds = 1.0

    def __init__(self, seen):
        self.seen = seen

    def train(self, experience):
        self.seen.append(experience.dataset)


def test_steps_are_compared_with_naives_and_with_a_plain_loops():
    steps = speed.training_steps("lenet", 4, 1, ("wsn",), tasks=2)
    compared = {(figure.what, figure.reference) for figure in steps}
    what = "{} step, lenet, batch 4"
    assert compared == {
        (what.format("naive"), "plain loop"),
        (what.format("wsn"), "plain loop"),
        (what.format("wsn"), "naive"),
    }


def test_an_evaluation_is_timed_by_the_pass():
    figure = speed.evaluation("mlp", 2, passes=3)
    assert figure.what == "evaluation of an active task, mlp, batch 2"
    assert 0 < figure.milliseconds < 1
    assert figure.reference == "plain backbone"


def test_on_a_gpu_the_clock_waits_for_what_is_queued(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    assert speed.seconds_of(lambda: waits.append(0), speed.clock_of("cuda")) >= 0
    assert waits == [1, 0, 1]


def test_a_gpu_is_timed_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert speed.on_gpu() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(speed, "training_steps", lambda *given, device: [(given[0], device)])
    backbones = ("mlp", "lenet", "alexnet", "resnet18")
    assert speed.on_gpu() == [(own, "cuda") for own in backbones]


def test_every_figure_is_a_time_and_a_ratio(figures):
    for figure in figures:
        assert figure.milliseconds > 0
        assert figure.reference_milliseconds > 0
        assert figure.ratio == pytest.approx(figure.milliseconds / figure.reference_milliseconds)
