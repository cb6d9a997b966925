"""The notebooks run, on small settings, and are kept without what a run puts into them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SMALL = {
    "digits": {"EPOCHS": 2},
    "pretrained": {"DATA": "nowhere", "TASKS": 2, "IMAGES": 8, "EPOCHS": 1},
    "class_incremental": {"EPOCHS": 2},
}
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@EACH
def test_every_cell_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for cell in cells(path):
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(SMALL[path.stem]) <= set(names)
            names.update(SMALL[path.stem])
    assert list(tmp_path.glob("*.archive"))
    assert capsys.readouterr().out


@EACH
def test_it_is_kept_as_it_is_written(path):
    for cell in cells(path):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert "pip install -e" not in "".join(cell["source"])
