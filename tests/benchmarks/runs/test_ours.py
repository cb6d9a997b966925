"""What the comparison says of our strategies where tasks have no labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from avalanche_compress import load_archive
from benchmarks.data.splits import StreamRequest
from benchmarks.data.streams import STREAMS, build_stream
from benchmarks.runs.ours import UNKNOWN
from benchmarks.runs.recipe import build
from benchmarks.runs.settings import RunSettings


def settings_of(folder, inference):
    stream = build_stream(StreamRequest("split_digits", folder, scenario="class"))
    budget = dataclasses.replace(STREAMS["split_digits"].budget, epochs=2)
    return RunSettings(stream, "mlp", budget, seed=0, inference=inference)


def test_refusals_are_measured_and_change_no_answer(tmp_path):
    settings = settings_of(tmp_path, "triangular@first")
    learner = build("packnet", settings)
    benchmark = settings.stream.benchmark
    for experience in benchmark.train_stream[:3]:
        learner.train(experience)
    before = learner.eval(benchmark.test_stream[:3])
    known = [learner.refused(experience) for experience in benchmark.test_stream[:3]]
    new = learner.refused(benchmark.test_stream[3])
    assert sum(known) / 3 < 4 * UNKNOWN < 0.5 < new <= 1
    assert learner.eval(benchmark.test_stream[:3]) == before
    assert not any(name.startswith("Refused") for name in before)


@pytest.mark.parametrize("inference", ["triangular@first", "ridge"])
def test_memory_is_what_the_archive_is_longer_by(inference, tmp_path):
    settings = settings_of(tmp_path, inference)
    learner = build("packnet", settings)
    for experience in settings.stream.benchmark.train_stream[:2]:
        learner.train(experience)
    sizes = learner.sizes(tmp_path / "archive")
    network = load_archive(tmp_path / "archive", settings.model)
    tensors = [t for statistics in network.statistics.values() for t in statistics.values()]
    content = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert content <= sizes.memory <= content + 100 * len(tensors)


def test_nothing_is_refused_where_outputs_change_with_every_task_or_labels_are_known(tmp_path):
    torch.manual_seed(0)
    assert build("packnet", settings_of(tmp_path, "ridge")).refused is None
    labelled = settings_of(tmp_path, None)
    assert build("packnet", labelled).refused is None
    assert build("packnet", labelled).memory_bytes is None
