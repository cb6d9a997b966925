"""The strategies of avalanche_compress as learners."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import nn
from torch.utils.data import DataLoader

from avalanche_compress import (
    CompressedStrategy,
    LayerSeries,
    PackNet,
    Position,
    QuantizationPlugin,
    TaskNetwork,
    ValidationPlugin,
    compression_metrics,
    layer_bits,
    layer_densities,
    layer_ranks,
    load_archive,
    save_archive,
)
from benchmarks.runs.checkpoints import resume
from benchmarks.runs.learners import Layers, Learner, StrategyEntry, defaults_of
from benchmarks.runs.settings import RunSettings


def compressed(
    strategy_class: Callable[..., Any], settings: RunSettings, **hyper_parameters: Any
) -> Learner:
    """A strategy of avalanche_compress.

    :param strategy_class: its class.
    :param settings: the run's.
    :param own: see :func:`new_strategy`.
    """
    # sizes are read off the archive, which takes time: only if somebody looks
    metrics = [*compression_metrics(), LayerSeries()] if settings.loggers else []
    strategy = new_strategy(
        strategy_class, settings, settings.model(), *metrics, **hyper_parameters
    )

    def save(path: Path) -> int:
        return save_checked(strategy.model, path, settings, settings.stream.benchmark.test_stream)

    def layers() -> Layers:
        network = strategy.model
        return Layers(layer_ranks(network), layer_densities(network), layer_bits(network))

    def load(folder: Path, finished: int) -> Position:
        return resume(strategy, folder, settings.save_every)

    learner = Learner(strategy.train, strategy.eval, None, save, layers, load=load)
    if strategy.task_inference is None:
        return learner
    learner = replace(learner, memory_bytes=partial(_statistics_bytes, strategy.model))
    if not strategy.task_inference.rule.refuses:
        return learner
    return replace(
        learner,
        train=partial(_train_to_refuse, strategy),
        refused=partial(_refused, strategy),
    )


UNKNOWN = 0.05
"""Part of a task's own samples that may be refused, where it is measured who is."""


def _train_to_refuse(strategy: Any, experience: Any) -> None:
    """Learn an experience, and keep by what samples can be refused; nobody refuses any yet."""
    strategy.task_inference.unknown = UNKNOWN
    try:
        strategy.train(experience)
    finally:
        strategy.task_inference.unknown = None


@torch.no_grad()
def _refused(strategy: Any, experience: Any) -> float:
    """The part of an experience's samples that is refused."""
    inference = copy.copy(strategy.task_inference)
    inference.unknown = UNKNOWN
    count, data = 0, experience.dataset.eval()
    for x, *_ in DataLoader(data, batch_size=strategy.eval_mb_size):
        _, tasks = inference(strategy.model, x.to(strategy.device))
        count += int((tasks == -1).sum())
    return count / len(data)


def _statistics_bytes(network: TaskNetwork) -> int:
    """What an archive is longer by for the statistics of samples."""
    apart = copy.copy(network)
    apart.statistics = {}
    with tempfile.TemporaryDirectory() as folder:
        sizes = [save_archive(one, Path(folder) / "archive") for one in (network, apart)]
    return sizes[0] - sizes[1]


def new_strategy(
    strategy_class: Callable[..., Any],
    settings: RunSettings,
    model: nn.Module,
    *metrics: Any,
    **hyper_parameters: Any,
) -> Any:
    """A strategy of avalanche_compress with a run's settings.

    :param strategy_class: its class; gets the run's seed, and number of tasks, if it asks for them.
    :param settings: the run's.
    :param model: a new one.
    :param metrics: further metrics for the loggers.
    :param hyper_parameters: arguments of the class. ``bits`` of a class that has no such argument
        adds a :class:`~avalanche_compress.QuantizationPlugin` with these and its other options.
    """
    asked = inspect.signature(strategy_class).parameters
    of_the_run = {"seed": settings.seed, "tasks": len(settings.stream.tasks)}
    hyper_parameters.update((name, of_the_run[name]) for name in of_the_run if name in asked)
    given = (
        {} if "bits" in asked else {n: hyper_parameters.pop(n) for n in _codes(hyper_parameters)}
    )
    return strategy_class(
        **settings.arguments(model, *metrics),
        plugins=[
            *settings.plugins,
            *_validation(settings),
            *([] if given.get("bits") is None else [QuantizationPlugin(**given)]),
        ],
        task_inference=settings.inference,
        **hyper_parameters,
    )


def packnet(settings: RunSettings, **hyper_parameters: Any) -> Learner:
    """avalanche_compress.PackNet, whose network is the second one that the seed draws."""
    settings.model()  # its numbers in RESULTS.md come from a builder that needed one for the names
    return compressed(PackNet, settings, **hyper_parameters)


def ours(strategy_class: Callable[..., Any]) -> StrategyEntry:
    """The entry of a strategy of avalanche_compress: a recipe may set what its class names."""
    build = partial(compressed, strategy_class)
    known = hyper_parameters_of(strategy_class)
    return StrategyEntry(build, holds_out=True, infers=True, hyper_parameters=known)


def hyper_parameters_of(strategy_class: Callable[..., Any]) -> dict[str, Any]:
    """What a recipe may set of a strategy of avalanche_compress, with the defaults."""
    of_the_run = {"seed", "tasks", *inspect.signature(CompressedStrategy).parameters}
    return {
        **defaults_of(QuantizationPlugin, leave_out=set()),
        "bits": None,
        **defaults_of(strategy_class, leave_out=of_the_run),
    }


def _codes(hyper_parameters: dict[str, Any]) -> list[str]:
    """Those that are options of :class:`~avalanche_compress.QuantizationPlugin`."""
    options = inspect.signature(QuantizationPlugin).parameters
    return [name for name in hyper_parameters if name in options]


def _validation(settings: RunSettings) -> list[SupervisedPlugin]:
    if settings.budget.validation_fraction == 0:
        return []
    return [ValidationPlugin(settings.budget.validation_fraction, settings.seed)]


def save_checked(
    network: Any, path: Path, settings: RunSettings, experiences: Iterable[Any]
) -> int:
    """Write the archive and check that it answers exactly as the network does.

    :param network: with one of the tasks of each experience.
    :param path: of the archive.
    :param settings: of the run.
    :param experiences: whose first images are asked.
    :return: its size in bytes.
    :raises RuntimeError: if a task's logits differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_archive(network, path)
    loaded = load_archive(path, settings.model).to(settings.device)
    for experience in experiences:
        images = [experience.dataset[i][0] for i in range(32)]
        batch = torch.stack(images).to(settings.device)
        task = experience.current_experience
        if not torch.equal(_logits(network, batch, task), _logits(loaded, batch, task)):
            raise RuntimeError(f"The archive {path} gives other logits for task {task}.")
    return path.stat().st_size


@torch.no_grad()
def _logits(network: nn.Module, batch: torch.Tensor, task: int) -> torch.Tensor:
    network.eval()
    return network(batch, torch.full((len(batch),), task, device=batch.device))
