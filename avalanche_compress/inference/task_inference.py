"""Which task does a sample belong to, when nobody says? Every sub-network is asked."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_compress.core.heads import MASKED_LOGIT
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.substitution import evaluating
from avalanche_compress.core.views import run_stacked, run_with_features
from avalanche_compress.errors import TaskInferenceError, nearest

RULES = ("entropy", "energy", "prototype")
BATCH = "_batch"
MEANS, VARIANCE = "prototype_means", "prototype_variance"
FLOOR = 0.1
"""Part of the mean variance that every feature's is raised by, so that dead ones count little."""


class Inferred(NamedTuple):
    """Logits (N, C) in the stream's classes, and the task (N,) that was taken for each sample."""

    logits: Tensor
    tasks: Tensor


class TaskInference:
    """Answers without task labels: all T sub-networks run, the one with the least score answers.

    Scores s_t(x) of sample x under the sub-network of task t:

    - ``"entropy"``: of the softmax over the task's own classes, :func:`entropy`;
    - ``"energy"``: ``-logsumexp`` of the task's logits, :func:`energy`;
    - ``"prototype"``: distance of the head's inputs to the task's nearest class mean,
      :func:`prototype_distance`. Means and variances are collected when a task is finished and
      travel in the archive, ``4 d (C_t + 1)`` bytes a task for d features.

    Batch-wise, the samples of a mini-batch vote together: the scores are averaged over the batch.
    That presupposes that they are of one task, as in Avalanche's evaluation, which other methods
    are not told: compare those with the rules that judge each sample by itself. Sources: entropy,
    SupSup (Wortsman et al., NeurIPS 2020); energy, Liu et al. (NeurIPS 2020); the normalisation
    and the prototypes are our choice.

    :param rule: ``"entropy"``, ``"energy"`` or ``"prototype"``, or one with ``_batch`` behind it.
    :param batchwise: whether the samples of a mini-batch vote together.
    :param stacked: whether sub-networks with heads of equal size run as one, by ``torch.func.vmap``
        over their stacked weights; the logits are then equal up to rounding and not bit-identical.
        On one CPU core the loop was as fast or faster, so it is the default.
    :param memory: bytes that the weights of all tasks may take at a time. Above it they are built
        anew for each mini-batch, task after task.
    :raises TaskInferenceError: if there is no such rule.

    >>> TaskInference("entropy_batch").batchwise
    True
    """

    def __init__(
        self,
        rule: str = "entropy",
        *,
        batchwise: bool = False,
        stacked: bool = False,
        memory: int = 2**30,
    ):
        name = rule[: -len(BATCH)] if rule.endswith(BATCH) else rule
        if name not in RULES:
            known = [*RULES, *(own + BATCH for own in RULES)]
            raise TaskInferenceError(
                f"there is no rule {rule!r} to infer tasks by{nearest(rule, known)}: give one of "
                f"{', '.join(known)}."
            )
        self.rule = name
        self.batchwise = batchwise or name != rule
        self.stacked = stacked
        self.memory = memory

    def __str__(self) -> str:
        return self.rule + BATCH * self.batchwise

    @property
    def needs_statistics(self) -> bool:
        """Whether something has to be collected when a task is finished (:meth:`collect`)."""
        return self.rule == "prototype"

    def candidates(self, network: TaskNetwork) -> list[int]:
        """The tasks to choose from: the finished ones, and the one in training if it has a score.

        A task in training has no prototypes yet, so evaluations before its end never choose it.

        :param network: any.
        :raises TaskInferenceError: if the rule cannot judge one of them.
        """
        if self.needs_statistics:
            needed = {MEANS, VARIANCE}
            missing = [t for t in network.tasks if not needed <= {*network.statistics.get(t, {})}]
            if missing:
                raise TaskInferenceError(
                    f"the rule 'prototype' needs feature statistics and the tasks {missing} have "
                    "none: they are collected in training with task_inference='prototype', or by "
                    "TaskInference('prototype').collect(network, task, batches)."
                )
            return network.tasks
        in_training = [] if network.open_task is None else [network.open_task]
        tasks = [*network.tasks, *in_training]
        for task in tasks:
            self.check_classes(task, network.classes_of(task))
        return tasks

    def check_classes(self, task: int, classes: Sequence[int]) -> None:
        """Refuse a task that the rule can say nothing of.

        :param task: its label.
        :param classes: its class numbers.
        :raises TaskInferenceError: for the entropy of a task of one class.
        """
        if self.rule == "entropy" and len(classes) < 2:
            raise TaskInferenceError(
                f"task {task} has the one class {list(classes)}, whose entropy is always 0: infer "
                "tasks by 'energy' or 'prototype'."
            )

    @torch.no_grad()
    def __call__(self, network: TaskNetwork, x: Tensor) -> Inferred:
        """Logits of samples of unknown tasks.

        :param network: with a finished task or more.
        :param x: ``(N, ...)``.
        :return: logits ``(N, C)``, -1000 outside the inferred task's classes and otherwise
            bit-identical to that task's; tasks ``(N,)``.
        :raises TaskInferenceError: if no task is learned yet, or the rule cannot judge one.
        """
        tasks = self.candidates(network)
        if not tasks:
            raise TaskInferenceError(
                "no task is learned yet, so there is none to infer: train one first."
            )
        training = network.training or network.backbone.training
        with evaluating(network) if training else nullcontext():
            answers = list(self._answers(network, tasks, x))
        logits = [own for own, _ in answers]
        if self.needs_statistics:
            scores = torch.stack(
                [
                    prototype_distance(features.float(), *_statistics(network, task, features))
                    for task, (_, features) in zip(tasks, answers)
                ]
            )
        else:
            scores = _score_logits(entropy if self.rule == "entropy" else energy, logits)
        chosen = choose(scores.T, self.batchwise)
        classes = [network.classes_of(task) for task in tasks]
        return Inferred(
            scatter_logits(logits, classes, chosen, network.max_class_label),
            torch.tensor(tasks, device=chosen.device)[chosen],
        )

    @torch.no_grad()
    def collect(self, network: TaskNetwork, task: int, batches: Iterable[Sequence[Tensor]]) -> None:
        """Keep what the rule needs to recognise a finished task; nothing for most rules.

        :param network: that learned it.
        :param task: its label.
        :param batches: its training data, ``(inputs, targets, ...)`` batch by batch.
        """
        if not self.needs_statistics:
            return
        classes = torch.tensor(network.classes_of(task))
        seen, targets = [], []
        device = network.head.weight.device
        with evaluating(network):
            for batch in batches:
                seen.append(run_with_features(network, batch[0].to(device), task)[1].cpu())
                targets.append(torch.as_tensor(batch[1]).cpu())
        positions = torch.searchsorted(classes, torch.cat(targets))
        means, variance = prototypes(torch.cat(seen), positions, len(classes))
        kept = network.statistics.setdefault(task, {})
        kept.update({MEANS: means.flatten(), VARIANCE: variance})

    def _answers(
        self, network: TaskNetwork, tasks: Sequence[int], x: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and features of every task, in order."""
        finished = [task for task in tasks if task != network.open_task]
        if _bytes_of(network) * len(finished) <= self.memory:
            network.activate(*finished)
            if self.stacked and finished == list(tasks) and _can_stack(network):
                yield from run_stacked(network, tasks, x)
                return
        for task in tasks:
            if self.needs_statistics:
                yield run_with_features(network, x, task)
            else:
                yield network.own_logits(x, task), x


def infer(network: TaskNetwork, x: Tensor, rule: str = "entropy") -> Inferred:
    """Logits of samples of unknown tasks, see :class:`TaskInference`.

    :param network: with a finished task or more.
    :param x: ``(N, ...)``.
    :param rule: of :class:`TaskInference`.

    >>> network = TaskNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    >>> for task, classes in enumerate([[0, 1], [2, 3, 4]]):
    ...     network.open(task, classes)
    ...     network.commit()
    >>> logits, tasks = infer(network, torch.zeros(6, 4))
    >>> logits.shape, tasks.shape
    (torch.Size([6, 5]), torch.Size([6]))
    """
    return TaskInference(rule)(network, x)


# ---------------------------------------------------------------------------- scores


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax in parts of the largest one, ``-sum_c p_c log p_c / log C``.

    In parts, because heads of different size are compared.

    :param logits: ``(..., C)`` with C >= 2.
    :return: ``(...)``, 0 (certain) to 1 (no idea).

    >>> entropy(torch.zeros(1, 5)).item()
    1.0
    """
    # log s - sum_c e_c z_c / s with e = exp z and s = sum e, which takes one exponential a logit
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    exponentials = shifted.exp()
    total = exponentials.sum(dim=-1)
    nats = total.log() - (exponentials * shifted).sum(dim=-1) / total
    return nats / math.log(logits.shape[-1])


def energy(logits: Tensor) -> Tensor:
    """Free energy ``-log sum_c exp(z_c)``.

    :param logits: ``(..., C)``.
    :return: ``(...)``, low where some class is strongly supported.

    >>> round(energy(torch.zeros(1, 4)).item(), 4)  # -log 4
    -1.3863
    """
    return -logits.logsumexp(dim=-1)


def prototype_distance(features: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    """Distance to the nearest class mean, in units of the task's own spread.

    ``min_c mean_d (f_d - m_cd)^2 / v_d``; about 1 for the task's own training samples.

    :param features: ``(N, d)``.
    :param means: ``(C, d)``.
    :param variance: ``(d,)``, positive.
    :return: ``(N,)``.

    >>> far = prototype_distance(torch.tensor([[3.0]]), torch.tensor([[0.0], [1.0]]), torch.ones(1))
    >>> far.item()
    4.0
    """
    weight = 1 / (variance * len(variance))
    # multiplied out: matrix products, and no (N, C, d); only its last term and the cross term
    # differ between the classes
    cross = torch.addmm((means**2) @ weight, features, (means * weight).T, alpha=-2)
    return (cross.amin(dim=1) + features.square() @ weight).clamp_min(0)


def prototypes(features: Tensor, positions: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean of each class and the variance that all share, of every feature.

    The variance within classes gets :data:`FLOOR` of its mean over the features added, then a
    factor that makes the mean squared distance to the own class 1.

    :param features: ``(N, d)``.
    :param positions: ``(N,)``, the class of each sample, 0..classes-1.
    :param classes: C; a class without samples gets the mean of all.
    :return: ``(C, d)`` and ``(d,)``, in float32.

    >>> features = torch.tensor([[0.0], [2.0], [9.0]])
    >>> means, variance = prototypes(features, torch.tensor([0, 0, 1]), classes=2)
    >>> means.flatten().tolist()
    [1.0, 9.0]
    """
    features = features.double()
    counts = torch.bincount(positions, minlength=classes)[:, None]
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, positions, features)
    means = torch.where(counts > 0, sums / counts.clamp_min(1), features.mean(dim=0))
    within = ((features - means[positions]) ** 2).mean(dim=0)
    variance = within + FLOOR * within.mean().clamp_min(1e-12)
    return means.float(), (variance * (within / variance).mean().clamp_min(1e-6)).float()


def choose(scores: Tensor, batchwise: bool = False) -> Tensor:
    """The column of the least score, per sample or for all together.

    :param scores: ``(N, T)``.
    :param batchwise: whether the scores are averaged over the batch first.
    :return: ``(N,)``, 0..T-1.

    >>> scores = torch.tensor([[0.0, 1.0], [0.6, 0.5]])
    >>> choose(scores).tolist(), choose(scores, batchwise=True).tolist()
    ([0, 1], [0, 0])
    """
    if not batchwise:
        return scores.argmin(dim=1)
    return scores.mean(dim=0).argmin().repeat(len(scores))


def scatter_logits(
    logits: Sequence[Tensor], classes: Sequence[Sequence[int]], chosen: Tensor, width: int = 0
) -> Tensor:
    """Each sample's logits of its chosen task, at the columns of that task's classes.

    :param logits: ``(N, C_t)`` of each of T tasks.
    :param classes: class numbers of each task.
    :param chosen: ``(N,)``, 0..T-1.
    :param width: least number of columns.
    :return: ``(N, max class + 1)`` or wider; other columns hold -1000.

    >>> two = [torch.ones(2, 1), torch.zeros(2, 2)]
    >>> scatter_logits(two, [[0], [1, 2]], torch.tensor([0, 1])).tolist()
    [[1.0, -1000.0, -1000.0], [-1000.0, 0.0, 0.0]]
    """
    width = max([width, *(max(own) + 1 for own in classes)])
    widest = max(len(own) for own in classes)
    # narrower heads are filled up with a column beyond the last, which is cut off at the end
    columns = [[*own, *[width] * (widest - len(own))] for own in classes]
    padded = torch.stack(
        [nn.functional.pad(z, (0, widest - z.shape[-1]), value=MASKED_LOGIT) for z in logits]
    )
    own = padded[chosen, torch.arange(len(chosen), device=chosen.device)]
    index = torch.tensor(columns, device=chosen.device)[chosen]
    index = index.view(len(chosen), *[1] * (own.dim() - 2), widest).expand_as(own)
    out = own.new_full((*own.shape[:-1], width + 1), MASKED_LOGIT)
    return out.scatter_(-1, index, own)[..., :width].contiguous()


def _score_logits(rule: Callable[[Tensor], Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Scores (T, N) of the tasks' logits (N, ..., C_t); of all at once where heads are alike."""
    if len({own.shape for own in logits}) == 1:
        # classes outermost in memory: sums over a short innermost dimension are slow
        scores = rule(torch.stack([own.movedim(-1, 0) for own in logits], dim=1).movedim(0, -1))
    else:
        scores = torch.stack([rule(own) for own in logits])
    return scores if scores.dim() == 2 else scores.flatten(2).mean(dim=2)


def _statistics(network: TaskNetwork, task: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Class means (C, d) and variance (d,) of a task whose features are like these, (N, d)."""
    kept, width = network.statistics[task], like.shape[1]
    means, variance = kept[MEANS].to(like.device), kept[VARIANCE].to(like.device)
    if variance.numel() != width or means.numel() != width * len(network.classes_of(task)):
        raise TaskInferenceError(
            f"the statistics of task {task} are not of its {len(network.classes_of(task))} classes "
            f"and the {width} features of this model: collect them anew with "
            "TaskInference('prototype').collect(network, task, batches)."
        )
    return means.view(-1, width), variance


# ---------------------------------------------------------------------------- sub-networks


def _bytes_of(network: TaskNetwork) -> int:
    """Bytes of one task's dense weights."""
    return sum(
        store.scratch.numel() * store.scratch.element_size() for store in network.weight_stores
    )


def _can_stack(network: TaskNetwork) -> bool:
    """Whether the model is one function of its tensors for all tasks, and the heads are alike."""
    if any(isinstance(m, (MultiTaskModule, nn.RNNBase)) for m in network.backbone.modules()):
        return False
    return len({len(classes) for classes in network.classes.values()}) == 1
