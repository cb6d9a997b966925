"""Running statistics of norms, estimated again when a task's weights are what they will be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from avalanche_compress.core.batches import moved_to
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.substitution import evaluating
from avalanche_compress.host.strategy import Strategy
from avalanche_compress.shaping.plugin import ShapingPlugin, Stage
from avalanche_compress.shaping.validation import iterate_batches

_LEAST_BATCH = 64


def _experience_data(strategy: Any) -> Any:
    return strategy.adapted_dataset


class NormPlugin(ShapingPlugin):
    """Estimates the running statistics of norms again when a task has been shaped, dropout off.

    Pruning and quantising change what a norm sees, and so does dropout: its survivors are scaled
    up, so that their variance, and their maximum in a pooling layer, are larger than those of plain
    values, and statistics gathered in training do not fit evaluation (Li et al., CVPR 2019). So
    they are gathered once more over the task's training data: each norm normalises by the
    statistics of the batch, as in training, everything else is in evaluation mode, and the means
    over all batches are kept. No weight changes and no random number is drawn. It is done before
    weights are pruned and quantised, so that decisions by held-out data see what will be used, and
    at the very end.

    Works on any Avalanche strategy; with a plain model, at the end of each experience. Norms that
    the user keeps in evaluation mode during training, and models without norms, are left alone.

    :param batch_size: samples in a batch; by default those of a training step, and 64 at least.
    :param data: what a strategy has trained on, for one that keeps samples of earlier tasks; by
        default its ``adapted_dataset``, which is the experience's.

    >>> NormPlugin(batch_size=256).stage.name
    'ESTIMATE_NORMS'
    """

    stage = Stage.ESTIMATE_NORMS
    state_attributes = ()

    def __init__(
        self, batch_size: int | None = None, data: Callable[[Any], Any] = _experience_data
    ):
        super().__init__()
        self.batch_size = batch_size
        self.data = data

    def prepare(self, strategy: Strategy) -> None:
        self.shape(strategy)

    def shape(self, strategy: Strategy) -> None:
        estimate_norms(strategy.model, self._passes(strategy))

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        if isinstance(strategy.model, TaskNetwork):
            super().after_training_exp(strategy, *args, **kwargs)
        else:
            self.shape(strategy)

    def _passes(self, strategy: Strategy) -> Iterator[Callable[[], Any]]:
        """A forward pass for each batch of the task's training data."""
        model, dataset = strategy.model, self.data(strategy)
        size = self.batch_size or max(_LEAST_BATCH, strategy.train_mb_size)
        for inputs, labels in _shuffled_batches(dataset, size):
            x = moved_to(inputs, strategy.device)
            if isinstance(model, TaskNetwork):
                yield partial(model, x, model.open_task)
            else:
                yield partial(avalanche_forward, model, x, labels.to(strategy.device))


@torch.no_grad()
def estimate_norms(model: nn.Module, passes: Iterable[Callable[[], Any]]) -> None:
    """Let every norm's running statistics be the means over some batches, dropout off.

    :param model: any; modes and momenta are afterwards what they were.
    :param passes: run the model on one batch each; they are not asked for if there is no norm.

    >>> norm = nn.BatchNorm1d(1)
    >>> estimate_norms(norm, [lambda: norm(torch.tensor([[1.0], [3.0]]))])
    >>> norm.running_mean.item(), norm.running_var.item()
    (2.0, 2.0)
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _NormBase)
        and module.running_mean is not None
        and (module.training or not model.training)
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        try:
            for run in passes:
                run()
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum


def _shuffled_batches(dataset: Any, size: int) -> Iterator[tuple[Any, Tensor]]:
    """Inputs and task labels, transformed as for evaluation, in an order that is always the same.

    Data that lie class by class would give batches that are unlike each other. No batch has more
    than one sample more than another, so that none is small.

    :param dataset: one of Avalanche's.
    :param size: least number of samples in a batch, if there are so many.
    """
    count = len(dataset)
    number = max(1, count // size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(list(getattr(dataset, "targets_task_labels", [0] * count)))
    larger = count % number * (count // number + 1)  # samples in batches of one more
    for part, each in ((order[:larger], count // number + 1), (order[larger:], count // number)):
        batches = iterate_batches(dataset.subset(part.tolist()).eval(), each)
        yield from zip((x for x, _ in batches), labels[part].split(each))
