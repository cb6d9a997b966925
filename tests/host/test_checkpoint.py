"""What save_checkpoint and load_checkpoint promise: the same numbers, or a named error."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, confusion_matrix_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, ReplayPlugin
from disk_for_tests import largest_file
from torch import nn

from avalanche_compress.host.checkpoint import (
    CheckpointError,
    _device_map,
    _importable_optimizers,
    load_checkpoint,
    save_checkpoint,
)
from avalanche_compress.host.wandb_logger import WandBLogger

trusting = partial(load_checkpoint, trusted=True)

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.fixture(scope="module")
def benchmark():
    generator = torch.Generator().manual_seed(3)
    streams = [
        [
            (
                torch.randn(24, 6, generator=generator),
                torch.randint(0, 3, (24,), generator=generator),
            )
            for _ in range(2)
        ]
        for _ in range(2)
    ]
    return tensors_benchmark(train_tensors=streams[0], test_tensors=streams[1], task_labels=[0, 1])


def naive(optimizer="SGD", metrics=(), loggers=(), replay=True):
    """Build a strategy whose training draws random numbers in every batch."""
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.8)
    plugins = [LRSchedulerPlugin(scheduler, reset_scheduler=False, reset_lr=False)]
    return Naive(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=2,
        eval_mb_size=8,
        plugins=plugins + ([ReplayPlugin(mem_size=6)] if replay else []),
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers)),
    )


def tensors_of(strategy) -> list:
    """Return all tensors that training moves: parameters, buffers and the optimiser's state."""
    state = strategy.optimizer.state_dict()["state"]
    moments = [value for entry in state.values() for value in entry.values()]
    return [*strategy.model.state_dict().values(), *filter(torch.is_tensor, moments)]


def scheduler_of(strategy):
    return next(p for p in strategy.plugins if isinstance(p, LRSchedulerPlugin)).scheduler


@pytest.fixture
def saved(tmp_path):
    """A checkpoint file, and the bytes that are in it."""
    path = tmp_path / "run.ckpt"
    save_checkpoint(naive(), path)
    return path, path.read_bytes()


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_resumed_and_uninterrupted_training_end_bit_identical(optimizer, benchmark, tmp_path):
    path = tmp_path / "run.ckpt"
    torch.manual_seed(0)
    strategy = naive(optimizer)
    strategy.train(benchmark.train_stream[0])
    save_checkpoint(strategy, path)
    strategy.train(benchmark.train_stream[1])

    torch.manual_seed(1)
    fresh = naive(optimizer)
    resumed, next_experience = trusting(fresh, path, unique_objects=benchmark)
    assert resumed is fresh
    assert next_experience == 1
    for experience in benchmark.train_stream[next_experience:]:
        resumed.train(experience)

    expected, actual = tensors_of(strategy), tensors_of(resumed)
    assert len(expected) == len(actual) > 7
    assert all(torch.equal(left, right) for left, right in zip(expected, actual))


def test_a_new_process_resumes_to_the_same_numbers(tmp_path):
    script = """
        import sys, torch
        from torch import nn
        from avalanche.benchmarks import tensors_benchmark
        from avalanche.training import Naive
        from avalanche_compress.host.checkpoint import load_checkpoint, save_checkpoint
        generator = torch.Generator().manual_seed(3)
        data = [(torch.randn(24, 6, generator=generator), torch.arange(24) % 3) for _ in "ab"]
        stream = tensors_benchmark(
            train_tensors=data, test_tensors=data, task_labels=[0, 1]
        ).train_stream
        model = nn.Linear(6, 3)
        strategy = Naive(
            model=model, optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
            criterion=nn.CrossEntropyLoss(), train_mb_size=8, evaluator=None,
        )
        strategy, first = load_checkpoint(strategy, sys.argv[1], trusted=True)
        for experience in stream[first:]:
            strategy.train(experience)
            if strategy.clock.train_exp_counter == 1:
                save_checkpoint(strategy, sys.argv[1])
        torch.save(strategy.model.state_dict(), sys.argv[2])
    """
    results = []
    for name in ("uninterrupted", "resumed"):
        arguments = [str(tmp_path / "run.ckpt"), str(tmp_path / name)]
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *arguments], check=True, timeout=120
        )
        results.append(torch.load(tmp_path / name))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_the_users_scheduler_stays_attached(benchmark, tmp_path):
    path = tmp_path / "run.ckpt"
    strategy = naive("Adam")
    strategy.train(benchmark.train_stream[0])
    save_checkpoint(strategy, path)
    resumed, _ = trusting(naive("Adam"), path)
    assert scheduler_of(resumed).optimizer is resumed.optimizer
    before = resumed.optimizer.param_groups[0]["lr"]
    assert before == pytest.approx(0.01 * 0.8**2)
    resumed.train(benchmark.train_stream[1])
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(before * 0.8**2)


def test_the_optimizer_holds_the_parameters_of_the_loaded_model(saved):
    resumed, _ = trusting(naive(), saved[0])
    held = {id(p) for group in resumed.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in resumed.model.parameters()}


