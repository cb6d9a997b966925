"""Recipes: what they say, what is refused, and how little a new strategy needs."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import compare, recipe
from benchmarks.recipe import RecipeError, arguments_of, fingerprint, resolve
from benchmarks.strategies import STRATEGIES, ours
from benchmarks.streams import STREAMS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    return tmp_path


def write(folder, text, strategy="wsn"):
    (folder / f"{strategy}.yaml").write_text(text)


def test_every_recipe_is_of_a_registered_strategy_and_valid_on_every_stream():
    for path in recipe.FOLDER.iterdir():
        assert path.suffix == ".yaml" and path.stem in STRATEGIES
        for stream in STREAMS:
            assert arguments_of(path.stem, stream)


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
    assert kept[0] == pytest.approx(0.05) and kept[-1] == pytest.approx(0.09)


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


def test_a_strategy_without_hyper_parameters_takes_none(folder):
    write(folder, "default: {density: 0.5}", "naive")
    with pytest.raises(RecipeError, match="naive takes nothing"):
        arguments_of("naive", "split_digits")


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
