"""The command, end to end."""

import json
import re
import subprocess
import sys

import pytest

from avalanche_compress import OrderRobustness, registered_methods
from benchmarks import compare
from benchmarks.data.streams import nearest, task_orders
from benchmarks.runs import comparison
from benchmarks.runs.strategies import FIRST_LOOK, STRATEGIES, StrategyEntry


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(comparison, "_cores", lambda: 1)


def broken(settings):
    raise RuntimeError("this one\nis broken")


@pytest.fixture
def with_broken(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "broken", StrategyEntry(broken))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "naive", "packnt"], "no strategy 'packnt'; the nearest is 'packnet'"),
        (["--streams", "split_digit"], "no stream 'split_digit'; the nearest is 'split_digits'"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--orders", "0"], "--orders is 0"),
        (["--workers", "0"], "--workers is 0"),
        (["--quick", "--epochs", "2"], "not allowed with argument"),
        (["--engine", "slurm"], "invalid choice: 'slurm'"),
        (["--address", "auto"], "give --engine ray as well"),
        (["--wandb", "maybe"], "invalid choice: 'maybe'"),
        (["--scenario", "domain"], "invalid choice: 'domain'"),
        (["--inference", "energi"], "no rule 'energi'; the nearest is 'energy'"),
        (
            ["--scenario", "class", "--streams", "permuted_mnist"],
            "permuted_mnist has no class scenario",
        ),
        (
            ["--scenario", "class", "--strategies", "independent"],
            "independent needs task labels at test",
        ),
    ],
)
def test_bad_arguments_end_with_code_2_and_one_line_before_any_training(
    arguments, message, tmp_path, capsys, monkeypatch
):
    def never(*args, **kwargs):
        raise AssertionError("training started")

    monkeypatch.setattr(comparison, "run_here", never)
    monkeypatch.setattr(comparison, "run_in_processes", never)
    with pytest.raises(SystemExit) as exit_error:
        compare.main([*arguments, "--out", str(tmp_path / "out")])
    assert exit_error.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


def test_defaults_are_a_first_look_at_every_method_on_two_streams(monkeypatch):
    monkeypatch.undo()
    options = compare.parse([])
    assert options.strategies == FIRST_LOOK
    assert {method.name for method in registered_methods()} < set(FIRST_LOOK) < set(STRATEGIES)
    assert options.streams == ["permuted_digits", "split_digits"]
    assert (options.seeds, options.wandb, options.scenarios) == ([0], "off", ["task"])
    assert len(options.runs()) == 2 * len(FIRST_LOOK)
    assert compare.parse(["--scenario", "task", "class"]).streams == options.streams


def test_all_strategies_are_those_that_have_the_scenario():
    for scenario in ("task", "class"):
        chosen = compare.parse(["--strategies", "all", "--scenario", scenario]).strategies
        assert chosen == [name for name, entry in STRATEGIES.items() if scenario in entry.scenarios]
    both = compare.parse(["--strategies", "all", "--scenario", "task", "class"]).strategies
    assert both == list(STRATEGIES)


def test_a_name_given_twice_runs_once():
    options = compare.parse(["--strategies", "naive", "naive", "--seeds", "1", "1", "2"])
    assert [str(key) for key in options.runs()] == [
        "naive on split_digits, seed 1",
        "naive on split_digits, seed 2",
    ]


def test_two_strategies_end_to_end(tmp_path, capsys):
    code = compare.main(
        ["--strategies", "naive", "independent", "--epochs", "1", "--out", str(tmp_path)]
    )
    assert code == 0
    naive, independent = json.loads((tmp_path / "results.json").read_text())
    assert (naive["strategy"], independent["strategy"]) == ("naive", "independent")
    assert (naive["epochs"], naive["order"]) == (1, [0, 1, 2, 3, 4])
    assert 0.6 < naive["accuracy"] <= 1
    assert independent["forgetting"] == independent["bwt"] == 0
    assert independent["stored_bytes"] == independent["independent_bytes"]
    for after, row in enumerate(naive["accuracy_matrix"]):
        assert [value is None for value in row] == [task > after for task in range(5)]
    names = {path.name for path in tmp_path.iterdir() if path.suffix not in (".png", ".svg")}
    assert names == {"results.json", "results.sqlite", "table.md", "report.html"}
    for form in ("png", "svg"):
        assert {path.stem for path in tmp_path.glob(f"*.{form}")} == {
            "accuracy_against_bytes",
            "accuracy_matrices",
            "accuracy_over_tasks",
            "matrix-split_digits-naive-seed0",
            "matrix-split_digits-independent-seed0",
        }
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert re.search(r"naive on split_digits, seed 0: task 5/5, epoch 1/1, accuracy", printed)
    assert re.search(r"independent +\d+\.\d\d +0\.00 +0\.00", printed)


