"""Choosing a rule on held-out data."""

from __future__ import annotations

from avalanche_compress import TaskInference
from benchmarks import rules
from benchmarks.data import splits
from benchmarks.rules import Choice


def two():
    return {"gaussian": TaskInference("gaussian@first"), "entropy": TaskInference("entropy")}


def test_candidates_are_judged_on_training_data_that_were_held_out(tmp_path, monkeypatch):
    found = rules.try_rules("split_digits", 0, tmp_path, two(), "packnet", epochs=2)
    assert list(found) == ["gaussian", "entropy"]
    assert 30 < found["entropy"].accuracy < found["gaussian"].accuracy
    assert found["entropy"].bytes < 100 < 20_000 < found["gaussian"].bytes

    def without_test(images, part, **arguments):
        assert part is images.train, "the test data were looked at"
        return cut(images, part, **arguments)

    cut = splits.cut
    monkeypatch.setattr(splits, "cut", without_test)
    assert rules.try_rules("split_digits", 0, tmp_path, two(), "packnet", epochs=2) == found


def test_the_table_has_the_best_mean_first():
    runs = {
        "a": [{"gaussian": Choice(90.0, 2000), "entropy": Choice(50.0, 0)}] * 2,
        "b": [{"gaussian": Choice(80.0, 4000), "entropy": Choice(99.0, 0)}],
    }
    assert rules.table(runs).splitlines()[2:] == [
        "| gaussian | 90.00 | 80.00 | 85.00 | 2.0 kB, 4.0 kB |",
        "| entropy | 50.00 | 99.00 | 74.50 | 0 B, 0 B |",
    ]


def test_candidates_are_of_the_layers_and_kinds_that_are_named():
    assert [str(rule) for rule in rules.candidates(["body.3"]).values()] == [
        *["gaussian@body.3"],
        *["triangular@body.3"] * 4,
        *["ridge@body.3"] * 2,
    ]
    assert list(rules.candidates(["head"], ["ridge"])) == [
        "ridge @head",
        "ridge, 500 random features @head",
    ]
