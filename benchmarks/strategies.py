"""The strategies of the comparison, each built from the same settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Sequence

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.models import as_multitask
from avalanche.models.packnet import PackNetModel, WeightAndBiasPackNetModule
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.supervised import EWC, JointTraining, LwF, Naive, Replay
from avalanche.training.supervised import PackNet as AvalanchePackNet
from torch import nn

from benchmarks.backbones import BACKBONES, float_bytes
from benchmarks.streams import SCENARIOS, Budget, Stream

Metrics = Dict[str, float]

RULES = ("entropy", "energy", "prototype")
"""How our strategies infer tasks, sample by sample; each may have ``_batch`` behind it."""


@dataclass(frozen=True)
class RunSettings:
    """Everything a builder needs; the same for all strategies of one stream and seed.

    :param stream: the tasks.
    :param backbone: name in :data:`benchmarks.backbones.BACKBONES`.
    :param budget: epochs, batch size and learning rate.
    :param seed: of the run.
    :param plugins: Avalanche plugins that only watch, such as the progress display.
    :param loggers: Avalanche loggers that get the metrics.
    :param inference: the rule by which our strategies infer tasks in the class scenario.
    """

    stream: Stream
    backbone: str
    budget: Budget
    seed: int
    plugins: list[SupervisedPlugin] = field(default_factory=list)
    loggers: list[BaseLogger] = field(default_factory=list)
    inference: str | None = None

    def model(self, classes: int | None = None, bias: bool = False) -> nn.Module:
        """A new plain network; its head is as wide as the stream's shared one unless told."""
        width = self.stream.max_classes if classes is None else classes
        return BACKBONES[self.backbone](self.stream.input_shape, width, bias)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new Adam over a model's parameters."""
        return torch.optim.Adam(model.parameters(), lr=self.budget.lr)

    def arguments(self, model: nn.Module, *metrics: Any) -> dict[str, Any]:
        """The constructor arguments that all strategies share, without plugins.

        :param model: a new one.
        :param metrics: further metrics for the loggers.
        """
        evaluator = EvaluationPlugin(
            accuracy_metrics(experience=True), *metrics, loggers=list(self.loggers)
        )
        return {
            "model": model,
            "optimizer": self.optimizer(model),
            "criterion": nn.CrossEntropyLoss(),
            "train_mb_size": self.budget.train_mb_size,
            "train_epochs": self.budget.epochs,
            "eval_mb_size": self.budget.eval_mb_size,
            "evaluator": evaluator,
        }

    def independent_bytes(self) -> int:
        """Bytes of one plain network per task with a head for that task's classes."""
        return sum(float_bytes(self.model(len(classes))) for classes in self.stream.tasks)


@dataclass(frozen=True)
class Sizes:
    """Bytes that a method keeps, and bytes of its archive, if it has one."""

    stored: int
    archive: int | None


@dataclass(frozen=True)
class Learner:
    """A strategy as the comparison sees it.

    :param train: learns one experience.
    :param eval: evaluates a list of experiences, returns Avalanche's metric dictionary.
    :param stored_bytes: what the method has to keep after the tasks so far; None when that is
        its archive.
    :param save_archive: writes the compressed file and returns its size after checking that it
        loads back exactly; None when the method has no such file.
    :param ranks: by dotted name of the weight, how many terms each task so far added to it; None,
        as an empty dictionary, when no weights are kept as terms.
    """

    train: Callable[[Any], Any]
    eval: Callable[[Sequence[Any]], Metrics]
    stored_bytes: Callable[[], int] | None = None
    save_archive: Callable[[Path], int] | None = None
    ranks: Callable[[], dict[str, list[int]]] | None = None

    def sizes(self, path: Path) -> Sizes:
        """What is kept, in bytes; writes the archive to ``path`` where there is one."""
        archive = None if self.save_archive is None else self.save_archive(path)
        stored = archive if self.stored_bytes is None else self.stored_bytes()
        if stored is None:
            raise ValueError("A learner needs stored_bytes or save_archive.")
        return Sizes(stored, archive)


