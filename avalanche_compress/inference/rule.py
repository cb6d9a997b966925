"""The contract of the rules by which tasks are told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from avalanche_compress.errors import TaskInferenceError
from avalanche_compress.inference.answers import Answers

Kept = dict[str, Tensor]
"""What a rule keeps of a task, by name; int8, float16 or float32."""


Classes = Mapping[int, Sequence[int]]
"""Class numbers by label of the task, in order of learning."""


class Gathering(Protocol):
    """Sums over the samples of a task."""

    def add(self, features: Tensor, positions: Tensor) -> None:
        """Count samples ``(N, d)`` of the classes ``(N,)`` in."""


class Rule:
    """Scores every task for every sample; the task of least score answers.

    A rule says three things: *what is gathered* of a task when it is finished (:meth:`references`,
    :meth:`gathering`), *what is kept* of that (:meth:`keep`, which the archive carries and counts),
    and *how a mini-batch is scored* with what was kept (:meth:`decode`, :meth:`scores`).

    Tasks are given by position, in order of learning.
    """

    name: ClassVar[str] = ""
    """As in ``task_inference="name"``."""
    kept: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that are kept of every task."""
    newest: ClassVar[tuple[str, ...]] = ()
    """Names of those that only the newest task keeps: sums over all tasks."""
    refuses: ClassVar[bool] = True
    """Whether the novelty of a task's samples stays what it was when the task was finished."""
    folds: ClassVar[bool] = True
    """Whether wide features are folded before they are gathered."""

    def check_classes(self, task: int, classes: Sequence[int]) -> None:
        """Refuse a task that the rule can say nothing of.

        :param task: its label.
        :param classes: its class numbers.
        :raises TaskInferenceError: if there are too few.
        """

    def references(self, position: int) -> Sequence[int]:
        """The sub-networks in whose features a task's samples are gathered when it is finished.

        :param position: of the task; only earlier sub-networks and its own exist then.
        """
        return ()

    def gathering(self, classes: int, width: int) -> Gathering:
        """What adds samples up under one sub-network.

        :param classes: C of the task.
        :param width: d of its features.
        """
        raise NotImplementedError

    def width(self, kept: Kept) -> int | None:
        """The d of :meth:`gathering`, of a task that is kept; None if inputs may have any size.

        :param kept: of the task.
        """
        return None

    def keep(self, gathered: Sequence[Any], earlier: Sequence[Kept]) -> Kept:
        """What is kept of a task.

        :param gathered: of :meth:`gathering`, one for each of :meth:`references`.
        :param earlier: what is kept of the tasks before; a rule with :attr:`newest` adds those up.
        """
        return {}

    def calibrate(self, answers: Answers, kept: Sequence[Kept]) -> Kept:
        """What is kept besides, once the task's samples that were not gathered have been seen.

        :param answers: of samples of the last task.
        :param kept: of all tasks up to it.
        """
        return {}

    def decode(self, kept: Sequence[Kept], classes: Classes, device: torch.device) -> Any:
        """What scores are computed from: always what was kept, never what was gathered.

        :param kept: of T tasks, which may come from a file.
        :param classes: class numbers of each, by label.
        :param device: to compute on.
        :raises TaskInferenceError: if it is not of these tasks.
        """
        return None

    def novelty(self, answers: Answers, decoded: Any, position: int) -> Tensor:
        """How little samples look like those of a task, on a scale of the task's own.

        :param answers: of N samples.
        :param decoded: of :meth:`decode`.
        :param position: of the task.
        :return: ``(N,)``.
        """
        raise NotImplementedError

    def scores(self, answers: Answers, decoded: Any) -> Tensor:
        """What the choice is made by.

        :param answers: of N samples.
        :param decoded: of :meth:`decode`.
        :return: ``(N, T)``; the least answers.
        """
        columns = [self.novelty(answers, decoded, t) for t in range(len(answers.tasks))]
        return torch.stack(columns, dim=1)

    def logits(self, answers: Answers, decoded: Any, position: int) -> Tensor:
        """Logits of a chosen task's classes, by its sub-network unless a rule answers by itself.

        :param answers: of N samples.
        :param decoded: of :meth:`decode`.
        :param position: of the task.
        :return: ``(N, C_t)``.
        """
        return answers.logits(position)


def misfit(rule: str, task: int, reason: str) -> TaskInferenceError:
    """What is raised of statistics that are not a task's.

    :param rule: name of the rule.
    :param task: its label.
    :param reason: what does not fit.
    """
    return TaskInferenceError(
        f"the statistics of task {task} {reason}: collect them again with "
        f"TaskInference({rule!r}).collect(network, task, batches)."
    )


def check_width(rule: Rule, found: int, earlier: Sequence[Kept]) -> None:
    """Refuse features that are not as many as those of the tasks before.

    :param rule: that gathers them.
    :param found: d of a sample.
    :param earlier: what is kept of the tasks before.
    :raises TaskInferenceError: if theirs was another.
    """
    expected = {rule.width(kept) for kept in earlier} - {None, found}
    if expected:
        raise TaskInferenceError(
            f"{rule.name!r} finds {found} features in a sample where earlier tasks' have "
            f"{expected.pop()}: give all tasks inputs of one size, or take a layer that has one, "
            "as '@head' does."
        )


def of_all_logits(score: Callable[[Tensor], Tensor], answers: Answers) -> Tensor:
    """A score of every task's logits; of all at once where heads are alike.

    :param score: of logits ``(..., C)``, gives ``(...)``.
    :param answers: of N samples.
    :return: ``(N, T)``.
    """
    logits = [answers.logits(position) for position in range(len(answers.tasks))]
    if len({outputs.shape for outputs in logits}) == 1:
        # classes outermost in memory: sums over a short innermost dimension are slow
        together = torch.stack([outputs.movedim(-1, 0) for outputs in logits], dim=1).movedim(0, -1)
        scores = score(together)
    else:
        scores = torch.stack([score(outputs) for outputs in logits])
    return (scores if scores.dim() == 2 else scores.flatten(2).mean(dim=2)).T
