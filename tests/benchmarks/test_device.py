"""In a few minutes a machine does what it can, and the next minutes go on from there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import compare, device
from benchmarks.data.streams import STREAMS
from benchmarks.device import Part

ROOT = Path(__file__).parents[2]


def part(name, code, **arguments):
    return Part(name, [sys.executable, "-c", code], **arguments)


@pytest.fixture
def do(monkeypatch, tmp_path):
    """The command with other parts."""

    def call(*todo, minutes="1", **more):
        monkeypatch.setattr(device, "parts", lambda given: list(todo))
        return device.main(["--device", "cpu", "--minutes", minutes, "--out", str(tmp_path)])

    return call


def test_parts_are_done_in_turn_and_once(do, tmp_path, capsys):
    append = f"print(file=open({str(tmp_path / 'done')!r}, 'a'))"
    assert do(part("tests", append), part("speed", append + "; print(7)")) == 0
    assert (tmp_path / "speed.txt").read_text() == "7\n"
    assert do(part("tests", append), part("speed", append)) == 0
    assert (tmp_path / "done").read_text() == "\n" * 2
    assert capsys.readouterr().out.count("done before") == 2


def test_a_part_that_fails_costs_itself_only_and_is_tried_again(do, tmp_path, capsys):
    write = f"open({str(tmp_path / 'written')!r}, 'w')"
    assert do(part("tests", "raise SystemExit(3)"), part("speed", write)) == 1
    assert (tmp_path / "written").exists()
    assert "tests: ended with code 3" in capsys.readouterr().out
    assert do(part("tests", "")) == 0


def test_what_is_not_finished_in_time_is_told_to_stop_and_goes_on(do, tmp_path, capsys):
    code = "import signal, time; signal.signal(15, lambda *a: exit(print('told'))); time.sleep(60)"
    began = time.monotonic()
    assert do(part("speed", code, share=0.5), part("compare", code), minutes="0.05") == 0
    assert time.monotonic() - began < 30
    out = capsys.readouterr().out
    assert "time is up with speed, compare" in out
    assert "same command again" in out
    assert (tmp_path / "compare.part.txt").read_text() == "told\n"
    assert do(part("compare", "")) == 0


def test_whoever_stops_the_command_stops_its_part(tmp_path):
    script = (
        "import sys; from benchmarks import device\n"
        "code = 'import time; print(1, flush=True); time.sleep(60)'\n"
        "device._check = lambda *given: None\n"  # it imports torch, which takes a while
        "device.parts = lambda given: [device.Part('tests', [sys.executable, '-c', code])]\n"
        f"sys.exit(device.main(['--device', 'cpu', '--out', {str(tmp_path)!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "tests.part.txt", time.monotonic() + 60
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=40)
    assert process.returncode == 143
    assert said.startswith("stopped: ")
    assert len(said.splitlines()) == 1


def test_the_commands_can_be_given(tmp_path):
    given = device._parser().parse_args(["--device", "cpu", "--out", str(tmp_path)])
    tests, speed, comparison = device.parts(given)
    options = compare.parse(comparison.command[3:])
    assert options.strategies == list(device.STRATEGIES)
    assert options.streams == [device.STREAM]
    assert options.budget(device.STREAM) == STREAMS[device.STREAM].budget
    assert (tests.command[2], speed.command[2]) == ("pytest", "benchmarks.speed")
    assert tests.share + speed.share < 1


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--minutes", "nan"], ["--parts", "no"]])
def test_what_cannot_be_done_is_one_line(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        device.main(
            ["--device", "cpu", "--out", str(tmp_path), "--data", str(tmp_path), *arguments]
        )
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
