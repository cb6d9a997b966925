"""Weights & Biases logging that works with current wandb, online and offline.

The host's ``WandBLogger`` calls two names that wandb has removed (``wandb.util.generate_id``,
``wandb.viz``). The subclass here calls neither, sends all metrics of a moment in one call, and
writes tables, images and archives. Nothing happens on import.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
import wandb
from avalanche.logging import WandBLogger as HostWandBLogger
from avalanche.logging.wandb_logger import CHECKPOINT_METRIC_NAME

from avalanche_compress.host.strategy import Strategy
from avalanche_compress.host.wandb_values import as_array, heat_map, to_wandb

_OF_ONE = re.compile(r"/(Task|Exp)\d{3,}$")
"""How names end that Avalanche makes for one task or one experience."""

Matrix = np.ndarray | torch.Tensor | Sequence[Sequence[float]]

# One run may be written to by a logger and its copies (a strategy that was deep-copied or loaded
# from a checkpoint in the same process): wandb refuses to open an id twice.
_open_runs: WeakValueDictionary[str, Any] = WeakValueDictionary()


class WandBLogger(HostWandBLogger):
    """Log the metrics of a strategy to Weights & Biases.

    Differences from the host's logger of the same name, whose arguments it keeps:

    - all metrics of one callback and one training iteration go in one ``log`` call;
    - a metric with an ``axis`` (:func:`~avalanche_compress.metrics.task_series`) becomes a series
      over it, ``accuracy/mean`` over ``task``; those that it has ``summarised`` have least,
      greatest and last value in the summary, by which a table of runs can be sorted;
    - Avalanche's names of single experiences and tasks, which W&B draws as panels of one point
      each, are left out unless ``host_names=True``;
    - a tensor or array with one element and any NumPy number is logged as a number, one with
      more elements as a histogram, a confusion matrix as a heat map;
    - an image tensor is moved from channels-first to the layout that wandb draws;
    - a value that cannot be shown warns instead of disappearing;
    - ``finish()`` ends the run, and so does leaving a ``with`` block;
    - a checkpoint of the strategy keeps the run's id, so a loaded logger continues that run from
      its first metric on (offline, in a second folder with the same id, which ``wandb sync``
      appends to the first).

    :param project_name: name of the W&B project.
    :param run_name: name of the W&B run.
    :param log_artifacts: if true, what the host's ``WeightCheckpoint`` metric emits is logged as
        an artifact.
    :param path: folder for those weights.
    :param uri: external storage (GCS, S3) to which the artifact of the weights also refers.
    :param sync_tfboard: copy what Tensorboard gets to W&B.
    :param save_code: save the main script with the run.
    :param config: dictionary of hyper-parameters for ``wandb.config``.
    :param dir: folder for W&B's files, created if missing; by default ``./wandb``.
    :param params: further arguments of ``wandb.init``, for example ``{"mode": "offline"}`` (the
        environment variable ``WANDB_MODE=offline`` does the same), ``tags``, ``job_type`` or
        ``group``.
    :param host_names: log metrics whose names end in a task or an experience, as in
        ``Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp003``.

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with WandBLogger(dir=folder, save_code=False,
        ...                      params={"mode": "disabled"}) as logger:
        ...         logger.log_single_metric("size/archive_bytes", 1024, 0)
        ...         logger.log_accuracy_matrix([[0.9], [0.8, 0.95]])
    """

    _run: Any = None
    _first_step = 0
    _defined: frozenset[str] = frozenset()
    _left_out: str | None = None
    _has_series = False
    step: int = 0

    def __init__(
        self,
        project_name: str = "Avalanche",
        run_name: str = "Test",
        log_artifacts: bool = False,
        path: str | Path = "Checkpoints",
        uri: str | None = None,
        sync_tfboard: bool = False,
        save_code: bool = True,
        config: object | None = None,
        dir: str | Path | None = None,
        params: dict[str, Any] | None = None,
        *,
        host_names: bool = False,
    ):
        self.host_names = host_names
        super().__init__(
            project_name,
            run_name,
            log_artifacts,
            path,
            uri,
            sync_tfboard,
            save_code,
            config,
            dir,
            params,
        )

    def before_run(self) -> None:
        """Open the W&B run: the host's constructor calls it, and :attr:`run` when resuming."""
        run = _open_runs.get(self.init_kwargs.get("id") or "")
        if run is None or _is_finished(run):
            run = _open_run(self.init_kwargs)
        self._run = run
        self._defined = frozenset()
        _open_runs[run.id] = run
        # A run that is resumed online may be ahead of the checkpoint; wandb drops earlier steps.
        self._first_step = run.step if run.resumed else 0
        # Whatever opens this logger's run from now on continues it.
        self.init_kwargs.update(id=run.id, resume="allow")

    @property
    def run(self) -> Any:
        """The open W&B run (``wandb.Run``), resumed if it was finished or came from a pickle."""
        if self._run is None or _is_finished(self._run):
            self.before_run()
        return self._run

    def log_metrics(self, metric_values: Sequence[Any]) -> None:
        """Log what a callback emitted, one ``log`` call for each training iteration among it.

        :param metric_values: ``MetricValue`` objects of the host.
        """
        rows: dict[int, dict[str, Any]] = {}
        points: dict[tuple[str, int], dict[str, Any]] = {}
        for metric in metric_values:
            axis = getattr(metric.origin, "axis", None)
            if axis is None and self._leaves_out(metric.name):
                continue
            if axis is None:
                row = rows.setdefault(metric.x_plot, {})
            else:
                row = points.setdefault((axis, metric.x_plot), {})
            for name, value in _named_values(metric.name, metric.value):
                entry = self._loggable(name, value, metric.x_plot)
                if entry:
                    self._define(name, axis, getattr(metric.origin, "summarised", ()))
                row.update(entry)
        for x_plot in sorted(rows):
            self._log_row(rows[x_plot], x_plot)
        for (axis, x_plot), row in points.items():
            self._log_row({**row, axis: x_plot} if row else {}, self.step)

    def _leaves_out(self, name: str) -> bool:
        """Whether a name is one of a single task or experience, which nobody has asked for."""
        if self.host_names or name.startswith("WeightCheckpoint") or not _OF_ONE.search(name):
            return False
        self._left_out = name
        return True

    def _define(self, name: str, axis: str | None, summarised: Sequence[str]) -> None:
        """Tell W&B, once a run, what a series is drawn over and what its summary is."""
        self._has_series = self._has_series or axis is not None or bool(summarised)
        run = self.run  # which may open one, that knows no definitions
        if name in self._defined or (axis is None and name not in summarised):
            return
        if axis is not None and axis not in self._defined:
            run.define_metric(axis, summary="last")
        kinds = "min,max,last" if name in summarised else None
        run.define_metric(name, step_metric=axis, summary=kinds)
        self._defined |= {name} if axis is None else {name, axis}

    def before_training_exp(
        self, strategy: Strategy, metric_values: Sequence[Any], **kwargs: Any
    ) -> None:
        """Go on at the iteration of the strategy, which may be a resumed one."""
        self.step = max(self.step, strategy.clock.train_iterations)

    def after_training_epoch(
        self, strategy: Strategy, metric_values: Sequence[Any], **kwargs: Any
    ) -> None:
        """Have what is measured from here on stand at this iteration."""
        self.step = max(self.step, strategy.clock.train_iterations)

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Log one value.

        :param name: name of the metric.
        :param value: number, string, tensor, array, image, figure, chart, or ``AlternativeValues``.
        :param x_plot: training iteration.
        """
        self._log_row(self._loggable(name, value, x_plot), x_plot)

    def after_training_exp(
        self, strategy: Strategy, metric_values: Sequence[Any], **kwargs: Any
    ) -> None:
        """Log how many experiences were trained; the metrics were logged by then.

        The iteration is the strategy's and not the last one that was logged: a run that goes on
        has logged none yet.
        """
        self._log_row({"TrainingExperience": self.exp_count}, strategy.clock.train_iterations)
        self.exp_count += 1
        if self._left_out is not None and not self._has_series:
            warnings.warn(
                f"{self._left_out} and its like are not logged, as W&B would draw a panel of one "
                "point for each: give the evaluator task_series(), or the logger host_names=True.",
                stacklevel=2,
            )
            self._has_series = True  # said once

    def log_accuracy_matrix(self, matrix: Matrix, name: str = "AccuracyMatrix") -> None:
        """Log the accuracies of all tasks after each task, as a table and as a heat map.

        :param matrix: row i holds the accuracy in [0, 1] of every task after task i was learned,
            shape ``[tasks learned, tasks]``. Rows may be shorter, tasks not evaluated may be NaN.
        :param name: prefix of the two entries, ``<name>/table`` and ``<name>/heat_map``.
        :raises ValueError: if the matrix is empty or does not have two dimensions.
        """
        accuracies = _filled(matrix)
        columns: list[str | int] = ["after task"]
        columns += [f"task {task}" for task in range(accuracies.shape[1])]
        rows = [
            [task, *(None if np.isnan(value) else float(value) for value in row)]
            for task, row in enumerate(accuracies)
        ]
        image = heat_map(accuracies, "task", "after task", largest=1.0)
        self._log_row(
            {
                f"{name}/table": wandb.Table(columns=columns, data=rows),
                f"{name}/heat_map": wandb.Image(image),
            },
            self.step,
        )

    def log_archive(self, path: str | Path, name: str, aliases: Sequence[str] = ()) -> Any:
        """Log a file of compressed weights as a W&B artifact of type ``model``.

        A name that is logged again gets a new version, if the file has changed.

        :param path: the file, as written by ``save_archive``.
        :param name: name of the artifact: letters, digits, ``-``, ``_`` and ``.``.
        :param aliases: what else this version is called, besides ``latest``.
        :return: the ``wandb.Artifact``; its metadata holds the file's size in bytes.
        :raises FileNotFoundError: if there is no such file.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no archive to log at {file}")
        artifact = wandb.Artifact(name, type="model", metadata={"bytes": file.stat().st_size})
        artifact.add_file(str(file), name=file.name)
        self.run.log_artifact(artifact, aliases=["latest", *aliases])
        return artifact

    def finish(self, exit_code: int | None = None) -> None:
        """End the run; a metric that arrives later resumes it.

        :param exit_code: anything but 0 or ``None`` marks the run as failed.
        """
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None

    def __enter__(self) -> WandBLogger:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.finish(exit_code=0 if kind is None else 1)

    def __getstate__(self) -> dict[str, Any]:
        # A run is a connection to a process of this machine; its id, in init_kwargs, is the state.
        return {k: v for k, v in self.__dict__.items() if k not in ("wandb", "_run")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The run opens with the first metric and not here, so that a checkpoint can be looked
        # at, or a strategy copied, without a connection.
        self.__dict__.update(state)
        self.import_wandb()

    def _loggable(self, name: str, value: Any, x_plot: int) -> dict[str, Any]:
        """Return the entry of one value in a row, or no entry where there is nothing to show."""
        if name.startswith("WeightCheckpoint"):
            if self.log_artifacts:
                self._log_checkpoint(name, value, x_plot)
            return {}
        if value is None:
            return {}
        converted = to_wandb(value, is_confusion="ConfusionMatrix" in name)
        if converted is None:
            warnings.warn(f"W&B cannot show {name}, a {type(value).__name__}", stacklevel=2)
            return {}
        return {name: converted}

    def _log_row(self, row: dict[str, Any], x_plot: int) -> None:
        """Send a row, not before the last one: wandb drops a step that goes back.

        Metrics that have a single value use 0 for ``x_plot`` by the host's convention.
        """
        if not row:
            return
        _ = self.run  # which may open one, and that says where it stands
        self.step = max(x_plot, self.step, self._first_step)
        self._send(row, self.step)

    def _send(self, row: dict[str, Any], step: int) -> None:
        self.run.log(row, step=step)

    def _log_checkpoint(self, name: str, value: bytes, x_plot: int) -> None:
        """Log the weights that the host's ``WeightCheckpoint`` metric emitted.

        The host's version adds the external reference to an artifact that is already logged,
        which wandb refuses.
        """
        match = CHECKPOINT_METRIC_NAME.match(name)
        if match is None:
            warnings.warn(f"Checkpoint metric has unsupported name {name}.", stacklevel=2)
            return
        experience = int(match["experience_id"])
        metadata = {"experience": experience, "x_step": x_plot}
        if match["task_id"] is not None:
            metadata["task_id"] = int(match["task_id"])
        file = Path(self.path) / f"Model_{experience}.pth"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(value)
        artifact = wandb.Artifact(file.stem, type="model", metadata=metadata)
        artifact.add_file(str(file), name=f"Models/{file.name}")
        if self.uri is not None:
            artifact.add_reference(self.uri, checksum=False)
        self.run.log_artifact(artifact)


def _open_run(init_kwargs: dict[str, Any]) -> Any:
    """Call ``wandb.init``, next to an open run where another one is to be resumed."""
    kwargs = dict(init_kwargs)
    if kwargs.get("dir") is not None:
        Path(kwargs["dir"]).mkdir(parents=True, exist_ok=True)
    if kwargs.get("resume") and wandb.run is not None:
        # Otherwise wandb would hand out the open run, and the metrics would go to the wrong one.
        kwargs.setdefault("reinit", "create_new")
    return wandb.init(**kwargs)


def _is_finished(run: Any) -> bool:
    """Return whether a run takes no more metrics (wandb has no public name for it)."""
    return getattr(run, "_is_finished", False)


def _named_values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a metric's value, one for each key of a dictionary."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, entry in value.items():
        yield f"{name}/{key}", entry


def _filled(matrix: Matrix) -> np.ndarray:
    """Return a matrix, whose rows may differ in length, padded with NaN.

    Example::

        >>> _filled([[0.9], [0.8, 0.95]])
        array([[0.9 ,  nan],
               [0.8 , 0.95]])
    """
    rows = [as_array(row).astype(np.float64) for row in matrix]
    if not rows or any(row.ndim != 1 for row in rows) or max(map(len, rows)) == 0:
        raise ValueError("the accuracy matrix needs at least one row and one column of numbers")
    filled = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(filled, rows):
        row[: len(values)] = values
    return filled
