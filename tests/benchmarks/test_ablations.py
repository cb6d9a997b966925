"""The command that turns mechanisms on and off: variants of recipes, paired with the first one."""

from __future__ import annotations

import json

import pytest
from benchmarks_for_tests import make_result

from benchmarks.ablations import main
from benchmarks.data.streams import STREAMS
from benchmarks.report.statistics import sign_flip_p
from benchmarks.report.variants import ABLATIONS, Ablation, rows_of, table
from benchmarks.runs import recipe
from benchmarks.runs.recipe import variant_of
from benchmarks.runs.store import NAME, Store
from benchmarks.runs.strategies import STRATEGIES

BITS = Ablation("wsn", [{"density": 0.5}, {"bits": 4}])


def run_of(variant, seed, accuracy, size, **changes):
    values = {"variant": variant, "seed": seed, "accuracy": accuracy, "archive_bytes": size}
    return make_result("wsn", **values, **changes)


RUNS = [
    run_of("density 0.5", 0, 0.90, 1000),
    run_of("density 0.5", 1, 0.80, 2000),
    run_of("density 0.5", 2, 0.85, 1000),
    run_of("bits 4", 1, 0.78, 500),
    run_of("bits 4", 0, 0.87, 500),
    make_result("cacl", variant="bits 4", accuracy=0.1),
]


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_variant_has_a_name_of_its_own_and_a_recipe_that_can_be_trained(name):
    ablation = ABLATIONS[name]
    assert len({variant_of(changes) for changes in ablation.variants}) == len(ablation.variants) > 1
    assert all(ablation.variants)  # none stands in the place of its recipe's own runs
    known = {*STRATEGIES[ablation.strategy].known(), "estimate_norms"}
    for changes in ablation.variants:
        budget = STREAMS["split_digits"].budget
        arguments = recipe.hyper_parameters(ablation.strategy, "split_digits", budget, 5, changes)
        of_optimizer = {
            f"optimizer.{name}": arguments["optimizer"][name] for name in ("name", "lr")
        }
        assert set(changes) <= known | {*of_optimizer}
        assert {**arguments, **of_optimizer}.items() >= recipe.resolve(dict(changes), 20, 5).items()


def test_a_variant_is_compared_with_the_first_one_seed_by_seed():
    whole, few = rows_of(BITS, RUNS)
    assert (whole.variant, few.variant) == ("density 0.5", "bits 4")
    assert whole.gains == whole.sizes_changed == []
    assert few.gains == pytest.approx([-2, -3])
    assert few.sizes_changed == pytest.approx([-75, -50])
    first, second = table([whole, few]).splitlines()[2:]
    assert first == "| wsn | density 0.5 | 3 | 85.00 ± 5.00 | 1,333 | - | - | - |"
    p = sign_flip_p(few.gains)
    assert second == f"| wsn | bits 4 | 2 | 82.50 ± 6.36 | 500 | -2.50 ± 0.71 | {p:.3f} | -62.5 |"


def test_without_a_common_seed_nothing_is_compared():
    _, few = rows_of(BITS, [RUNS[0], RUNS[3]])
    assert (few.gains, few.sizes_changed) == ([], [])
    assert table([few]).splitlines()[2].endswith("| 500 | - | - | - |")


def test_runs_are_kept_beside_those_of_the_recipe_and_not_repeated(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ABLATIONS, "bits", BITS)
    command = ["--ablations", "bits", "--streams", "split_digits", "--epochs", "2"]
    command += ["--seeds", "0", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "split_digits: bits\n" in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| wsn | ")]
    assert [row[1] for row in rows] == ["density 0.5", "bits 4"]
    stored = Store(tmp_path / NAME).results()
    assert [(run.seed, run.variant) for run in stored] == [
        (0, "bits 4"),
        (0, "density 0.5"),
        (1, "bits 4"),
        (1, "density 0.5"),
    ]
    assert len({run.recipe for run in stored}) == 2
    few, whole = stored[:2]
    assert few.archive_bytes < whole.archive_bytes / 2
    assert len(list((tmp_path / "archives").iterdir())) == 4
    assert {run["variant"] for run in json.loads((tmp_path / "results.json").read_text())} == {
        "density 0.5",
        "bits 4",
    }
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "4 of 4 runs have finished before" in again
    assert again.splitlines()[-2:] == printed.splitlines()[-2:]


def test_the_recipe_as_it_is_keeps_its_fingerprint():
    budget = STREAMS["split_digits"].budget
    given = ("wsn", "split_digits", "mlp", budget, "cpu")
    assert recipe.fingerprint(*given) == recipe.fingerprint(*given, {})
    assert recipe.fingerprint(*given) != recipe.fingerprint(*given, {"bits": 4})


def test_an_unknown_ablation_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--ablations", "sharin"])
    assert error.value.code == 2
    assert "sharin" in capsys.readouterr().err
