"""How often the inferred task is the right one."""

from __future__ import annotations

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.evaluation.metrics import Mean
from torch import Tensor

from avalanche_compress.host.strategy import Strategy

REFUSED = -1
"""The task of a sample that is refused as none of a known task."""


class _OfInferredTasks(PluginMetric[float]):
    """Part of the evaluated samples of which something holds, 0..1.

    Nothing is emitted where no task was inferred: with task labels, or before the first task is
    finished.

    :param emit_at: ``"experience"`` or ``"stream"``.
    """

    def __init__(self, emit_at: str = "experience"):
        super().__init__()
        self.emit_at = emit_at
        self._mean = Mean()
        self._samples = 0

    def reset(self) -> None:
        self._mean.reset()
        self._samples = 0

    def result(self) -> float:
        return float(self._mean.result())

    def before_eval(self, strategy: Strategy) -> None:
        if self.emit_at == "stream":
            self.reset()

    def before_eval_exp(self, strategy: Strategy) -> None:
        if self.emit_at == "experience":
            self.reset()

    def after_eval_iteration(self, strategy: Strategy) -> None:
        inferred = getattr(strategy, "inferred_tasks", None)
        if inferred is None:
            return
        holds = self.holds(strategy, inferred)
        self._mean.update(float(holds.float().mean()), len(holds))
        self._samples += len(holds)

    def holds(self, strategy: Strategy, inferred: Tensor) -> Tensor:
        """Of which samples it holds, ``(N,)`` bool.

        :param strategy: that evaluates.
        :param inferred: ``(N,)``, the task of each sample.
        """
        raise NotImplementedError

    def after_eval_exp(self, strategy: Strategy) -> list[MetricValue]:
        return self._emitted(strategy) if self.emit_at == "experience" else []

    def after_eval(self, strategy: Strategy) -> list[MetricValue]:
        return self._emitted(strategy) if self.emit_at == "stream" else []

    def _emitted(self, strategy: Strategy) -> list[MetricValue]:
        if not self._samples:
            return []
        at_experience = self.emit_at == "experience"
        name = get_metric_name(self, strategy, add_experience=at_experience, add_task=True)
        return [MetricValue(self, name, self.result(), strategy.clock.train_iterations)]

    def _named(self, name: str) -> str:
        return f"{name}_{'Exp' if self.emit_at == 'experience' else 'Stream'}"


class TaskIdAccuracy(_OfInferredTasks):
    """Part of the evaluated samples whose task was inferred rightly, 0..1.

    The right task is the position of the experience in its stream; a refused sample has none.

    :param emit_at: ``"experience"`` or ``"stream"``.

    >>> str(TaskIdAccuracy("stream"))
    'TaskId_Acc_Stream'
    """

    def holds(self, strategy: Strategy, inferred: Tensor) -> Tensor:
        task: int = strategy.experience.current_experience
        return inferred == task

    def __str__(self) -> str:
        return self._named("TaskId_Acc")


class RefusedSamples(_OfInferredTasks):
    """Part of the evaluated samples that ``unknown=`` refused, 0..1.

    Of a learned task that is what refusal costs, of one that was never learned what it is worth.

    :param emit_at: ``"experience"`` or ``"stream"``.

    >>> str(RefusedSamples())
    'Refused_Exp'
    """

    def holds(self, strategy: Strategy, inferred: Tensor) -> Tensor:
        return inferred == REFUSED

    def __str__(self) -> str:
        return self._named("Refused")


def task_id_metrics(*, experience: bool = True, stream: bool = True) -> list[TaskIdAccuracy]:
    """Task-id accuracy for an ``EvaluationPlugin``; strategies that infer tasks add it themselves.

    :param experience: whether it is emitted for every experience.
    :param stream: whether it is emitted for the whole stream.

    >>> [str(metric) for metric in task_id_metrics()]
    ['TaskId_Acc_Exp', 'TaskId_Acc_Stream']
    """
    chosen = (("experience", experience), ("stream", stream))
    return [TaskIdAccuracy(emit_at) for emit_at, wanted in chosen if wanted]
