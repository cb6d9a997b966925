"""What all tests of runs have in common."""

import pytest

from benchmarks.report.command import markdown_tables
from benchmarks.runs import comparison


@pytest.fixture(autouse=True)
def tables_and_no_page(monkeypatch):
    """Writes the tables of a grid alone: drawing the page takes longer than its small runs."""

    def write_tables(results, folder):
        (folder / "table.md").write_text(markdown_tables(results))

    monkeypatch.setattr(comparison.report, "write_report", write_tables)
