"""The fields of a run, its names and results.json."""

import dataclasses
import json
import re
from importlib import metadata

import pytest

from benchmarks.runs.accuracies import backward_transfer, final_accuracy, forgetting
from benchmarks.runs.reading import read_results
from benchmarks.runs.results import (
    RunKey,
    RunResult,
    hardware,
    versions,
    write_results,
)

KEYS = [
    "strategy",
    "stream",
    "backbone",
    "seed",
    "order",
    "accuracy",
    "accuracy_matrix",
    "forgetting",
    "bwt",
    "archive_bytes",
    "stored_bytes",
    "independent_bytes",
    "train_seconds",
    "eval_seconds",
    "versions",
    "epochs",
    "train_mb_size",
    "scenario",
    "task_inference",
    "task_id_accuracy",
    "order_index",
    "ranks",
    "quick",
    "recipe",
    "device",
    "archive_sha256",
    "own_backbone",
    "densities",
    "bits",
    "hardware",
    "bf16",
    "memory_bytes",
    "refused",
    "refused_before",
    "variant",
]

MATRIX = [
    [0.9, None, None],
    [0.95, 0.8, None],
    [0.7, 0.85, 0.6],
]


def make_result(**changes):
    result = RunResult(
        strategy="naive",
        stream="split_digits",
        backbone="mlp",
        seed=0,
        order=[0, 1, 2],
        accuracy=final_accuracy(MATRIX),
        accuracy_matrix=MATRIX,
        forgetting=forgetting(MATRIX),
        bwt=backward_transfer(MATRIX),
        archive_bytes=None,
        stored_bytes=500,
        independent_bytes=1000,
        train_seconds=1.0,
        eval_seconds=0.5,
        versions=versions(),
        epochs=2,
        train_mb_size=16,
    )
    return dataclasses.replace(result, **changes)


def test_results_json_has_the_promised_keys_and_reads_back(tmp_path):
    path = tmp_path / "new" / "results.json"
    ranked = make_result(strategy="cacl", ranks={"body.1.weight": [3, 1, 0]})
    results = [make_result(), make_result(strategy="joint", forgetting=None, bwt=None), ranked]
    write_results(results, path)
    entries = json.loads(path.read_text())
    assert [list(entry) for entry in entries] == [KEYS] * 3
    assert entries[0]["accuracy_matrix"][0] == [0.9, None, None]
    assert read_results(path) == results


@pytest.mark.parametrize("first_new_key", ["scenario", "order_index", "ranks", "densities"])
def test_results_from_before_there_were_some_of_the_keys_are_read(first_new_key, tmp_path):
    path = tmp_path / "results.json"
    write_results([make_result()], path)
    known = KEYS[: KEYS.index(first_new_key)]
    old = [{k: v for k, v in e.items() if k in known} for e in json.loads(path.read_text())]
    path.write_text(json.dumps(old))
    assert read_results(path) == [make_result()]


def test_versions_name_everything_the_numbers_depend_on():
    names = {"python", "torch", "torchvision", "avalanche-lib", "numpy", "avalanche_compress"}
    assert set(versions()) == names
    assert all(versions().values())


def test_versions_are_looked_up_once_and_belong_to_whoever_asks(monkeypatch):
    before = versions()
    monkeypatch.setattr(metadata, "version", lambda name: pytest.fail(f"{name} is looked up"))
    asked = versions()
    asked["torch"] = "0.0"
    assert versions() == before


def test_the_processor_has_a_name_and_its_cores_are_counted():
    assert re.fullmatch(r".*\w.*, \d+ cores", hardware("cpu"))


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results([make_result()], path)
    before = path.read_text()

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results([make_result(), make_result()], path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_archive_is_compared_where_there_is_one():
    assert make_result().ratio == 0.5
    assert make_result(archive_bytes=100).ratio == 0.1


def test_only_orders_other_than_the_canonical_one_have_names_of_their_own():
    plain = RunKey("wsn", "split_digits", 3, "class", "energy")
    first, second = (dataclasses.replace(plain, order_index=index) for index in (0, 1))
    assert (plain.slug, str(plain)) == (first.slug, str(first))
    assert plain.slug == "split_digits-class-wsn-energy-seed3"
    assert second.slug == "split_digits-class-wsn-energy-seed3-order1"
    assert str(second) == "wsn, energy on split_digits (class scenario), seed 3, order 1"
    assert make_result(order_index=4).key.order_index == 4
