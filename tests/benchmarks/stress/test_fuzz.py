"""Damaged archives do no harm, and the command that says so would notice if they did."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace
from functools import partial

import pytest

from avalanche_compress import load_archive
from benchmarks.stress import archives as archives_module
from benchmarks.stress import fuzz
from benchmarks.stress.archives import ARCHIVES, digests_of
from benchmarks.stress.cases import EXACT, OUTCOMES, REFUSED, Case
from benchmarks.stress.examples import EXAMPLES, build_model, train
from benchmarks.stress.fuzz import TARGETS, main, make_case, run_case
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


@pytest.mark.parametrize(("kind", "count"), [("states", 60), ("results", 200), ("records", 100)])
def test_other_damaged_files_are_refused_or_do_no_harm(kind, count, tmp_path, recwarn):
    target = TARGETS[kind]
    files = target.examples()
    if kind == "states":
        files = {name: files[name] for name in ("packnet", "halrp")}
    expected = target.expect(files)
    for name, data in files.items():
        sound = run_case(Case(0, name, name, "none", data), expected, tmp_path, target)
        assert sound.outcome == EXACT
    results = [
        run_case(make_case(2, n, files, target), expected, tmp_path, target) for n in range(count)
    ]
    assert [result for result in results if result.outcome not in OUTCOMES] == []
    assert sum(result.outcome == REFUSED for result in results) > count // 3
    assert not list(tmp_path.iterdir())


def test_a_file_that_takes_too_long_counts_as_a_failure(archives, digests, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "LONGEST", 1e-6)
    case = Case(0, "wsn", "wsn", "truncated", archives["wsn"])
    assert "s of the processor" in run_case(case, digests, tmp_path).outcome


def test_time_and_memory_of_each_case_are_measured(tmp_path):
    def hungry(case, expected, folder):
        return EXACT if len(b"x" * 40_000_000) else ""

    target = replace(ARCHIVES, outcome=hungry)
    gc.collect()  # what other tests left would be freed within the case, and hide its peak
    result = run_case(Case(0, "a", "a", "none", b""), {}, tmp_path, target)
    assert result.outcome == EXACT
    assert 30 < result.megabytes < 80
    assert result.seconds > 0


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
    assert outcome not in OUTCOMES
    assert "silently" in outcome
    assert outcome_of("wsn", "sealed: stream", data, digests, tmp_path) in OUTCOMES


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RuntimeError("x")])
def test_an_error_that_is_not_named_counts_as_a_failure(
    error, archives, digests, tmp_path, monkeypatch
):
    def fail(*_):
        raise error

    monkeypatch.setattr(archives_module, "load_archive", fail)
    outcome = outcome_of("wsn", "truncated", archives["wsn"], digests, tmp_path)
    assert outcome not in OUTCOMES
    assert type(error).__name__ in outcome


def test_the_command_runs_in_a_process_of_its_own_and_counts(monkeypatch, capsys):
    monkeypatch.setattr(archives_module, "EXAMPLES", {"wsn": None, "cacl": None})
    assert main(["--count", "30", "--seed", "5", "--kinds", "archives"]) == 0
    printed = capsys.readouterr().out
    assert "2 archives" in printed
    assert "memory limit" in printed
    (total,) = [line.split() for line in printed.splitlines() if line.startswith("all ")]
    assert int(total[1]) == 30
    assert int(total[-1]) == 0


def work_badly(connection, seed, first, end, files, expected, kind):
    """What a process does that dies of the first case and hangs at the second."""
    connection.send("ready")
    if first == 0:
        os._exit(1)
    time.sleep(60)


def test_a_process_that_dies_or_hangs_is_a_failure_and_replaced(archives, monkeypatch):
    monkeypatch.setattr(fuzz, "_work", work_badly)
    monkeypatch.setattr(fuzz, "SECONDS", 3.0)
    results = list(fuzz.run(0, 0, 2, archives, {}))
    assert [result.number for result in results] == [0, 1]
    assert [result.outcome for result in results] == ["the process died", "not done after 3 s"]


@pytest.mark.parametrize(("name", "sparse"), [("packnet_wide", True), ("wsn_wide", False)])
def test_masks_of_wide_examples_are_coded_as_those_of_large_networks_are(
    name, sparse, archives, tmp_path
):
    (tmp_path / "file").write_bytes(archives[name])
    network = load_archive(tmp_path / "file", partial(build_model, name))
    (store,) = (store for store in network.weight_stores if store.name == "hidden.weight")
    wrote = [store.stored_values(task) for task in network.tasks]
    size = store.shape.numel()
    assert size >= 4096
    assert (max(wrote) * 16 <= size) is sparse
