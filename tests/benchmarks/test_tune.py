"""Tuning: equal numbers of trials, nothing lost, nothing of the test data."""

from __future__ import annotations

import pytest
import yaml

from avalanche_compress import AutocastPlugin
from benchmarks import tune
from benchmarks.runs import recipe
from benchmarks.runs.recipe import Range, RecipeError, search_space
from benchmarks.runs.store import NAME, Store
from benchmarks.runs.strategies import STRATEGIES

optuna = pytest.importorskip("optuna")


@pytest.fixture
def tried(monkeypatch):
    """What is tried, without training: ``ewc`` is best at 100 and fails above 1e4."""
    calls = []

    def accuracy(strategy, tuning, changes):
        calls.append((strategy, changes))
        if changes.get("ewc_lambda", 0) > 1e4:
            raise RuntimeError("too strong\nto train")
        return 1 / (1 + abs(changes.get("ewc_lambda", 50) - 100))

    monkeypatch.setattr(tune, "held_out_accuracy", accuracy)
    return calls


def run(tmp_path, *arguments, trials):
    common = ["--stream", "split_digits", "--trials", str(trials), "--out", str(tmp_path)]
    return tune.main([*common, *arguments])


def test_every_strategy_gets_as_many_trials_and_the_recipe_comes_first(tmp_path, tried, capsys):
    assert run(tmp_path, "--strategies", "ewc", "replay", trials=4) == 0
    assert [strategy for strategy, _ in tried] == ["ewc"] * 4 + ["replay"] * 4
    assert tried[0][1] == {"optimizer.lr": 1e-3, "ewc_lambda": 100.0}
    assert tried[4][1] == {"optimizer.lr": 1e-3, "memory": 500}
    assert len({changes["ewc_lambda"] for _, changes in tried[:4]}) == 4
    printed = capsys.readouterr().out
    assert "ewc on split_digits: trial 4/4: " in printed
    assert "best 100.00 %" in printed


def test_trials_of_a_stopped_command_count_and_are_of_a_study_of_their_own(tmp_path, tried):
    run(tmp_path, "--strategies", "ewc", trials=2)
    run(tmp_path, "--strategies", "ewc", trials=5)
    assert len(tried) == 5
    run(tmp_path, "--strategies", "ewc", "--seed", "1", trials=1)
    assert len(tried) == 6
    names = optuna.get_all_study_names(f"sqlite:///{tmp_path / NAME}")
    assert len(names) == 2
    assert Store(tmp_path / NAME).results() == []


def test_the_same_trials_are_made_with_and_without_a_stop(tmp_path, tried):
    run(tmp_path / "whole", "--strategies", "ewc", trials=4)
    run(tmp_path / "stopped", "--strategies", "ewc", trials=2)
    run(tmp_path / "stopped", "--strategies", "ewc", trials=4)
    assert tried[:4] == tried[4:]


def test_a_trial_that_fails_is_spent_and_said(tmp_path, tried, capsys):
    run(tmp_path, "--strategies", "ewc", trials=12)
    assert len(tried) == 12
    assert any(changes["ewc_lambda"] > 1e4 for _, changes in tried)
    assert "failed (RuntimeError: too strong to train), best 100.00 %" in capsys.readouterr().out


def test_what_is_reported_is_a_recipe(tmp_path, tried, capsys, monkeypatch):
    run(tmp_path, "--strategies", "ewc", trials=3)
    _, _, text = capsys.readouterr().out.partition("# recipes/ewc.yaml: 100.00 %\n")
    (tmp_path / "ewc.yaml").write_text(text)
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    arguments = recipe.arguments_of("ewc", "split_digits")
    assert arguments == {"ewc_lambda": 100.0, "optimizer": {"lr": 1e-3}}
    said = "3 trials on held-out data of the first 3 tasks, seed 0"
    assert yaml.safe_load(text)["tuned"] == {"split_digits": said}


def test_a_value_at_the_edge_is_named():
    rates = Range(low=1e-4, high=1e-2, log=True)
    assert [tune._at_the_edge(value, rates) for value in (1.1e-4, 1e-3, 9.9e-3)] == [
        True,
        False,
        True,
    ]
    assert not tune._at_the_edge("[64]", Range(choices=[64]))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_space_that_holds_its_recipe(name):
    space = search_space(name)
    assert "optimizer.lr" in space
    assert set(space) - {"optimizer.lr"} <= set(STRATEGIES[name].known())


@pytest.mark.parametrize(
    "given", ["{low: 1}", "{low: 2, high: 1}", "{low: 0, high: 1, log: true}", "{choices: []}", "3"]
)
def test_a_space_that_means_nothing_is_refused(given, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    (tmp_path / "ewc.yaml").write_text(f"search: {{ewc_lambda: {given}}}")
    with pytest.raises(RecipeError, match="ewc_lambda"):
        search_space("ewc")
    (tmp_path / "ewc.yaml").write_text("search: {ewc_lamda: {low: 1, high: 2}}")
    with pytest.raises(RecipeError, match="nearest is 'ewc_lambda'"):
        search_space("ewc")


@pytest.mark.parametrize("strategy", ["ewc", "wsn", "joint"])
def test_a_trial_trains_on_the_first_tasks(strategy, tmp_path):
    tuning = tune.Tuning("split_digits", 1, 2, 0, 2, tmp_path, tmp_path)
    assert 0.5 < tune.held_out_accuracy(strategy, tuning, {"optimizer.lr": 2e-3}) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "ewk"], "no strategy with task labels 'ewk'; the nearest is 'ewc'"),
        (["--strategies", "ewc", "--trials", "0"], "--trials is 0"),
    ],
)
def test_bad_arguments_end_with_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        tune.main(["--stream", "split_digits", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_trials_in_bfloat16_compute_so_and_are_of_a_study_of_their_own(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        recipe, "build", lambda strategy, settings, changes: seen.append(settings) or 1 / 0
    )
    arguments = ["--strategies", "naive", "--tasks", "1", "--epochs", "1"]
    run(tmp_path, *arguments, trials=1)
    run(tmp_path, *arguments, "--bf16", trials=1)
    kinds = [[type(plugin) for plugin in settings.plugins] for settings in seen]
    assert [AutocastPlugin in kind for kind in kinds] == [False, True]
    assert len(optuna.get_all_study_names(f"sqlite:///{tmp_path / NAME}")) == 2
