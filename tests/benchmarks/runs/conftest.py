"""What all tests of runs have in common."""

from types import SimpleNamespace

import pytest

from benchmarks.report import command
from benchmarks.runs import comparison


@pytest.fixture(autouse=True)
def tables_and_no_page(monkeypatch):
    """A comparison writes its tables alone: drawing the page takes longer than small runs."""

    def write_tables(results, folder):
        (folder / "table.md").write_text(command.markdown_tables(results))

    quick = SimpleNamespace(write_report=write_tables, text_tables=command.text_tables)
    monkeypatch.setattr(comparison, "report", quick)
