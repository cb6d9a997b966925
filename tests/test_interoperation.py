"""Every strategy with what Avalanche brings: it works, or it is refused; the page says which."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.core import BasePlugin
from avalanche.evaluation.metrics import MAC, MAC_metrics, accuracy_metrics
from avalanche.training import plugins as stock
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)
from torch import nn

import avalanche_compress.training.strategy
from avalanche_compress import WSN, TaskNetwork, UnsupportedPluginError, method_named
from benchmarks.stress import interoperation_plugins as plugin_cases
from benchmarks.stress.interoperation import METHODS, PAGE, SECTIONS, main, outcome, page
from benchmarks.stress.small_training import (
    INPUTS,
    build,
    learn,
    samples,
    small_stream,
)

CASES = [case for section in SECTIONS for case in section.cases]
found = lru_cache(maxsize=None)(outcome)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", [method.name for method in METHODS])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_avalanche_brings_works_or_is_refused(case, strategy):
    assert found(case, strategy).word == ("refused" if case.refused else "works")


def test_the_page_says_what_was_found():
    outcomes = [[[found(c, m.name) for m in METHODS] for c in s.cases] for s in SECTIONS]
    assert PAGE.read_text() == page(outcomes), "run python -m benchmarks.interoperation"


def test_every_plugin_of_avalanche_is_on_the_page():
    named = {name for name, kind in vars(stock).items() if _is_plugin(kind)}
    helpers = {"SupervisedPlugin", "EvaluationPlugin", "TrainGeneratorAfterExpPlugin"}
    text = PAGE.read_text()
    assert {name for name in named - helpers if f"`{name}`" not in text} == set()


def _is_plugin(kind):
    return isinstance(kind, type) and issubclass(kind, BasePlugin)


# ------------------------------------------------------------------ the checks can fail


@pytest.mark.parametrize(
    ("plugin", "callback", "check"),
    [
        (LRSchedulerPlugin, "after_training_epoch", plugin_cases.check_scheduler),
        (LRSchedulerPlugin, "after_eval", plugin_cases.check_plateau),
        (EarlyStoppingPlugin, "before_training_epoch", plugin_cases.check_early_stopping),
        (ReplayPlugin, "before_training_exp", plugin_cases.check_replay),
        (ReplayPlugin, "after_training_exp", plugin_cases.check_replay),
    ],
)
def test_a_plugin_without_its_effect_is_noticed(plugin, callback, check, monkeypatch):
    monkeypatch.setattr(plugin, callback, lambda self, strategy, **kwargs: None)
    with pytest.raises(AssertionError):
        check("wsn")


def test_logits_that_change_are_noticed():
    strategy = build("wsn")

    def spoil():
        _, weight = strategy.network.views[0].tensors[0]
        weight += len(strategy.network.tasks)

    with pytest.raises(AssertionError):
        learn(strategy, small_stream().train_stream, then=spoil)


def test_what_should_be_refused_and_is_not_is_noticed(monkeypatch):
    monkeypatch.setattr(avalanche_compress.training.strategy, "check_plugins", lambda *given: None)
    case = next(case for case in CASES if case.name == "`LwFPlugin`")
    with pytest.raises(AssertionError, match=r"LwFPlugin.*was to be refused"):
        outcome(case, "wsn")


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.stress.interoperation.METHODS", [method_named("wsn")])
    monkeypatch.setattr("benchmarks.stress.interoperation.SECTIONS", SECTIONS[:1])
    assert main(["--out", str(tmp_path / "page.md")]) == 0
    assert "combinations as they should be" in capsys.readouterr().out
    text = (tmp_path / "page.md").read_text()
    assert "| `LRSchedulerPlugin` | works |" in text
    assert "| `EWCPlugin` | refused (" in text


# ------------------------------------------------------------------ early stopping


def test_early_stopping_does_not_compare_a_task_with_the_one_before():
    twins = [samples(24, 2, seed=0), samples(24, 2, seed=0, draw=1)]
    stream = tensors_benchmark(train_tensors=twins, test_tensors=twins, task_labels=[0, 1])
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    strategy = build("packnet", rate=0.2, train_epochs=12, eval_every=1, evaluator=evaluator)
    strategy.train(stream.train_stream[0])
    # the first task's sub-network knows the second task, which begins with one that does not
    results = strategy.eval(stream.test_stream[1:])
    assert results["Top1_Acc_Stream/eval_phase/test_stream/Task001"] == 1.0
    rates = plugin_cases.Rates()
    strategy.plugins[:0] = [EarlyStoppingPlugin(1, "test_stream"), rates]
    strategy.train(stream.train_stream[1], eval_streams=[stream.test_stream[1:]])
    assert len(rates.tasks[0]) > 1


# ------------------------------------------------------------------ refusals


def test_a_refused_plugin_leaves_model_and_optimiser_alone():
    model = nn.Linear(4, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedPluginError, match="EWCPlugin holds parameters near"):
        WSN(model=model, optimizer=sgd, evaluator=None, plugins=[EWCPlugin(1.0)])
    assert len(sgd.param_groups[0]["params"]) == 2


def test_a_plugin_that_is_added_later_is_refused_when_training_starts():
    strategy = build("cacl")
    strategy.plugins.append(LwFPlugin())
    with pytest.raises(UnsupportedPluginError, match="LwFPlugin distils"):
        strategy.train(small_stream().train_stream[0])
    assert strategy.network.tasks == []
    assert strategy.network.open_task is None


def test_metrics_of_an_evaluator_that_is_yet_to_be_made_are_checked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(UnsupportedPluginError, match=r"MinibatchMAC.*network.materialise\(task\)"):
        WSN(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            evaluator=lambda: EvaluationPlugin(MAC_metrics(minibatch=True), loggers=[]),
        )
    assert TaskNetwork(model).tasks == []


def test_what_is_to_be_taken_instead_of_mac_metrics_counts_one_task():
    strategy = build("halrp")
    learn(strategy, small_stream().train_stream)
    mac = MAC()
    mac.update(strategy.network.materialise(1), torch.zeros(1, INPUTS))
    assert mac.result() == INPUTS * 12 + 12 * 12 + 12 * 2
