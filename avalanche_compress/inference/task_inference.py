"""The task of a sample that comes without a label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_compress.core.batches import first_samples, moved_to, rows_of, size_of
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.substitution import evaluating
from avalanche_compress.errors import TaskInferenceError
from avalanche_compress.inference.answers import Answers
from avalanche_compress.inference.choice import choose, spread_chosen
from avalanche_compress.inference.collecting import Collection, check_targets, thresholds_name
from avalanche_compress.inference.features import HEAD, Features
from avalanche_compress.inference.rule import Kept, Rule, check_width
from avalanche_compress.inference.rules import BATCH, DEFAULT, rule_of
from avalanche_compress.inference.unknown import check_rate, threshold_at
from avalanche_compress.metrics.task_identity import REFUSED


class Inferred(NamedTuple):
    """Logits (N, C) in the stream's classes, and the task (N,) that was taken for each sample."""

    logits: Tensor
    tasks: Tensor


class TaskInference:
    """Answers without task labels: a rule scores all T tasks, the one with the least score answers.

    ============== ================================================================= ==============
    rule           score of a task                                                   keeps
    ============== ================================================================= ==============
    ``entropy``    entropy of its sub-network's softmax                              nothing
    ``energy``     ``-logsumexp`` of its logits                                      nothing
    ``prototype``  distance to its nearest class mean                                class means
    ``gaussian``   likelihood of its classes under its own sub-network               Gaussians
    ``triangular`` the same in pairs, under sub-networks that both were gathered in  Gaussians
    ``ridge``      one linear head over all classes, which answers by itself         class means
    ============== ================================================================= ==============

    What a rule keeps is collected when a task is finished and travels in the archive.

    Batch-wise, the samples of a mini-batch vote together: the scores are averaged over the batch.
    That presupposes that they are of one task, as in Avalanche's evaluation, which other methods
    are not told: compare those with the rules that judge each sample by itself.

    :param rule: a name, ``"triangular"``; with a layer to read features of, ``"triangular@first"``
        (the default, which held-out data chose) or ``"ridge@body.1+body.3"``; with ``_batch``
        behind it to vote batch-wise; or a :class:`Rule` with its options,
        ``TriangularRule(references=4)``.
    :param batchwise: whether the samples of a mini-batch vote together.
    :param features: the layer, see :class:`~avalanche_compress.inference.features.Features`: the
        head's inputs by default.
    :param unknown: part of the known samples that may be refused, such as 0.05, so that samples of
        no known task are noticed: those have the task -1. None to refuse nothing.
    :param stacked: whether sub-networks with heads of equal size run as one, by ``torch.func.vmap``
        over their stacked weights, for rules that ask all of them; the logits are then equal up to
        rounding and not bit-identical. On one CPU core the loop was as fast or faster, so it is the
        default.
    :param memory: bytes that the weights of all tasks may take at a time. Above it they are built
        for each mini-batch, task after task.
    :raises TaskInferenceError: if there is no such rule, or the rate is out of range.

    >>> TaskInference("entropy_batch").batchwise
    True
    """

    def __init__(
        self,
        rule: str | Rule = DEFAULT,
        *,
        batchwise: bool = False,
        features: str | None = None,
        unknown: float | None = None,
        stacked: bool = False,
        memory: int = 2**30,
    ):
        if isinstance(rule, str):
            batchwise = batchwise or rule.endswith(BATCH)
            name, _, layer = rule[: -len(BATCH) if rule.endswith(BATCH) else None].partition("@")
            rule, features = rule_of(name), features or layer or None
        check_rate(unknown)
        if unknown is not None and not rule.refuses:
            raise TaskInferenceError(
                f"the outputs of the rule {rule.name!r} change with every task, so no threshold of "
                "unknown= would last: refuse samples by 'triangular' or 'gaussian'."
            )
        self.rule = rule
        self.batchwise = batchwise
        self.features = Features(features or HEAD, rule.folds)
        self.unknown = unknown
        self.stacked = stacked
        self.memory = memory
        self._prepared: _Prepared | None = None

    def __str__(self) -> str:
        layer = "" if str(self.features) == HEAD else f"@{self.features}"
        return f"{self.rule.name}{layer}{BATCH * self.batchwise}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    @property
    def needs_statistics(self) -> bool:
        """Whether something has to be collected when a task is finished (:meth:`collect`)."""
        return bool(self.rule.kept) or self.unknown is not None

    def candidates(self, network: TaskNetwork) -> list[int]:
        """The tasks to choose from: the finished ones, and the one in training if it has a score.

        A task in training has no statistics yet, so evaluations before its end never choose it.

        :param network: any.
        :raises TaskInferenceError: if the rule cannot judge one of them, or the model lacks a
            module whose features are to be read.
        """
        self.features.modules_in(network)
        if self.needs_statistics:
            self._check_kept(network)
        opened = [] if network.open_task is None or self.needs_statistics else [network.open_task]
        tasks = [*network.tasks, *opened]
        for task in tasks:
            self.check_classes(task, network.classes_of(task))
        return tasks

    def check_classes(self, task: int, classes: Sequence[int]) -> None:
        """Refuse a task that the rule can say nothing of.

        :param task: its label.
        :param classes: its class numbers.
        :raises TaskInferenceError: for the entropy of a task of one class, and for a task labelled
            as unknown samples are.
        """
        if self.unknown is not None and task == REFUSED:
            raise TaskInferenceError(
                f"a task is labelled {REFUSED}, and so are samples that unknown= refuses: give the "
                "task another label."
            )
        self.rule.check_classes(task, classes)

    @torch.no_grad()
    def check_experience(self, network: TaskNetwork, experience: Any) -> None:
        """Refuse samples that :meth:`collect` could not add to those of the finished tasks.

        :param network: any.
        :param experience: of Avalanche, the first samples of which are looked at.
        :raises TaskInferenceError: if they have other features than those of earlier tasks, or
            nothing is kept of those, or targets are no class numbers.
        :raises TrainingDataError: if samples cannot be taken out of a mini-batch.
        """
        if not self.needs_statistics:
            return
        self._check_kept(network)
        x, targets = first_samples(experience.dataset)[:2]
        check_targets(targets)
        x = moved_to(x, network.head.weight.device)
        rows_of(x, torch.arange(size_of(x)))  # as collect() will
        if network.tasks:
            with evaluating(network):
                _, features = self.features(network, x, network.tasks[-1])
            kept = [self._kept(network, task) for task in network.tasks]
            check_width(self.rule, features.shape[1], kept)

    @torch.no_grad()
    def __call__(self, network: TaskNetwork, x: Tensor) -> Inferred:
        """Logits of samples of unknown tasks.

        :param network: with a finished task or more.
        :param x: ``(N, ...)``.
        :return: logits ``(N, C)``, -1000 outside the inferred task's classes and otherwise
            bit-identical to that task's (of a rule that answers by itself, its own); tasks
            ``(N,)``, -1 for samples that ``unknown`` refuses.
        :raises TaskInferenceError: if no task is learned yet, or the rule cannot judge one.
        """
        tasks = self.candidates(network)
        if not tasks:
            raise TaskInferenceError(
                "no task is learned yet, so there is none to infer: train one first."
            )
        training = network.training or network.backbone.training
        with evaluating(network) if training else nullcontext():
            answers = self._answers(network, tasks, x)
            decoded = self._decoded(network, tasks, network.head.weight.device)
            chosen = choose(self.rule.scores(answers, decoded), self.batchwise)
            classes = [network.classes_of(task) for task in tasks]
            logits = spread_chosen(
                lambda position: self.rule.logits(answers, decoded, position),
                classes,
                chosen,
                network.max_class_label,
            )
            found = torch.tensor(tasks, device=chosen.device)[chosen]
            if self.unknown is not None:
                found[self._unknown(network, answers, decoded, chosen)] = REFUSED
        return Inferred(logits, found)

    @torch.no_grad()
    def novelty(self, network: TaskNetwork, x: Tensor) -> Tensor:
        """How little samples look like those of the task that is inferred for them.

        On a scale of the task's own: ``unknown=`` compares it with what held-out samples had.

        :param network: with a finished task or more.
        :param x: ``(N, ...)``.
        :return: ``(N,)``.
        :raises TaskInferenceError: as when samples are inferred.
        """
        tasks = self.candidates(network)
        with evaluating(network):
            answers = self._answers(network, tasks, x)
            decoded = self._decoded(network, tasks, network.head.weight.device)
            chosen = choose(self.rule.scores(answers, decoded), self.batchwise)
            return self._novelty(answers, decoded, chosen)

    @torch.no_grad()
    def collect(
        self,
        network: TaskNetwork,
        task: int,
        batches: Iterable[Sequence[Tensor]],
        held_out: Iterable[Sequence[Tensor]] = (),
    ) -> None:
        """Keep what the rule needs to recognise a finished task; nothing for some rules.

        :param network: that learned it.
        :param task: its label.
        :param batches: its training data, ``(inputs, targets, ...)`` batch by batch; read once.
        :param held_out: samples of the task that it was not trained on, to calibrate with; without
            them a tenth of the training data is left out of the statistics.
        :raises TaskInferenceError: if a sample is of no class of the task, if there are none, or if
            the rule adds tasks up and has this one.
        """
        if not self.needs_statistics:
            return
        held_out = list(held_out)
        before = network.tasks[: network.tasks.index(task)]
        self._check_kept(network, before)
        self._check_new(network, task)
        earlier = [self._kept(network, other) for other in before]
        collection = Collection(self.rule, self.features, network, task, earlier, not held_out)
        with evaluating(network):
            for x, targets, *_ in batches:
                collection.add(x, targets)
            for x, targets, *_ in held_out:
                collection.add_held_out(x, targets)
        kept = collection.finish(self.unknown is not None)
        named = {self._stored_name(name): tensor for name, tensor in kept.items()}
        network.statistics.setdefault(task, {}).update(named)
        for other in before:
            for name in self.rule.newest:
                network.statistics[other].pop(self._stored_name(name), None)

    # ------------------------------------------------------------------ what is kept

    def _stored_name(self, name: str) -> str:
        """Under which statistics of a task what the rule keeps is found."""
        return name if str(self.features) == HEAD else f"{name}@{self.features}"

    def _needed(self) -> list[str]:
        needed = [*self.rule.kept]
        if self.unknown is not None:
            needed.append(thresholds_name(self.rule))
        return needed

    def _kept(self, network: TaskNetwork, task: int) -> Kept:
        found = network.statistics.get(task, {})
        names = [*self._needed(), *self.rule.newest]
        stored = {name: found.get(self._stored_name(name)) for name in names}
        return {name: tensor for name, tensor in stored.items() if tensor is not None}

    def _check_kept(self, network: TaskNetwork, tasks: Sequence[int] | None = None) -> None:
        needed = {self._stored_name(name) for name in self._needed()}
        asked = network.tasks if tasks is None else tasks
        missing = [task for task in asked if not needed <= {*network.statistics.get(task, {})}]
        if missing:
            there = sorted(network.statistics.get(missing[0], {}))
            raise TaskInferenceError(
                f"{str(self)!r} needs feature statistics and the tasks {missing} have none (task "
                f"{missing[0]} has {there or 'nothing'}): they are collected in training with "
                f"task_inference={str(self)!r}, or by TaskInference({str(self)!r})"
                ".collect(network, task, batches), one task after another."
            )

    def _check_new(self, network: TaskNetwork, task: int) -> None:
        """Refuse to add a task up that has been added."""
        if self.rule.newest and self._kept(network, task):
            raise TaskInferenceError(
                f"the statistics of task {task} are part of the sums of {str(self)!r} already: "
                "they are collected once."
            )

    def _decoded(self, network: TaskNetwork, tasks: Sequence[int], device: torch.device) -> Any:
        """What scores are computed from, kept until the statistics change."""
        kept = [self._kept(network, task) for task in tasks]
        tensors = [tensor for statistics in kept for tensor in statistics.values()]
        prepared = self._prepared
        if prepared is None or not prepared.is_of(tensors, device):
            classes = {task: network.classes_of(task) for task in tasks}
            decoded = self.rule.decode(kept, classes, device)
            prepared = _Prepared(tensors, [tensor._version for tensor in tensors], device, decoded)
            self._prepared = prepared
        return prepared.decoded

    # ------------------------------------------------------------------ a mini-batch

    def _answers(self, network: TaskNetwork, tasks: Sequence[int], x: Tensor) -> Answers:
        """The sub-networks' answers, with the weights of all tasks in memory if they fit."""
        answers = Answers(network, tasks, x, self.features)
        finished = [task for task in tasks if task != network.open_task]
        if _bytes_of(network) * len(finished) > self.memory:
            return answers
        network.activate(*finished)
        if self.stacked and isinstance(x, Tensor) and _can_stack(network, tasks):
            of_head = str(self.features) == HEAD
            for position, (logits, inputs) in enumerate(network.views.run_stacked(tasks, x)):
                answers.fill(position, logits, self.features.of_head(inputs) if of_head else None)
        return answers

    def _novelty(self, answers: Answers, decoded: Any, chosen: Tensor) -> Tensor:
        """Of each sample for its chosen task, ``(N,)``."""
        found = torch.zeros(len(chosen), device=chosen.device)
        for position in chosen.unique().tolist():
            rows = chosen == position
            found[rows] = self.rule.novelty(answers, decoded, position)[rows].float()
        return found

    def _unknown(
        self, network: TaskNetwork, answers: Answers, decoded: Any, chosen: Tensor
    ) -> Tensor:
        """Which samples are newer than the threshold of their chosen task; NaN is, too."""
        assert self.unknown is not None
        name = thresholds_name(self.rule)
        kept = [self._kept(network, task)[name] for task in answers.tasks]
        limits = [threshold_at(statistics, self.unknown) for statistics in kept]
        limit = torch.tensor(limits, device=chosen.device)[chosen]
        return ~(self._novelty(answers, decoded, chosen) <= limit)


