"""The table of budgets: what is measured, and what counts as met."""

from __future__ import annotations

import pytest

from avalanche_compress import CapacityExhaustedError
from benchmarks.budgets import Row, main


def test_a_budget_is_met_from_below_and_by_all_tasks():
    assert Row("digits", "packnet", 1000, [990, 1000], 90.0).met
    assert not Row("digits", "packnet", 1000, [989, 1000], 90.0).met
    assert not Row("digits", "packnet", 1000, [1000, 1001], 90.0).met


def test_the_command_measures_the_archive(capsys):
    sizes = ["--tasks", "2", "--epochs", "1", "--kilobytes", "4"]
    assert main([*sizes, "--streams", "split_digits", "--methods", "packnet"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert [part.strip() for part in row[1:4]] == ["split_digits", "packnet", "4,000"]
    fewest, most = (int(size.replace(",", "")) for size in row[4].split("to"))
    assert 3960 <= fewest <= most <= 4000


def test_a_budget_may_be_that_of_the_archive(capsys):
    sizes = ["--tasks", "2", "--epochs", "1", "--kilobytes", "7", "--of-archive"]
    assert main([*sizes, "--streams", "split_digits", "--methods", "packnet"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert 6930 <= int(row[4].replace(",", "")) <= 7000


def test_another_backbone_is_learned():
    with pytest.raises(SystemExit):
        main(["--backbone", "no such network"])
    with pytest.raises(CapacityExhaustedError, match="size_budget=100 bytes is less"):
        main(["--streams", "split_digits", "--kilobytes", ".1", "--backbone", "mlp"])
