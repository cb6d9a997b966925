"""Whose weights a new task may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_compress.core.batches import moved_to
from avalanche_compress.core.network import TaskNetwork, network_of
from avalanche_compress.core.options import check_types
from avalanche_compress.core.substitution import evaluating
from avalanche_compress.core.views import run_with_features
from avalanche_compress.errors import NonFiniteError, TaskStateError, ValidationDataError
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.shaping.plugin import shape_and_commit
from avalanche_compress.shaping.validation import load_batches

_INACTIVE = 1e-6  # variance of a feature that is always the same
SHARING = ("all", "similar", "none")


@dataclass(eq=False)
class SharingPlugin(SupervisedPlugin):
    """Lets a new task read the weights of all earlier tasks, of the similar ones, or of none.

    Similarity compares features, the inputs of the head. Each task keeps mean and variance of its
    features over ``memory`` samples under its own sub-network, as Gaussians, and their overlap with
    those of ``memory`` other samples of its own. A new task's samples are run through the old
    sub-networks; its similarity to task s is

        min(1, O(new, s) / O_own(s)),  O(p, q) = mean_d integral sqrt(p_d q_d)  (Bhattacharyya),

    over the features d that are active in either. So a task of the same distribution scores about
    1, whatever the features' scale, and one feature that is far off counts no more than any other,
    as it would in a divergence. Idea: TinySubNets (Pietron et al., AAAI 2025), whose replay memory
    holds layer outputs; this definition is our choice.

    :param sharing: ``"all"``, ``"similar"`` or ``"none"``.
    :param threshold: least similarity, 0..1. Tasks that came again scored 0.97 to 1; other digits
        and other permutations 0.6 to 0.95, other superclasses of CIFAR-100 0.55 to 1.
    :param memory: samples of each kind.
    :raises TaskStateError: if an argument is outside its range.

    >>> SharingPlugin("similar", threshold=0.9).sharing
    'similar'
    """

    sharing: str = "all"
    threshold: float = 0.95
    memory: int = 100

    state_attributes = ()

    def __post_init__(self) -> None:
        super().__init__()
        check_types(self)
        if self.sharing not in SHARING:
            raise TaskStateError(f"sharing={self.sharing!r} must be one of {SHARING}.")
        if not 0 <= self.threshold <= 1 or self.memory < 2:
            raise TaskStateError(
                f"threshold={self.threshold} must lie in 0..1 and memory={self.memory} be at least "
                "2 samples."
            )
        self._probe: list[Tensor] = []

    def after_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        network = network_of(strategy)
        if self.sharing == "none":
            network.plan_reuse([])
        elif self.sharing == "similar":
            self._probe = _two_samples(strategy.adapted_dataset, self.memory)
            network.plan_reuse(
                [t for t in network.tasks if self.similarity(network, t) >= self.threshold]
            )

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        if self.sharing != "similar" or not self._probe:
            return
        shape_and_commit(strategy)
        network = network_of(strategy)
        task = network.tasks[-1]
        ours, others = (gaussian(features(network, x, task)) for x in self._probe)
        likeness = overlap(ours, others).view(1)
        kept = network.statistics.setdefault(task, {})
        kept["similarity"] = torch.cat([ours.flatten(), likeness]).cpu()
        self._probe = []

    def similarity(self, network: TaskNetwork, task: int) -> float:
        """How similar the samples of the new task are to a finished task, 0..1.

        :param network: that learned the task.
        :param task: its label.
        :raises NonFiniteError: if the samples' features are NaN or infinite.
        :raises TaskStateError: if nothing usable was kept of the task.
        """
        new = gaussian(features(network, self._probe[0], task)).cpu()
        if not bool(torch.isfinite(new).all()):
            raise NonFiniteError(
                f"the features of the new task's samples under task {task} are NaN or infinite, so "
                "no similarity can be told: check the inputs."
            )
        moments, likeness = _kept_moments(network, task, like=new)
        return min(1.0, float(overlap(new, moments)) / likeness)


def _kept_moments(network: TaskNetwork, task: int, like: Tensor) -> tuple[Tensor, float]:
    """Mean and variance (2, d) of a task's features, and its overlap with itself.

    They may be of a file, or of a task that was learned without a :class:`SharingPlugin`.
    """
    kept = network.statistics.get(task, {}).get("similarity", torch.empty(0)).cpu()
    usable = kept.numel() == like.numel() + 1 and bool(torch.isfinite(kept).all())
    if not usable or bool((kept[:-1].view(2, -1)[1] <= 0).any()) or not 0 < kept[-1] <= 1:
        raise TaskStateError(
            f"nothing was kept of task {task} by which its similarity to another one can be told: "
            "give sharing='all' or sharing='none'."
        )
    return kept[:-1].view(2, -1), float(kept[-1])


def features(network: TaskNetwork, x: Tensor, task: int) -> Tensor:
    """The inputs of the head.

    :param network: any.
    :param x: ``(N, ...)``.
    :param task: whose sub-network computes them.
    :return: ``(N, d)``.
    """
    with torch.no_grad(), evaluating(network):
        return run_with_features(network, moved_to(x, network.head.weight.device), task)[1]


def gaussian(values: Tensor) -> Tensor:
    """Mean and variance of each feature.

    :param values: ``(N, d)``.
    :return: ``(2, d)``; variances are at least 1e-6, that of a feature which is not active.

    >>> gaussian(torch.tensor([[0.0], [2.0]])).flatten().tolist()
    [1.0, 1.0]
    """
    return torch.stack([values.mean(0), values.var(0, unbiased=False).clamp_min(_INACTIVE)])


def overlap(p: Tensor, q: Tensor) -> Tensor:
    """Bhattacharyya's coefficient of Gaussians, mean over the features active in either.

    :param p: ``(2, d)``, mean and variance.
    :param q: ``(2, d)``.
    :return: scalar, 0..1; 1 where no feature is active.

    >>> p, q = torch.tensor([[0.0, 0.0], [1.0, 1e-6]]), torch.tensor([[2.0, 0.0], [1.0, 1e-6]])
    >>> round(overlap(p, q).item(), 4), overlap(p, p).item()  # exp(-1/2)
    (0.6065, 1.0)
    """
    both = p[1] + q[1]
    each = (2 * (p[1] * q[1]).sqrt() / both).sqrt() * torch.exp(-((p[0] - q[0]) ** 2) / (4 * both))
    active = torch.maximum(p[1], q[1]) > _INACTIVE
    return each[active].mean().clamp(max=1.0) if bool(active.any()) else each.new_ones(())


def _two_samples(dataset: Any, count: int) -> list[Tensor]:
    """Two disjoint runs of ``count`` inputs, in an order of their own for every data set size."""
    if len(dataset) < 2:
        raise ValidationDataError(
            f"sharing='similar' compares two sets of a task's samples, and {len(dataset)} is not "
            "enough for two: give more samples, or sharing='all' or 'none'."
        )
    count = min(count, len(dataset) // 2)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    chosen = dataset.subset(order[: 2 * count].tolist()).eval()
    return [x for x, _ in load_batches(chosen, count)]
