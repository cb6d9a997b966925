"""Codebooks trained after quantisation: the codes stay, the centroids move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from avalanche_compress.codec import Values
from avalanche_compress.core.store import WeightStore

STEP = 0.01
"""First step of a centroid, as part of its layer's root mean square (our choice)."""


def train_centroids(
    stores: Sequence[WeightStore],
    values: Sequence[Sequence[Values]],
    losses: Iterable[Tensor],
    steps: int,
) -> list[list[Values]]:
    """Train the centroids of all codebooks by Adam, with steps that fall linearly to zero.

    Adam, because a centroid's gradient grows with the number of its members; the step is measured
    by the layer's weights, so that it suits layers of any scale (our choices). What has nothing to
    train (see :attr:`~avalanche_compress.codec.Values.parameter`) stays.

    :param stores: the weights, with a task open.
    :param values: what each of them keeps now, one entry for each of its ``kept_values``.
    :param losses: scalars, one a step, each computed when it is asked for and from gradients that
        are cleared.
    :param steps: how many there are.
    :return: what each store keeps afterwards.
    """
    trained = _copies(values)
    groups = [
        {"params": [kept.parameter], "lr": STEP * float(kept.decode().square().mean().sqrt())}
        for layer in trained
        for kept in layer
        if kept.parameter is not None and kept.decode().numel()
    ]
    if not groups:
        return trained
    adam = torch.optim.Adam(groups, lr=STEP)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: max(0.0, 1 - step / steps))
    for loss in losses:
        loss.backward()
        for store, layer in zip(stores, trained):
            for kept, gradients in zip(layer, store.kept_gradients()):
                if kept.parameter is not None:
                    kept.parameter.grad = kept.parameter_gradient(gradients)
        adam.step()
        schedule.step()
        for store, layer in zip(stores, _copies(trained)):
            store.keep_values(layer)
    return _copies(trained)


def _copies(values: Sequence[Sequence[Values]]) -> list[list[Values]]:
    """The same codes, and parameters of their own, because Adam writes into those it trains."""
    return [[kept.copy() for kept in layer] for layer in values]
