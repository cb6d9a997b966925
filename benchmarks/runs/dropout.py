"""Dropout whose masks cost little on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """``nn.Dropout`` with masks of 16 random bits a value instead of a Bernoulli draw.

    On a CPU torch draws each value of a mask for itself, which in an AlexNet of five dropouts is
    two fifths of a training step; four values out of one random number take a tenth of that. A
    value is dropped with probability ``round(65536 p) / 65536``. Where there is a GPU, torch's own
    is used.

    :param p: probability that a value is dropped.

    >>> Dropout(0.5)(torch.ones(8)).unique().tolist() in ([0.0, 2.0], [0.0], [2.0])
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with values dropped in training, the others divided by ``1 - p``."""
        if not self.training or x.device.type != "cpu" or self.p == 1:
            return super().forward(x)
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
        least_kept = round(self.p * _LEVELS) - _LEVELS // 2
        factor = torch.empty_like(x, requires_grad=False)  # dense, in the layout of x
        in_memory = factor.as_strided((x.numel(),), (1,))
        torch.ge(bits.view(torch.int16)[: x.numel()], least_kept, out=in_memory)
        return x * factor.div_(1 - self.p)
