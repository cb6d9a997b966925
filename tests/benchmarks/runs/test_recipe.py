"""Recipes: what they say, what is refused, and how little a new strategy needs."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
import yaml
from avalanche.training.supervised import JointTraining
from avalanche.training.templates.base import BaseTemplate

from benchmarks import compare
from benchmarks.data.streams import STREAMS
from benchmarks.runs import recipe
from benchmarks.runs import run as runs
from benchmarks.runs.display import Display
from benchmarks.runs.recipe import RecipeError, arguments_of, fingerprint, resolve
from benchmarks.runs.settings import LearningRateDecay
from benchmarks.runs.strategies import STRATEGIES, ours


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    return tmp_path


def write(folder, text, strategy="wsn"):
    (folder / f"{strategy}.yaml").write_text(text)


def test_every_recipe_is_of_a_registered_strategy_and_valid_on_every_stream():
    for path in recipe.FOLDER.iterdir():
        assert path.suffix == ".yaml"
        assert path.stem in STRATEGIES
        known = [arguments_of(path.stem, stream) for stream in STREAMS]
        assert any(known)


@pytest.mark.parametrize("epochs", range(1, 60))
def test_forms_are_the_whole_epochs_that_integers_give(epochs):
    forms = {"a": {"part_of_epochs": 0.2}, "b": {"all_epochs_but": 0.2}, "c": {"part_of_epochs": 0}}
    resolved = resolve(forms, epochs, tasks=5)
    assert resolved == {"a": epochs // 5, "b": epochs - max(1, epochs // 5), "c": 0}


def test_shares_by_weight_add_up_to_the_network():
    pruned = resolve(arguments_of("packnet", "permuted_mnist"), 5, 10)["prune_proportion"]
    assert list(pruned) == ["body.1.weight", "body.3.weight"]
    free, kept = 1.0, []
    for part in pruned["body.1.weight"]:
        kept.append(free * (1 - part))
        free *= part
    assert kept[0] == pytest.approx(0.05)
    assert kept[-1] == pytest.approx(0.09)


def test_a_stream_overrides_the_default_and_a_recipe_what_it_is_like(folder):
    write(folder, "default: {density: 0.3, post_prune_epochs: 1}", "wsn")
    text = "{like: wsn, default: {bits: 4}, streams: {split_digits: {density: 0.1}}}"
    write(folder, text, "tinysubnets")
    assert arguments_of("wsn", "split_digits") == {"density": 0.3, "post_prune_epochs": 1}
    inherited = {"density": 0.3, "post_prune_epochs": 1, "bits": 4}
    assert arguments_of("tinysubnets", "split_mnist") == inherited
    assert arguments_of("tinysubnets", "split_digits") == {**inherited, "density": 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default: {densty: 0.5}", r"wsn\.yaml: default has .* 'densty'.* nearest is 'density'"),
        ("defualt: {density: 0.5}", r"the top has .* 'defualt'.* nearest is 'default'"),
        ("streams: {split_digit: {}}", r"streams has .* 'split_digit'.* nearest is 'split_digits'"),
        ("streams: {split_digits: {densty: 1}}", "split_digits has .* 'densty'"),
        ("like: wns", "like has the strategy 'wns'.* nearest is 'wsn'"),
        (
            "default: {density: 1.5}",
            r"wsn\.yaml: default: density: .*less than or equal to 1.* 1\.5",
        ),
        ("default: {density: '0.5'}", "default: density: .*valid number.* '0.5'"),
        ("default: {density: 1e-1}", "default: density: .* '1e-1'"),
        ("default: {post_prune_epochs: 1.5}", "post_prune_epochs: .*valid integer.* 1.5"),
        ("default: {post_prune_epochs: {part_of_epochs: 2}}", "post_prune_epochs: .*equal to 1"),
        ("default: {bits: 0}", "default: bits: .*greater than or equal to 1.* 0"),
        ("default: [density]", "default has to map names to values"),
        ("- default", "has to map"),
        ("default: {density: 0.5", "is no YAML"),
        ("default: !!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_what_is_wrong_is_said_with_the_file_and_the_key(folder, text, message):
    write(folder, text)
    with pytest.raises(RecipeError, match=message):
        arguments_of("wsn", "split_digits")


def test_a_strategy_without_hyper_parameters_takes_an_optimizer_only(folder):
    write(folder, "default: {density: 0.5}", "naive")
    with pytest.raises(RecipeError, match=r"'density', .*the nearest is 'optimizer'"):
        arguments_of("naive", "split_digits")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("{weight_decy: 0.1}", r"default: optimizer has .* 'weight_decy'.*'weight_decay'"),
        ("{name: sdg}", r"default: optimizer: name: .*'adam', 'adamw' or 'sgd'.* 'sdg'"),
        ("{lr: 0.0}", r"default: optimizer: lr: .*greater than 0.* 0\.0"),
        ("{lr: 1e-3}", "default: optimizer: lr: .*valid number.* '1e-3'"),
        ("{momentum: 0.9}", "momentum is of sgd, but the optimiser is adam"),
        ("{name: sgd, momentum: 1.5}", "optimizer: momentum: .*equal to 1"),
        ("sgd", "default: optimizer has to map names to values, but is 'sgd'"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(folder, optimizer, message):
    write(folder, f"default: {{optimizer: {optimizer}}}", "naive")
    with pytest.raises(RecipeError, match=message):
        arguments_of("naive", "split_digits")


class Built(BaseException):
    """Carries the strategy out of a run that is not to train."""


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Returns what builds the Avalanche strategy that a run would train."""

    def stop(strategy, *args, **kwargs):
        raise Built(strategy)

    monkeypatch.setattr(BaseTemplate, "train", stop)
    monkeypatch.setattr(JointTraining, "train", stop)  # it has its own

    def build(strategy, **budget):
        scenario = STRATEGIES[strategy].scenarios[0]
        arguments = ["--strategies", strategy, "--scenario", scenario, "--out", str(tmp_path)]
        (job,) = compare.parse(arguments).jobs()
        job = dataclasses.replace(job, budget=dataclasses.replace(job.budget, **budget))
        with pytest.raises(Built) as stopped:
            runs.perform(job, Display())
        return stopped.value.args[0]

    return build


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_every_strategy_trains_with_the_optimizer_of_its_recipe(
    strategy, tmp_path, monkeypatch, built
):
    path = recipe.FOLDER / f"{strategy}.yaml"
    given = yaml.safe_load(path.read_text()) if path.exists() else {}
    optimizer = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
    given["streams"] = {"split_digits": {"optimizer": optimizer}}
    shutil.copytree(recipe.FOLDER, tmp_path / "recipes")
    (tmp_path / "recipes" / path.name).write_text(yaml.safe_dump(given))
    assert type(built(strategy).optimizer) is torch.optim.Adam
    monkeypatch.setattr(recipe, "FOLDER", tmp_path / "recipes")
    found = built(strategy).optimizer
    assert type(found) is torch.optim.SGD
    for group in found.param_groups:
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.05, 0.9, 1e-4)


