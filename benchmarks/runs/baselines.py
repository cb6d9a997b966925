"""The baselines that Avalanche ships, as learners."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.benchmarks.utils.classification_dataset import (
    _make_taskaware_tensor_classification_dataset,
)
from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.models.packnet import PackNetModel, WeightAndBiasPackNetModule
from avalanche.training.plugins import (
    AGEMPlugin,
    EWCPlugin,
    LwFPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.supervised import (
    DER,
    ER_ACE,
    EWC,
    MAS,
    ICaRL,
    LwF,
    Naive,
    Replay,
)
from avalanche.training.supervised import PackNet as AvalanchePackNet
from avalanche.training.supervised.der import ClassBalancedBufferWithLogits
from avalanche.training.supervised.icarl import _ICaRLPlugin
from torch import nn
from torch.nn.functional import normalize

from avalanche_compress import Position
from benchmarks.runs.backbones import float_bytes
from benchmarks.runs.learners import Learner, baseline_model, body_and_head, learner_of
from benchmarks.runs.settings import RunSettings


def naive(settings: RunSettings) -> Learner:
    """One network, trained on each task in turn, one head per task."""
    strategy = _new(Naive, settings)
    return learner_of(settings, strategy, lambda: float_bytes(strategy.model))


# --- A penalty on what earlier tasks need --------------------------------------------------------


def ewc(
    settings: RunSettings, ewc_lambda: float = 100.0, decay_factor: float | None = None
) -> Learner:
    """Elastic Weight Consolidation (Kirkpatrick et al., 2017), a penalty per earlier task.

    With a ``decay_factor`` it is one penalty for all of them (online EWC; Schwarz et al., 2018),
    whose cost does not grow with the tasks.
    """
    mode = "separate" if decay_factor is None else "online"
    strategy = _new(EWC, settings, ewc_lambda=ewc_lambda, mode=mode, decay_factor=decay_factor)

    def stored_bytes() -> int:
        plugin = _plugin(strategy, EWCPlugin)
        kept = _ewc_numbers(plugin.importances) + _ewc_numbers(plugin.saved_params)
        return float_bytes(strategy.model) + 4 * kept

    return learner_of(settings, strategy, stored_bytes)


def _ewc_numbers(kept: dict[int, dict[str, Any]]) -> int:
    return sum(item.data.numel() for per_task in kept.values() for item in per_task.values())


def si(settings: RunSettings, si_lambda: float = 100.0) -> Learner:
    """Synaptic Intelligence (Zenke et al., 2017), which keeps importances and old weights."""
    strategy = _new(Naive, settings)
    strategy.plugins.append(_SynapticIntelligence(si_lambda))
    return learner_of(settings, strategy, lambda: 3 * float_bytes(strategy.model))


class _SynapticIntelligence(SynapticIntelligencePlugin):
    """Avalanche's plugin with copies of old weights.

    Avalanche 0.6 remembers the parameters themselves on a CPU. They change in place, so that no
    weight ever differs from its old value, and nothing is penalised.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Copy the weights at the start of a task."""
        super().before_training_exp(strategy, **kwargs)
        _copy(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Copy the weights before a step."""
        super().before_training_iteration(strategy, **kwargs)
        _copy(self.syn_data["old_theta"])


def _copy(kept: dict[str, Any]) -> None:
    for item in kept.values():
        item.data = item.data.clone()


def mas(settings: RunSettings, lambda_reg: float = 1.0, alpha: float = 0.5) -> Learner:
    """Memory Aware Synapses (Aljundi et al., 2018), which keeps importances and old weights."""
    strategy = _new(MAS, settings, lambda_reg=lambda_reg, alpha=alpha)
    return learner_of(settings, strategy, lambda: 3 * float_bytes(strategy.model))


def lwf(settings: RunSettings, alpha: float = 1.0, temperature: float = 2.0) -> Learner:
    """Learning without Forgetting (Li and Hoiem, 2016), which keeps a copy of the old model."""
    strategy = _new(LwF, settings, alpha=alpha, temperature=temperature)

    def stored_bytes() -> int:
        old = _plugin(strategy, LwFPlugin).lwf.prev_model
        return float_bytes(strategy.model) + (0 if old is None else float_bytes(old))

    return learner_of(settings, strategy, stored_bytes)


