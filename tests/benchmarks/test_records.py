"""Records kept as text, and the tables made from them."""

from __future__ import annotations

import json

import pytest
from benchmarks_for_tests import make_result

from benchmarks.records import (
    DOCUMENTS,
    RECORDS,
    RecordsError,
    main,
    merge,
    read_records,
    write_records,
    write_tables,
)
from benchmarks.report.command import markdown_tables
from benchmarks.runs.store import NAME, Store

RUNS = [
    make_result(strategy="naive", seed=0, accuracy=0.9),
    make_result(strategy="wsn", seed=0, accuracy=0.95, archive_bytes=100, ranks={"a": [1, 2]}),
    make_result(strategy="naive", seed=1, accuracy=0.8),
    make_result(strategy="naive", stream="split_mnist", epochs=3, accuracy=0.7),
]

TEXT = "before\n<!-- table: split_digits -->\n<!-- end -->\nafter ± 0.5\n"


@pytest.fixture
def files(tmp_path):
    """A store, records and a document with a table of split_digits between two lines."""
    store = Store(tmp_path / NAME)
    for run in RUNS:
        store.add(run)
    document = tmp_path / "RESULTS.md"
    document.write_text(TEXT, encoding="utf-8")
    return store, tmp_path / "records.jsonl", document


def run_main(files, *arguments):
    _, records, document = files
    return main([*arguments, "--records", str(records), "--documents", str(document)])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_of_the_documents_are_those_of_the_records(document):
    text = document.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert write_tables(text, read_records(RECORDS)) == text


def test_records_come_back_as_they_were_and_in_one_order(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(reversed(RUNS), path)
    first = path.read_bytes()
    assert read_records(path) == RUNS
    write_records(RUNS, path)
    assert path.read_bytes() == first
    assert [json.loads(line)["strategy"] for line in path.read_text().splitlines()] == [
        run.strategy for run in RUNS
    ]


def test_a_new_run_changes_its_own_line_only(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(RUNS, path)
    before = path.read_text().splitlines()
    changed = make_result(strategy="wsn", seed=0, accuracy=0.99, recipe="another")
    added = make_result(strategy="wsn", seed=1)
    write_records(merge(read_records(path), [changed, added]), path)
    after = path.read_text().splitlines()
    assert len(after) == len(before) + 1
    assert len(set(before) & set(after)) == len(before) - 1
    assert [run.accuracy for run in read_records(path) if run.strategy == "wsn"] == [0.99, 0.9]


def test_runs_that_were_cut_down_are_not_taken_over_and_other_epochs_stand_beside():
    assert merge(RUNS, [make_result(quick=True, epochs=2)]) == RUNS
    assert len(merge(RUNS, [make_result(variant="bits 4")])) == len(RUNS) + 1
    assert len(merge(RUNS, [make_result(epochs=2)])) == len(RUNS) + 1


def test_one_command_takes_over_a_store_and_writes_the_tables(files, capsys):
    store, records, document = files
    assert run_main(files, str(store.path)) == 0
    assert "4 runs in" in capsys.readouterr().out
    assert read_records(records) == RUNS
    text = document.read_text("utf-8")
    start, table, end = text.partition(markdown_tables(RUNS[:3]))
    assert (start, end) == (
        "before\n<!-- table: split_digits -->\n\n",
        "\n<!-- end -->\nafter ± 0.5\n",
    )
    assert "85.00 ± 7.07" in table
    kept = records.read_bytes()
    store.path.unlink()
    assert run_main(files) == 0
    assert (document.read_text("utf-8"), records.read_bytes()) == (text, kept)


def test_a_stream_can_be_taken_over_alone(files):
    store, records, _ = files
    assert run_main(files, str(store.path), "--streams", "split_digits") == 0
    assert {run.stream for run in read_records(records)} == {"split_digits"}


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("split_digits", RUNS[:3]),
        ("split_digits seed=0", RUNS[:2]),
        ("split_digits seed=0,1 strategy=naive", [RUNS[0], RUNS[2]]),
        ("split_digits epochs=20 scenario=task archive_bytes=None", [RUNS[0], RUNS[2]]),
    ],
)
def test_a_mark_says_which_runs_a_table_has(mark, expected):
    written = write_tables(f"<!-- table: {mark} --><!-- end -->".replace("--><", "-->\n<"), RUNS)
    assert markdown_tables(expected) in written
    assert written.count("### split_digits: 2 tasks") == 1


def test_runs_of_other_lengths_have_a_table_of_their_own():
    runs = [RUNS[0], make_result(epochs=2)]
    written = write_tables("<!-- table: split_digits -->\n<!-- end -->", runs)
    assert written.count("### split_digits: 2 tasks") == 2
    assert write_tables(written, runs) == written