@dataclass(frozen=True)
class Recipe:
    """A registered strategy.

    :param build: makes the learner.
    :param holds_out: whether it takes its validation examples from the experience itself; the
        others get streams without them, so that all train on equally many.
    :param scenarios: those that it can be run in.
    :param infers: whether it infers tasks in the class scenario, by one of :data:`RULES`.
    """

    build: Callable[[RunSettings], Learner]
    holds_out: bool = False
    scenarios: tuple[str, ...] = SCENARIOS
    infers: bool = False


# --- Baselines of Avalanche ----------------------------------------------------------------------


def naive(settings: RunSettings) -> Learner:
    """One network, trained on each task in turn, one head per task."""
    strategy = Naive(
        **settings.arguments(_baseline_model(settings)), plugins=list(settings.plugins)
    )
    return Learner(strategy.train, strategy.eval, lambda: float_bytes(strategy.model))


def ewc(settings: RunSettings, ewc_lambda: float = 100.0) -> Learner:
    """Elastic Weight Consolidation (Kirkpatrick et al., 2017), a penalty per earlier task."""
    strategy = EWC(
        **settings.arguments(_baseline_model(settings)),
        plugins=list(settings.plugins),
        ewc_lambda=ewc_lambda,
    )
    plugin = _plugin(strategy, EWCPlugin)

    def stored_bytes() -> int:
        kept = _ewc_numbers(plugin.importances) + _ewc_numbers(plugin.saved_params)
        return float_bytes(strategy.model) + 4 * kept

    return Learner(strategy.train, strategy.eval, stored_bytes)


def lwf(settings: RunSettings, alpha: float = 1.0, temperature: float = 2.0) -> Learner:
    """Learning without Forgetting (Li and Hoiem, 2016), which keeps a copy of the old model."""
    strategy = LwF(
        **settings.arguments(_baseline_model(settings)),
        plugins=list(settings.plugins),
        alpha=alpha,
        temperature=temperature,
    )
    plugin = _plugin(strategy, LwFPlugin)

    def stored_bytes() -> int:
        old = plugin.lwf.prev_model
        return float_bytes(strategy.model) + (0 if old is None else float_bytes(old))

    return Learner(strategy.train, strategy.eval, stored_bytes)


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

    return Learner(strategy.train, strategy.eval, stored_bytes)


def avalanche_packnet(settings: RunSettings) -> Learner:
    """Avalanche's own PackNet: every task gets an equal share of each layer's weights.

    It knows no per-task heads, so all tasks share one of the largest task's width, and it crashes
    on layers without biases, so its backbone has them. Half of the epochs follow the pruning.

    :raises ValueError: for fewer than two epochs.
    """
    if settings.budget.epochs < 2:
        raise ValueError("avalanche_packnet needs at least 2 epochs, one of them after pruning.")
    model = PackNetModel(settings.model(bias=True))
    strategy = AvalanchePackNet(
        **settings.arguments(model),
        post_prune_epochs=settings.budget.epochs // 2,
        prune_proportion=_pruned(EQUAL_SHARES, len(settings.stream.tasks)),
    )
    # Its constructor nests the caller's plugins in a list, where nobody calls them.
    strategy.plugins[:0] = settings.plugins
    strategy.plugins = [plugin for plugin in strategy.plugins if plugin is not None]

    def stored_bytes() -> int:
        layers = [m for m in model.modules() if isinstance(m, WeightAndBiasPackNetModule)]
        parameters = sum(p.numel() for p in model.parameters())
        return 4 * parameters + sum(layer.task_index.numel() for layer in layers)

    return Learner(strategy.train, strategy.eval, stored_bytes)