def test_what_a_recipe_does_not_say_of_the_optimizer_is_left_to_torch(folder, built):
    write(folder, "default: {optimizer: {name: adamw}}", "naive")
    (group,) = built("naive", lr=0.002).optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.002, 0.01)


def test_the_rate_falls_from_the_recipes_own(folder, built):
    write(folder, "default: {optimizer: {lr: 0.08}}", "naive")
    strategy = built("naive", lr_decay=0.5)
    (decay,) = [p for p in strategy.plugins if isinstance(p, LearningRateDecay)]
    strategy.dataloader = range(2)
    rates = []
    for strategy.clock.train_exp_epochs in range(2):
        for strategy.clock.train_epoch_iterations in range(2):
            decay.before_training_iteration(strategy)
            rates += [group["lr"] for group in strategy.optimizer.param_groups]
    assert rates == pytest.approx([0.08, 0.08 * 0.5**0.5, 0.04, 0.04 * 0.5**0.5])


def test_the_rate_starts_anew_with_a_task_and_with_other_parameters(built):
    strategy = built("naive", lr_decay=0.5)
    (decay,) = [p for p in strategy.plugins if isinstance(p, LearningRateDecay)]
    (group,) = strategy.optimizer.param_groups
    strategy.dataloader = range(1)

    def rates(epochs):
        for strategy.clock.train_exp_epochs in epochs:
            decay.before_training_iteration(strategy)
            yield group["lr"] / decay.lr

    assert list(rates(range(3))) == [1, 0.5, 0.25]
    group["params"] = [torch.nn.Parameter(torch.ones(2)), *group["params"][1:]]
    assert list(rates(range(3, 6))) == [1, 0.5, 0.25]
    decay.before_training_exp(strategy)
    assert list(rates(range(2))) == [1, 0.5]


