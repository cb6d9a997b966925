"""Whatever the README shows is run; MNIST is replaced by a small stream of its shape."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from streams_for_tests import make_stream
from torch import nn

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def small_mnist(tasks, return_task_id, class_ids_from_zero_in_each_exp):
    assert return_task_id
    assert class_ids_from_zero_in_each_exp
    return make_stream(tasks, shape=(1, 28, 28))


def new_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 2))


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("avalanche.benchmarks.SplitMNIST", small_mnist)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_every_example_runs(tmp_path):
    names = {}
    for block in BLOCKS:
        # each example starts from a new model: one that a strategy has taken is its own
        names["model"] = new_model()
        exec(block, names)
    assert (tmp_path / "five_tasks.archive").stat().st_size > 0
    assert names["network"] is names["strategy"].model or names["strategy"].model.tasks


def test_the_example_is_short_and_changes_one_line():
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 20
    assert BLOCKS[0].count("# was: Naive(") == 1


def test_the_commands_are_those_that_the_project_has():
    assert "pip install -e '.[bench]' && python -m benchmarks.compare" in README
    assert "pip install -e '.[test]' && pytest" in README
    assert torch.__version__
