"""A sweep file has the recipe's search space, and its command does a trial that W&B gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wandb
import yaml
from wandb_for_tests import offline_history, offline_records

from benchmarks import sweep
from benchmarks.runs.recipe import search_space
from benchmarks.runs.strategies import STRATEGIES
from benchmarks.tune import Tuning

TUNING = Tuning("split_digits", 1, 2, 0, 1, Path("data"), Path("results"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sweep_chooses_from_what_the_recipe_says(strategy):
    parameters = sweep.sweep_of(strategy, TUNING)["parameters"]
    space = search_space(strategy)
    assert parameters.keys() == space.keys()
    for name, values in space.items():
        given = parameters[name]
        if values.choices is not None:
            assert given == {"values": list(values.choices)}
        else:
            assert (given["min"], given["max"]) == (values.low, values.high)
            assert ("log" in given["distribution"]) is values.log


def test_the_command_of_a_sweep_does_a_trial(tmp_path, capsys, monkeypatch):
    wandb.teardown()  # wandb reads the environment once in the life of a process
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ["--strategy", "wsn", "--stream", "split_digits", "--tasks", "2", "--epochs", "1"]
    assert sweep.main([*options, "--out", str(tmp_path)]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    changes = {"density": written["parameters"]["density"]["values"][-1]}
    start = written["command"].index("benchmarks.sweep") + 1
    command = [json.dumps(changes) if w == "${args_json}" else w for w in written["command"]]
    assert sweep.main(command[start:]) == 0
    said = float(capsys.readouterr().out.split()[-1])
    (row,) = (row for row in offline_history(tmp_path) if sweep.METRIC in row)
    assert row[sweep.METRIC] == pytest.approx(said, abs=1e-4)
    assert 0.4 < said <= 1
    (run,) = (record.run for record in offline_records(tmp_path) if record.HasField("run"))
    assert run.job_type == "sweep"
    config = {entry.key: json.loads(entry.value_json) for entry in run.config.update}
    assert config["density"] == changes["density"]


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        sweep.main(["--strategy", "wsm", "--stream", "split_digits"])
    assert "the nearest is 'wsn'" in capsys.readouterr().err
