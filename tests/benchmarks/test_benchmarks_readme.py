"""Whatever benchmarks/README.md shows is run, and its commands are those that there are."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from avalanche.training.supervised import Cumulative

from benchmarks import compare
from benchmarks.data import streams
from benchmarks.runs import backbones, baselines, recipe, strategies
from benchmarks.runs.store import NAME, Store

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [README, *(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.md")))]
IMPORTS = {
    "Cumulative": Cumulative,
    **vars(baselines),
    "math": math,
}


def commands(text):
    """The arguments of each indented command, by the module that it runs."""
    whole = text.replace("\\\n", " ")
    found = re.findall(r"^ {4}(?:.* && )?python -m (benchmarks\.\w+)(.*)$", whole, re.MULTILINE)
    return [(module, arguments.split()) for module, arguments in found]


COMMANDS = [command for text in DOCUMENTS for command in commands(text)]


@pytest.fixture
def extended(tmp_path, monkeypatch):
    """Runs the examples, each among the names of the module that it belongs to."""
    shutil.copytree(recipe.FOLDER, tmp_path / "recipes")
    monkeypatch.setattr(recipe, "FOLDER", tmp_path / "recipes")
    registries = (strategies.STRATEGIES, streams.STREAMS, backbones.BACKBONES)
    before = [dict(registry) for registry in registries]
    for heading, section in re.findall(r"^## A new (\w+)\n(.*?)(?=^## |\Z)", README, re.M | re.S):
        module = {"strategy": strategies, "stream": streams, "backbone": backbones}[heading]
        for name, text in re.findall(r"`recipes/(\w+\.yaml)`:\n\n```yaml\n(.*?)```", section, re.S):
            (tmp_path / "recipes" / name).write_text(text, encoding="utf-8")
        for block in re.findall(r"```python\n(.*?)```", section, re.S):
            exec(compile(block, heading, "exec"), {**IMPORTS, **vars(module)})
    yield
    for registry, entries in zip(registries, before):
        registry.clear()
        registry.update(entries)


@pytest.mark.usefixtures("extended")
def test_every_comparison_that_the_documents_show_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    shown = [arguments for module, arguments in COMMANDS if module == "benchmarks.compare"]
    assert len(shown) >= 9
    for arguments in shown:
        assert compare.parse(arguments).jobs()


def test_every_command_that_the_documents_show_exists():
    for module, _ in COMMANDS:
        assert importlib.util.find_spec(module), module
    assert {"benchmarks.report", "benchmarks.records"} <= {module for module, _ in COMMANDS}


@pytest.mark.usefixtures("extended")
def test_the_new_strategies_stream_and_backbone_run(tmp_path):
    _, arguments = commands(README)[-1]
    assert compare.main([*arguments, "--workers", "1", "--out", str(tmp_path)]) == 0
    thin, all_data = Store(tmp_path / NAME).results()
    assert (thin.strategy, all_data.strategy) == ("thin_wsn", "cumulative")
    assert thin.stream == "rotated_digits"
    assert thin.backbone == "wide_mlp"
    assert thin.forgetting == 0
    assert thin.archive_bytes < all_data.stored_bytes
    assert min(thin.accuracy, all_data.accuracy) > 0.5


def test_the_examples_are_short():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 4
    assert max(len([line for line in block.splitlines() if line]) for block in blocks) <= 15