class _Prepared(NamedTuple):
    """Decoded statistics, and what they were decoded from."""

    tensors: list[Tensor]
    versions: list[int]
    device: torch.device
    decoded: Any

    def is_of(self, tensors: Sequence[Tensor], device: torch.device) -> bool:
        """Whether these are the tensors that were decoded, and nobody has written to them."""
        return (
            device == self.device
            and len(tensors) == len(self.tensors)
            and all(tensor is other for tensor, other in zip(tensors, self.tensors))
            and all(tensor._version == version for tensor, version in zip(tensors, self.versions))
        )


def infer(network: TaskNetwork, x: Tensor, rule: str | Rule = DEFAULT) -> Inferred:
    """Logits of samples of unknown tasks, see :class:`TaskInference`.

    :param network: with a finished task or more.
    :param x: ``(N, ...)``.
    :param rule: of :class:`TaskInference`.

    >>> network = TaskNetwork(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)))
    >>> for task, classes in enumerate([[0, 1], [2, 3, 4]]):
    ...     network.open(task, classes)
    ...     network.commit()
    >>> logits, tasks = infer(network, torch.zeros(6, 4), "entropy")
    >>> logits.shape, tasks.shape
    (torch.Size([6, 5]), torch.Size([6]))
    """
    return TaskInference(rule)(network, x)


def _bytes_of(network: TaskNetwork) -> int:
    """Bytes of one task's dense weights."""
    return sum(
        store.scratch.numel() * store.scratch.element_size() for store in network.weight_stores
    )


def _can_stack(network: TaskNetwork, tasks: Sequence[int]) -> bool:
    """Whether the model is one function of its tensors for all tasks, and the heads are alike."""
    if network.open_task in tasks:
        return False
    if any(isinstance(m, (MultiTaskModule, nn.RNNBase)) for m in network.backbone.modules()):
        return False
    return len({len(network.classes_of(task)) for task in tasks}) == 1
