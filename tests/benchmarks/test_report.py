"""The table and the pictures."""

import pytest

from benchmarks.report import (
    bytes_plot,
    heat_map,
    markdown_table,
    side_by_side,
    table_rows,
    write_markdown,
)
from benchmarks.results import RunResult

PNG = b"\x89PNG"


def result(strategy="naive", seed=0, accuracy=0.9, **changes):
    values = {
        "strategy": strategy,
        "stream": "split_digits",
        "backbone": "mlp",
        "seed": seed,
        "order": [0, 1],
        "accuracy": accuracy,
        "accuracy_matrix": [[0.95, None], [accuracy, accuracy]],
        "forgetting": 0.05,
        "bwt": -0.05,
        "archive_bytes": None,
        "stored_bytes": 69_600,
        "independent_bytes": 332_000,
        "train_seconds": 2.0,
        "eval_seconds": 0.25,
        "versions": {},
        "epochs": 20,
        "train_mb_size": 16,
    }
    return RunResult(**{**values, **changes})


def test_a_row_of_one_seed():
    assert table_rows([result()]) == [
        ["naive", "90.00", "5.00", "-5.00", "-", "69.6 kB", "0.210", "2.2"]
    ]


def test_a_row_of_several_seeds_has_mean_and_sample_deviation():
    runs = [result(accuracy=0.9), result(seed=1, accuracy=0.94)]
    assert table_rows(runs)[0][1] == "92.00 ± 2.83"


def test_what_is_not_defined_is_a_dash_and_nothing_is_minus_zero():
    row = table_rows([result(forgetting=None, bwt=-1e-9)])[0]
    assert row[2:4] == ["-", "0.00"]


def test_the_archive_makes_the_ratio():
    row = table_rows([result(archive_bytes=33_200, stored_bytes=33_200)])[0]
    assert (row[4], row[6]) == ("33.2 kB", "0.100")


def test_markdown_has_a_row_per_strategy_and_a_table_per_stream(tmp_path):
    runs = [result(), result("wsn"), result(stream="split_mnist")]
    lines = markdown_table(runs[:2], "split_digits").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.count("|") for line in table} == {9}
    write_markdown(runs, tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text().count("###") == 2


def test_both_scenarios_stand_side_by_side_with_a_dash_for_what_was_not_run():
    inferred = {"scenario": "class", "task_inference": "energy", "task_id_accuracy": 0.6}
    runs = [
        result(),
        result(scenario="class", accuracy=0.2),
        result("wsn", accuracy=0.95),
        result("wsn", accuracy=0.5, **inferred),
        result("wsn", accuracy=0.6, seed=1, **inferred),
        result("independent"),
    ]
    assert side_by_side(runs) == [
        ["naive", "90.00", "-", "20.00", "-"],
        ["wsn", "95.00", "energy", "55.00 ± 7.07", "60.00 ± 0.00"],
        ["independent", "90.00", "-", "-", "-"],
    ]
    assert table_rows(runs[3:5])[0][:3] == ["wsn, energy", "55.00 ± 7.07", "60.00 ± 0.00"]


@pytest.mark.parametrize("draw", [heat_map, lambda run, path: bytes_plot([run, run], path)])
def test_pictures_are_written_as_png(draw, tmp_path):
    draw(result(), tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(PNG)


def test_bytes_plot_takes_streams_seeds_and_many_strategies(tmp_path):
    runs = [result(f"method {i}", seed=s, stored_bytes=10**i) for i in range(3, 8) for s in (0, 1)]
    runs.append(result(stream="split_mnist"))
    bytes_plot(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
