"""What all tests of the benchmarks have in common."""

import pytest

from benchmarks.runs import comparison


@pytest.fixture(autouse=True)
def one_small_stream(monkeypatch):
    """A command that names no stream trains on the smaller one of the two that are the default."""
    monkeypatch.setattr(comparison, "FIRST_STREAMS", ("split_digits",))
