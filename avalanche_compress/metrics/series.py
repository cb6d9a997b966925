"""What is measured as series over one axis: a point a task, or a point every few training steps.

Avalanche gives each experience a name of its own, ``Top1_Acc_Exp/.../Exp003``, so that a logger
draws a panel of one point for each. Metrics here have one name for all tasks, and ``x_plot`` is the
number of the task; a metric's ``axis`` says so to loggers that can have several axes, and its
``summarised`` by which series runs are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import Accuracy, Mean

from avalanche_compress.core.network import network_of
from avalanche_compress.metrics.compression import (
    compression_metrics,
    layer_bits,
    layer_densities,
    layer_ranks,
)

TASK_AXIS = "task"
"""The axis of what is measured once a task: the task's place in the stream."""


class AccuracySeries(PluginMetric[float]):
    """Accuracy of all tasks learned so far, and what was forgotten of them, after each task.

    - ``accuracy/task_03``: of the fourth experience of the stream, 0..1;
    - ``accuracy/mean``: the mean over the experiences that were learned and evaluated;
    - ``forgetting/mean``: ``mean_{j<t} (max_{i<t} a[i][j] - a[t][j])`` over the experiences learned
      before the last one (Chaudhry et al., ECCV 2018); 0 with the first.

    Emitted by ``strategy.eval`` between two trainings; evaluations while a task is in training
    (``eval_every``) say nothing of a finished task.

    >>> str(AccuracySeries())
    'accuracy'
    """

    axis = TASK_AXIS
    summarised = ("accuracy/mean", "forgetting/mean")

    def __init__(self) -> None:
        super().__init__()
        self._accuracy = Accuracy()
        self._training = False
        self._task = 0
        self._learned: list[int] = []
        self._row: dict[int, float] = {}
        self._rows: dict[int, dict[int, float]] = {}

    @property
    def matrix(self) -> list[list[float]]:
        """Row i holds the accuracies after the i-th task, 0..1; NaN where none was measured."""
        width = 1 + max((place for row in self._rows.values() for place in row), default=-1)
        nan = float("nan")
        return [[row.get(place, nan) for place in range(width)] for row in self._rows.values()]

    def result(self) -> float:
        """The mean accuracy that was emitted last; 0 before there is one."""
        row = self._rows.get(self._task)
        return sum(row.values()) / len(row) if row else 0.0

    def reset(self) -> None:
        """Forget all accuracies."""
        self._accuracy.reset()
        self._learned, self._row, self._rows = [], {}, {}

    def before_training(self, strategy: Any) -> None:
        """Evaluations from here on are of a task in training."""
        self._training = True

    def before_training_exp(self, strategy: Any) -> None:
        """Take the experience for the one that all points are of until the next."""
        self._training = True
        self._task = strategy.experience.current_experience

    def after_training_exp(self, strategy: Any) -> None:
        """From here on the task is finished."""
        self._training = False
        if self._task not in self._learned:
            self._learned = [*self._learned, self._task]

    def before_eval(self, strategy: Any) -> None:
        """Begin a row of the matrix."""
        self._row = {}

    def before_eval_exp(self, strategy: Any) -> None:
        """Begin to count an experience."""
        self._accuracy.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Count a mini-batch."""
        self._accuracy.update(strategy.mb_output, strategy.mb_y)

    def after_eval_exp(self, strategy: Any) -> None:
        """Add the experience to the row."""
        self._row[strategy.experience.current_experience] = float(self._accuracy.result())

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the row."""
        row = {place: self._row[place] for place in sorted(self._row) if place in self._learned}
        if self._training or not row:
            return []
        values = {f"accuracy/task_{place:02d}": accuracy for place, accuracy in row.items()}
        values["accuracy/mean"] = sum(row.values()) / len(row)
        values["forgetting/mean"] = self._forgetting(row)
        self._rows[self._task] = row
        return [MetricValue(self, name, value, self._task) for name, value in values.items()]

    def _forgetting(self, row: dict[int, float]) -> float:
        lost = []
        for place, now in row.items():
            earlier = [
                before[place]
                for task, before in self._rows.items()
                if task != self._task and place in before
            ]
            if place != self._task and earlier:
                lost.append(max(earlier) - now)
        return sum(lost) / len(lost) if lost else 0.0

    def __str__(self) -> str:
        return "accuracy"


