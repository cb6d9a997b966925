"""Results of other people: every field is checked, and no name becomes a path elsewhere."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from benchmarks_for_tests import make_result
from hypothesis import given
from hypothesis import strategies as st

from avalanche_compress.errors import LONGEST_MESSAGE
from benchmarks import records
from benchmarks.report import command as report
from benchmarks.runs.checkpoints import Measured, open_history, write_history
from benchmarks.runs.reading import ResultsError, check_together, read_results, result_of
from benchmarks.runs.results import RunResult, write_results
from benchmarks.runs.store import NAME, Store

ESCAPES = [
    "x/../../../../elsewhere/name",
    "/etc/name",
    "..",
    "../x",
    "a\\..\\b",
    "x" * 190,
    "C:name",
    "a*[b]?",
]
WRONG = [
    ("strategy", None),
    ("strategy", "x" * 10_000),
    ("stream", "two\nlines"),
    ("backbone", 3),
    ("seed", -1),
    ("seed", True),
    ("seed", 1 << 70),
    ("order", [0, 0]),
    ("order", [1, 2]),
    ("order", [0, "1"]),
    ("order", []),
    ("accuracy", math.nan),
    ("accuracy", 1.5),
    ("accuracy_matrix", []),
    ("accuracy_matrix", [[0.9]]),
    ("accuracy_matrix", [[0.9, 0.9]]),
    ("accuracy_matrix", [[0.9, 0.9]] * 3),
    ("accuracy_matrix", [[0.9, None], [0.9, None]]),
    ("accuracy_matrix", [[0.9, None], [0.9, math.inf]]),
    ("accuracy_matrix", [[0.9, None], "ab"]),
    ("forgetting", -3),
    ("bwt", "0"),
    ("archive_bytes", 1.5),
    ("stored_bytes", -1),
    ("independent_bytes", 0),
    ("train_seconds", math.inf),
    ("eval_seconds", -1.0),
    ("versions", {"torch": 2}),
    ("epochs", 0),
    ("train_mb_size", None),
    ("task_id_accuracy", 2),
    ("order_index", -1),
    ("ranks", {"a": [1]}),
    ("ranks", {"a": [1, None]}),
    ("ranks", {"a": 1}),
    ("densities", {"a": [0.5, 1.5]}),
    ("bits", {"a": [4, math.nan]}),
    ("memory_bytes", -1),
    ("refused", [0.1, 1.5]),
    ("refused_before", [0.1]),
    ("quick", 1),
    ("another", 1),
]


def entry(**changes):
    return {**asdict(make_result()), **changes}


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:20])
def test_a_field_that_no_run_has_is_named_wherever_it_is_read(name, value, tmp_path):
    wrong = entry(**{name: value})
    with pytest.raises(ResultsError, match=r"a file is no run") as caught:
        result_of(wrong, "a file")
    assert len(str(caught.value)) <= LONGEST_MESSAGE
    assert "\n" not in str(caught.value)
    path = tmp_path / "results.json"
    path.write_text(json.dumps([entry(), wrong]))
    with pytest.raises(ResultsError, match=r"results\.json, entry 1"):
        read_results(path)
    lines = tmp_path / "records.jsonl"
    lines.write_text(json.dumps(entry()) + "\n" + json.dumps(wrong) + "\n")
    with pytest.raises(records.RecordsError, match=r"records\.jsonl, line 2"):
        records.read_records(lines)
    store = Store(tmp_path / NAME)
    store.add(make_result())
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE runs SET record = ?", (json.dumps(wrong),))
    with pytest.raises(ResultsError, match=NAME):
        store.results()


@pytest.mark.parametrize("name", [field for field in entry() if field in "strategy order epochs"])
def test_a_field_that_is_missing_is_named(name):
    wrong = entry()
    del wrong[name]
    with pytest.raises(ResultsError, match=f"it has no {name}"):
        result_of(wrong, "a file")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(entry())), json_values)
def test_any_value_of_any_field_is_a_run_or_is_refused_by_name(name, value):
    said = "a file is no run"
    try:
        assert isinstance(result_of(entry(**{name: value}), "a file"), RunResult)
    except ResultsError as error:
        said = str(error)
    assert said.startswith("a file is no run")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"{}", b"[3]", b"[" * 100_000, b"\xff\xfe", b"[NaN]", b'[{"seed": ' + b"9" * 5000],
    ids=lambda text: str(text[:6]),
)
def test_a_file_that_is_no_list_of_runs_is_one_line_that_names_it(text, tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_bytes(text)
    with pytest.raises(ResultsError, match=r"results\.json"):
        read_results(path)
    with pytest.raises(SystemExit) as caught:
        report.main([str(path), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert "results.json" in said[-1]


@pytest.mark.parametrize("damage", ["text", "cut", "folder", "table"])
def test_a_damaged_store_is_one_line_that_names_it(damage, tmp_path, capsys):
    path = tmp_path / NAME
    store = Store(path)
    store.add(make_result())
    if damage == "text":
        path.write_bytes(b"no database" * 1000)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("ALTER TABLE runs RENAME COLUMN record TO other")
    for call in (store.results, lambda: store.add(make_result())):
        with pytest.raises(ResultsError, match=NAME):
            call()
    with pytest.raises(SystemExit):
        report.main([str(path), "--out", str(tmp_path / "out")])
    assert NAME in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("record", [None, 3, b"\x80", "[" * 100_000, "{}"], ids=str)
def test_a_record_of_a_store_that_is_none_is_named(record, tmp_path):
    store = Store(tmp_path / NAME)
    store.add(make_result())
    with sqlite3.connect(store.path) as connection:
        connection.execute("CREATE TABLE other AS SELECT * FROM runs")
        connection.execute("DROP TABLE runs")
        connection.execute("CREATE TABLE runs AS SELECT * FROM other")
        connection.execute("UPDATE runs SET record = ?", (record,))
    with pytest.raises(ResultsError, match=NAME):
        store.results()


def outside(base, out):
    return {path for path in base.rglob("*") if path != out and out not in path.parents}


@pytest.mark.parametrize(
    ("field", "name"),
    [
        *((field, ESCAPES[0]) for field in ("strategy", "backbone", "task_inference", "scenario")),
        *(("stream", name) for name in ESCAPES[:3]),
    ],
)
def test_no_name_of_anybodys_results_becomes_a_path_elsewhere(field, name, tmp_path, monkeypatch):
    source, out = tmp_path / "in" / "results.json", tmp_path / "a" / "b" / "out"
    out.mkdir(parents=True)
    runs = [make_result(**{field: name, "own_backbone": False}), make_result(seed=1)]
    write_results(runs, source)
    monkeypatch.chdir(tmp_path / "a")
    before = outside(tmp_path, out)
    assert report.main([str(source), "--out", str(out)]) == 0
    assert outside(tmp_path, out) == before
    assert not [path for path in out.iterdir() if path.is_dir()]
    assert len(list(out.glob("matrix-*.png"))) == 2


def test_other_names_have_other_files_and_the_usual_names_stay():
    keys = [make_result(stream=name).key for name in (*ESCAPES, "x_.._.._.._.._elsewhere_name")]
    assert len({key.slug for key in keys}) == len(keys)
    assert all(len(key.slug) < 200 and Path(key.slug).name == key.slug for key in keys)
    assert make_result().key.slug == "split_digits-naive-seed0"


def test_runs_of_other_numbers_of_tasks_do_not_stand_in_one_table(tmp_path, capsys):
    other = make_result(seed=1, order=[0], accuracy_matrix=[[0.5]])
    with pytest.raises(ResultsError, match=r"seed 0 has 2 tasks and .* seed 1 has 1"):
        check_together([make_result(), other])
    write_results([make_result(), other], tmp_path / "results.json")
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "out")])
    assert "cannot stand in one table" in capsys.readouterr().err


def test_runs_with_other_layers_stand_in_one_table(tmp_path):
    runs = [make_result("wsn", seed=s, densities={f"l{s}": [0.1, 0.2]}) for s in range(2)]
    runs.append(replace(runs[0], seed=2, ranks={"a": [1, 2]}))
    write_results(runs, tmp_path / "results.json")
    assert report.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "out")]) == 0


PROGRESS = [
    b"{",
    b"[]",
    b"[" * 100_000,
    b'{"versions": VERSIONS}',
    b'{"versions": VERSIONS, "tasks": [{}]}',
    b'{"versions": VERSIONS, "tasks": [{"accuracies": [2], "task_ids": [], "train_seconds": 1, '
    b'"eval_seconds": 1}]}',
    b'{"versions": VERSIONS, "tasks": [{"accuracies": [1], "task_ids": [], "train_seconds": NaN, '
    b'"eval_seconds": 1}]}',
]


@pytest.mark.parametrize("text", PROGRESS, ids=lambda text: str(text[-30:]))
def test_damaged_progress_is_named_with_what_to_do(text, tmp_path):
    write_history([Measured([0.5, None], [None, None], 1.0, 2.0, [None, 0.9])], tmp_path)
    assert len(open_history(tmp_path)) == 1
    path = tmp_path / "progress.json"
    versions = json.dumps(json.loads(path.read_text())["versions"]).encode()
    path.write_bytes(text.replace(b"VERSIONS", versions))
    with pytest.raises(ResultsError, match=r"progress\.json"):
        open_history(tmp_path)
