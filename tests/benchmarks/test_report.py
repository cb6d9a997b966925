"""The tables, and what is drawn again."""

import pytest

from benchmarks.report import (
    columns,
    main,
    markdown_table,
    order_rows,
    rank_rows,
    side_by_side,
    table_rows,
    write_markdown,
)
from benchmarks.results import RunResult, write_results
from benchmarks.store import NAME, Store


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


def test_stored_results_are_drawn_again_with_orders_only_where_there_are_several(tmp_path):
    write_results([result()], tmp_path / "a.json")
    write_results([reordered()], tmp_path / "b.json")
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert main([files[0], "--out", str(tmp_path / "one")]) == 0
    assert main([*files, "--out", str(tmp_path / "two")]) == 0
    one, two = ({path.name for path in (tmp_path / d).iterdir()} for d in ("one", "two"))
    assert two - one == {"order_robustness.png", "matrix-split_digits-naive-seed0-order1.png"}


def test_ranks_are_early_and_late_means_from_ten_tasks_on():
    early, late = [5, 4, 3, 2, 1], [0, 0, 0, 1, 1]
    ten = {"ranks": {"body.1.weight": early + late}, "stream": "ten"}
    assert rank_rows([result("cacl", **ten)]) == [["cacl", "body.1", "3.0 → 0.4", "17"]]
    nine = {"ranks": {"body.1.weight": early + late[:4]}, "stream": "nine"}
    assert rank_rows([result("cacl", **nine)]) == [["cacl", "body.1", "1.8", "16"]]


def test_a_row_of_ranks_is_the_mean_over_runs_and_runs_without_have_none():
    runs = [result(), result("cacl", ranks={"body.1.weight": [4, 1], "body.3.weight": [2, 2]})]
    runs += [result("cacl", seed=1, ranks={"body.1.weight": [6, 0], "body.3.weight": [2, 2]})]
    runs += [result("cacl", seed=2), result("cacl_8bit", ranks={"body.1.weight": [3, 3]})]
    assert rank_rows(runs) == [
        ["cacl", "body.1", "2.8", "5.5"],
        ["cacl", "body.3", "2.0", "4"],
        ["cacl_8bit", "body.1", "3.0", "6"],
    ]
    assert "### split_digits: ranks of the layers" in markdown_table(runs, "split_digits")
    assert "rank" not in markdown_table(runs[:1], "split_digits")


def test_stored_ranks_are_drawn_again(tmp_path):
    write_results([result(), result("cacl", ranks={"a.weight": [4, 1]})], tmp_path / "a.json")
    assert main([str(tmp_path / "a.json"), "--out", str(tmp_path / "out")]) == 0
    drawn = {path.name for path in (tmp_path / "out").glob("ranks-*")}
    assert drawn == {"ranks-split_digits-cacl-seed0.png"}


def test_one_streams_tables_come_out_of_a_store_of_many(tmp_path, capsys):
    store = Store(tmp_path / NAME)
    for stream in ("split_digits", "split_mnist"):
        store.add(result(stream=stream))
        store.add(result(stream=stream, quick=True, epochs=2))
    out = tmp_path / "drawn"
    assert main([str(store.path), "--stream", "split_mnist", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "### split_mnist: 2 tasks, mlp, 20 epochs" in printed
    assert "### split_mnist (quick): 2 tasks, mlp, 2 epochs" in printed
    assert "split_digits" not in printed
    assert (out / "table.md").read_text() == printed[:-1]


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(SystemExit):
        main([str(tmp_path / NAME), "--stream", "split_mnist", "--out", str(tmp_path)])
