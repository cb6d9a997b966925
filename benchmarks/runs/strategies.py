"""The strategies of the comparison, each built from the same settings."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Mapping, Sequence

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.packnet import PackNetModel, WeightAndBiasPackNetModule
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.supervised import EWC, JointTraining, LwF, Naive, Replay
from avalanche.training.supervised import PackNet as AvalanchePackNet
from torch import nn

from avalanche_compress import (
    CompressedStrategy,
    PackNet,
    Position,
    QuantizationPlugin,
    ValidationPlugin,
    compression_metrics,
    layer_bits,
    layer_densities,
    layer_ranks,
    load_archive,
    registered_methods,
    save_archive,
)
from benchmarks.data.streams import SCENARIOS
from benchmarks.runs.backbones import float_bytes
from benchmarks.runs.checkpoints import load_strategy, resume, save_strategy
from benchmarks.runs.multi_head import MultiHead
from benchmarks.runs.settings import RunSettings

Metrics = Dict[str, float]

RULES = ("entropy", "energy", "prototype", "gaussian@first", "triangular@first", "ridge@first")
"""How our strategies infer tasks, sample by sample, unless other rules or layers are asked for."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that a method keeps, and bytes of its archive, if it has one."""

    stored: int
    archive: int | None


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
    :param save_archive: writes the compressed file and returns its size after checking that it
        loads back exactly; None when the method has no such file.
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
    save: Callable[[Path, int], None] = lambda folder, finished: None
    load: Callable[[Path, int], Position] = lambda folder, finished: Position(0, 0)

    def sizes(self, path: Path) -> Sizes:
        """What is kept, in bytes; writes the archive to ``path`` where there is one."""
        archive = None if self.save_archive is None else self.save_archive(path)
        stored = archive if self.stored_bytes is None else self.stored_bytes()
        if stored is None:
            raise ValueError("A learner needs stored_bytes or save_archive.")
        return Sizes(stored, archive)


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

        >>> STRATEGIES["lwf"].known(), STRATEGIES["lora"].known()["rank"]
        ({'alpha': 1.0, 'temperature': 2.0}, 4)
        """
        if self.hyper_parameters is None:
            return _defaults(self.build, leave_out={"settings"})
        return self.hyper_parameters


# --- Baselines of Avalanche ----------------------------------------------------------------------


def naive(settings: RunSettings) -> Learner:
    """One network, trained on each task in turn, one head per task."""
    strategy = Naive(
        **settings.arguments(_baseline_model(settings)), plugins=list(settings.plugins)
    )
    return _learner(settings, strategy, lambda: float_bytes(strategy.model))


def ewc(
    settings: RunSettings, ewc_lambda: float = 100.0, decay_factor: float | None = None
) -> Learner:
    """Elastic Weight Consolidation (Kirkpatrick et al., 2017), a penalty per earlier task.

    With a ``decay_factor`` it is one penalty for all of them (online EWC; Schwarz et al., 2018),
    whose cost does not grow with the tasks.
    """
    strategy = EWC(
        **settings.arguments(_baseline_model(settings)),
        plugins=list(settings.plugins),
        ewc_lambda=ewc_lambda,
        mode="separate" if decay_factor is None else "online",
        decay_factor=decay_factor,
    )

    def stored_bytes() -> int:
        plugin = _plugin(strategy, EWCPlugin)
        kept = _ewc_numbers(plugin.importances) + _ewc_numbers(plugin.saved_params)
        return float_bytes(strategy.model) + 4 * kept

    return _learner(settings, strategy, stored_bytes)


def lwf(settings: RunSettings, alpha: float = 1.0, temperature: float = 2.0) -> Learner:
    """Learning without Forgetting (Li and Hoiem, 2016), which keeps a copy of the old model."""
    strategy = LwF(
        **settings.arguments(_baseline_model(settings)),
        plugins=list(settings.plugins),
        alpha=alpha,
        temperature=temperature,
    )

    def stored_bytes() -> int:
        old = _plugin(strategy, LwFPlugin).lwf.prev_model
        return float_bytes(strategy.model) + (0 if old is None else float_bytes(old))

    return _learner(settings, strategy, stored_bytes)


def replay(settings: RunSettings, memory: int = 500) -> Learner:
    """Experience replay: a fixed number of earlier examples, shared evenly by the experiences."""
    strategy = Replay(
        **settings.arguments(_baseline_model(settings)),
        plugins=list(settings.plugins),
        mem_size=memory,
    )

    def stored_bytes() -> int:
        numbers = math.prod(settings.stream.input_shape)
        kept = len(_plugin(strategy, ReplayPlugin).storage_policy.buffer)
        # an example is kept as its bytes, as on disk, and a byte for its class
        return float_bytes(strategy.model) + kept * (numbers + 1)

    return _learner(settings, strategy, stored_bytes)


def avalanche_packnet(
    settings: RunSettings, post_prune_epochs: int, prune_proportion: float | list[float]
) -> Learner:
    """Avalanche's own PackNet.

    It knows no per-task heads, so all tasks share one of the largest task's width, and it crashes
    on layers without biases, so its backbone has them.

    :raises ValueError: for fewer than two epochs.
    """
    if settings.budget.epochs < 2:
        raise ValueError("avalanche_packnet needs at least 2 epochs, one of them after pruning.")
    strategy = AvalanchePackNet(
        **settings.arguments(PackNetModel(settings.model(bias=True))),
        post_prune_epochs=post_prune_epochs,
        prune_proportion=prune_proportion,
    )
    # Its constructor nests the caller's plugins in a list, where nobody calls them.
    strategy.plugins[:0] = settings.plugins
    strategy.plugins = [plugin for plugin in strategy.plugins if plugin is not None]

    def stored_bytes() -> int:
        owners = sum(layer.task_index.numel() for layer in _packnet_layers(strategy.model))
        return 4 * sum(p.numel() for p in strategy.model.parameters()) + owners

    learner = _learner(settings, strategy, stored_bytes)

    def load(folder: Path, finished: int) -> Position:
        position = learner.load(folder, finished)
        # What keeps frozen weights from training are hooks, which pickling loses.
        for layer in _packnet_layers(strategy.model) if finished else []:
            layer.wrappee.weight.register_hook(layer._remove_gradient_hook)
        return position

    return replace(learner, load=load)


def _packnet_layers(model: nn.Module) -> list[WeightAndBiasPackNetModule]:
    return [layer for layer in model.modules() if isinstance(layer, WeightAndBiasPackNetModule)]


class Independent:
    """A new plain network for every task: no forgetting, no transfer, no sharing."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.strategies: dict[int, Naive] = {}

    def train(self, experience: Any) -> None:
        """Train a network of its own on this experience."""
        strategy = self._new(experience.current_experience)
        if self.strategies:  # one axis for all that is logged
            strategy.clock.train_iterations = self._last().clock.train_iterations
        strategy.train(experience)
        self.strategies[experience.current_experience] = strategy

    def eval(self, experiences: Iterable[Any]) -> Metrics:
        """Evaluate each experience with its own network."""
        metrics: Metrics = {}
        for experience in experiences:
            metrics.update(self.strategies[experience.current_experience].eval(experience))
        return metrics

    def stored_bytes(self) -> int:
        """Bytes of all networks."""
        return sum(float_bytes(strategy.model) for strategy in self.strategies.values())

    def save(self, folder: Path, finished: int) -> None:
        """Write the last network; those before have files already."""
        strategy = self.strategies[finished - 1]
        save_strategy(strategy, folder / f"task{finished}", self.settings)

    def load(self, folder: Path, finished: int) -> Position:
        """Read all networks, the last one last: the random generators go on from there."""
        for task in range(finished):
            strategy = self._new(task)
            load_strategy(strategy, folder / f"task{task + 1}", self.settings)
            self.strategies[task] = strategy
        return Position(finished, 0)

    def _last(self) -> Naive:
        return self.strategies[max(self.strategies)]

    def _new(self, task: int) -> Naive:
        model = self.settings.model(len(self.settings.stream.tasks[task]))
        return Naive(**self.settings.arguments(model), plugins=list(self.settings.plugins))


