"""Any metric as rows of a CSV file: Avalanche's own CSV logger knows accuracy and loss only."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger

COLUMNS = ("axis", "at", "name", "value")


class SeriesCSVLogger(BaseLogger, SupervisedPlugin):
    """Append each number that a metric emits to a file, as ``axis,at,name,value``.

    The axis is the metric's, ``task``, or ``iteration`` for metrics that say none. A training that
    goes on after a stop goes on with the file; points of what is done again are there twice.

    :param path: of the file; made with its folders when the first number comes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     logger = SeriesCSVLogger(Path(folder) / "series.csv")
    ...     logger.log_single_metric("train/loss", 0.5, 10)
    ...     print((Path(folder) / "series.csv").read_text(), end="")
    axis,at,name,value
    iteration,10,train/loss,0.5
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)

    def log_metrics(self, metric_values: Sequence[Any]) -> None:
        """Append what a callback emitted.

        :param metric_values: ``MetricValue`` objects of the host.
        """
        self._append(
            [
                (getattr(m.origin, "axis", "iteration"), m.x_plot, m.name, m.value)
                for m in metric_values
                if isinstance(m.value, (int, float))
            ]
        )

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Append one number.

        :param name: of the metric.
        :param value: what is no number is left out.
        :param x_plot: training iteration.
        """
        if isinstance(value, (int, float)):
            self._append([("iteration", x_plot, name, value)])

    def _append(self, rows: Sequence[tuple[str, int, str, float]]) -> None:
        if not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([COLUMNS, *rows] if is_new else rows)
