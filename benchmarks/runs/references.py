"""What methods are measured against: separate networks, snapshots, and all data at once."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from avalanche.training.supervised import JointTraining, Naive
from torch import nn

from avalanche_compress import Position
from benchmarks.runs.backbones import float_bytes
from benchmarks.runs.checkpoints import load_strategy, save_strategy
from benchmarks.runs.learners import Learner, Metrics, baseline_model, learner_of
from benchmarks.runs.ours import new_strategy, save_checked
from benchmarks.runs.settings import RunSettings


class Separate:
    """A network for every task, none of which changes once the task is learned.

    :param settings: of the run.
    :param new: makes the strategy that learns a task, from its number and the network of the task
        before, which is None for the first.
    """

    def __init__(self, settings: RunSettings, new: Callable[[int, nn.Module | None], Any]) -> None:
        self.settings = settings
        self.new = new
        self.strategies: list[Any] = []

    def train(self, experience: Any) -> None:
        """Train a network of its own on this experience."""
        last = self.strategies[-1] if self.strategies else None
        strategy = self.new(experience.current_experience, None if last is None else last.model)
        if last is not None:  # one axis for all that is logged
            strategy.clock.train_iterations = last.clock.train_iterations
        strategy.train(experience)
        self.strategies.append(strategy)

    def eval(self, experiences: Iterable[Any]) -> Metrics:
        """Evaluate each experience with its own network."""
        metrics: Metrics = {}
        for experience in experiences:
            metrics.update(self.strategies[experience.current_experience].eval(experience))
        return metrics

    def stored_bytes(self) -> int:
        """Bytes of all networks, four a number."""
        return sum(float_bytes(strategy.model) for strategy in self.strategies)

    def save(self, folder: Path, finished: int) -> None:
        """Write the last network; those before have files already."""
        save_strategy(self.strategies[-1], folder / f"task{finished}", self.settings)

    def load(self, folder: Path, finished: int) -> Position:
        """Read all networks, the last one last: the random generators go on from there."""
        for task in range(finished):
            strategy = self.new(task, None)
            load_strategy(strategy, folder / f"task{task + 1}", self.settings)
            self.strategies.append(strategy)
        return Position(finished, 0)

    def learner(self) -> Learner:
        """The learner that these networks are."""
        return Learner(self.train, self.eval, self.stored_bytes, save=self.save, load=self.load)


def independent(settings: RunSettings) -> Learner:
    """A new plain network for every task: no forgetting, no transfer, no sharing."""

    def new(task: int, last: nn.Module | None) -> Any:
        model = settings.model(len(settings.stream.tasks[task]))
        return Naive(**settings.arguments(model), plugins=settings.plain_plugins())

    return Separate(settings, new).learner()


def independent_warm(settings: RunSettings) -> Learner:
    """A plain network for every task that starts from the previous task's, with a new head.

    What reads as transfer in a method is often no more than such a start.
    """

    def new(task: int, last: nn.Module | None) -> Any:
        model = settings.model(len(settings.stream.tasks[task]))
        if last is not None:
            body = {k: v for k, v in last.state_dict().items() if not k.startswith("head.")}
            model.load_state_dict(body, strict=False)
        return Naive(**settings.arguments(model), plugins=settings.plain_plugins())

    return Separate(settings, new).learner()


def archived(
    strategy_class: Callable[..., Any], settings: RunSettings, **hyper_parameters: Any
) -> Learner:
    """A network for every task, made small and coded by itself as a strategy does.

    Its archive is a ZIP, without compression, of one archive per task.

    :param strategy_class: of avalanche_compress.
    :param settings: of the run.
    :param hyper_parameters: of the strategy.
    """

    def new(task: int, last: nn.Module | None) -> Any:
        model = settings.model(len(settings.stream.tasks[task]))
        return new_strategy(strategy_class, settings, model, **hyper_parameters)

    networks = Separate(settings, new)

    def save_archive(path: Path) -> int:
        stream = settings.stream.benchmark.test_stream
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as whole:
            for task, (strategy, experience) in enumerate(zip(networks.strategies, stream)):
                part = path.with_name(f"{path.name}-task{task}")
                save_checked(strategy.model, part, settings, [experience])
                # a fixed date, so that the same networks give the same bytes
                whole.writestr(zipfile.ZipInfo(f"task{task}"), part.read_bytes())
                part.unlink()
        return path.stat().st_size

    return replace(networks.learner(), stored_bytes=None, save_archive=save_archive)


def naive_snapshots(settings: RunSettings) -> Learner:
    """One network, trained on one task after another; a copy is kept after each.

    Its accuracies are the diagonal of Naive's matrix.
    """
    arguments = settings.arguments(baseline_model(settings))
    strategy = Naive(**arguments, plugins=settings.plain_plugins())
    whole = learner_of(settings, strategy, settings.independent_bytes)
    snapshots: list[nn.Module] = []

    def train(experience: Any) -> None:
        strategy.train(experience)
        snapshots.append(copy.deepcopy(strategy.model))

    def evaluate(experiences: Sequence[Any]) -> Metrics:
        metrics: Metrics = {}
        trained = strategy.model
        for experience in experiences:
            strategy.model = snapshots[experience.current_experience]
            metrics.update(strategy.eval(experience))
        strategy.model = trained
        return metrics

    def save(folder: Path, finished: int) -> None:
        save_strategy(strategy, folder / f"task{finished}", settings)

    def load(folder: Path, finished: int) -> Position:
        for task in range(finished):
            load_strategy(strategy, folder / f"task{task + 1}", settings)
            snapshots.append(copy.deepcopy(strategy.model))
        return Position(finished, 0)

    return replace(whole, train=train, eval=evaluate, save=save, load=load)


def joint(settings: RunSettings) -> Learner:
    """Training on all tasks at once, when the last one has come: the data are never given up.

    It takes as many steps as all tasks together: as many epochs as a task has, over all data.
    """
    strategy = JointTraining(
        **settings.arguments(baseline_model(settings)), plugins=settings.plain_plugins()
    )
    whole = learner_of(settings, strategy, lambda: float_bytes(strategy.model))
    seen: list[Any] = []
    everything = settings.stream.benchmark.train_stream

    def train(experience: Any) -> None:
        seen.append(experience)
        if len(seen) == len(everything):
            strategy.train(seen)

    def evaluate(experiences: Sequence[Any]) -> Metrics:
        """There is nothing to evaluate before the last experience."""
        return strategy.eval(experiences) if len(seen) == len(everything) else {}

    def load(folder: Path, finished: int) -> Position:
        seen[:] = everything[:finished]
        return whole.load(folder, finished)

    return replace(whole, train=train, eval=evaluate, load=load)
