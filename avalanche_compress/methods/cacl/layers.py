"""Layers whose weight is ``W + U^T diag|sigma| V``, computed without putting the weight together.

The gradient then has no part of the weight's size: where batches are small beside the weight, that
is faster than composing it in every step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_compress.codec.low_rank import Factors


def factored_linear(
    x: Tensor, shared: Tensor, terms: Factors, bias: Tensor | None = None
) -> Tensor:
    r"""``W x + U^T |sigma| (V x) + b``.

    :param x: (..., m).
    :param shared: W, (n, m), which gets no gradient.
    :param terms: R of them.
    :param bias: b, (n,).
    :return: (..., n).

    >>> one = torch.ones(1)
    >>> terms = Factors(torch.full((1, 1), 2.0), -one, torch.full((1, 1), 3.0))
    >>> factored_linear(one, torch.full((1, 1), 5.0), terms)
    tensor([11.])
    """
    rows = x.reshape(-1, x.shape[-1])
    left = terms.scale.abs().unsqueeze(1) * terms.left
    out = torch.addmm(F.linear(rows, shared, bias), F.linear(rows, terms.right), left)
    return out.view(*x.shape[:-1], len(shared))


def saves_work(rows: int, columns: int, rank: int, samples: int) -> bool:
    """Whether a training step of :func:`factored_linear` has fewer products than composing W.

    With each sample it takes three products with the factors, forward and back, and saves the one
    of the whole weight's gradient. Composing takes three products of the factors with each other.

    :param rows: n.
    :param columns: m.
    :param rank: R.
    :param samples: inputs, all dimensions but the last.

    >>> saves_work(100, 784, 88, 32), saves_work(100, 784, 88, 256)
    (True, False)
    """
    weight = rows * columns
    return (3 * rank * (rows + columns) - weight) * samples <= 3 * rank * weight
