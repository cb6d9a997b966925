"""What is written of a comparison, and what is drawn again."""

import pytest
from benchmarks_for_tests import make_result, reordered

from benchmarks.report.command import (
    failures_in,
    main,
    markdown_tables,
    text_tables,
    write_report,
)
from benchmarks.runs.results import write_results
from benchmarks.runs.store import NAME, Store


def test_markdown_has_a_row_per_strategy_and_a_table_per_stream(tmp_path):
    runs = [make_result(), make_result("wsn"), make_result(stream="split_mnist")]
    lines = markdown_tables(runs[:2]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.count("|") for line in table} == {8}
    write_report(runs, tmp_path)
    assert (tmp_path / "table.md").read_text().count("###") == 2


def test_markdown_has_means_with_deviations_and_what_is_told_from_the_rest_in_bold():
    runs = [make_result(seed=seed, accuracy=0.9 + seed / 100) for seed in range(7)]
    runs += [make_result("wsn", seed=seed, accuracy=0.8) for seed in range(7)]
    text = markdown_tables(runs)
    assert "| naive | **93.00 ± 2.16** |" in text
    assert "| wsn | 80.00 ± 0.00 |" in text
    assert "bold: the best mean accuracy" in text
    assert "**" not in markdown_tables([run for run in runs if run.seed < 3])


def test_markdown_has_a_table_of_orders_where_there_are_several():
    runs = [make_result(), make_result(seed=1), reordered()]
    text = markdown_tables(runs)
    assert "mean ± deviation of 2 seeds in 2 task orders" in text
    assert "| strategy | order 0 % | order 1 % |" in text
    assert "AOPD pp" in text
    assert "R task orders" in text
    assert "order" not in markdown_tables([make_result()])


def test_markdown_has_a_table_of_layers_where_something_is_known_of_them():
    runs = [make_result(), make_result("cacl", ranks={"body.1.weight": [4, 1]})]
    assert "### split_digits: layers" in markdown_tables(runs)
    assert "layer" not in markdown_tables(runs[:1])


def test_the_terminal_has_a_table_per_scenario_and_one_for_both():
    runs = [make_result(), make_result(scenario="class", accuracy=0.2)]
    titles = [table.title for table in text_tables(runs)]
    assert titles == [
        "split_digits: 2 tasks, mlp, 20 epochs, seed 0",
        "split_digits (class scenario): 2 tasks, mlp, 20 epochs, seed 0",
        "split_digits: both scenarios",
    ]


def test_stored_results_are_drawn_again_with_orders_only_where_there_are_several(tmp_path):
    write_results([make_result()], tmp_path / "a.json")
    write_results([reordered()], tmp_path / "b.json")
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert main([files[0], "--out", str(tmp_path / "one")]) == 0
    assert main([*files, "--out", str(tmp_path / "two")]) == 0
    one, two = ({path.name for path in (tmp_path / d).iterdir()} for d in ("one", "two"))
    names = ("order_robustness", "matrix-split_digits-naive-seed0-order1")
    assert two - one == {f"{name}.{form}" for name in names for form in ("png", "svg")}
    assert {"table.md", "report.html"} <= one


def test_stored_ranks_are_drawn_again(tmp_path):
    runs = [make_result(), make_result("cacl", ranks={"a.weight": [4, 1]})]
    write_results(runs, tmp_path / "a.json")
    assert main([str(tmp_path / "a.json"), "--out", str(tmp_path / "out")]) == 0
    drawn = {path.name for path in (tmp_path / "out").glob("ranks-*.png")}
    assert drawn == {"ranks-split_digits-cacl-seed0.png"}


def test_one_streams_tables_come_out_of_a_store_of_many(tmp_path, capsys):
    store = Store(tmp_path / NAME)
    for stream in ("split_digits", "split_mnist"):
        store.add(make_result(stream=stream))
        store.add(make_result(stream=stream, quick=True, epochs=2))
        error = tmp_path / "errors" / f"{stream}-class-wsn-energy-seed0.txt"
        error.parent.mkdir(exist_ok=True)
        error.write_text(f"Traceback\nValueError: {stream} went wrong\n\n")
    out = tmp_path / "drawn"
    assert main([str(store.path), "--streams", "split_mnist", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "### split_mnist: 2 tasks, mlp, 20 epochs" in printed
    assert "### split_mnist (quick): 2 tasks, mlp, 2 epochs" in printed
    assert "split_digits" not in printed
    assert (out / "table.md").read_text() == printed[:-1]
    page = (out / "report.html").read_text()
    assert "split_mnist-class-wsn-energy-seed0" in page
    assert "split_digits" not in page


def test_a_failure_is_the_last_line_of_its_traceback(tmp_path):
    assert failures_in(tmp_path) == {}
    (tmp_path / "errors").mkdir()
    (tmp_path / "errors" / "b.txt").write_text("Traceback\n  File\nValueError: too wide\n")
    (tmp_path / "errors" / "a.txt").write_text("")
    assert failures_in(tmp_path) == {"a": "", "b": "ValueError: too wide"}


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(SystemExit):
        main([str(tmp_path / NAME), "--streams", "split_mnist", "--out", str(tmp_path)])
