"""What a large network costs is measured for every method, where the work is done."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import pytest
import torch
from torch import nn

from benchmarks.speed import command, large

FLOATS = 1_000_000


def small_model():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * large.PIXELS**2, 64), nn.ReLU(), nn.Linear(64, large.CLASSES)
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(large, "MODELS", {"small": small_model})
    monkeypatch.setattr(large, "FORMS", {"small": ("float", "kmeans", "entropy")})


@pytest.mark.parametrize("method", large.METHODS)
def test_every_method_has_every_number_and_fewer_bytes_in_few_bits(method):
    rows = [large.measure(method, "small", form) for form in large.forms_of(method, "small")]
    for row in rows:
        numbers = {name: value for name, value in asdict(row).items() if name != "form"}
        assert (numbers.pop("method"), numbers.pop("model")) == (method, "small")
        assert min(numbers.values()) > 0
    size = sum(p.numel() for p in small_model().parameters()) * 4 / 1e6
    for row in rows:
        assert row.megabytes < (2.1 * size if row.form == "float" else size / 2)
        assert row.held > 2  # weights and their gradients


def test_memory_counts_what_is_held_now_and_at_most():
    memory = large.Memory()
    kept = torch.ones(FLOATS)
    assert memory.restart() == pytest.approx(4 * FLOATS, rel=0.2)
    gone = torch.ones(2 * FLOATS)
    del gone
    assert memory.peak() == pytest.approx(12 * FLOATS, rel=0.2)
    assert memory.restart() == pytest.approx(4 * FLOATS, rel=0.2)
    assert kept.numel() == FLOATS


def test_a_commit_is_timed_apart_from_shaping(monkeypatch):
    def wait(commit):
        start = time.process_time()
        while time.process_time() < start + 0.3:
            pass
        return commit

    learner = large._learner

    def slow(*given):
        strategy = learner(*given)
        commit = strategy.network.commit
        strategy.network.commit = lambda: wait(commit)()
        return strategy

    monkeypatch.setattr(large, "_learner", slow)
    row = large.measure("wsn", "small", "float")
    assert min(row.commit_first, row.commit) > 0.3 > max(row.shape_first, row.shape)


def test_the_command_prints_and_writes_what_was_chosen(tmp_path, monkeypatch, capsys):
    measured = []
    row = large.Row("wsn", "small", "float", *range(14))
    monkeypatch.setattr(large, "measure", lambda *given: measured.append(given) or row)
    monkeypatch.setattr(large, "ProcessPoolExecutor", Here)
    file = tmp_path / "rows.json"
    chosen = ["--methods", "wsn", "packnet", "--models", "vit_s"]
    monkeypatch.setattr(large, "FORMS", {"vit_s": ("float", "entropy")})
    monkeypatch.setattr(large, "MODELS", {"vit_s": small_model})
    assert command.main(["--large", *chosen, "--json", str(file)]) == 0
    forms = [(name, "vit_s", form) for name in ("wsn", "packnet") for form in ("float", "entropy")]
    assert measured == forms
    assert [entry["activate"] for entry in json.loads(file.read_text())] == [6] * 4
    assert "wsn, small" in capsys.readouterr().out


class Here:
    """Stands for a process: what is submitted runs in this one."""

    def __init__(self, *given, **more):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, work, *given):
        self.done = work(*given)
        return self

    def result(self):
        return self.done
