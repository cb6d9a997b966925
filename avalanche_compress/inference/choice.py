"""From the scores of all tasks to logits in the stream's classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from avalanche_compress.core.heads import MASKED_LOGIT


def choose(scores: Tensor, batchwise: bool = False) -> Tensor:
    """The column of the least score, per sample or for all together.

    :param scores: ``(N, T)``.
    :param batchwise: whether the scores are averaged over the batch first.
    :return: ``(N,)``, 0..T-1.

    >>> scores = torch.tensor([[0.0, 1.0], [0.6, 0.5]])
    >>> choose(scores).tolist(), choose(scores, batchwise=True).tolist()
    ([0, 1], [0, 0])
    """
    if not batchwise:
        return scores.argmin(dim=1)
    return scores.mean(dim=0).argmin().repeat(len(scores))


def spread_chosen(
    logits_of: Callable[[int], Tensor],
    classes: Sequence[Sequence[int]],
    chosen: Tensor,
    width: int = 0,
) -> Tensor:
    """Each sample's logits of its chosen task, at the columns of that task's classes.

    :param logits_of: gives the logits ``(N, ..., C_t)`` of a task by its position; asked for those
        that were chosen.
    :param classes: class numbers of each task.
    :param chosen: ``(N,)``, 0..T-1.
    :param width: least number of columns.
    :return: ``(N, ..., max class + 1)`` or wider; other columns hold -1000.

    >>> two = [torch.ones(2, 1), torch.zeros(2, 2)]
    >>> spread_chosen(two.__getitem__, [[0], [1, 2]], torch.tensor([0, 1])).tolist()
    [[1.0, -1000.0, -1000.0], [-1000.0, 0.0, 0.0]]
    """
    width = max([width, *(max(numbers) + 1 for numbers in classes)])
    out: Tensor | None = None
    for position in chosen.unique().tolist() or [0]:
        logits = logits_of(position)
        if out is None:
            out = logits.new_full((len(chosen), *logits.shape[1:-1], width), MASKED_LOGIT)
        rows = (chosen == position).nonzero()[:, 0]
        columns = torch.tensor(list(classes[position]), device=out.device)
        spread = logits.new_full((len(rows), *logits.shape[1:-1], width), MASKED_LOGIT)
        spread.index_copy_(spread.dim() - 1, columns, logits[rows])
        out[rows] = spread
    assert out is not None
    return out
