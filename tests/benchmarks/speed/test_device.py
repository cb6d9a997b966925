"""The section of a device has every number of every method, and counts what waits."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from avalanche.core import SupervisedPlugin

from benchmarks.speed import command, device, training


def test_a_method_has_all_numbers_beside_a_plain_loop_and_naive():
    (rows,) = device.section("cpu", 60, ["mlp"], ["wsn"], steps=2, rounds=1)
    assert [row.method for row in rows] == ["plain loop", "naive", "wsn"]
    plain, naive, ours = (asdict(row) for row in rows)
    assert all(
        ours[name] > 0 for name in ours if name not in ("method", "backbone", "waits", "megabytes")
    )
    assert ours["epoch"] == pytest.approx(2 * ours["step"])
    assert ours["switch"] > ours["answer"]
    assert plain["waits"] <= naive["waits"]
    assert plain["times_plain"] == naive["times_naive"] == 1
    assert "wsn" in str(device.table_of_rows(rows).columns[0]._cells)


class Reads(SupervisedPlugin):
    """Waits three times in each step."""

    def after_update(self, strategy, **kwargs):
        for _ in range(3):
            strategy.loss.item()


def test_whatever_reads_a_number_in_a_step_is_counted():
    x, y = training.random_samples((1, 28, 28), 40)
    counted = []
    for plugins in ([], [Reads()]):
        strategy, _ = training.learner("naive", "mlp", 10)
        counter = device.WaitCounter("cpu")
        strategy.plugins += [*plugins, counter]
        strategy.train(training.stream_of(x, y, 1).train_stream[0])
        assert counter.steps == 4 * training.EPOCHS
        counted.append(counter.waits)
    assert counted[1] - counted[0] == 3 * counter.steps


def test_no_backbone_is_begun_when_the_time_is_over(monkeypatch):
    times = iter([0.0, 0.0, 59.0, 61.0])
    monkeypatch.setattr(device.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(device, "rows_of", lambda backbone, *given: [backbone])
    assert list(device.section("cpu", 60.0)) == [["mlp"], ["resnet18"]]


def test_the_command_writes_the_rows_of_a_device(monkeypatch, tmp_path, capsys):
    rows = [device.Row("plain loop", "mlp", 256, 40, 0.5, 20.0, 1.0)]
    given = []
    found = iter([rows, rows])
    monkeypatch.setattr(device, "section", lambda *args: given.append(args) or found)
    file = tmp_path / "speed.json"
    assert command.main(["--device", "cpu", "--minutes", "2", "--json", str(file)]) == 0
    assert given == [("cpu", 120.0)]
    assert file.read_text().count('"plain loop"') == 2
    assert "plain loop" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["--device", "cuda"])
    assert "no GPU" in capsys.readouterr().err
