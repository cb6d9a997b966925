"""The table and the pictures."""

import pytest

from benchmarks.report import (
    bytes_plot,
    columns,
    heat_map,
    main,
    markdown_table,
    order_plot,
    order_rows,
    side_by_side,
    table_rows,
    write_markdown,
)
from benchmarks.results import RunResult, write_results

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


def reordered(strategy="naive", accuracies=(0.9, 0.9), **changes):
    """A run in the other order; accuracies are by position."""
    values = {"order": [1, 0], "order_index": 1, "accuracy": sum(accuracies) / 2, **changes}
    return result(strategy, accuracy_matrix=[[0.95, None], list(accuracies)], **values)


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


def test_several_orders_add_columns_and_one_order_has_none():
    runs = [result(), reordered(accuracies=(0.94, 0.96)), result("wsn")]
    assert [name for name, _ in columns(runs)][3:8] == ["BWT", "R", "AOPD", "MOPD", "archive"]
    naive, wsn = table_rows(runs)
    # Tasks 1 and 2 were at .9 and .9 in the canonical order, at .96 and .94 in the other one.
    assert naive[4:7] == ["2", "5.00", "6.00"]
    assert naive[1] == "92.50 ± 3.54"
    assert wsn[4:7] == ["1", "-", "-"]
    assert len(table_rows([result()])[0]) == 8


def test_a_table_has_a_column_per_order_with_the_deviation_over_its_seeds():
    runs = [result(), result(seed=1, accuracy=0.94), reordered(), result("wsn")]
    assert order_rows(runs) == [["naive", "92.00 ± 2.83", "90.00"], ["wsn", "90.00", "-"]]
    text = markdown_table(runs, "split_digits")
    assert "mean ± deviation of 2 seeds in 2 task orders" in text
    assert "| strategy | order 0 % | order 1 % |" in text
    assert "*tasks as learned, order 0: 1 2; order 1: 2 1*" in text
    assert "AOPD pp" in text and "R task orders" in text
    assert "order" not in markdown_table([result()], "split_digits")


def test_the_picture_of_orders_takes_streams_seeds_and_strategies_of_one_order(tmp_path):
    runs = [
        make(f"method {number}", seed=seed)
        for number in range(5)
        for seed in (0, 1)
        for make in (result, reordered)
    ]
    runs += [result("once"), reordered(stream="split_mnist"), result(stream="split_mnist")]
    order_plot(runs, tmp_path / "orders.png")
    assert (tmp_path / "orders.png").read_bytes().startswith(PNG)


def test_stored_results_are_drawn_again_with_orders_only_where_there_are_several(tmp_path):
    write_results([result()], tmp_path / "a.json")
    write_results([reordered()], tmp_path / "b.json")
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert main([files[0], "--out", str(tmp_path / "one")]) == 0
    assert main([*files, "--out", str(tmp_path / "two")]) == 0
    one, two = ({path.name for path in (tmp_path / d).iterdir()} for d in ("one", "two"))
    assert two - one == {"order_robustness.png", "matrix-split_digits-naive-seed0-order1.png"}
