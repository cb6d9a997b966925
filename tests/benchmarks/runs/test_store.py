"""The store: identities, order, and several writers at once."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sqlite3
from contextlib import closing, suppress

import pytest
from benchmarks_for_tests import make_result

from benchmarks.runs.reading import ResultsError
from benchmarks.runs.store import NAME, Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / NAME)


def test_what_was_added_is_found_by_its_identity_only(store):
    result = make_result(recipe="aa", ranks={"body.1.weight": [1, 2]}, task_inference="energy")
    store.add(result)
    assert store.find(result.key, result.epochs, "aa") == result
    assert store.find(result.key, result.epochs, "bb") is None
    assert store.find(result.key, result.epochs + 1, "aa") is None
    for change in ({"seed": 1}, {"quick": True}, {"order_index": 1}, {"scenario": "class"}):
        assert store.find(dataclasses.replace(result.key, **change), result.epochs, "aa") is None


def test_the_same_run_is_stored_once(store):
    store.add(make_result(accuracy=0.5))
    store.add(make_result(accuracy=0.6))
    assert [run.accuracy for run in store.results()] == [0.6]


def test_of_several_recipes_the_last_one_counts_and_none_is_lost(store):
    old, new = make_result(recipe="aa", accuracy=0.5), make_result(recipe="bb", accuracy=0.6)
    store.add(old)
    store.add(new)
    assert store.results() == [new]
    assert store.find(old.key, old.epochs, "aa") == old


def test_results_come_in_the_order_of_the_registries(store):
    for strategy, seed in [("joint", 0), ("gone", 0), ("naive", 1), ("wsn", 0), ("naive", 0)]:
        store.add(make_result(strategy=strategy, seed=seed))
    found = [(run.strategy, run.seed) for run in store.results()]
    assert found == [("naive", 0), ("wsn", 0), ("joint", 0), ("gone", 0), ("naive", 1)]


def test_a_store_that_nobody_wrote_is_empty_and_makes_no_file(store):
    assert store.results() == []
    assert not store.path.exists()


def write_some(path, writer, count):
    for seed in range(count):
        Store(path).add(make_result(strategy=f"writer{writer}", seed=seed))
        Store(path).results()


def test_concurrent_writers_lose_nothing(store):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_some, args=(store.path, w, 20)) for w in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert len({run.key for run in store.results()}) == 80


def test_a_schema_that_is_no_text_is_named(store):
    """Whatever byte of it is damaged; SQLite quotes it in its message."""
    store.add(make_result())
    with closing(sqlite3.connect(str(store.path))) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    data = store.path.read_bytes()
    start = data.index(b"CREATE TABLE")
    for place in range(start - 8, start + 60):
        for byte in (0x81, 0xFF):
            store.path.write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
            with suppress(ResultsError):
                store.results()
