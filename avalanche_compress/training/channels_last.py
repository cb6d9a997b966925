"""The layout of images in training."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_compress.host.strategy import Strategy


class ChannelsLastPlugin(SupervisedPlugin):
    """Lays out the images of training with their channels last.

    Most convolutions are faster so, on a CPU and in half precision on a GPU, and pass the layout on
    to those behind them. Works with any Avalanche strategy; what is no image ``(B, C, H, W)`` stays
    as it is. Evaluation is not touched, so that the logits of a learned task do not depend on it.

    >>> from avalanche.training import Naive
    >>> model = torch.nn.Conv2d(3, 2, 3)
    >>> strategy = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    ...                  evaluator=None, plugins=[ChannelsLastPlugin()])
    """

    state_attributes = ()

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        inputs = strategy.mb_x
        if isinstance(inputs, Tensor) and inputs.dim() == 4:
            strategy.mbatch[0] = inputs.contiguous(memory_format=torch.channels_last)