# --- A memory of examples ------------------------------------------------------------------------


def replay(settings: RunSettings, memory: int = 500) -> Learner:
    """Experience replay: a fixed number of earlier examples, shared evenly by the experiences."""
    strategy = _new(Replay, settings, mem_size=memory)

    def kept() -> int:
        return len(_plugin(strategy, ReplayPlugin).storage_policy.buffer)

    return _with_memory(settings, strategy, kept)


def er_ace(settings: RunSettings, memory: int = 500, memory_batch: int | None = None) -> Learner:
    """Experience replay with asymmetric cross-entropy (Caccia et al., 2022).

    :param settings: of the run.
    :param memory: examples, shared evenly by the classes.
    :param memory_batch: of them in a step; None: as many as of the task.
    """
    batch = memory_batch or settings.budget.train_mb_size
    strategy = _new(ER_ACE, settings, mem_size=memory, batch_size_mem=batch)
    return _with_memory(settings, strategy, lambda: len(strategy.storage_policy.buffer))


def der(settings: RunSettings, memory: int = 500, alpha: float = 0.1, beta: float = 0.5) -> Learner:
    """Dark Experience Replay++ (Buzzega et al., 2020): old examples keep their old logits, too.

    :param settings: of the run.
    :param memory: examples, shared evenly by the classes.
    :param alpha: weight of the distance to the old logits.
    :param beta: weight of the old labels' loss.
    """
    strategy = _new(DER, settings, mem_size=memory, alpha=alpha, beta=beta)
    if settings.stream.scenario == "task":
        strategy.storage_policy = _LabelledLogits(memory)
    width = 4 * settings.stream.max_classes
    return _with_memory(settings, strategy, lambda: len(strategy.storage_policy.buffer), width)


class _LabelledLogits(ClassBalancedBufferWithLogits):
    """Avalanche's buffer calls the model without task labels; here it has the current task's."""

    def update(self, strategy: Any, **kwargs: Any) -> None:
        """Take examples of the task that was just learned, with their logits."""
        experience = strategy.experience
        view = SimpleNamespace(
            experience=experience,
            model=_OneTask(strategy.model, experience.task_label),
            train_mb_size=strategy.train_mb_size,
            device=strategy.device,
        )
        super().update(view, **kwargs)