class Joint:
    """Training on all tasks at once, when the last one has come: the data are never given up."""

    def __init__(self, settings: RunSettings) -> None:
        self.stream = settings.stream
        self.seen: list[Any] = []
        self.strategy = JointTraining(
            **settings.arguments(_baseline_model(settings)), plugins=list(settings.plugins)
        )

    def train(self, experience: Any) -> None:
        """Collect the experience; train on all of them with the last one."""
        self.seen.append(experience)
        if len(self.seen) == len(self.stream.tasks):
            self.strategy.train(self.seen)

    def eval(self, experiences: Sequence[Any]) -> Metrics:
        """Evaluate; there is nothing to evaluate before the last experience."""
        done = len(self.seen) == len(self.stream.tasks)
        return self.strategy.eval(experiences) if done else {}

    def stored_bytes(self) -> int:
        """Bytes of the network."""
        return float_bytes(self.strategy.model)

    def remember(self, finished: int) -> None:
        """Take the first experiences for seen."""
        self.seen = list(self.stream.benchmark.train_stream[:finished])


def independent(settings: RunSettings) -> Learner:
    """One plain network per task, see :class:`Independent`."""
    nets = Independent(settings)
    return Learner(nets.train, nets.eval, nets.stored_bytes, save=nets.save, load=nets.load)


def joint(settings: RunSettings) -> Learner:
    """All tasks at once, see :class:`Joint`."""
    together = Joint(settings)
    whole = _learner(settings, together.strategy, together.stored_bytes)

    def load(folder: Path, finished: int) -> Position:
        together.remember(finished)
        return whole.load(folder, finished)

    return replace(whole, train=together.train, eval=together.eval, load=load)


# --- Ours ----------------------------------------------------------------------------------------


