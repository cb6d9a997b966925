"""How often the inferred task is the right one."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation import GenericPluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import Mean


class TaskIdAccuracy(GenericPluginMetric[float, Mean]):
    """Part of the evaluated samples whose task was inferred rightly, 0..1.

    The right task is the position of the experience in its stream. Nothing is emitted where no task
    was inferred: with task labels, or before the first task is finished.

    :param emit_at: ``"experience"`` or ``"stream"``.

    >>> str(TaskIdAccuracy("stream"))
    'TaskId_Acc_Stream'
    """

    def __init__(self, emit_at: str = "experience"):
        super().__init__(Mean(), reset_at=emit_at, emit_at=emit_at, mode="eval")  # type: ignore
        self._samples = 0

    def reset(self) -> None:
        super().reset()
        self._samples = 0

    def update(self, strategy: Any) -> None:
        inferred = getattr(strategy, "inferred_tasks", None)
        if inferred is None:
            return
        right = inferred == strategy.experience.current_experience
        self._metric.update(float(right.float().mean()), len(right))
        self._samples += len(right)

    def _package_result(self, strategy: Any) -> list[MetricValue]:
        return super()._package_result(strategy) if self._samples else []

    def __str__(self) -> str:
        return f"TaskId_Acc_{'Exp' if self._emit_at == 'experience' else 'Stream'}"


def task_id_metrics(*, experience: bool = True, stream: bool = True) -> list[TaskIdAccuracy]:
    """Task-id accuracy for an ``EvaluationPlugin``; strategies that infer tasks add it themselves.

    :param experience: whether it is emitted for every experience.
    :param stream: whether it is emitted for the whole stream.

    >>> [str(metric) for metric in task_id_metrics()]
    ['TaskId_Acc_Exp', 'TaskId_Acc_Stream']
    """
    chosen = (("experience", experience), ("stream", stream))
    return [TaskIdAccuracy(emit_at) for emit_at, wanted in chosen if wanted]
