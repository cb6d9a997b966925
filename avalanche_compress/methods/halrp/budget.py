"""Which entries of a task's factors stay when its parameters are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context
from fractions import Fraction

import torch
from torch import Tensor

from avalanche_compress.codec.selection import kth_smallest
from avalanche_compress.errors import NonFiniteError


def prune_to_count(tensors: Sequence[Tensor], keep: int, floor: float = 0.0) -> list[Tensor]:
    """Keep the entries of largest magnitude over all tensors, and not one too many.

    Of equal magnitudes the earlier tensor's go first, then the earlier entry in row-major order.

    :param tensors: floating point, of any shapes, on one device.
    :param keep: how many entries stay, unless fewer are above the floor.
    :param floor: entries of this magnitude or less never stay.
    :return: bool masks of what stays, one per tensor and of its shape.
    :raises ValueError: if ``keep`` is negative.
    :raises NonFiniteError: if an entry is NaN or infinite.

    Example::

        >>> import torch
        >>> from avalanche_compress.methods.halrp.budget import prune_to_count
        >>> masks = prune_to_count([torch.tensor([0.1, -0.4]), torch.tensor([0.4, 0.2])], keep=2)
        >>> [mask.tolist() for mask in masks]
        [[False, True], [True, False]]
    """
    if keep < 0:
        raise ValueError(f"keep is {keep}, but at least nothing stays: give keep >= 0.")
    magnitude = magnitudes(tensors)
    mask = magnitude > floor
    if keep < int(mask.sum()):
        mask = _largest(magnitude, keep)
    return shaped_like(tensors, mask)


def growth_bound_count(base_count: int, bound: float, fixed_count: int) -> int:
    """How many entries a bound on growth leaves, ``floor(bound * base_count) - fixed_count``.

    :param base_count: parameters of the base network.
    :param bound: what all tasks may add, as a fraction of that; read as the decimal it prints as,
        so that 0.29 of 100 are 29.
    :param fixed_count: added parameters that cannot be pruned.
    :return: entries that may stay.
    :raises ValueError: if the bound is not finite, or too small for the fixed parameters.

    >>> growth_bound_count(100, 0.2, 11)
    9
    """
    if not math.isfinite(bound):
        raise ValueError(f"the growth bound is {bound}, expected a finite fraction.")
    left = math.floor(Fraction(str(bound)) * base_count) - fixed_count
    if left < 0:
        least = Context(prec=4, rounding=ROUND_CEILING).divide(fixed_count, base_count)
        raise ValueError(
            f"the growth bound {bound} of {base_count} parameters leaves {left + fixed_count}, but "
            f"{fixed_count} cannot be pruned: give a bound of at least {least}."
        )
    return left


def magnitudes(tensors: Sequence[Tensor]) -> Tensor:
    """The absolute entries of all tensors in one row.

    :param tensors: floating point, of any shapes.
    :return: (n,).
    :raises NonFiniteError: if an entry is NaN or infinite.
    """
    if not tensors:
        return torch.empty(0)
    magnitude = torch.cat([tensor.detach().abs().flatten() for tensor in tensors])
    if not magnitude.isfinite().all():
        raise NonFiniteError(
            "a factor holds NaN or infinite entries and only finite ones can be compared: train "
            "the task again with a smaller learning rate or gradient clipping."
        )
    return magnitude


def _largest(magnitude: Tensor, keep: int) -> Tensor:
    """A mask of exactly ``keep`` entries, of equal ones the first."""
    if keep == 0:
        return torch.zeros_like(magnitude, dtype=torch.bool)
    threshold = kth_smallest(magnitude, magnitude.numel() - keep + 1)
    mask = magnitude > threshold
    tied = (magnitude == threshold).nonzero().flatten()
    mask[tied[: keep - int(mask.sum())]] = True
    return mask


def shaped_like(tensors: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    """The inverse of :func:`magnitudes` for a mask.

    :param tensors: whose shapes the masks have.
    :param mask: (n,).
    """
    parts = mask.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]
