"""A module computes with tensors that are not its own, for as long as a forward pass lasts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator

from torch import Tensor, nn

from avalanche_compress.core.store import Place


class Lending:
    """While it lasts, modules read the lent tensors in place of their own.

    An entry in a module's ``__dict__`` comes before its Parameters and buffers in attribute
    look-up, so nothing is moved or registered, and nothing is left behind. May be entered again.

    :param loans: where each tensor is read, and the tensor.

    >>> import torch
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> with Lending([(Place(layer, "weight"), torch.ones(1, 2))]):
    ...     layer(torch.ones(1, 2)).item()
    2.0
    """

    def __init__(self, loans: list[tuple[Place, Tensor]]):
        self.loans = loans
        self._recurrent = [own for (own, _), _ in loans if isinstance(own, nn.RNNBase)]

    def __enter__(self) -> None:
        for (module, name), tensor in self.loans:
            module.__dict__[name] = tensor
        for module in self._recurrent:
            _point_flat_weights(module)

    def __exit__(self, *error: Any) -> None:
        for (module, name), _ in self.loans:
            module.__dict__.pop(name, None)
        for module in self._recurrent:
            _point_flat_weights(module)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While it lasts, the module and all within are in evaluation mode.

    :param module: any; each module's own mode comes back afterwards.

    >>> dropout = nn.Dropout()
    >>> with evaluating(dropout):
    ...     dropout.training
    False
    >>> dropout.training
    True
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _point_flat_weights(module: nn.RNNBase) -> None:
    """Recurrent layers compute with a list of their tensors, not with their attributes."""
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
