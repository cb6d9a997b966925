"""Models of torchvision, timm and transformers work or are refused, as docs/models.md says."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from benchmarks.stress import models
from benchmarks.stress.model_list import ENTRIES, Entry
from benchmarks.stress.models import COLUMNS, METHODS, PAGE, Trial, main, page, row
from benchmarks.stress.outcomes import Outcome

TEN = (
    "`nn.LSTM`, two layers, both directions",
    "`nn.TransformerEncoder`",
    "densenet121, `memory_efficient`",
    "squeezenet1_1",
    "googlenet, `aux_logits=True`",
    "swin_t",
    "convnext_tiny",
    "levit",
    "Bert",
    "GPT2, `Conv1D`",
)
"""What the ordinary tests try."""
NAMES = {entry.name: entry for entry in ENTRIES}
needs_onnx = pytest.mark.skipif(not find_spec("onnx"), reason="needs the extra export")


def on_the_page(entry: Entry) -> list[str]:
    """The cells of a model's row, with the reasons instead of their numbers."""
    text = PAGE.read_text()
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    (line,) = (
        line for line in text.splitlines() if line.startswith(f"| {entry.library} | {entry.name} |")
    )
    cells = line.split("|")[3:-1]
    return [re.sub(r"\((\d+)\)", lambda found: notes[found[1]], cell.strip()) for cell in cells]


def check(entry: Entry) -> None:
    if not find_spec(entry.library):
        pytest.skip(f"needs {entry.library}, of the extra models")
    found = [list(column) for column in zip(*row(entry))]
    said = []
    for column in found:
        words = [f"{outcome.word} {outcome.reason}".strip() for outcome in column]
        each = [f"{method} {word}" for method, word in zip(METHODS, words)]
        said.append(words[0] if len(set(words)) == 1 else ", ".join(each))
    assert on_the_page(entry) == said, "run python -m benchmarks.models"


@needs_onnx
@pytest.mark.parametrize("name", TEN)
def test_ten_models_are_as_the_page_says(name):
    check(NAMES[name])


@needs_onnx
@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in NAMES if name not in TEN])
def test_the_other_models_are_as_the_page_says(name):
    check(NAMES[name])


def test_every_model_has_a_row_and_none_fails():
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES) >= 40
    for entry in ENTRIES:
        cells = on_the_page(entry)
        assert len(cells) == len(COLUMNS)
        for cell in cells:
            assert re.match(r"yes|-|refused .*Error|packnet (yes|refused)", cell), cell


# ------------------------------------------------------------------ the trial can fail


def vectors(count, generator):
    return torch.randn(count, 6, generator=generator)


def small():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


SMALL = Entry("torch", "small", small, vectors)


def trial(**changes):
    made = Trial(Entry(**{**vars(SMALL), **changes}), "packnet")
    made.converts()
    return made


def test_a_first_step_that_is_not_that_of_plain_training_is_noticed(monkeypatch):
    made = trial()
    with torch.no_grad():
        made.strategy.network.backbone[0].weight[0, 0] += 0.1
    with pytest.raises(AssertionError, match=r"0\.weight differs"):
        made.trains()


@pytest.mark.parametrize("column", ["exact", "archive", "materialise"])
def test_answers_that_are_others_are_noticed(column):
    made = trial()
    made.trains()
    made.known[0] = made.known[0] + 1e-6
    with pytest.raises(AssertionError):
        getattr(made, column)()


def test_a_refusal_ends_the_row_with_its_reason():
    outcomes = Trial(
        Entry("torch", "none", lambda: nn.BatchNorm1d(6), vectors), "packnet"
    ).outcomes()
    assert [outcome.word for outcome in outcomes] == ["refused", *["-"] * 5]
    assert outcomes[0].reason.startswith("`UnsupportedModuleError`: BatchNorm1d has no nn.Linear")


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    yes, refused = Outcome("yes"), Outcome("refused", "`SomeError`: why.")
    found = [[yes] * 6, [yes] * 5 + [refused]]
    monkeypatch.setattr(models, "row", lambda entry: found)
    monkeypatch.setattr(models, "ENTRIES", [SMALL])
    assert main(["--out", str(tmp_path / "page.md")]) == 0
    assert "1 models as they should be" in capsys.readouterr().out
    text = (tmp_path / "page.md").read_text()
    assert text == page([found])
    assert "| torch | small | yes | yes | yes | yes | yes | packnet yes, cacl refused (1) |" in text
    assert "1. `SomeError`: why." in text
