"""Damaged archives do no harm, and the command that says so would notice if they did."""

from __future__ import annotations

import os
import time
from functools import partial

import pytest

from avalanche_compress import load_archive
from benchmarks.stress import fuzz
from benchmarks.stress.examples import EXAMPLES, build_model, train
from benchmarks.stress.fuzz import (
    EXACT,
    OUTCOMES,
    REFUSED,
    Case,
    digests_of,
    main,
    make_case,
    run_case,
)
from benchmarks.stress.mutations import parse


@pytest.fixture(scope="module")
def archives():
    return {name: train(name) for name in EXAMPLES}


@pytest.fixture(scope="module")
def digests(archives):
    return digests_of(archives)


def test_hundreds_of_damaged_archives_are_refused_or_do_no_harm(archives, digests, tmp_path):
    results = [run_case(make_case(1, n, archives), digests, tmp_path) for n in range(400)]
    assert [result for result in results if result.outcome not in OUTCOMES] == []
    assert sum(result.outcome == REFUSED for result in results) > 250
    assert max(result.seconds for result in results) < fuzz.SECONDS
    assert {result.example for result in results} == set(EXAMPLES)


def test_a_case_is_the_same_whenever_it_is_made(archives):
    assert make_case(3, 14, archives) == make_case(3, 14, archives)
    assert make_case(3, 14, archives).data != make_case(4, 14, archives).data


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_archive_that_is_taken_apart_and_sealed_again_is_the_same_network(
    name, archives, digests, tmp_path
):
    data = parse(archives[name]).sealed()
    assert run_case(Case(0, name, name, "truncated", data), digests, tmp_path).outcome == EXACT


def outcome_of(example, mutation, data, digests, folder):
    return run_case(Case(0, example, example, mutation, data), digests, folder).outcome


def test_other_weights_without_a_new_checksum_count_as_a_failure(archives, digests, tmp_path):
    data = archives["packnet"]
    outcome = outcome_of("wsn", "bits flipped", data, digests, tmp_path)
    assert outcome not in OUTCOMES and "silently" in outcome
    assert outcome_of("wsn", "sealed: stream", data, digests, tmp_path) in OUTCOMES


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RuntimeError("x")])
def test_an_error_that_is_not_named_counts_as_a_failure(
    error, archives, digests, tmp_path, monkeypatch
):
    def fail(*_):
        raise error

    monkeypatch.setattr(fuzz, "load_archive", fail)
    outcome = outcome_of("wsn", "truncated", archives["wsn"], digests, tmp_path)
    assert outcome not in OUTCOMES and type(error).__name__ in outcome


def test_the_command_runs_in_a_process_of_its_own_and_counts(monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "EXAMPLES", {"wsn": None, "cacl": None})
    assert main(["--count", "30", "--seed", "5"]) == 0
    printed = capsys.readouterr().out
    assert "2 archives" in printed and "memory limit" in printed
    (total,) = [line.split() for line in printed.splitlines() if line.startswith("all ")]
    assert int(total[1]) == 30 and int(total[-1]) == 0


def work_badly(connection, seed, first, end, archives, digests):
    """What a process does that dies of the first case and hangs at the second."""
    connection.send("ready")
    if first == 0:
        os._exit(1)
    time.sleep(60)


def test_a_process_that_dies_or_hangs_is_a_failure_and_replaced(archives, monkeypatch):
    monkeypatch.setattr(fuzz, "_work", work_badly)
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    results = list(fuzz.run(0, 0, 2, archives, {}))
    assert [result.number for result in results] == [0, 1]
    assert [result.outcome for result in results] == ["the process died", "not done after 0.5 s"]


@pytest.mark.parametrize(("name", "sparse"), [("packnet_wide", True), ("wsn_wide", False)])
def test_masks_of_wide_examples_are_coded_as_those_of_large_networks_are(
    name, sparse, archives, tmp_path
):
    (tmp_path / "file").write_bytes(archives[name])
    network = load_archive(tmp_path / "file", partial(build_model, name))
    (store,) = (own for own in network.weight_stores if own.name == "hidden.weight")
    wrote = [store.stored_values(task) for task in network.tasks]
    size = store.shape.numel()
    assert size >= 4096 and (max(wrote) * 16 <= size) is sparse