class Independent:
    """A new plain network for every task: no forgetting, no transfer, no sharing."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.strategies: dict[int, Naive] = {}

    def train(self, experience: Any) -> None:
        """Train a network of its own on this experience."""
        task = experience.current_experience
        model = self.settings.model(len(self.settings.stream.tasks[task]))
        strategy = Naive(**self.settings.arguments(model), plugins=list(self.settings.plugins))
        strategy.train(experience)
        self.strategies[task] = strategy

    def eval(self, experiences: Iterable[Any]) -> Metrics:
        """Evaluate each experience with its own network."""
        metrics: Metrics = {}
        for experience in experiences:
            metrics.update(self.strategies[experience.current_experience].eval(experience))
        return metrics

    def stored_bytes(self) -> int:
        """Bytes of all networks."""
        return sum(float_bytes(strategy.model) for strategy in self.strategies.values())


class Joint:
    """Training on all tasks at once, when the last one has come: the data are never given up."""

    def __init__(self, settings: RunSettings) -> None:
        self.tasks = len(settings.stream.tasks)
        self.seen: list[Any] = []
        self.strategy = JointTraining(
            **settings.arguments(_baseline_model(settings)), plugins=list(settings.plugins)
        )

    def train(self, experience: Any) -> None:
        """Collect the experience; train on all of them with the last one."""
        self.seen.append(experience)
        if len(self.seen) == self.tasks:
            self.strategy.train(self.seen)

    def eval(self, experiences: Sequence[Any]) -> Metrics:
        """Evaluate; there is nothing to evaluate before the last experience."""
        return self.strategy.eval(experiences) if len(self.seen) == self.tasks else {}

    def stored_bytes(self) -> int:
        """Bytes of the network."""
        return float_bytes(self.strategy.model)


def independent(settings: RunSettings) -> Learner:
    """One plain network per task, see :class:`Independent`."""
    learner = Independent(settings)
    return Learner(learner.train, learner.eval, learner.stored_bytes)


def joint(settings: RunSettings) -> Learner:
    """All tasks at once, see :class:`Joint`."""
    learner = Joint(settings)
    return Learner(learner.train, learner.eval, learner.stored_bytes)


# --- Ours ----------------------------------------------------------------------------------------


def packnet(settings: RunSettings) -> Learner:
    """avalanche_compress.PackNet; a fifth of the epochs comes before pruning.

    A task keeps a share of each layer that grows with its position: early tasks choose from many
    weights, later ones have to compute beside what is frozen. See :data:`PACKNET_SHARES`.
    """
    from avalanche_compress import PackNet

    tasks, epochs = len(settings.stream.tasks), settings.budget.epochs
    shares = PACKNET_SHARES.get(settings.stream.name, {})
    own_arguments = {
        "prune_proportion": {
            name: _pruned(shares.get(name, EQUAL_SHARES), tasks)
            for name, weight in settings.model().named_parameters()
            if weight.dim() > 1
        },
        "post_prune_epochs": epochs - max(1, epochs // 5),
    }
    return _compressed(settings, PackNet, own_arguments)


def wsn(settings: RunSettings) -> Learner:
    """avalanche_compress.WSN at the density of the public code; the mask is fixed at the end."""
    from avalanche_compress import WSN

    return _compressed(settings, WSN, _scored(settings))


def tinysubnets(settings: RunSettings) -> Learner:
    """avalanche_compress.TinySubNets, trained as WSN; each decision may cost 0.1 points."""
    from avalanche_compress import TinySubNets

    own_arguments = {"tolerance": 0.1, "prune_tolerance": 0.1, "seed": settings.seed}
    return _compressed(settings, TinySubNets, {**_scored(settings), **own_arguments})


def ada_qpacknet(settings: RunSettings) -> Learner:
    """avalanche_compress.AdaQPackNet: a quarter of each layer, pruned after a fifth of training."""
    from avalanche_compress import AdaQPackNet

    epochs = settings.budget.epochs
    own_arguments = {
        "density": 0.25,
        "tolerance": 0.2,
        "post_prune_epochs": epochs - max(1, epochs // 5),
        "seed": settings.seed,
    }
    return _compressed(settings, AdaQPackNet, own_arguments)


def cacl(settings: RunSettings, **own_arguments: Any) -> Learner:
    """avalanche_compress.CACL, see :data:`CACL_ARGUMENTS`.

    :param own_arguments: of CACL, in the place of the recipe's; ``bits`` quantises the factors.
    """
    from avalanche_compress import CACL, QuantizationPlugin

    own_arguments = {**CACL_ARGUMENTS, **own_arguments}
    bits = own_arguments.pop("bits", None)
    quantisation = [] if bits is None else [QuantizationPlugin(bits)]
    return _compressed(settings, CACL, own_arguments, quantisation)


def cacl_8bit(settings: RunSettings) -> Learner:
    """CACL with factors of 8 bits a number."""
    return cacl(settings, bits=8)


def cacl_sparse(settings: RunSettings) -> Learner:
    """CACL at four times the pressure for few terms, the paper's other value."""
    return cacl(settings, lambda_sparse=0.4)


