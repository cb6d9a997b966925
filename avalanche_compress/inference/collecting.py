"""Gathering what a rule keeps of a finished task, in one pass over its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from avalanche_compress.core.batches import moved_to, rows_of, size_of
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.errors import TaskInferenceError
from avalanche_compress.inference.answers import Answers
from avalanche_compress.inference.features import Features
from avalanche_compress.inference.rule import Kept, Rule, check_width
from avalanche_compress.inference.unknown import thresholds

EVERY = 10
"""Without held-out samples, one of so many of each class is not gathered but calibrated with."""

MOST = 100
"""Samples of a class that are calibrated with, at most: their features are in memory."""


def thresholds_name(rule: Rule) -> str:
    """The statistics of a task that say which of its samples are as new as few of them.

    :param rule: by which they are.
    """
    return f"{rule.name}.thresholds"


def check_targets(targets: Any) -> None:
    """Refuse what statistics of classes cannot be kept of.

    :param targets: of a mini-batch.
    :raises TaskInferenceError: if they are no class numbers ``(N,)``.
    """
    if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
        raise TaskInferenceError(
            "task inference keeps statistics of each class, and the targets are no class "
            "numbers (N,): give one a sample, and make others of them in the criterion."
        )


class Collection:
    """Sums over a task's samples under all sub-networks that a rule asks for.

    Each mini-batch is looked at once and not kept. Memory: the sums, and the features of
    :data:`MOST` samples a class.

    :param rule: says what is gathered.
    :param features: are gathered.
    :param network: has learned the task.
    :param task: its label.
    :param earlier: what is kept of the tasks before.
    :param calibrates: whether some samples are not gathered but calibrated with.
    """

    def __init__(
        self,
        rule: Rule,
        features: Features,
        network: TaskNetwork,
        task: int,
        earlier: Sequence[Kept],
        calibrates: bool,
    ):
        self._rule, self._features, self._network = rule, features, network
        self._task, self._earlier, self._calibrates = task, earlier, calibrates
        self._tasks = network.tasks[: network.tasks.index(task) + 1]
        self._classes = torch.tensor(network.classes_of(task))
        self._references = list(rule.references(len(self._tasks) - 1))
        self._gathered: list[Any] = []
        self._seen = torch.zeros(len(self._classes), dtype=torch.int64)
        self._calibrating: list[Answers] = []
        self._first: Answers | None = None

    def add(self, x: Tensor, targets: Tensor) -> None:
        """Look at samples to gather.

        :param x: ``(N, ...)``.
        :param targets: ``(N,)``, class numbers.
        :raises TaskInferenceError: if one is not a class of the task, or the samples have other
            features than those of earlier tasks.
        """
        positions = self._positions(targets)
        held_out = self._held_out(positions)
        if self._references or self._first is None:
            answers = self._ask(x)
            if self._references:
                self._gather(answers, positions, ~held_out)
            self._first = self._first or answers.rows(torch.arange(min(MOST, size_of(x))))
            answers = answers.rows(held_out)
        elif bool(held_out.any()):
            answers = self._ask(rows_of(x, held_out))
        if bool(held_out.any()):
            self._calibrating.append(answers)

    def add_held_out(self, x: Tensor, targets: Tensor) -> None:
        """Look at samples to calibrate with.

        :param x: ``(N, ...)``, of the task.
        :param targets: ``(N,)``, class numbers.
        """
        wanted = self._rank(self._positions(targets)) < MOST
        if bool(wanted.any()):
            self._calibrating.append(self._ask(rows_of(x, wanted)))

    def finish(self, refuses: bool) -> Kept:
        """What is kept of the task.

        :param refuses: whether thresholds are kept by which samples can be refused.
        :raises TaskInferenceError: if there were no samples.
        """
        calibrating = self._calibrating or ([] if self._first is None else [self._first])
        if not calibrating:
            raise TaskInferenceError(
                f"no samples of task {self._task} were given to collect statistics from."
            )
        answers = Answers.joined(calibrating)
        kept: Kept = {}
        if self._references:
            kept = self._rule.keep(self._gathered, self._earlier)
            kept.update(self._rule.calibrate(answers, [*self._earlier, kept]))
        if not refuses:
            return kept
        classes = {task: self._network.classes_of(task) for task in self._tasks}
        older = [
            {n: statistics[n] for n in statistics if n not in self._rule.newest}
            for statistics in self._earlier
        ]
        decoded = self._rule.decode([*older, kept], classes, torch.device("cpu"))
        novelty = self._rule.novelty(answers, decoded, len(self._tasks) - 1)
        return {**kept, thresholds_name(self._rule): thresholds(novelty)}

    def _ask(self, x: Tensor) -> Answers:
        """What scoring these samples as the task's takes, computed."""
        device = self._network.head.weight.device
        answers = Answers(self._network, self._tasks, moved_to(x, device), self._features)
        for reference in self._references:
            answers.features(reference)
        if not self._references:
            answers.logits(len(self._tasks) - 1)
        return answers.on_cpu()

    def _gather(self, answers: Answers, positions: Tensor, wanted: Tensor) -> None:
        if not self._gathered:
            widths = [answers.features(reference).shape[1] for reference in self._references]
            check_width(self._rule, widths[0], self._earlier)
            classes = len(self._classes)
            self._gathered = [self._rule.gathering(classes, width) for width in widths]
        for gathering, reference in zip(self._gathered, self._references):
            gathering.add(answers.features(reference)[wanted], positions[wanted])

    def _positions(self, targets: Tensor) -> Tensor:
        """Where the targets stand among the task's classes."""
        check_targets(targets)
        targets = targets.cpu()
        positions = torch.searchsorted(self._classes, targets).clamp_max(len(self._classes) - 1)
        if not torch.equal(self._classes[positions], targets):
            raise TaskInferenceError(
                f"the samples have the classes {targets.unique().tolist()[:20]} and task "
                f"{self._task} has {self._classes.tolist()[:20]}: collect a task's own samples."
            )
        return positions

    def _held_out(self, positions: Tensor) -> Tensor:
        """Which samples are kept out: each tenth of a class, so that no random number is drawn."""
        if not self._calibrates:
            return torch.zeros(len(positions), dtype=torch.bool)
        rank = self._rank(positions)
        return (rank % EVERY == EVERY - 1) & (rank < EVERY * MOST)

    def _rank(self, positions: Tensor) -> Tensor:
        """How many samples of its class came before each one."""
        of_class = one_hot(positions, len(self._classes))
        before = (of_class.cumsum(dim=0) - of_class).gather(1, positions[:, None])[:, 0]
        rank = before + self._seen[positions]
        self._seen += of_class.sum(dim=0)
        return rank