def test_a_mark_says_which_tables_are_shown():
    runs = [make_result("cacl", ranks={"a.weight": [4, 1]})]
    whole = write_tables("<!-- table: split_digits -->\n<!-- end -->", runs)
    short = write_tables("<!-- table: split_digits show=results -->\n<!-- end -->", runs)
    assert "### split_digits: layers" in whole
    assert "layers" not in short
    assert "### split_digits: 2 tasks" in short


def test_a_table_does_not_mix_recipes():
    runs = [
        make_result(recipe="a"),
        make_result(seed=1, recipe="b"),
        make_result("wsn", recipe="c"),
    ]
    text = "<!-- table: split_digits -->\n<!-- end -->"
    with pytest.raises(RecordsError, match=r"naive on split_digits has runs of 2 recipes: .*=a,b"):
        write_tables(text, runs)
    assert "seed 1" in write_tables(
        text.replace("digits", "digits recipe=b,c strategy=naive"), runs
    )
    assert write_tables(text, [runs[0], runs[2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: split_cifar -->\n<!-- end -->", "split_cifar -->: there are no such runs"),
        ("<!-- table: split_digits seed=7 -->\n<!-- end -->", "there are no such runs"),
        ("<!-- table: split_digits sed=0 -->\n<!-- end -->", "no 'sed'; the nearest is 'seed'"),
        (
            "<!-- table: split_digits show=all -->\n<!-- end -->",
            "tables have no 'all'; the nearest",
        ),
        ("<!-- table: split_digits -->\n", "needs a line, and an <!-- end -->"),
        (
            "<!-- table: split_digits -->\n<!-- table: split_mnist -->\n<!-- end -->\n<!-- end -->",
            "needs a line, and an <!-- end --> of its own",
        ),
    ],
)
def test_marks_that_mean_nothing_are_refused_before_anything_is_written(
    files, text, message, capsys
):
    with pytest.raises(RecordsError, match=message):
        write_tables(text, RUNS)
    store, records, document = files
    document.write_text(text)
    with pytest.raises(SystemExit):
        run_main(files, str(store.path))
    assert message in capsys.readouterr().err
    assert document.read_text() == text
    assert not records.exists()


VARIANTS = [
    make_result("ada_qpacknet", variant=variant, seed=seed, accuracy=accuracy + 0.02 * seed)
    for variant, accuracy in [("bits auto", 0.9), ("bits 2", 0.8), ("bits 4", 0.91)]
    for seed in (0, 1)
]


def test_variants_have_a_table_of_their_own_and_are_in_no_other():
    text = "<!-- table: split_digits -->\n<!-- end -->\n"
    alone = write_tables(text, RUNS)
    text += "<!-- ablation: split_digits show=bits -->\n<!-- end -->"
    written = write_tables(text, [*RUNS, *VARIANTS])
    assert written.startswith(alone)
    rows = [line for line in written.splitlines() if line.startswith("| ada_qpacknet |")]
    assert [row.split(" | ")[1] for row in rows] == ["bits auto", "bits 2", "bits 4"]
    assert "| -10.00 ± 0.00 | 0.500 |" in rows[1]
    assert write_tables(written, [*RUNS, *VARIANTS]) == written


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("split_digits show=bit", "ablations have no 'bit'; the nearest is 'bits'"),
        ("split_digits show=bits variant=", "no such runs"),
        ("split_digits", "show= names no ablation"),
    ],
)
def test_a_mark_of_ablations_that_means_nothing_is_refused(mark, message):
    with pytest.raises(RecordsError, match=message):
        write_tables(f"<!-- ablation: {mark} -->\n<!-- end -->", VARIANTS)


def test_an_ablation_is_of_runs_of_one_length():
    runs = [*VARIANTS, make_result("ada_qpacknet", variant="bits 2", epochs=2)]
    text = "<!-- ablation: split_digits show=bits -->\n<!-- end -->"
    with pytest.raises(RecordsError, match="choose runs of one kind"):
        write_tables(text, runs)
    assert write_tables(text.replace("digits", "digits epochs=20"), runs)


@pytest.mark.parametrize("line", ["{", '{"strategy": "naive"}', '{"unknown": 1}'])
def test_a_line_that_is_no_run_is_named(tmp_path, line):
    path = tmp_path / "records.jsonl"
    write_records(RUNS, path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordsError, match=r"records\.jsonl, line 5 is no run"):
        read_records(path)


def test_a_store_without_runs_is_an_error(files, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_main(files, str(tmp_path / "missing.sqlite"))
    assert "no runs of any stream in" in capsys.readouterr().err