def halrp(settings: RunSettings, **own_arguments: Any) -> Learner:
    """avalanche_compress.HALRP as in the scripts of its public code, see :data:`HALRP_L1_L2`.

    Unlike there, the last fifth of the epochs follows the pruning, which otherwise costs several
    points where the bound is tight.

    :param own_arguments: of HALRP, in the place of the recipe's; ``bits`` quantises the factors.
    """
    from avalanche_compress import HALRP, QuantizationPlugin

    l1, l2 = HALRP_L1_L2.get(settings.stream.name, (1e-4, 1e-4))
    epochs = settings.budget.epochs
    recipe = {
        "l1": l1,
        "l2": l2,
        "growth_bound": 0.6,
        "tasks": len(settings.stream.tasks),
        "post_prune_epochs": max(1, epochs // 5) if epochs > 2 else 0,
        "importance_data": "validation" if settings.budget.validation_fraction else "train",
    }
    own_arguments = {**recipe, **own_arguments}
    bits = own_arguments.pop("bits", None)
    quantisation = [] if bits is None else [QuantizationPlugin(bits)]
    return _compressed(settings, HALRP, own_arguments, quantisation)


def _scored(settings: RunSettings) -> dict[str, Any]:
    return {"density": 0.5, "post_prune_epochs": settings.budget.epochs // 5}


def _compressed(
    settings: RunSettings,
    strategy_class: Callable[..., Any],
    own_arguments: dict[str, Any],
    shaping: Sequence[SupervisedPlugin] = (),
) -> Learner:
    from avalanche_compress import compression_metrics, layer_ranks

    # they are read off the archive, which takes time: only if somebody looks
    metrics = compression_metrics() if settings.loggers else []
    strategy = strategy_class(
        **settings.arguments(settings.model(), *metrics),
        plugins=[*settings.plugins, *_validation(settings), *shaping],
        task_inference=settings.inference,
        **own_arguments,
    )

    def save(path: Path) -> int:
        return _save_archive(strategy.model, path, settings)

    def ranks() -> dict[str, list[int]]:
        return layer_ranks(strategy.model)

    return Learner(strategy.train, strategy.eval, save_archive=save, ranks=ranks)


def _validation(settings: RunSettings) -> list[SupervisedPlugin]:
    if settings.budget.validation_fraction == 0:
        return []
    from avalanche_compress import ValidationPlugin

    return [ValidationPlugin(settings.budget.validation_fraction, settings.seed)]


def _save_archive(network: Any, path: Path, settings: RunSettings) -> int:
    """Write the archive and check that it answers exactly as the network does.

    :raises RuntimeError: if a task's logits differ.
    """
    from avalanche_compress import load_archive, save_archive

    path.parent.mkdir(parents=True, exist_ok=True)
    save_archive(network, path)
    loaded = load_archive(path, settings.model)
    for experience in settings.stream.benchmark.test_stream:
        batch = torch.stack([experience.dataset[i][0] for i in range(32)])
        task = experience.current_experience
        if not torch.equal(_logits(network, batch, task), _logits(loaded, batch, task)):
            raise RuntimeError(f"The archive {path} gives other logits for task {task}.")
    return path.stat().st_size


@torch.no_grad()
def _logits(network: nn.Module, batch: torch.Tensor, task: int) -> torch.Tensor:
    network.eval()
    return network(batch, torch.full((len(batch),), task, dtype=torch.long))


# --- The registry --------------------------------------------------------------------------------

STRATEGIES: dict[str, Recipe] = {
    "naive": Recipe(naive),
    "ewc": Recipe(ewc),
    "lwf": Recipe(lwf),
    "replay": Recipe(replay),
    "avalanche_packnet": Recipe(avalanche_packnet, scenarios=("task",)),
    "packnet": Recipe(packnet, holds_out=True, infers=True),
    "wsn": Recipe(wsn, holds_out=True, infers=True),
    "tinysubnets": Recipe(tinysubnets, holds_out=True, infers=True),
    "ada_qpacknet": Recipe(ada_qpacknet, holds_out=True, infers=True),
    "cacl": Recipe(cacl, holds_out=True, infers=True),
    "cacl_8bit": Recipe(cacl_8bit, holds_out=True, infers=True),
    "cacl_sparse": Recipe(cacl_sparse, holds_out=True, infers=True),
    "halrp": Recipe(halrp, holds_out=True, infers=True),
    "independent": Recipe(independent, scenarios=("task",)),
    "joint": Recipe(joint),
}
"""Strategies by name, in the order of the table."""


CACL_ARGUMENTS = {
    "rank": 0.25,
    "grow": "r0",
    "init": "orthogonal",
    "residual": 0.1,
    "lambda_orth": 0.1,
    "energy": 5e-3,
    "truncation": "exact",
}
"""Where the recipe departs from the paper's, whose 200 epochs a task leave the penalties time to
empty layers that start with four times the terms."""

HALRP_L1_L2 = {"permuted_mnist": (1e-6, 1e-3), "permuted_mnist_32": (1e-6, 1e-3)}
"""Weights of the penalties by stream, where the public code's scripts differ from the default."""

EQUAL_SHARES = (1.0, 1.0)
"""First and last task's share of a layer, in units of 1 / tasks."""
PACKNET_SHARES = {"permuted_mnist": {"body.1.weight": (0.5, 0.9), "body.3.weight": (0.6, 1.1)}}
"""By stream and weight, where equal shares of everything are not best."""


def _pruned(shares: tuple[float, float], tasks: int) -> list[float]:
    """What each task prunes of the weights it finds free, when shares grow evenly.

    :param shares: the first and last task's share of all weights, in units of ``1 / tasks``.
    :param tasks: number of tasks.

    >>> _pruned(EQUAL_SHARES, 4)
    [0.75, 0.6666666666666667, 0.5, 0.0]
    """
    first, last = shares
    step = (last - first) / max(1, tasks - 1)
    kept = [(first + step * task) / tasks for task in range(tasks)]
    free = [1.0 - sum(kept[:task]) for task in range(tasks)]
    return [max(0.0, 1.0 - own / left) for own, left in zip(kept, free)]


def _baseline_model(settings: RunSettings) -> nn.Module:
    """A head per task where tasks have labels, one head for all classes where they have none."""
    if settings.stream.scenario == "class":
        return settings.model()
    return as_multitask(settings.model(), "head")


def _plugin(strategy: Any, kind: type) -> Any:
    return next(plugin for plugin in strategy.plugins if isinstance(plugin, kind))


def _ewc_numbers(kept: dict[int, dict[str, Any]]) -> int:
    return sum(item.data.numel() for per_task in kept.values() for item in per_task.values())
