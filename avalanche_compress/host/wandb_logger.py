"""Weights & Biases logging that works with current wandb, online and offline.

The host's ``WandBLogger`` calls two names that wandb has removed (``wandb.util.generate_id``,
``wandb.viz``). The subclass here calls neither, sends all metrics of a moment in one call, and
writes tables, images and archives. Nothing happens on import.
"""

from __future__ import annotations

import copy
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, Iterator, Sequence, Union
from weakref import WeakValueDictionary

import numpy as np
import torch
import wandb
from avalanche.evaluation.metric_results import AlternativeValues, TensorImage
from avalanche.logging import WandBLogger as HostWandBLogger
from avalanche.logging.wandb_logger import CHECKPOINT_METRIC_NAME
from matplotlib.figure import Figure
from PIL.Image import Image
from PIL.Image import open as open_image
from wandb.plot.custom_chart import CustomChart

from avalanche_compress.host.strategy import Strategy

Matrix = Union[np.ndarray, torch.Tensor, Sequence[Sequence[float]]]

# One run may be written to by a logger and its copies (a strategy that was deep-copied or loaded
# from a checkpoint in the same process): wandb refuses to open an id twice.
_open_runs: WeakValueDictionary[str, Any] = WeakValueDictionary()


class WandBLogger(HostWandBLogger):
    """Log the metrics of a strategy to Weights & Biases.

    Differences from the host's logger of the same name, whose arguments it keeps:

    - all metrics of one callback and one training iteration go in one ``log`` call;
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
    :param params: further arguments of ``wandb.init``, for example ``{"mode": "offline"}``; the
        environment variable ``WANDB_MODE=offline`` does the same.

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with WandBLogger(dir=folder, save_code=False,
        ...                      params={"mode": "disabled"}) as logger:
        ...         logger.log_single_metric("StoredBytes", 1024, 0)
        ...         logger.log_accuracy_matrix([[0.9], [0.8, 0.95]])
    """

    _run: Any = None
    _first_step = 0
    step: int = 0

    def before_run(self) -> None:
        """Open the W&B run: the host's constructor calls it, and :attr:`run` when resuming."""
        run = _open_runs.get(self.init_kwargs.get("id") or "")
        if run is None or _is_finished(run):
            run = _open_run(self.init_kwargs)
        self._run = run
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
        for metric in metric_values:
            for name, value in _named_values(metric.name, metric.value):
                rows.setdefault(metric.x_plot, {}).update(
                    self._loggable(name, value, metric.x_plot)
                )
        for x_plot in sorted(rows):
            self._log_row(rows[x_plot], x_plot)

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

    def log_archive(self, path: str | Path, name: str) -> Any:
        """Log a file of compressed weights as a W&B artifact of type ``model``.

        :param path: the file, as written by ``save_archive``.
        :param name: name of the artifact: letters, digits, ``-``, ``_`` and ``.``.
        :return: the ``wandb.Artifact``; its metadata holds the file's size in bytes.
        :raises FileNotFoundError: if there is no such file.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no archive to log at {file}")
        artifact = wandb.Artifact(name, type="model", metadata={"bytes": file.stat().st_size})
        artifact.add_file(str(file), name=file.name)
        self.run.log_artifact(artifact)
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
        run = self.run
        self.step = max(x_plot, self.step, self._first_step)
        run.log(row, step=self.step)

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


def to_wandb(value: Any, is_confusion: bool = False) -> Any:
    """Convert a metric's value to something that ``wandb.log`` shows well.

    :param value: the value of a metric; of ``AlternativeValues`` the first that converts is taken.
    :param is_confusion: if true, a tensor or array ``[true class, predicted class]`` becomes a heat
        map.
    :return: number, string, ``wandb`` object, or ``None`` if W&B has no way to show the value.

    Example::

        >>> to_wandb(torch.tensor(0.5)), to_wandb(np.float32(0.25)), to_wandb(np.int64(3))
        (0.5, 0.25, 3)
        >>> type(to_wandb(torch.arange(4))).__name__
        'Histogram'
        >>> to_wandb(object()) is None
        True
    """
    if isinstance(value, AlternativeValues):
        converted = (to_wandb(choice, is_confusion) for choice in value.alternatives)
        return next((choice for choice in converted if choice is not None), None)
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, CustomChart):
        # Logging ties a chart to the run. The evaluator keeps the metric's own chart, and a
        # strategy that holds a run can be saved but never loaded.
        return copy.deepcopy(value)
    if isinstance(value, (Image, Figure)):
        return wandb.Image(value)
    if isinstance(value, TensorImage):
        return wandb.Image(_drawable(_as_array(value.image)))
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return _from_array(_as_array(value), is_confusion)
    return None


def heat_map(matrix: np.ndarray, x_label: str, y_label: str, largest: float | None = None) -> Image:
    """Draw a matrix as coloured cells; NaN cells stay blank.

    :param matrix: non-negative values, shape ``[rows, columns]``.
    :param x_label: what a column is.
    :param y_label: what a row is.
    :param largest: value of the brightest colour; by default the largest in the matrix.
    :return: the image.

    Example::

        >>> heat_map(np.eye(3), "predicted class", "true class").format
        'PNG'
    """
    # Figure and not pyplot: pyplot would keep every figure open for the life of the process.
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    cells = axes.imshow(matrix, vmin=0.0, vmax=largest, cmap="viridis", aspect="auto")
    axes.set(xlabel=x_label, ylabel=y_label)
    figure.colorbar(cells, ax=axes)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return open_image(buffer)


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


def _as_array(value: Any) -> np.ndarray:
    """Return a tensor, array or NumPy number as an array."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    tensor = value.detach().cpu()
    # NumPy has no bfloat16.
    return tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()


def _from_array(array: np.ndarray, is_confusion: bool) -> Any:
    """Convert an array to a number, a heat map or a histogram, by its shape."""
    if array.size == 1 and array.dtype.kind in "biuf":
        return array.item()
    if array.size == 0 or array.dtype.kind not in "biuf":
        return None
    if is_confusion and array.ndim == 2:
        return wandb.Image(heat_map(array, "predicted class", "true class"))
    values = array.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return None
    return wandb.Histogram(np_histogram=np.histogram(finite))


def _drawable(image: np.ndarray) -> np.ndarray:
    """Bring an image tensor to bytes with the channels last.

    :param image: shape ``[height, width]`` or ``[channels, height, width]``; floats in [0, 1] or
        bytes.
    :return: the image as uint8, ``[height, width]`` or ``[height, width, channels]``.
    """
    if image.ndim == 3:
        image = np.moveaxis(image, 0, -1)
    if image.dtype.kind == "f":
        image = np.rint(np.nan_to_num(image).clip(0.0, 1.0) * 255)
    return image.astype(np.uint8)


def _filled(matrix: Matrix) -> np.ndarray:
    """Return a matrix, whose rows may differ in length, padded with NaN.

    Example::

        >>> _filled([[0.9], [0.8, 0.95]])
        array([[0.9 ,  nan],
               [0.8 , 0.95]])
    """
    rows = [_as_array(row).astype(np.float64) for row in matrix]
    if not rows or any(row.ndim != 1 for row in rows) or max(map(len, rows)) == 0:
        raise ValueError("the accuracy matrix needs at least one row and one column of numbers")
    filled = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(filled, rows):
        row[: len(values)] = values
    return filled


__all__ = ["WandBLogger", "heat_map", "to_wandb"]
