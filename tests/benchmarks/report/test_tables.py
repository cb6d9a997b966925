"""What the tables say, against numbers made by hand."""

from __future__ import annotations

from benchmarks_for_tests import make_result, reordered

from benchmarks.report.groups import Group, by_stream
from benchmarks.report.tables import (
    TABLES,
    bytes_cell,
    difference_table,
    layer_table,
    order_table,
    result_table,
    run_table,
    scenario_table,
)


def rows(table, runs):
    return table(Group(runs)).texts()


def bold(runs):
    """The strategies that stand out, and the columns in which they do."""
    table = result_table(Group(runs))
    return {
        (row[0].text, column.name)
        for row in table.rows
        for column, cell in zip(table.columns, row)
        if cell.is_bold
    }


def test_a_row_of_one_seed():
    assert rows(result_table, [make_result()]) == [
        ["naive", "90.00", "5.00", "-5.00", "-", "69.6 kB", "0.210"]
    ]


def test_a_row_of_several_seeds_has_mean_and_sample_deviation():
    runs = [make_result(accuracy=0.9), make_result(seed=1, accuracy=0.94)]
    (row,) = rows(result_table, runs)
    assert row[1] == "92.00 ± 2.83"


def test_unequal_numbers_of_seeds_are_owned_up_to():
    naive = [make_result(), make_result(seed=1)]
    assert "seeds" not in [column.name for column in result_table(Group(naive)).columns]
    runs = [*naive, make_result(strategy="ewc", seed=1)]
    assert result_table(Group(runs)).columns[1].name == "seeds"
    assert [row[:2] for row in rows(result_table, runs)] == [["naive", "2"], ["ewc", "1"]]


def test_bytes_that_differ_have_a_deviation_in_their_unit():
    assert bytes_cell([33_200, 35_200]).text == "34.2 ± 1.4 kB"
    assert bytes_cell([33_200, 33_200]).text == "33.2 kB"


def test_what_is_not_defined_is_a_dash_and_nothing_is_minus_zero():
    (row,) = rows(result_table, [make_result(forgetting=None, bwt=-1e-9)])
    assert row[2:4] == ["-", "0.00"]


def test_the_archive_makes_the_ratio():
    (row,) = rows(result_table, [make_result(archive_bytes=33_200, stored_bytes=33_200)])
    assert (row[4], row[6]) == ("33.2 kB", "0.100")


def test_both_scenarios_stand_side_by_side_with_a_dash_for_what_was_not_run():
    inferred = {"scenario": "class", "task_inference": "energy", "task_id_accuracy": 0.6}
    runs = [
        make_result(),
        make_result(scenario="class", accuracy=0.2),
        make_result("wsn", accuracy=0.95),
        make_result("wsn", accuracy=0.5, **inferred),
        make_result("wsn", accuracy=0.6, seed=1, **inferred),
        make_result("independent"),
    ]
    (both,) = by_stream(runs)
    assert scenario_table(both).texts() == [
        ["naive", "90.00", "-", "20.00", "-"],
        ["wsn", "95.00", "energy", "55.00 ± 7.07", "60.00 ± 0.00"],
        ["independent", "90.00", "-", "-", "-"],
    ]
    assert rows(result_table, runs[3:5])[0][:3] == ["wsn, energy", "55.00 ± 7.07", "60.00 ± 0.00"]


def test_without_labels_a_row_says_what_is_kept_of_samples_and_who_is_refused():
    refused = {"refused": [0.02, 0.04], "refused_before": [None, 0.9]}
    runs = [make_result("replay", scenario="class", memory_bytes=32_500)]
    runs += [make_result("wsn", scenario="class", memory_bytes=22_000, **refused)]
    runs += [make_result("naive", scenario="class")]
    table = result_table(Group(runs))
    assert [str(column) for column in table.columns[-3:]] == ["memory", "refused: known %", "new %"]
    assert {row[0]: row[-3:] for row in table.texts()} == {
        "replay": ["32.5 kB", "-", "-"],
        "wsn": ["22.0 kB", "3.00", "90.00"],
        "naive": ["-", "-", "-"],
    }


def test_rows_that_keep_different_things_are_not_ranked():
    runs = [
        make_result(name, scenario=scenario, seed=seed, accuracy=0.9 - lost)
        for name, lost in (("replay", 0.0), ("wsn", 0.3))
        for scenario in ("task", "class")
        for seed in range(8)
    ]
    labelled, without = (
        Group([run for run in runs if run.scenario == scenario]) for scenario in ("task", "class")
    )
    bold = [[c.is_bold for row in result_table(g).rows for c in row] for g in (labelled, without)]
    assert any(bold[0])
    assert not any(bold[1])


def test_several_orders_add_columns_and_one_order_has_none():
    runs = [make_result(), reordered(accuracies=(0.94, 0.96)), make_result("wsn")]
    table = result_table(Group(runs))
    assert [column.name for column in table.columns][3:8] == ["BWT", "R", "AOPD", "MOPD", "archive"]
    naive, wsn = table.texts()
    # Tasks 1 and 2 were at .9 and .9 in the canonical order, at .96 and .94 in the other one.
    assert naive[4:7] == ["2", "5.00", "6.00"]
    assert naive[1] == "92.50 ± 3.54"
    assert wsn[4:7] == ["1", "-", "-"]
    assert len(rows(result_table, [make_result()])[0]) == 7


