"""The example of docs/transformers.md is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "transformers.md"


def test_a_text_classifier_learns_three_tasks_and_becomes_an_archive_and_onnx(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("transformers")
    pytest.importorskip("onnx")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {"__name__": "page"}
    exec(block, names)
    accuracies = [v for k, v in names["results"].items() if k.startswith("Top1_Acc_Exp")]
    assert len(accuracies) == 3
    assert min(accuracies) > 0.9
    assert names["logits"].argmax(1).tolist() == [1, 0]  # fine, and bad
    assert (tmp_path / "reviews.archive").stat().st_size < 40_000
    assert (tmp_path / "reviews.onnx").exists()
    assert "ONNX differs by at most" in capsys.readouterr().out
