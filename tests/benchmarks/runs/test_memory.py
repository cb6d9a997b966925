"""How many runs are done at a time: as many as cores, and as fit into memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import compare
from benchmarks.data.streams import STREAMS, StreamRequest, build_stream
from benchmarks.runs import comparison, memory
from benchmarks.runs.backbones import BACKBONES
from benchmarks.runs.memory import PROCESS_BYTES, available_bytes, run_bytes

GIGABYTE = 10**9
SEEDS = ["--seeds", *map(str, range(9)), "--strategies", "wsn"]


@pytest.fixture
def machine(monkeypatch):
    """Sets how many cores there are, and how much memory is free."""

    def have(cores, free):
        monkeypatch.setattr(comparison.os, "cpu_count", lambda: cores)
        monkeypatch.setattr(comparison, "available_bytes", lambda: free)

    return have


@pytest.mark.parametrize(
    ("free", "stream", "workers"),
    [
        (64 * GIGABYTE, "split_digits", 8),
        (4 * GIGABYTE, "split_digits", 4),
        (4 * GIGABYTE, "split_cifar100_20", 2),
        (GIGABYTE // 2, "split_digits", 1),
        (None, "split_digits", 8),
    ],
)
def test_as_many_runs_at_a_time_as_fit_into_memory(free, stream, workers, machine, capsys):
    machine(8, free)
    assert compare.parse(["--streams", stream, *SEEDS]).workers == workers
    assert capsys.readouterr().err == ""


def test_the_largest_stream_decides(machine):
    machine(8, 4 * GIGABYTE)
    both = ["--streams", "split_digits", "split_cifar100_20"]
    assert compare.parse([*both, *SEEDS]).workers == 2


def test_more_than_fit_are_done_when_asked_for_with_a_warning(machine, capsys):
    machine(8, 4 * GIGABYTE)
    assert compare.parse(["--workers", "6", *SEEDS]).workers == 6
    said = capsys.readouterr().err
    assert said.startswith("warning: 6 runs at a time may need 5.4 GB, ")
    assert said.endswith("give --workers 4.\n")
    assert compare.parse(["--workers", "4", *SEEDS]).workers == 4
    compare.parse(["--workers", "6", "--strategies", "wsn", "naive"])  # there are no more runs
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stream", ["split_digits", "permuted_digits", "recurring_digits"])
def test_the_registry_knows_how_large_the_data_are(stream):
    built, size = build_stream(StreamRequest(stream, Path())), STREAMS[stream].size
    tasks = [len(experience.dataset) for experience in built.benchmark.train_stream]
    assert (built.input_shape, max(tasks)) == (size.shape, size.task_images)
    assert size.images == 1797


@pytest.mark.parametrize(
    ("stream", "peak"), [("split_cifar100_20", 1.61), ("split_cifar100_10", 1.67)]
)
def test_the_estimate_is_at_least_what_was_measured_and_not_much_more(stream, peak):
    entry = STREAMS[stream]
    assert peak <= run_bytes(stream, entry.backbone, entry.budget) / 1e9 < 1.25 * peak


def test_larger_batches_and_networks_need_more_and_strange_ones_are_not_judged(monkeypatch):
    budget = STREAMS["split_cifar100_20"].budget
    small = run_bytes("split_cifar100_20", "cacl_net", budget)
    assert run_bytes("split_cifar100_20", "cacl_net", replace(budget, train_mb_size=256)) > small
    assert run_bytes("split_cifar100_20", "alexnet", budget) > small
    # a network for larger images, which its runs refuse by name
    assert run_bytes("split_digits", "alexnet", budget) == PROCESS_BYTES
    monkeypatch.setitem(STREAMS, "somebodys", replace(STREAMS["split_digits"], size=None))
    assert run_bytes("somebodys", "mlp", budget) == PROCESS_BYTES


def test_what_layers_give_is_counted_for_one_sample():
    with torch.device("meta"):
        model = BACKBONES["mlp"]((1, 8, 8), 10, False)
    assert memory._output_bytes(model, (1, 8, 8)) == [4 * n for n in (64, 100, 100, 100, 100, 10)]


def test_free_memory_is_the_machines_or_that_of_the_container(tmp_path):
    assert available_bytes(tmp_path) is None
    table, group = tmp_path / "proc" / "meminfo", tmp_path / "sys" / "fs" / "cgroup"
    table.parent.mkdir()
    table.write_text("MemTotal:       100 kB\nMemFree:        10 kB\nMemAvailable:   50 kB\n")
    assert available_bytes(tmp_path) == 50 * 1024
    group.mkdir(parents=True)
    (group / "memory.stat").write_text("anon 8192\nfile 999999\n")
    (group / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 50 * 1024
    (group / "memory.max").write_text("20480\n")
    assert available_bytes(tmp_path) == 12288