def test_a_table_has_a_column_per_order_with_the_deviation_over_its_seeds():
    runs = [make_result(), make_result(seed=1, accuracy=0.94), reordered(), make_result("wsn")]
    table = order_table(Group(runs))
    assert table.texts() == [["naive", "92.00 ± 2.83", "90.00"], ["wsn", "90.00", "-"]]
    assert [column.name for column in table.columns[1:]] == ["order 0", "order 1"]
    assert "tasks as learned, order 0: 1 2; order 1: 2 1" in table.caption


def test_ranks_are_early_and_late_means_from_ten_tasks_on():
    early, late = [5, 4, 3, 2, 1], [0, 0, 0, 1, 1]
    ten = make_result("cacl", ranks={"body.1.weight": early + late})
    assert rows(layer_table, [ten]) == [["cacl", "body.1", "3.0 → 0.4", "17", "-", "-"]]
    nine = make_result("cacl", ranks={"body.1.weight": early + late[:4]})
    assert rows(layer_table, [nine]) == [["cacl", "body.1", "1.8", "16", "-", "-"]]


def test_a_row_of_a_layer_is_the_mean_over_runs_and_runs_without_have_none():
    runs = [make_result(), make_result("cacl", ranks={"a.weight": [4, 1], "b.weight": [2, 2]})]
    runs += [make_result("cacl", seed=1, ranks={"a.weight": [6, 0], "b.weight": [2, 2]})]
    runs += [make_result("cacl", seed=2)]
    masked = {"densities": {"a.weight": [0.5, 0.25]}, "bits": {"a.weight": [8.0, None]}}
    runs += [make_result("wsn", **masked)]
    assert rows(layer_table, runs) == [
        ["cacl", "a", "2.8", "5.5", "-", "-"],
        ["cacl", "b", "2.0", "4", "-", "-"],
        ["wsn", "a", "-", "-", "37.5", "8.0"],
    ]


def test_differences_say_what_so_few_pairs_can_show():
    runs = [make_result(seed=seed, accuracy=0.75) for seed in range(3)]
    runs += [make_result("wsn", seed=seed, accuracy=0.85 + seed / 100) for seed in range(3)]
    runs += [make_result("ewc", seed=0, accuracy=0.5)]
    table = difference_table(Group(runs))
    assert table.texts() == [
        ["naive", "wsn", "3", "-11.00 ± 1.00", "0.25", "0.25"],
        ["naive", "ewc", "1", "25.00", "-", "-"],
        ["wsn", "ewc", "1", "35.00", "-", "-"],
    ]
    assert "the least that it can be is 0.25 with 3 pairs" in table.caption
    assert "one pair says nothing of chance" in table.caption
    assert "orders are counted" not in table.caption


def test_chances_are_corrected_for_the_number_of_tests_and_orders_are_owned_up_to():
    runs = [
        make(name, seed=seed, accuracy=accuracy + seed / 100)
        for name, accuracy in (("naive", 0.5), ("wsn", 0.6), ("ewc", 0.7))
        for seed in range(2)
        for make in (make_result, reordered)
    ]
    table = difference_table(Group(runs))
    assert [row[2] for row in table.texts()] == ["4"] * 3
    assert [row[4:] for row in table.texts()] == [["0.125", "0.375"]] * 3
    assert "runs of one seed in several orders are counted as pairs of their own" in table.caption


def test_every_run_has_a_row():
    runs = [make_result(recipe="ab12"), make_result("wsn", archive_bytes=500, order_index=1)]
    assert rows(run_table, runs) == [
        ["naive", "0", "0", "90.00", "5.00", "-5.00", "69.6 kB", "ab12"],
        ["wsn", "1", "0", "90.00", "5.00", "-5.00", "500 B", "-"],
    ]


def test_what_is_told_from_the_best_is_not_bold_and_references_do_not_take_part():
    runs = []
    for seed in range(8):
        runs += [
            make_result(accuracy=0.8 + seed / 1000, seed=seed),
            make_result("wsn", accuracy=0.9 + seed / 1000, seed=seed),
            make_result("cacl", accuracy=0.8999 + (7 - seed) / 1000, seed=seed),
            make_result("joint", accuracy=0.99, forgetting=None, bwt=None, seed=seed),
            make_result("independent", accuracy=0.98, seed=seed),
        ]
    assert bold(runs) == {("wsn", "accuracy"), ("cacl", "accuracy")}
    assert "bold: the best mean accuracy" in result_table(Group(runs)).caption


def test_nothing_is_bold_where_nothing_can_be_told_apart():
    few = [make_result(name, seed=s) for name in ("naive", "wsn") for s in range(3)]
    few += [make_result("ewc", seed=seed, accuracy=0.1) for seed in range(3)]
    assert bold(few) == bold([make_result()]) == set()
    assert "bold" not in result_table(Group(few)).caption


def test_no_table_speaks_of_seconds():
    runs = [make_result(), make_result("wsn", seed=1)]
    for table in TABLES.values():
        assert not [column for column in table(Group(runs)).columns if column.unit == "s"]