def test_a_strategy_with_metrics_and_wandb_survives(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = tmp_path / "run.ckpt"
    metrics = [
        accuracy_metrics(experience=True),
        confusion_matrix_metrics(stream=True, save_image=False, wandb=True),
    ]
    with WandBLogger(dir=tmp_path, save_code=False, params={"mode": "offline"}) as logger:
        strategy = naive("SGD", metrics, [logger])
        strategy.train(benchmark.train_stream[0])
        expected = strategy.eval(benchmark.test_stream)
        save_checkpoint(strategy, path)
        run_id = logger.run.id
    resumed, _ = trusting(naive(), path)
    assert resumed.evaluator.loggers[0].init_kwargs["id"] == run_id
    actual = resumed.eval(benchmark.test_stream)
    with resumed.evaluator.loggers[0] as logger:
        assert logger.run.id == run_id
    accuracies = {k: v for k, v in expected.items() if k.startswith("Top1")}
    assert len(accuracies) == 2
    assert accuracies.items() <= actual.items()


def test_a_missing_file_leaves_the_strategy_alone(tmp_path):
    strategy = naive()
    attributes = dict(strategy.__dict__)
    assert trusting(strategy, tmp_path / "none.ckpt") == (strategy, 0)
    assert strategy.__dict__ == attributes


def test_every_cut_is_refused(saved):
    path, content = saved
    strategy = naive()
    model = strategy.model
    for length in (0, 1, 51, 52, 53, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"run\.ckpt"):
            trusting(strategy, path)
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="overlong"):
        trusting(strategy, path)
    assert strategy.model is model


def test_every_flipped_byte_is_refused(saved):
    path, content = saved
    generator = np.random.default_rng()
    for position in [*range(52), *generator.integers(52, len(content), 50)]:
        altered = bytearray(content)
        altered[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(altered)
        with pytest.raises(CheckpointError, match=r"run\.ckpt"):
            trusting(naive(), path)


def test_nothing_of_a_damaged_file_is_unpickled(saved, monkeypatch):
    path, content = saved
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        trusting(naive(), path)


class Malice:
    """What runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_no_code_of_a_file_runs_unless_somebody_says_that_it_is_trusted(tmp_path):
    strategy, path, mark = naive(), tmp_path / "run.ckpt", tmp_path / "mark"
    strategy.note = Malice(mark)
    save_checkpoint(strategy, path)
    fresh = naive()
    attributes = dict(fresh.__dict__)
    with pytest.raises(CheckpointError, match="trusted=True"):
        load_checkpoint(fresh, path)
    assert fresh.__dict__ == attributes
    assert not mark.exists()
    trusting(fresh, path)
    assert mark.exists()


def test_a_script_that_does_not_say_so_fails_in_its_first_run_already(tmp_path):
    with pytest.raises(CheckpointError, match="trusted=True"):
        load_checkpoint(naive(), tmp_path / "none.ckpt")


def test_a_checkpoint_of_the_host_is_told_apart(tmp_path):
    torch.save({"strategy": None}, tmp_path / "host.ckpt")
    with pytest.raises(CheckpointError, match="maybe_load_checkpoint"):
        trusting(naive(), tmp_path / "host.ckpt")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="could not read"):
        trusting(naive(), tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_previous_file(saved, monkeypatch, call, error):
    path, content = saved

    def fail(*_):
        raise error

    monkeypatch.setattr(os, call, fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CheckpointError
    with pytest.raises(expected) as caught:
        save_checkpoint(naive(), path)
    if expected is CheckpointError:
        assert str(path) in str(caught.value)
        assert "disk full" in str(caught.value)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["run.ckpt"]


def test_a_full_disk_is_named_and_the_previous_file_stays(saved):
    path, content = saved
    with (
        largest_file(len(content) // 2),
        pytest.raises(CheckpointError, match="too large") as caught,
    ):
        save_checkpoint(naive(), path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["run.ckpt"]


def test_a_strategy_that_cannot_be_pickled_is_named(saved):
    path, content = saved
    strategy = naive()
    strategy.stream = (number for number in range(3))
    with pytest.raises(CheckpointError, match=r"could not write checkpoint .*run\.ckpt"):
        save_checkpoint(strategy, path)
    assert path.read_bytes() == content


def test_a_new_checkpoint_replaces_the_previous_one(saved, benchmark):
    path, _ = saved
    strategy = naive()
    strategy.train(benchmark.train_stream)
    save_checkpoint(strategy, str(path))
    assert trusting(naive(), str(path))[1] == 2
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_missing_folders_are_created(tmp_path):
    save_checkpoint(naive(), tmp_path / "new" / "folder" / "run.ckpt")
    assert trusting(naive(), tmp_path / "new" / "folder" / "run.ckpt")[1] == 0


def test_excluded_attributes_stay_those_of_the_new_strategy(tmp_path):
    path = tmp_path / "run.ckpt"
    strategy = naive()
    strategy.note = "saved"
    save_checkpoint(strategy, path, exclude=["note"])
    fresh = naive()
    fresh.note = "fresh"
    assert trusting(fresh, path)[0].note == "fresh"
    assert strategy.note == "saved"


def test_a_gpu_checkpoint_loads_on_the_cpu_by_its_index_free_name(tmp_path):
    path = tmp_path / "run.ckpt"
    strategy = naive()
    strategy.device = torch.device("cuda")
    save_checkpoint(strategy, path)
    for wanted in ("cpu", torch.device("cpu"), {"cpu": "cpu", "cuda": "cpu"}):
        assert trusting(naive(), path, map_location=wanted)[0].device.type == "cpu"


def test_a_device_map_moves_every_gpu_and_leaves_the_cpu():
    assert _device_map(None) is None
    mapped = _device_map("cuda:1")
    assert mapped["cuda"] == mapped["cuda:0"] == mapped["cuda:7"] == "cuda:1"
    assert mapped["cpu"] == "cpu"


def test_optimizers_are_importable_only_within_the_block():
    before = dict(vars(torch.optim))

    def looked_at_and_left_by_an_error():
        with _importable_optimizers():
            for name in ("sgd", "adam", "adamw", "optimizer"):
                assert getattr(torch.optim, name) is sys.modules[f"torch.optim.{name}"]
            with _importable_optimizers():
                pass
            assert hasattr(torch.optim, "sgd")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        looked_at_and_left_by_an_error()
    assert vars(torch.optim) == before
