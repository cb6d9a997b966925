"""Metrics' values as W&B shows them: numbers, histograms, images, heat maps."""

from __future__ import annotations

import copy
from io import BytesIO
from typing import Any

import numpy as np
import torch
import wandb
from avalanche.evaluation.metric_results import AlternativeValues, TensorImage
from matplotlib.figure import Figure
from PIL.Image import Image
from PIL.Image import open as open_image
from wandb.plot.custom_chart import CustomChart


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
        return wandb.Image(_drawable(as_array(value.image)))
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return _from_array(as_array(value), is_confusion)
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


def as_array(value: Any) -> np.ndarray:
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