def compressed(
    strategy_class: Callable[..., Any], settings: RunSettings, **own_arguments: Any
) -> Learner:
    """A strategy of avalanche_compress.

    :param strategy_class: its class; gets the run's seed, and number of tasks, if it asks for them.
    :param settings: the run's.
    :param own_arguments: of the class. ``bits`` of a class that has no such argument adds a
        :class:`~avalanche_compress.QuantizationPlugin`.
    """
    asked = inspect.signature(strategy_class).parameters
    of_the_run = {"seed": settings.seed, "tasks": len(settings.stream.tasks)}
    own_arguments.update((name, of_the_run[name]) for name in of_the_run if name in asked)
    bits = None if "bits" in asked else own_arguments.pop("bits", None)
    # they are read off the archive, which takes time: only if somebody looks
    metrics = compression_metrics() if settings.loggers else []
    strategy = strategy_class(
        **settings.arguments(settings.model(), *metrics),
        plugins=[
            *settings.plugins,
            *_validation(settings),
            *([] if bits is None else [QuantizationPlugin(bits)]),
        ],
        task_inference=settings.inference,
        **own_arguments,
    )

    def save(path: Path) -> int:
        return _save_archive(strategy.model, path, settings)

    def layers() -> Layers:
        network = strategy.model
        return Layers(layer_ranks(network), layer_densities(network), layer_bits(network))

    def load(folder: Path, finished: int) -> Position:
        return resume(strategy, folder, settings.save_every)

    return Learner(strategy.train, strategy.eval, None, save, layers, load=load)


def packnet(settings: RunSettings, **own_arguments: Any) -> Learner:
    """avalanche_compress.PackNet, whose network is the second one that the seed draws."""
    settings.model()  # its numbers in RESULTS.md come from a builder that needed one for the names
    return compressed(PackNet, settings, **own_arguments)


def ours(strategy_class: Callable[..., Any]) -> StrategyEntry:
    """The entry of a strategy of avalanche_compress: a recipe may set what its class names."""
    of_the_run = {"seed", "tasks", *inspect.signature(CompressedStrategy).parameters}
    known = {"bits": None, **_defaults(strategy_class, leave_out=of_the_run)}
    build = partial(compressed, strategy_class)
    return StrategyEntry(build, holds_out=True, infers=True, hyper_parameters=known)


def _validation(settings: RunSettings) -> list[SupervisedPlugin]:
    if settings.budget.validation_fraction == 0:
        return []
    return [ValidationPlugin(settings.budget.validation_fraction, settings.seed)]


def _save_archive(network: Any, path: Path, settings: RunSettings) -> int:
    """Write the archive and check that it answers exactly as the network does.

    :raises RuntimeError: if a task's logits differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_archive(network, path)
    loaded = load_archive(path, settings.model).to(settings.device)
    for experience in settings.stream.benchmark.test_stream:
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


def _defaults(function: Callable[..., Any], leave_out: set[str]) -> dict[str, Any]:
    """The parameters of a function that have names, with their defaults."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        name: None if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in leave_out and parameter.kind not in variable
    }


def _learner(settings: RunSettings, strategy: Any, stored_bytes: Callable[[], int]) -> Learner:
    """What all learners of a single strategy of Avalanche have in common."""

    def save(folder: Path, finished: int) -> None:
        # two files take turns: the last state is safe while the next one is written
        save_strategy(strategy, folder / f"turn{finished % 2}", settings)

    def load(folder: Path, finished: int) -> Position:
        if finished:
            load_strategy(strategy, folder / f"turn{finished % 2}", settings)
        return Position(finished, 0)

    return Learner(strategy.train, strategy.eval, stored_bytes, save=save, load=load)


# --- The registry --------------------------------------------------------------------------------


def _methods() -> dict[str, StrategyEntry]:
    """The registered methods, each under the names of its recipes."""
    entries = {
        name: ours(method.strategy)
        for method in registered_methods()
        for name in (method.name, *method.recipes)
    }
    entries["packnet"] = replace(entries["packnet"], build=packnet)
    return entries


STRATEGIES: dict[str, StrategyEntry] = {
    "naive": StrategyEntry(naive),
    "ewc": StrategyEntry(ewc),
    "lwf": StrategyEntry(lwf),
    "replay": StrategyEntry(replay),
    "avalanche_packnet": StrategyEntry(avalanche_packnet, scenarios=("task",)),
    **_methods(),
    "independent": StrategyEntry(independent, scenarios=("task",)),
    "joint": StrategyEntry(joint),
}
"""Strategies by name, in the order of the table; their arguments are in recipes."""


def _baseline_model(settings: RunSettings) -> nn.Module:
    """A head per task where tasks have labels, one head for all classes where they have none."""
    if settings.stream.scenario == "class":
        return settings.model()
    return MultiHead(settings.model(), "head")


def _plugin(strategy: Any, kind: type) -> Any:
    return next(plugin for plugin in strategy.plugins if isinstance(plugin, kind))


def _ewc_numbers(kept: dict[int, dict[str, Any]]) -> int:
    return sum(item.data.numel() for per_task in kept.values() for item in per_task.values())