class LayerSeries(PluginMetric[float]):
    """What the newest task has of each weight: ``density/...``, ``bits/...``, ``rank/...``.

    Density is 0..1, of weights with masks; bits are those of a number that the task added, where
    it added any; rank counts the terms that it added, of weights that are kept as terms. Behind the
    slash stands the dotted name of the weight.

    >>> str(LayerSeries())
    'layers'
    """

    axis = TASK_AXIS

    def result(self) -> float:
        """Nothing: there are as many values as layers."""
        return 0.0

    def reset(self) -> None:
        """Nothing is kept."""

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit a value for each weight."""
        network, task = network_of(strategy), strategy.experience.current_experience
        measured: dict[str, Mapping[str, Sequence[float | None]]] = {
            "density": layer_densities(network),
            "bits": layer_bits(network),
            "rank": layer_ranks(network),
        }
        return [
            MetricValue(self, f"{kind}/{name}", values[-1], task)
            for kind, layers in measured.items()
            for name, values in layers.items()
            if values and values[-1] is not None
        ]

    def __str__(self) -> str:
        return "layers"


class TrainingCurves(PluginMetric[float]):
    """``train/loss`` and ``train/accuracy``, means over the mini-batches since the last point.

    There is a point every so many training steps, and one at the end of each epoch.

    :param every: training steps between two points.

    >>> str(TrainingCurves(every=20))
    'train'
    """

    summarised = ("train/loss", "train/accuracy")

    def __init__(self, every: int = 50):
        super().__init__()
        self.every = every
        self._loss = Mean()
        self._accuracy = Accuracy()

    def result(self) -> float:
        """The mean loss since the last point."""
        return float(self._loss.result())

    def reset(self) -> None:
        """Begin a new mean."""
        self._loss.reset()
        self._accuracy.reset()

    def before_training_exp(self, strategy: Any) -> None:
        """A task begins with means of its own."""
        self.reset()

    def after_training_iteration(self, strategy: Any) -> list[MetricValue]:
        """Count a mini-batch, and emit a point if it is time."""
        size = len(strategy.mb_y)
        self._loss.update(strategy.loss.detach(), weight=size)
        self._accuracy.update(strategy.mb_output.detach(), strategy.mb_y)
        clock = strategy.clock
        # the clock counts this step after the metrics have seen it
        return self._point(strategy) if (clock.train_iterations + 1) % self.every == 0 else []

    def after_training_epoch(self, strategy: Any) -> list[MetricValue]:
        """Emit what is left of the epoch."""
        return self._point(strategy)

    def _point(self, strategy: Any) -> list[MetricValue]:
        if not self._loss.weight:
            return []
        values = {"train/loss": self.result(), "train/accuracy": float(self._accuracy.result())}
        self.reset()
        steps = strategy.clock.train_iterations
        return [MetricValue(self, name, value, steps) for name, value in values.items()]

    def __str__(self) -> str:
        return "train"


def task_series(*, curves_every: int = 50) -> list[PluginMetric[Any]]:
    """All series for an ``EvaluationPlugin`` of a strategy of this package.

    For any other Avalanche strategy take :class:`AccuracySeries` and :class:`TrainingCurves`.

    :param curves_every: training steps between two points of the training curves.
    :return: accuracy, forgetting, sizes, layers, and training curves.

    >>> names = list(map(str, task_series()))
    >>> names[:3]
    ['accuracy', 'size/archive_bytes', 'size/bits_per_weight']
    """
    return [AccuracySeries(), *compression_metrics(), LayerSeries(), TrainingCurves(curves_every)]
