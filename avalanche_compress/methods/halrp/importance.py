"""How much the loss depends on each layer's weight, from gradients that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from avalanche_compress.core.batches import mapped, parts_of, rows_of, size_of
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.store import WeightStore
from avalanche_compress.core.substitution import evaluating
from avalanche_compress.errors import TrainingDataError

IMPORTANCE = ("mean_sq", "sum", "uniform", "fisher_diag")
_NUMBERS_AT_ONCE = 1 << 26

Batch = tuple[Tensor, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]


def layer_importance(
    network: TaskNetwork,
    stores: Sequence[WeightStore],
    batches: Iterable[Batch],
    criterion: Criterion,
    kind: str = "mean_sq",
) -> Tensor:
    r"""One number per layer: the squared gradient of the loss with respect to its weight.

    - ``"mean_sq"``: of a batch's mean loss, averaged over the weight's elements; over batches
      :math:`h_l = \frac1B \sum_b n_b \, mean(g_{l,b}^2)` (Li et al., HALRP, TKDE 2024);
    - ``"sum"``: the same, summed over the elements;
    - ``"fisher_diag"``: of single samples, averaged over samples and elements, the mean of the
      empirical Fisher matrix's diagonal. The gradients of as many samples as have 2**26 numbers
      (256 MB in float32), and of one at least, are in memory at a time; the model and the criterion
      must be such that ``torch.func`` can vectorise them;
    - ``"uniform"``: 1, without a look at the data.

    The model is in evaluation mode meanwhile. Its parameters, gradients, running statistics and
    the random generators stay as they are.

    :param network: with an open task.
    :param stores: those of the layers; each trains a whole weight. One that is frozen counts 0.
    :param batches: inputs (n, ...) and targets (n,).
    :param criterion: mean loss of logits (n, C) and targets (n,).
    :param kind: one of :data:`IMPORTANCE`.
    :return: (L,), in float64.

    >>> network = TaskNetwork(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)))
    >>> network.open(0, [0, 1])
    >>> batch = torch.ones(4, 2), torch.tensor([0, 1, 1, 1])
    >>> criterion = torch.nn.functional.cross_entropy
    >>> layer_importance(network, network.weight_stores, [batch], criterion).shape
    torch.Size([1])
    """
    if kind == "uniform" or not stores:
        return torch.ones(len(stores), dtype=torch.float64)
    squares = _sample_squares if kind == "fisher_diag" else _batch_squares
    total, count = torch.zeros(len(stores), dtype=torch.float64), 0
    with evaluating(network), _differentiable_in_evaluation(network):
        for x, y in batches:
            total += squares(network, stores, x, y, criterion)
            count += size_of(y) if kind == "fisher_diag" else 1
    if kind != "sum":
        total /= torch.tensor([store.shape.numel() for store in stores])
    return total / max(1, count)


def _differentiable_in_evaluation(network: TaskNetwork) -> AbstractContextManager[None]:
    """Recurrent layers of cuDNN have no gradients in evaluation mode; those of torch have."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()


@torch.enable_grad()
def _batch_squares(
    network: TaskNetwork, stores: Sequence[WeightStore], x: Tensor, y: Tensor, criterion: Criterion
) -> Tensor:
    """``n ||g_l||^2`` of a batch of n samples, (L,)."""
    trained = [index for index, store in enumerate(stores) if store.scratch.requires_grad]
    weights = [stores[index].scratch for index in trained]
    gradients = _gradients(network, lambda: criterion(network(x, network.open_task), y), weights)
    squares = torch.zeros(len(stores), dtype=torch.float64)
    for index, gradient in zip(trained, gradients):
        if gradient is not None:
            squares[index] = gradient.double().square().sum()
    return size_of(y) * squares


def _gradients(
    network: TaskNetwork, loss: Callable[[], Tensor], weights: list[Tensor]
) -> Sequence[Tensor | None]:
    """Of some parameters; those that they have stay."""
    if not weights:
        return ()
    try:
        return torch.autograd.grad(loss(), weights, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
    # regions that are checkpointed so know no other way than backward()
    before = [(parameter, parameter.grad) for parameter in network.parameters()]
    network.zero_grad(set_to_none=True)
    try:
        loss().backward()
        return [weight.grad for weight in weights]
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


@torch.no_grad()
def _sample_squares(
    network: TaskNetwork, stores: Sequence[WeightStore], x: Tensor, y: Tensor, criterion: Criterion
) -> Tensor:
    """``sum_i ||g_li||^2`` over the samples i of a batch, (L,)."""
    _check_single_samples(x)
    names = [f"backbone.{store.name}" for store in stores]
    weights = {name: store.scratch.detach() for name, store in zip(names, stores)}

    def loss(weights: dict[str, Tensor], sample: list[Tensor], y: Any) -> Tensor:
        inputs = iter(sample)
        single = mapped(x, lambda part: next(inputs).unsqueeze(0) if part.dim() else part)
        target = mapped(y, lambda part: part.unsqueeze(0))
        logits = functional_call(network, weights, (single, network.open_task))
        return criterion(logits, target)

    numbers = sum(weight.numel() for weight in weights.values())
    gradients_of = vmap(grad(loss), in_dims=(None, 0, 0))
    total = torch.zeros(len(stores), dtype=torch.float64)
    for part in torch.arange(size_of(y)).split(max(1, _NUMBERS_AT_ONCE // numbers)):
        gradients = gradients_of(weights, list(parts_of(rows_of(x, part))), rows_of(y, part))
        squares = [gradients[name].double().square().sum().item() for name in names]
        total += torch.tensor(squares, dtype=torch.float64)
    return total


def _check_single_samples(x: Any) -> None:
    """Refuse a mini-batch that ``vmap`` cannot take sample by sample."""
    for part in parts_of(x):
        if not isinstance(part, Tensor) or part.layout is not torch.strided or part.is_nested:
            raise TrainingDataError(
                "importance='fisher_diag' takes gradients of single samples, and the mini-batch "
                f"has a {type(part).__name__} that torch.func cannot take apart: give dense "
                "tensors, or choose importance='mean_sq'."
            )
