"""The command that draws accuracy against bytes and says which choice fits which budget."""

from __future__ import annotations

import pytest
from benchmarks_for_tests import make_result

from benchmarks.choices import FEW_BITS
from benchmarks.front import main
from benchmarks.report.groups import groups_of
from benchmarks.report.pictures import bytes_figure
from benchmarks.runs.store import NAME, Store

DENSE = [
    make_result(strategy=name, accuracy=accuracy, archive_bytes=size)
    for name, accuracy, size in zip(FEW_BITS, (0.97, 0.96, 0.94, 0.8), (250, 130, 100, 70))
]
RUNS = [
    make_result(strategy="wsn", accuracy=0.95, archive_bytes=120),
    make_result(strategy="cacl_4bit", accuracy=0.9, archive_bytes=60),
    *DENSE,
]


@pytest.fixture
def store(tmp_path):
    stored = Store(tmp_path / NAME)
    for run in RUNS:
        stored.add(run)
    return tmp_path / NAME


def test_it_says_a_choice_for_each_budget_and_draws_the_stream(store, tmp_path, capsys):
    assert main([str(store), "--out", str(tmp_path / "out")]) == 0
    title, few, more = capsys.readouterr().out.strip().splitlines()
    assert title.startswith("split_digits: ")
    assert few.startswith("- 60 B to 120 B: cacl_4bit, 90.0 %")
    assert more.startswith("- 120 B or more: wsn, 95.0 %")
    drawn = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert drawn == [".png", ".svg"]


def test_the_reference_curve_goes_through_dense_networks_at_fewer_bits():
    (axes,) = bytes_figure(groups_of(RUNS)).axes
    (curve,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert list(curve.get_xdata()) == [250, 130, 100, 70]
    assert list(curve.get_ydata()) == pytest.approx([97, 96, 94, 80])


def test_the_records_of_the_repository_are_read_without_a_store(tmp_path, capsys):
    assert main(["--streams", "split_digits", "--out", str(tmp_path)]) == 0
    assert "or more: " in capsys.readouterr().out


def test_a_stream_without_runs_is_one_line(store, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(store), "--streams", "permuted_mnist", "--out", str(tmp_path)])
    assert "there are no runs of permuted_mnist to choose from" in capsys.readouterr().err