class _OneTask(nn.Module):
    """A multi-task model that is called without task labels."""

    def __init__(self, model: nn.Module, task: int) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the task."""
        return self.model(x, self.task)


def agem(settings: RunSettings, memory: int = 500, sample_size: int = 64) -> Learner:
    """Averaged gradient episodic memory (Chaudhry et al., 2019).

    :param settings: of the run.
    :param memory: examples, as many of each task.
    :param sample_size: of them in a step, by which its gradient is projected.
    """
    plugin = _Agem(memory // len(settings.stream.tasks), sample_size)
    strategy = _new(Naive, settings)
    strategy.plugins.append(plugin)
    return _with_memory(settings, strategy, lambda: sum(map(len, _plugin(strategy, _Agem).buffers)))


class _Agem(AGEMPlugin):
    """Avalanche's plugin keeps an open loader between tasks, which cannot be pickled."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Open the loader of all memories."""
        if self.buffers:
            each = max(1, self.sample_size // len(self.buffers))
            self.buffer_dliter = iter(
                GroupBalancedInfiniteDataLoader(self.buffers, batch_size=each, pin_memory=False)
            )

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Close the loader; take examples of the task."""
        self.buffer_dliter = iter(())
        super().after_training_exp(strategy, **kwargs)

    def update_memory(self, dataset: Any, num_workers: int = 0, **kwargs: Any) -> None:
        """Draw the examples that are kept of a task."""
        count = min(self.patterns_per_experience, len(dataset))
        self.buffers.append(dataset.subset(random.sample(range(len(dataset)), count)))


def icarl(settings: RunSettings, memory: int = 500) -> Learner:
    """Examples chosen by herding, whose mean features answer (iCaRL; Rebuffi et al., 2017).

    Avalanche's strategy, without mirrored copies of the examples, which are other digits of digits.

    :param settings: of the run.
    :param memory: examples, shared evenly by the classes.
    :raises ValueError: if a class is in two tasks, which iCaRL is not made for.
    """
    stream = settings.stream
    classes = [number for task in stream.tasks for number in task]
    if len(set(classes)) < len(classes):
        raise ValueError(f"iCaRL needs tasks of other classes, and those of {stream.name} are not.")
    # Avalanche's strategy asks the benchmark for these, as its classic benchmarks have them
    stream.benchmark.n_classes_per_exp = [len(task) for task in stream.tasks]
    stream.benchmark.classes_order = [sorted(classes).index(number) for number in classes]
    body, head = body_and_head(settings)
    arguments = settings.arguments(nn.Sequential(body, head))
    del arguments["model"], arguments["criterion"]
    strategy = ICaRL(
        **arguments,
        feature_extractor=body,
        classifier=head,
        memory_size=memory,
        buffer_transform=None,
        fixed_memory=True,
        plugins=settings.plain_plugins(),
    )
    strategy.plugins = [
        _Herding(memory) if isinstance(plugin, _ICaRLPlugin) else plugin
        for plugin in strategy.plugins
    ]

    def kept() -> int:
        return sum(map(len, _plugin(strategy, _Herding).x_memory))

    return _with_memory(settings, strategy, kept)


class _Herding(_ICaRLPlugin):
    """Avalanche's plugin, whose class means are those of the examples as they are.

    The original also gives its examples one task label in a form that Avalanche 0.6 cannot join to
    the labels of data sets.
    """

    class_means: dict[int, torch.Tensor]

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Train on the examples as well."""
        if self.x_memory:
            targets = [target for of_class in self.y_memory for target in of_class]
            examples = _make_taskaware_tensor_classification_dataset(
                torch.cat(self.x_memory).cpu(),
                torch.tensor(targets),
                task_labels=[0] * len(targets),
            )
            strategy.adapted_dataset = concat_datasets((strategy.adapted_dataset, examples))

    def compute_class_means(self, strategy: Any) -> None:
        """Take the mean of the normalised features of each class's examples."""
        # zeros for all at first, so that the copy of the old network has as many of them
        classes = sum(strategy.experience.benchmark.n_classes_per_exp)
        nothing = torch.zeros(self.embedding_size, device=strategy.device)
        self.class_means = self.class_means or dict.fromkeys(range(classes), nothing)
        for x, targets in zip(self.x_memory, self.y_memory):
            with torch.no_grad():
                features = strategy.model.feature_extractor(x.to(strategy.device))
            mean = normalize(features).mean(dim=0)
            self.class_means[targets[0]] = normalize(mean, dim=0)
        strategy.model.eval_classifier.replace_class_means_dict(self.class_means)


def _with_memory(
    settings: RunSettings, strategy: Any, kept: Callable[[], int], more: int = 0
) -> Learner:
    """A learner that keeps its network and examples, each as its bytes and a byte for its class.

    :param more: bytes that an example has besides.
    """
    example = math.prod(settings.stream.input_shape) + 1 + more

    def memory() -> int:
        return kept() * example

    return learner_of(settings, strategy, lambda: float_bytes(strategy.model) + memory(), memory)


# --- Avalanche's own PackNet ---------------------------------------------------------------------


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

    learner = learner_of(settings, strategy, stored_bytes)

    def load(folder: Path, finished: int) -> Position:
        position = learner.load(folder, finished)
        # What keeps frozen weights from training are hooks, which pickling loses.
        for layer in _packnet_layers(strategy.model) if finished else []:
            layer.wrappee.weight.register_hook(layer._remove_gradient_hook)
        return position

    return replace(learner, load=load)


def _packnet_layers(model: nn.Module) -> list[WeightAndBiasPackNetModule]:
    return [layer for layer in model.modules() if isinstance(layer, WeightAndBiasPackNetModule)]


def _new(strategy_class: Callable[..., Any], settings: RunSettings, **hyper_parameters: Any) -> Any:
    """A strategy over a new network with the run's arguments and its own."""
    arguments = settings.arguments(baseline_model(settings))
    return strategy_class(**arguments, plugins=settings.plain_plugins(), **hyper_parameters)


def _plugin(strategy: Any, kind: type) -> Any:
    return next(plugin for plugin in strategy.plugins if isinstance(plugin, kind))
