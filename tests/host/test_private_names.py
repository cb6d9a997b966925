"""What the package relies on in Avalanche without a promise of Avalanche's, name by name.

A release of Avalanche that moves one of these breaks a test here. Only `avalanche_compress/host`
may know them.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.benchmarks.utils.classification_dataset import _TensorClassificationDataset, lookup
from avalanche.benchmarks.utils.data import AvalancheDataset, _FlatDataWithTransform
from avalanche.benchmarks.utils.data_loader import (
    MultiDatasetDataLoader,
    MultiDatasetSampler,
    SingleDatasetDataLoader,
    TaskBalancedDataLoader,
)
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from avalanche.checkpointing import checkpoint
from avalanche.core import BaseSGDPlugin, SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger, WandBLogger
from avalanche.logging.wandb_logger import CHECKPOINT_METRIC_NAME
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.training import Naive
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import nn

import avalanche_compress

PACKAGE = Path(avalanche_compress.__file__).parent
STEP = [
    "_before_training_iteration",
    "_before_forward",
    "forward",
    "_after_forward",
    "criterion",
    "_before_backward",
    "backward",
    "_after_backward",
    "_before_update",
    "optimizer_step",
    "_after_update",
    "_after_training_iteration",
]
TRAINING = [
    "_before_training",
    "_before_training_exp",
    "_before_train_dataset_adaptation",
    "train_dataset_adaptation",
    "_after_train_dataset_adaptation",
    "make_train_dataloader",
    "check_model_and_optimizer",
    "make_optimizer",
    "model_adaptation",
    "make_optimizer",
    "_train_exp",
    "_before_training_epoch",
    "training_epoch",
    *STEP,
    "_after_training_epoch",
    "_after_training_exp",
    "_after_training",
]
EVALUATION = [
    "_before_eval",
    "_before_eval_exp",
    "_before_eval_dataset_adaptation",
    "_after_eval_dataset_adaptation",
    "model_adaptation",
    "_eval_exp",
    "eval_epoch",
    "_before_eval_iteration",
    "_before_eval_forward",
    "forward",
    "_after_eval_forward",
    "criterion",
    "_after_eval_iteration",
    "_after_eval_exp",
    "_after_eval",
]


def benchmark():
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    return tensors_benchmark([(x, y)], [(x, y)], task_labels=[0])


def naive(strategy=Naive, **arguments):
    model = nn.Linear(2, 2)
    return strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=4,
        eval_mb_size=4,
        **{"evaluator": None, **arguments},
    )


def parameters_of(function):
    return list(inspect.signature(function).parameters)


# ------------------------------------------------------------------ the order of a strategy's calls


class Noted(Naive):
    """Writes down which of its methods Avalanche calls."""

    calls = ()


def noted(name):
    def method(self, *arguments, **kwargs):
        self.calls = (*self.calls, name)
        return getattr(super(Noted, self), name)(*arguments, **kwargs)

    return method


for name in {*TRAINING, *EVALUATION}:
    setattr(Noted, name, noted(name))


def test_training_calls_its_methods_in_this_order():
    strategy = naive(Noted)
    strategy.train(benchmark().train_stream[0])
    assert list(strategy.calls) == TRAINING


def test_evaluation_calls_its_methods_in_this_order():
    strategy = naive(Noted)
    strategy.eval(benchmark().test_stream)
    assert list(strategy.calls) == EVALUATION


# ------------------------------------------------------------------ training_loop.py, strategy.py


def test_the_loop_over_epochs_takes_the_experience_and_streams():
    assert parameters_of(SupervisedTemplate._train_exp)[:3] == [
        "self",
        "experience",
        "eval_streams",
    ]


def test_stop_training_sets_a_flag_that_the_next_epoch_reads():
    strategy = naive(train_epochs=3)
    assert strategy._stop_training is False
    strategy.stop_training()
    assert strategy._stop_training is True


def test_a_strategy_keeps_its_criterion_and_calls_it_with_output_and_targets():
    given = []

    def criterion(output, targets):
        given.append((output, targets))
        return output.sum()

    strategy = naive(criterion=criterion)
    assert strategy._criterion is criterion
    strategy.mb_output, strategy.mbatch = torch.zeros(1, 2), [None, torch.zeros(1)]
    strategy.criterion()
    assert given == [(strategy.mb_output, strategy.mb_y)]


def test_a_step_adds_the_criterion_to_an_empty_loss():
    strategy = naive()
    assert strategy._make_empty_loss().item() == 0
    assert strategy.loss.item() == 0


def test_the_last_plugins_are_evaluator_periodic_evaluation_and_clock():
    kinds = [type(plugin) for plugin in naive().plugins[-3:]]
    assert kinds == [EvaluationPlugin, PeriodicEval, Clock]


def test_a_clock_counts():
    strategy = naive(train_epochs=2)
    strategy.train(benchmark().train_stream[0])
    clock = strategy.clock
    assert (clock.train_iterations, clock.train_exp_counter, clock.train_exp_epochs) == (2, 1, 2)
    assert clock.train_epoch_iterations == 1


# ------------------------------------------------------------------ callbacks.py


@pytest.mark.parametrize("callback", [name[1:] for name in STEP if name.startswith("_")])
def test_callbacks_within_a_step_are_empty_until_overridden(callback):
    method = getattr(BaseSGDPlugin, callback)
    assert getattr(SupervisedPlugin, callback) is method
    assert method(SupervisedPlugin(), None) is None
    assert getattr(PluginMetric, callback) is not None


def test_an_evaluator_has_metrics_and_loggers_and_gives_each_logger_its_values():
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    assert evaluator.metrics
    assert evaluator.loggers == []
    assert parameters_of(BaseLogger.log_metrics) == ["self", "metric_values"]


# ------------------------------------------------------------------ early_stopping.py, plugin_state


def test_early_stopping_remembers_its_best_epoch_and_looks_for_a_metric_by_its_beginning():
    plugin = EarlyStoppingPlugin(2, "test_stream")
    for name in ("best_state", "best_val", "best_step"):
        assert getattr(plugin, name) is None
    assert plugin.metric_key == "Top1_Acc_Stream/eval_phase/test_stream"
    evaluator = EvaluationPlugin(loggers=[])
    assert evaluator.get_last_metrics() is not None
    assert evaluator.last_metric_results == evaluator.all_metric_results == {}


def test_what_changes_in_avalanches_plugins():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    scheduler = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    for name in ("scheduler", "_was_training", "_just_validated", "_executed_train_iteration"):
        assert hasattr(scheduler, name)
    assert PeriodicEval().do_final is None
    assert all(type(value) is int for value in vars(Clock()).values())


def test_metrics_keep_their_counts_in_attributes():
    strategy = naive(evaluator=EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[]))
    strategy.train(benchmark().train_stream[0])
    (metric,) = strategy.evaluator.metrics
    assert type(metric).__module__.startswith("avalanche.evaluation.")
    assert metric._metric.result() == strategy.evaluator.get_last_metrics()[str_of(metric)]


def str_of(metric):
    return f"{metric}/train_phase/train_stream/Task000"


# ------------------------------------------------------------------ optimiser


def test_update_optimizer_adds_parameters_and_resets_the_state():
    assert parameters_of(update_optimizer)[:4] == [
        "optimizer", "new_params", "optimized_params", "reset_state",
    ]  # fmt: skip
    strategy = naive()
    assert strategy.optimized_param_id is None
    strategy.make_optimizer()
    assert list(strategy.optimized_param_id) == ["weight", "bias"]


# ------------------------------------------------------------------ tensor_data


def test_a_data_set_keeps_flat_data_transforms_and_attributes():
    dataset = benchmark().train_stream[0].dataset
    assert isinstance(dataset, AvalancheDataset)
    assert isinstance(dataset._flat_data, FlatData)
    assert isinstance(dataset._flat_data, _FlatDataWithTransform)
    assert dataset._flat_data._transform_groups.current_group == "train"
    assert hasattr(dataset._flat_data, "_frozen_transform_groups")
    assert hasattr(dataset._flat_data, "_datasets")
    assert hasattr(dataset._flat_data, "_indices")
    names = {a.name: a.use_in_getitem for a in dataset._data_attributes.values()}
    assert names == {"targets": False, "targets_task_labels": True}
    assert list(dataset.targets_task_labels.data) == [0] * 4
    assert ConstantSequence(7, 3)[0] == 7
    (inner,) = dataset._flat_data._datasets
    assert type(inner) is _TensorClassificationDataset or inner is not None
    assert parameters_of(lookup) == ["indexable", "idx"]


def test_loaders_make_a_torch_loader_of_samplers():
    assert issubclass(TaskBalancedDataLoader, MultiDatasetDataLoader)
    assert issubclass(SingleDatasetDataLoader, MultiDatasetDataLoader)
    assert parameters_of(MultiDatasetDataLoader._create_samplers) == [
        "datasets", "batch_sizes", "distributed_sampling", "loader_kwargs",
    ]  # fmt: skip
    assert parameters_of(MultiDatasetDataLoader._make_pytorch_loader)[-2:] == [
        "datasets", "batch_sampler",
    ]  # fmt: skip
    assert parameters_of(MultiDatasetDataLoader._get_loader) == ["self"]
    assert "__iter__" in vars(MultiDatasetDataLoader)
    assert parameters_of(MultiDatasetSampler)[:5] == [
        "datasets", "samplers", "termination_dataset_idx", "oversample_small_datasets",
        "never_ending",
    ]  # fmt: skip
    loader = TaskBalancedDataLoader(benchmark().train_stream[0].dataset, batch_size=2)
    for name in (
        "datasets", "batch_sizes", "distributed_sampling", "loader_kwargs", "never_ending",
        "termination_dataset", "oversample_small_datasets",
    ):  # fmt: skip
        assert hasattr(loader, name), name


# ------------------------------------------------------------------ checkpoint.py, wandb_logger.py


def test_checkpoints_take_a_stream_of_bytes():
    assert parameters_of(checkpoint.save_checkpoint)[:3] == ["strategy", "fname", "exclude"]
    assert parameters_of(checkpoint.maybe_load_checkpoint)[:4] == [
        "strategy", "fname", "map_location", "unique_objects",
    ]  # fmt: skip


def test_the_wandb_logger_imports_wandb_and_opens_its_run_in_methods():
    for name in ("import_wandb", "args_parse", "before_run", "log_single_metric"):
        assert parameters_of(getattr(WandBLogger, name))[0] == "self"
    match = CHECKPOINT_METRIC_NAME.match("WeightCheckpoint/train_phase/train_stream/Task002/Exp003")
    assert (match["task_id"], match["experience_id"]) == ("002", "003")


# ------------------------------------------------------------------ and only host/ knows them


def private_names():
    """Names with one underscore of a strategy, its plugins and metrics, and of data."""
    strategy = naive(evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]))
    experience = benchmark().train_stream[0]
    scheduler = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(strategy.optimizer, 1))
    holders = [
        strategy,
        scheduler,
        EarlyStoppingPlugin(1, "test_stream"),
        *strategy.plugins,
        *strategy.evaluator.metrics,
        experience,
        experience.dataset,
        experience.dataset._flat_data,
        benchmark(),
    ]
    ours = {name for name in dir(nn.Module()) if name.startswith("_")}
    names = {name for holder in holders for name in dir(holder) if name.startswith("_")}
    return {name for name in names - ours if not name.startswith("__")}


def uses(path):
    """Private names that a file reads of others, overrides, or writes as text; with their lines."""
    tree = ast.parse(path.read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    # what a class of ours sets on itself is its own, whatever it is called
    set_here = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    for node in attributes:
        of_itself = isinstance(node.value, ast.Name) and node.value.id == "self"
        if not (of_itself and node.attr in set_here):
            yield node.attr, node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield ("" if node.value in set_here else node.value), node.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("avalanche."):
            for alias in node.names:
                yield (alias.name if alias.name.startswith("_") else ""), node.lineno


ELSEWHERE = [path for path in sorted(PACKAGE.rglob("*.py")) if "host" not in path.parts]


@pytest.fixture(scope="module")
def avalanches_private_names():
    return private_names() | {"_FlatDataWithTransform", "_TensorClassificationDataset"}


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_room_knows_a_private_name_of_avalanche(path, avalanches_private_names):
    known = [(name, line) for name, line in uses(path) if name in avalanches_private_names]
    assert known == []


def test_the_search_finds_what_it_is_for(tmp_path, avalanches_private_names):
    file = tmp_path / "sample.py"
    file.write_text("strategy._criterion\ndef _train_exp(): pass\nself._mine = 1\nself._mine\n")
    found = {name for name, _ in uses(file) if name in avalanches_private_names}
    assert found == {"_criterion", "_train_exp"}
