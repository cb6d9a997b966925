"""The command answers, in words and as JSON; what goes wrong is one line and an exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from avalanche_compress import TaskNetwork, load_archive, save_archive
from avalanche_compress.command import FAILED, FINE, NOT_FINE, main
from avalanche_compress.container import pack, unpack
from benchmarks.stress.examples import SmallNet, inputs

WRITTEN = sorted((Path(__file__).parent / "archives").glob("*.v1"))
EVERY_FILE = pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
MODEL = ["--model", "benchmarks.stress.examples:SmallNet"]


@EVERY_FILE
def test_inspect_shows_every_task_and_layer(path, capsys):
    assert main(["inspect", str(path)]) == FINE
    text = capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == FINE
    contents = json.loads(capsys.readouterr().out)
    assert len(contents["tasks"]) == len(contents["layers"]) == 3
    lines = [line.split() for line in text.splitlines()]
    for task in contents["tasks"]:
        assert [str(task["label"]), "0-1", f"{task['total_bytes']:,}"] in [x[:3] for x in lines]
    for layer in contents["layers"]:
        (line,) = (words for words in lines if words[:1] == [layer["name"]])
        assert line[3] == f"{sum(layer['section_bytes']):,}"
    assert max(map(len, text.splitlines()[1:])) < 100


@EVERY_FILE
def test_verify_says_what_it_could_not_check(path, capsys):
    assert main(["verify", str(path)]) == FINE
    assert "intact\nnot checked: the tensors" in capsys.readouterr().out
    assert main(["verify", str(path), *MODEL]) == FINE
    assert capsys.readouterr().out == f"{path}: intact\n"
    assert main(["verify", str(path), "--json", *MODEL]) == FINE
    assert json.loads(capsys.readouterr().out) == {"intact": True, "unchecked": []}


def test_verify_answers_no_for_a_damaged_file(tmp_path, capsys):
    data = bytearray(WRITTEN[0].read_bytes())
    data[-1] ^= 1
    (tmp_path / "file").write_bytes(data)
    assert main(["verify", str(tmp_path / "file")]) == NOT_FINE
    assert "checksum" in capsys.readouterr().out
    assert main(["verify", "--json", str(tmp_path / "file")]) == NOT_FINE
    assert json.loads(capsys.readouterr().out)["intact"] is False


def test_diff_answers_whether_two_files_are_one(capsys):
    a, b = map(str, WRITTEN[:2])
    assert main(["diff", a, a]) == FINE
    assert capsys.readouterr().out == ""
    assert main(["diff", a, b]) == NOT_FINE
    assert "layer hidden.weight: slotted [10, 96]" in capsys.readouterr().out
    assert main(["diff", a, b, "--json"]) == NOT_FINE
    assert {"where", "what"} == set(json.loads(capsys.readouterr().out)[0])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inspect", "none"], "FileNotFoundError: there is no archive at none"),
        (["inspect", __file__], "ArchiveError"),
        (["inspect", str(Path(__file__).parent)], "ArchiveError"),
        (["diff", str(WRITTEN[0]), "none"], "FileNotFoundError"),
        (["verify", "none"], "FileNotFoundError"),
        (["inspect", str(WRITTEN[0]), "--model", "no_colon"], "MODULE:FUNCTION was expected"),
        (["inspect", str(WRITTEN[0]), "--model", "no_module:build"], "No module named"),
        (["inspect", str(WRITTEN[0]), "--model", "json:nothing"], "has no attribute"),
        (["inspect", str(WRITTEN[0]), "--model", "json:__doc__"], "is a str and no function"),
        (["inspect", str(WRITTEN[0]), "--model", "torch.nn:Identity"], "another model"),
    ],
)
def test_what_goes_wrong_is_one_line(arguments, expected, capsys):
    assert main(arguments) == FAILED
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert expected in err


def example():
    """What ``--example`` names here: a mini-batch."""
    return inputs()


def answer_of(path, x):
    """The logits of an exported task, by what runs such files."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(x)
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path))
    (logits,) = session.run(["logits"], {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(logits)


@pytest.mark.parametrize("form", ["onnx", "pt2"])
@pytest.mark.parametrize("given", ["shape", "example"])
def test_export_writes_a_task_that_answers_as_the_archive_does(form, given, tmp_path, capsys):
    if form == "onnx":
        pytest.importorskip("onnxscript")
    out = tmp_path / f"task.{form}"
    sample = ",".join(map(str, inputs().shape[1:]))
    sample = ["--shape", sample] if given == "shape" else ["--example", f"{__name__}:example"]
    options = ["--task", "2", f"--{form}", str(out), *MODEL, *sample]
    assert main(["export", str(WRITTEN[0]), *options]) == FINE
    assert f"{out.stat().st_size:,} bytes" in capsys.readouterr().out
    network = load_archive(WRITTEN[0], SmallNet)
    with torch.no_grad():
        expected = network.materialise(2)(inputs())
        answer = answer_of(out, inputs())
    assert torch.allclose(answer, expected[:, : answer.shape[1]], atol=1e-4)
    wrong = ["--task", "9", f"--{form}", str(out), *MODEL, *sample]
    assert main(["export", str(WRITTEN[0]), *wrong]) == FAILED
    assert capsys.readouterr().err.count("\n") == 1


def sealed_with_the_name(name, path):
    """An archive whose only weight has a name of somebody's choice."""
    network = TaskNetwork(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    network.open(0, [0, 1])
    network.commit()
    save_archive(network, path)
    manifest, content = unpack(path)
    manifest["weights"][0][0] = name
    fields = {key: value for key, value in manifest.items() if key != "version"}
    path.write_bytes(pack(fields, {key: bytes(part) for key, part in content.items()}))


@pytest.mark.parametrize(
    "name",
    ["\x1b[2J\x1b]0;title\x07", "a\nb: intact", "\ud800", "\u202eevil", "x" * 100_000, "größe"],
    ids=ascii,
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_in_a_file_commands_no_terminal(name, encoding, tmp_path, monkeypatch):
    sealed_with_the_name(name, tmp_path / "file")
    sealed_with_the_name("0.weight", tmp_path / "\udcff\n\x1b")
    for command in (["inspect", "file"], ["verify", "file"], ["diff", "file", "\udcff\n\x1b"]):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        assert main([command[0], *(str(tmp_path / file) for file in command[1:])]) != FAILED
        text = out.buffer.getvalue().decode(encoding)
        assert all(line.isprintable() for line in text.splitlines())
        assert "b: intact" not in text.splitlines()
        assert len(text) < 2000 or command[0] == "diff"


def fails():
    raise RuntimeError("no model\ntoday")


def gives_a_number():
    return 7


@pytest.mark.parametrize("command", ["inspect", "verify", "export"])
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("fails", "RuntimeError: no model today"),
        ("gives_a_number", "it gives a int, no Module"),
    ],
)
def test_a_function_that_makes_no_model_is_no_verdict_on_the_file(
    command, function, reason, tmp_path, capsys
):
    more = ["--task", "0", "--onnx", str(tmp_path / "a.onnx"), "--shape", "4"]
    arguments = [command, str(WRITTEN[0]), "--model", f"tests.test_command:{function}"]
    assert main(arguments + (more if command == "export" else [])) == FAILED
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["0", "-1", "3,0,3", "", "3,x", "9" * 40, "9" * 12])
def test_a_shape_that_no_sample_has_is_one_line(shape, tmp_path, capsys):
    arguments = ["export", str(WRITTEN[0]), "--task", "0", "--onnx", str(tmp_path / "a.onnx")]
    try:
        code = main([*arguments, *MODEL, f"--shape={shape}"])
    except SystemExit as ended:
        code = ended.code
    assert code == FAILED
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_command_that_is_stopped_says_so_in_one_line(monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("avalanche_compress.command.inspect_archive", stopped)
    assert main(["inspect", "file"]) == 130
    assert capsys.readouterr().err == "avalanche-compress: stopped\n"


def test_a_reader_that_has_gone_is_no_error():
    command = [sys.executable, "-W", "ignore", "-m", "avalanche_compress"]
    with subprocess.Popen(
        [*command, "inspect", str(WRITTEN[0])], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == FAILED


def test_export_does_not_write_another_form_than_was_asked_for(tmp_path, capsys):
    options = ["--task", "2", "--onnx", str(tmp_path / "task.pt2"), *MODEL, "--shape", "4"]
    assert main(["export", str(WRITTEN[0]), *options]) == FAILED
    assert "ends in .onnx was expected" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["inspect"], ["unknown", "x"], ["diff", "a"]])
def test_wrong_options_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == FAILED
    assert capsys.readouterr().err.count("\n") == 1


def test_the_module_runs_as_a_command():
    # a library of Avalanche's warns where it finds no solver
    quiet = [sys.executable, "-W", "ignore"]
    command = [*quiet, "-m", "avalanche_compress", "inspect", str(WRITTEN[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == FINE
    assert "slotted" in done.stdout
    assert not done.stderr