def test_a_run_is_the_same_twice(tmp_path):
    matrices = []
    for attempt in ("a", "b"):
        out = tmp_path / attempt
        assert compare.main(["--strategies", "naive", "--epochs", "1", "--out", str(out)]) == 0
        matrices.append(json.loads((out / "results.json").read_text())[0]["accuracy_matrix"])
    assert matrices[0] == matrices[1]


def test_a_failing_strategy_does_not_stop_the_rest(tmp_path, capsys, with_broken):
    arguments = ["--strategies", "broken", "naive", "--epochs", "1", "--out", str(tmp_path)]
    assert compare.main(arguments) == 1
    assert [r["strategy"] for r in json.loads((tmp_path / "results.json").read_text())] == ["naive"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert "failed: broken on split_digits, seed 0: RuntimeError: this one is broken" in last
    trace = (tmp_path / "errors" / "split_digits-broken-seed0.txt").read_text()
    assert "Traceback" in trace


def test_only_failures_still_end_well(tmp_path, with_broken):
    assert compare.main(["--strategies", "broken", "--out", str(tmp_path)]) == 1
    assert not (tmp_path / "results.json").exists()


def test_ours_write_an_archive_that_was_checked(tmp_path):
    arguments = ["--strategies", "packnet", "tinysubnets", "--epochs", "2", "--out", str(tmp_path)]
    assert compare.main(arguments) == 0
    for entry in json.loads((tmp_path / "results.json").read_text()):
        archive = tmp_path / "archives" / f"split_digits-{entry['strategy']}-seed0"
        assert entry["archive_bytes"] == archive.stat().st_size == entry["stored_bytes"]
        assert entry["forgetting"] == 0


def test_ranks_are_kept_and_drawn_of_methods_that_keep_weights_as_terms(tmp_path):
    arguments = ["--strategies", "cacl", "packnet", "naive", "--epochs", "1"]
    assert compare.main([*arguments, "--out", str(tmp_path)]) == 0
    *others, cacl = json.loads((tmp_path / "results.json").read_text())
    assert list(cacl["ranks"]) == ["body.1.weight", "body.3.weight"]
    assert [len(ranks) for ranks in cacl["ranks"].values()] == [5, 5]
    assert [other["ranks"] for other in others] == [None, None]
    naive, packnet = others
    assert naive["densities"] == naive["bits"] == cacl["densities"] is None
    assert list(packnet["densities"]) == list(packnet["bits"]) == list(cacl["bits"])
    assert {len(tasks) for tasks in packnet["densities"].values()} == {5}
    pictures = [path.name for path in tmp_path.glob("ranks-*.png")]
    assert pictures == ["ranks-split_digits-cacl-seed0.png"]
    total = sum(cacl["ranks"]["body.1.weight"])
    assert re.search(rf"\| cacl \| body.1 \| .* \| {total} \|", (tmp_path / "table.md").read_text())


def test_class_scenario_has_a_row_per_rule_and_leaves_out_who_needs_labels():
    options = compare.parse(
        ["--scenario", "task", "class", "--inference", "energy", "entropy_batch"]
    )
    rows = [(key.strategy, key.inference) for key in options.runs() if key.scenario == "class"]
    assert [row for row in rows if row[0] == "wsn"] == [("wsn", "energy"), ("wsn", "entropy_batch")]
    assert {"naive", "ewc_online", "replay", "joint"} <= {strategy for strategy, _ in rows}
    assert not {"independent", "avalanche_packnet"} & {strategy for strategy, _ in rows}
    assert len({key.slug for key in options.runs()}) == len(options.runs())


def test_rules_may_name_a_layer_and_vote():
    given = ["triangular", "ridge@body.1+head", "gaussian@first_batch"]
    options = compare.parse(["--scenario", "class", "--inference", *given, "--strategies", "wsn"])
    assert [key.inference for key in options.runs()] == given
    assert len({key.slug for key in options.runs()}) == 3


def test_both_scenarios_end_to_end(tmp_path, capsys):
    arguments = ["--strategies", "naive", "replay", "wsn", "--scenario", "task", "class"]
    arguments += ["--inference", "prototype", "--epochs", "2", "--out", str(tmp_path)]
    assert compare.main(arguments) == 0
    entries = json.loads((tmp_path / "results.json").read_text())
    assert [entry["scenario"] for entry in entries] == ["task"] * 3 + ["class"] * 3
    assert [entry["task_inference"] for entry in entries] == [None] * 5 + ["prototype"]
    *others, ours = entries
    assert all(entry["task_id_accuracy"] is None for entry in others)
    assert 0.3 < ours["accuracy"] <= ours["task_id_accuracy"] <= 1
    naive, replay = others[3:5]
    assert naive["accuracy"] < replay["accuracy"]
    assert (tmp_path / "archives" / "split_digits-class-wsn-prototype-seed0").exists()
    table = (tmp_path / "table.md").read_text()
    assert table.count("### ") == 5  # results and layers of both, and both side by side
    assert "### split_digits: both scenarios" in table
    assert re.search(r"wsn +\d+\.\d\d +prototype +\d+\.\d\d +\d+\.\d\d", capsys.readouterr().out)


def test_a_backbone_is_a_table_of_its_own_and_the_streams_own_is_not_spelled_out(tmp_path):
    arguments = ["--strategies", "naive", "--epochs", "1", "--out", str(tmp_path)]
    assert (
        compare.parse([*arguments, "--backbone", "mlp"]).runs() == compare.parse(arguments).runs()
    )
    assert compare.main(arguments) == 0
    assert compare.main([*arguments, "--backbone", "lenet"]) == 0
    usual, other = json.loads((tmp_path / "results.json").read_text())
    assert [usual["backbone"], other["backbone"]] == ["mlp", "lenet"]
    assert usual["recipe"] != other["recipe"]
    names = {path.name for path in tmp_path.glob("matrix-*.png")}
    assert names == {
        "matrix-split_digits-naive-seed0.png",
        "matrix-split_digits-lenet-naive-seed0.png",
    }
    titles = re.findall("### (.*)", (tmp_path / "table.md").read_text())
    assert [title.split(", ")[1] for title in titles] == ["mlp", "lenet"]


def test_orders_are_runs_of_their_own_with_files_of_their_own():
    options = compare.parse(["--strategies", "naive", "wsn", "--seeds", "0", "1", "--orders", "3"])
    runs = options.runs()
    assert [key.order_index for key in runs] == [0] * 4 + [1] * 4 + [2] * 4
    assert runs[:4] == compare.parse(["--strategies", "naive", "wsn", "--seeds", "0", "1"]).runs()
    assert len({key.slug for key in runs}) == 12


def test_two_orders_end_to_end(tmp_path, capsys):
    arguments = ["--strategies", "naive", "packnet", "--epochs", "1", "--orders", "2"]
    assert compare.main([*arguments, "--out", str(tmp_path)]) == 0
    entries = json.loads((tmp_path / "results.json").read_text())
    assert [entry["order_index"] for entry in entries] == [0, 0, 1, 1]
    canonical, other = task_orders(5, 2)
    assert [entry["order"] for entry in entries] == [canonical, canonical, other, other]
    assert canonical == [0, 1, 2, 3, 4] != other
    assert (tmp_path / "archives" / "split_digits-packnet-seed0-order1").exists()
    assert (tmp_path / "matrix-split_digits-naive-seed0-order1.png").exists()
    assert (tmp_path / "order_robustness.png").exists()
    spread = OrderRobustness()
    for entry in entries[::2]:
        for task, accuracy in zip(entry["order"], entry["accuracy_matrix"][-1]):
            spread.update(entry["order_index"], task, accuracy)
    expected = f"{100 * spread.result().aopd:.2f} +{100 * spread.result().mopd:.2f}"
    assert re.search(rf"naive .* 2 +{expected}", capsys.readouterr().out)
    assert "### split_digits: accuracy by task order" in (tmp_path / "table.md").read_text()


def test_the_canonical_order_is_the_same_run_with_and_without_others(tmp_path):
    matrices = []
    for orders in ("1", "2"):
        out = tmp_path / orders
        arguments = ["--strategies", "naive", "--epochs", "1", "--orders", orders]
        assert compare.main([*arguments, "--out", str(out)]) == 0
        matrices.append(json.loads((out / "results.json").read_text())[0]["accuracy_matrix"])
    assert matrices[0] == matrices[1]


def test_nearest_is_always_a_known_name():
    assert nearest("", STRATEGIES) in STRATEGIES


def test_help_waits_for_nothing_that_is_slow_to_import():
    script = (
        "import sys; from benchmarks import compare\n"
        "try: compare.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(','.join(sys.modules.keys() & {'torch', 'avalanche', 'numpy', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "--strategies" in done.stdout


def test_every_name_is_listed(capsys):
    with pytest.raises(SystemExit) as end:
        compare.main(["--list"])
    assert not end.value.code
    lines = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert lines["strategies"].split() == list(STRATEGIES)
    assert {"permuted_mnist", "split_digits"} <= set(lines["streams"].split())
    assert "lenet" in lines["backbones"].split()
