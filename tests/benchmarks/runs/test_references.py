"""What methods are measured against: that it is what it says."""

from __future__ import annotations

import dataclasses
import zipfile

import pytest
import torch

from avalanche_compress import load_archive
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream
from benchmarks.runs.accuracies import accuracy_row
from benchmarks.runs.baselines import naive
from benchmarks.runs.recipe import build
from benchmarks.runs.references import independent_warm, joint, naive_snapshots
from benchmarks.runs.settings import RunSettings

TASKS = 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    request = StreamRequest("permuted_digits", tmp_path_factory.getbasetemp(), tasks=TASKS)
    budget = dataclasses.replace(STREAMS["permuted_digits"].budget, epochs=2, train_mb_size=64)
    return RunSettings(build_stream(request), "mlp", budget, seed=0)


def rows(learner, settings):
    """The accuracy matrix."""
    torch.manual_seed(0)
    found = []
    for task, experience in enumerate(settings.stream.benchmark.train_stream):
        learner.train(experience)
        metrics = learner.eval(settings.stream.benchmark.test_stream[: task + 1])
        found.append(accuracy_row(metrics, TASKS))
    return found


def built(make, settings):
    torch.manual_seed(1)
    return make(settings)


def test_a_warm_network_starts_from_the_body_of_the_task_before(settings):
    networks = built(independent_warm, settings).train.__self__
    first, second, _ = settings.stream.benchmark.train_stream
    networks.train(first)
    before = {name: p.clone() for name, p in networks.strategies[0].model.named_parameters()}
    started = networks.new(1, networks.strategies[0].model).model
    for name, parameter in started.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.startswith("head."))
    networks.train(second)
    for name, parameter in networks.strategies[0].model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_snapshots_are_the_diagonal_of_naive(settings):
    matrix = rows(built(naive, settings), settings)
    snapshots = rows(built(naive_snapshots, settings), settings)
    diagonal = [matrix[task][task] for task in range(TASKS)]
    assert snapshots[-1] == diagonal
    assert all(row[: task + 1] == diagonal[: task + 1] for task, row in enumerate(snapshots))
    assert matrix[-1] != diagonal


def test_compressed_networks_are_small_and_their_files_answer_alike(settings, tmp_path):
    learner = build("independent_compressed", settings)
    accuracies = rows(learner, settings)[-1]
    sizes = learner.sizes(tmp_path / "archive")
    assert sizes.stored == sizes.archive == (tmp_path / "archive").stat().st_size
    assert sizes.archive < settings.independent_bytes() / 5
    assert min(accuracies) > 0.5
    first = (tmp_path / "archive").read_bytes()
    learner.sizes(tmp_path / "archive")
    assert (tmp_path / "archive").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "archive") as whole:
        assert whole.namelist() == [f"task{task}" for task in range(TASKS)]
        whole.extract("task2", tmp_path)
    assert list(load_archive(tmp_path / "task2", settings.model).tasks) == [2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "task2"]


def test_joint_takes_as_many_steps_as_all_tasks_together(settings):
    class Steps:
        taken = 0

    from avalanche.core import SupervisedPlugin

    class Count(SupervisedPlugin):
        def after_training_iteration(self, strategy, *args, **kwargs):
            Steps.taken += 1

    counted = dataclasses.replace(settings, plugins=[Count()])
    batches = 0
    learner = joint(counted)
    for experience in settings.stream.benchmark.train_stream:
        batches += -(-len(experience.dataset) // 64)
        learner.train(experience)
    assert Steps.taken == 2 * batches
