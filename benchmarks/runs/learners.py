"""What the comparison calls: learners, and the entries that build them from a run's settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from avalanche_compress import Position
from benchmarks.choices import SCENARIOS
from benchmarks.runs.checkpoints import load_strategy, save_strategy
from benchmarks.runs.multi_head import MultiHead
from benchmarks.runs.settings import RunSettings

Metrics = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """Bytes that a method keeps, of its archive, if it has one, and of what it keeps of samples.

    :param stored: all that is needed to go on and to answer.
    :param archive: the file; None where there is none.
    :param memory: samples, or statistics of them, as part of the others; None where there are none.
    """

    stored: int
    archive: int | None
    memory: int | None = None


@dataclass(frozen=True)
class Layers:
    """What a method made of each layer: by dotted name of the weight, a number per task so far.

    :param ranks: terms that the task added; empty where no weights are kept as terms.
    :param densities: part of the weight that the task computes with; empty without masks.
    :param bits: mean bits of the numbers that the task added; None where it added nothing.
    """

    ranks: dict[str, list[int]]
    densities: dict[str, list[float]]
    bits: dict[str, list[float | None]]


@dataclass(frozen=True)
class Learner:
    """A strategy as the comparison sees it.

    :param train: learns one experience.
    :param eval: evaluates a list of experiences, returns Avalanche's metric dictionary.
    :param stored_bytes: what the method has to keep after the tasks so far; None when that is
        its archive.
    :param memory_bytes: of these, those of samples or of statistics of samples.
    :param save_archive: writes the compressed file and returns its size after checking that it
        loads back exactly; None when the method has no such file.
    :param refused: of an experience the part of the test samples that are refused as none of a
        learned task's; None where samples cannot be refused.
    :param layers: what the tasks so far made of each layer; None when the network is a plain one.
    :param save: ``(folder, finished)`` writes the state after so many tasks, the random generators'
        included, without touching the state after one task less.
    :param load: ``(folder, finished)`` brings a newly built learner to its last state, when that
        many tasks have been measured, and says where to go on. By default a run that was killed
        starts again.
    """

    train: Callable[[Any], Any]
    eval: Callable[[Sequence[Any]], Metrics]
    stored_bytes: Callable[[], int] | None = None
    save_archive: Callable[[Path], int] | None = None
    layers: Callable[[], Layers] | None = None
    memory_bytes: Callable[[], int] | None = None
    refused: Callable[[Any], float] | None = None
    save: Callable[[Path, int], None] = lambda folder, finished: None
    load: Callable[[Path, int], Position] = lambda folder, finished: Position(0, 0)

    def sizes(self, path: Path) -> Sizes:
        """What is kept, in bytes; writes the archive to ``path`` where there is one."""
        archive = None if self.save_archive is None else self.save_archive(path)
        stored = archive if self.stored_bytes is None else self.stored_bytes()
        if stored is None:
            raise ValueError("A learner needs stored_bytes or save_archive.")
        return Sizes(stored, archive, None if self.memory_bytes is None else self.memory_bytes())


@dataclass(frozen=True)
class StrategyEntry:
    """A registered strategy.

    :param build: makes the learner from the settings and from hyper-parameters by keyword.
    :param holds_out: whether it takes its validation examples from the experience itself; the
        others get streams without them, so that all train on equally many.
    :param scenarios: those that it can be run in.
    :param infers: whether it infers tasks in the class scenario, by one of :data:`RULES`.
    :param hyper_parameters: what a recipe may set, with defaults; None: those of ``build``.
    """

    build: Callable[..., Learner]
    holds_out: bool = False
    scenarios: tuple[str, ...] = SCENARIOS
    infers: bool = False
    hyper_parameters: Mapping[str, Any] | None = None

    def known(self) -> Mapping[str, Any]:
        """The hyper-parameters by name, with their defaults.

        >>> StrategyEntry(lambda settings, alpha=1.0, temperature=2.0: None).known()
        {'alpha': 1.0, 'temperature': 2.0}
        """
        if self.hyper_parameters is None:
            return defaults_of(self.build, leave_out={"settings"})
        return self.hyper_parameters


def learner_of(
    settings: RunSettings,
    strategy: Any,
    stored_bytes: Callable[[], int],
    memory_bytes: Callable[[], int] | None = None,
) -> Learner:
    """A learner that is one strategy of Avalanche.

    :param settings: of the run.
    :param strategy: a new one.
    :param stored_bytes: see :class:`Learner`.
    :param memory_bytes: likewise.
    """

    def save(folder: Path, finished: int) -> None:
        # two files take turns: the last state is safe while the next one is written
        save_strategy(strategy, folder / f"turn{finished % 2}", settings)

    def load(folder: Path, finished: int) -> Position:
        if finished:
            load_strategy(strategy, folder / f"turn{finished % 2}", settings)
        return Position(finished, 0)

    return Learner(
        strategy.train,
        strategy.eval,
        stored_bytes,
        memory_bytes=memory_bytes,
        save=save,
        load=load,
    )


def baseline_model(settings: RunSettings) -> nn.Module:
    """A head per task where tasks have labels, one head for all classes where they have none."""
    if settings.stream.scenario == "class":
        return settings.model()
    return MultiHead(settings.model(), "head")


def body_and_head(settings: RunSettings) -> tuple[nn.Module, nn.Linear]:
    """A new plain network without its last layer, and that layer."""
    model: Any = settings.model()
    head, model.head = model.head, nn.Identity()
    return model, head


def defaults_of(function: Callable[..., Any], leave_out: set[str]) -> dict[str, Any]:
    """The parameters of a function that have names, with their defaults."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        name: None if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in leave_out and parameter.kind not in variable
    }
