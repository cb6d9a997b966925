"""Codebooks trained after quantisation: the codes stay, the centroids move."""

from __future__ import annotations

from typing import Iterable, Sequence

import torch
from torch import Tensor

from avalanche_compress.codec import Codebook
from avalanche_compress.codec.values import Values
from avalanche_compress.core.store import WeightStore

STEP = 0.01
"""First step of a centroid, as part of its layer's root mean square (our choice)."""


def centroid_gradients(codes: Tensor, gradients: Tensor, count: int) -> Tensor:
    """dL/dc_k = sum of dL/dw_i over all i with code k.

    :param codes: int tensor (n,), in ``0 .. count - 1``.
    :param gradients: dL/dw, (n,).
    :param count: K, the number of centroids.
    :return: (K,).

    >>> centroid_gradients(torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 3.0]), 2).tolist()
    [1.0, 5.0]
    """
    return gradients.new_zeros(count).index_add_(0, codes.long(), gradients)


def train_centroids(
    stores: Sequence[WeightStore],
    values: Sequence[Sequence[Values]],
    losses: Iterable[Tensor],
    steps: int,
) -> list[list[Values]]:
    """Train the centroids of all codebooks by Adam, with steps that fall linearly to zero.

    Adam, because a centroid's gradient grows with the number of its members; the step is measured
    by the layer's weights, so that it suits layers of any scale (our choices). Fixed-point values
    have no centroids and stay.

    :param stores: the weights, with a task open.
    :param values: what each of them keeps now, one entry for each of its ``kept_values``.
    :param losses: scalars, one a step, each computed when it is asked for and from gradients that
        are cleared.
    :param steps: how many there are.
    :return: what each store keeps afterwards.
    """
    trained = [[_copy(value) for value in own] for own in values]
    groups = [
        {"params": [value.centroids], "lr": STEP * float(value.decode().square().mean().sqrt())}
        for own in trained
        for value in own
        if isinstance(value, Codebook) and value.codes.numel()
    ]
    if not groups:
        return trained
    adam = torch.optim.Adam(groups, lr=STEP)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: max(0.0, 1 - step / steps))
    for loss in losses:
        loss.backward()
        for store, own in zip(stores, trained):
            for value, gradients in zip(own, store.kept_gradients()):
                if isinstance(value, Codebook):
                    value.centroids.grad = centroid_gradients(
                        value.codes, gradients, value.centroids.numel()
                    )
        adam.step()
        schedule.step()
        for store, own in zip(stores, trained):
            store.keep_values([_copy(value) for value in own])
    return [[_copy(value) for value in own] for own in trained]


def _copy(value: Values) -> Values:
    """The same codes, and centroids of its own, because Adam writes into those it trains."""
    if not isinstance(value, Codebook):
        return value
    return Codebook(value.codes, value.centroids.detach().clone())