def test_the_rate_falls_on_from_where_a_run_was_stopped(built):
    strategy, again = built("naive", lr_decay=0.5), built("naive", lr_decay=0.5)
    decay, restored = (
        next(plugin for plugin in trained.plugins if isinstance(plugin, LearningRateDecay))
        for trained in (strategy, again)
    )
    strategy.dataloader = again.dataloader = range(1)
    strategy.clock.train_exp_epochs = 3  # a phase begins
    decay.before_training_iteration(strategy)
    for name in decay.state_attributes:
        setattr(restored, name, getattr(decay, name))
    again.clock.train_exp_epochs = 5
    restored.before_training_iteration(again)
    assert again.optimizer.param_groups[0]["lr"] == 0.25 * restored.lr


def test_an_optimizer_is_part_of_what_a_run_is(folder):
    budget = STREAMS["split_digits"].budget
    write(folder, "default: {density: 0.5}")
    default = fingerprint("wsn", "split_digits", "mlp", budget, "cpu")
    write(folder, "default: {density: 0.5, optimizer: {weight_decay: 0.1}}")
    assert fingerprint("wsn", "split_digits", "mlp", budget, "cpu") != default
    adam = {"name": "adam", "lr": budget.lr, "weight_decay": 0.1}
    assert recipe.hyper_parameters("wsn", "split_digits", budget, 5)["optimizer"] == adam


def test_a_wrong_recipe_ends_the_comparison_before_any_training(folder, capsys):
    write(folder, "default: {densty: 0.5}")
    out = folder / "out"
    assert compare.main(["--strategies", "naive", "wsn", "--out", str(out)]) == 2
    assert "nearest is 'density'" in capsys.readouterr().err
    assert not out.exists()


def test_the_fingerprint_is_of_what_the_numbers_come_from(folder):
    budget = STREAMS["split_digits"].budget
    write(folder, "default: {density: 0.5}")
    first = fingerprint("wsn", "split_digits", "mlp", budget, "cpu")
    write(folder, "# the same\nstreams:\n  split_digits:\n    density: 0.5\n")
    assert fingerprint("wsn", "split_digits", "mlp", budget, "cpu") == first
    longer = dataclasses.replace(budget, epochs=21)
    others = [
        fingerprint("wsn", "split_digits", "mlp", longer, "cpu"),
        fingerprint("wsn", "split_digits", "mlp", budget, "cuda"),
        fingerprint("wsn", "split_mnist", "mlp", budget, "cpu"),
    ]
    write(folder, "default: {density: 0.4}")
    others.append(fingerprint("wsn", "split_digits", "mlp", budget, "cpu"))
    assert len({first, *others}) == 5


def test_a_new_strategy_is_one_recipe_file_and_one_registry_line(folder, monkeypatch, capsys):
    from avalanche_compress import WSN

    write(folder, "default: {density: 0.2}", "thin_wsn")
    monkeypatch.setitem(STRATEGIES, "thin_wsn", ours(WSN))

    out = folder / "out"
    arguments = ["--strategies", "thin_wsn", "naive", "--epochs", "1", "--workers", "1"]
    assert compare.main([*arguments, "--out", str(out)]) == 0
    assert "thin_wsn" in capsys.readouterr().out
    assert "| thin_wsn |" in (out / "table.md").read_text()
    (ours_result,) = [
        r for r in json.loads((out / "results.json").read_text()) if r["archive_bytes"]
    ]
    assert ours_result["strategy"] == "thin_wsn"
