"""A model runs with other tensors than its own parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from avalanche_compress.core.copying import cached_properties
from avalanche_compress.core.store import Place


class Substitution:
    """While it lasts, modules read the substituted tensors in place of their own.

    An entry in a module's ``__dict__`` comes before its Parameters and buffers in attribute
    look-up, so nothing is moved or registered, and nothing is left behind. May be entered again;
    of two that overlap, the last one to be entered is read.

    :param tensors: where each tensor is read, and the tensor.

    >>> import torch
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> with Substitution([(Place(layer, "weight"), torch.ones(1, 2))]):
    ...     layer(torch.ones(1, 2)).item()
    2.0
    """

    def __init__(self, tensors: list[tuple[Place, Tensor]]):
        self.tensors = tensors
        self._recurrent = [module for (module, _), _ in tensors if isinstance(module, nn.RNNBase)]

    def __enter__(self) -> None:
        for (module, name), tensor in self.tensors:
            module.__dict__[name] = tensor
        for module in self._recurrent:
            _point_flat_weights(module)

    def __exit__(self, *error: Any) -> None:
        for (module, name), _ in self.tensors:
            module.__dict__.pop(name, None)
        for module in self._recurrent:
            _point_flat_weights(module)


class Completion:
    """Has a task's tensors stand in all places that read them.

    :param aliases: of tied parameters: the first place, and each further one.
    :param padding: rows (1,) of embeddings that are zero for every task, by place.
    """

    def __init__(self, aliases: Sequence[tuple[Place, Place]], padding: Mapping[Place, Tensor]):
        self._aliases = list(aliases)
        self._padding = dict(padding)

    def __call__(self, tensors: list[tuple[Place, Tensor]]) -> list[tuple[Place, Tensor]]:
        """With tied parameters in all their places, and rows of padding at zero.

        :param tensors: of a task, by first place.
        """
        if self._padding:
            tensors = [
                (place, tensor.index_fill(0, self._padding[place].to(tensor.device), 0))
                if place in self._padding
                else (place, tensor)
                for place, tensor in tensors
            ]
        if self._aliases:
            known = dict(tensors)
            further = ((other, known[place]) for place, other in self._aliases if place in known)
            tensors = [*tensors, *further]
        return tensors


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
    forget_derived(module)
    try:
        yield
    finally:
        module.train(modes[0][1])
        for part, mode in modes:
            part.training = mode
        forget_derived(module)


def forget_derived(module: nn.Module) -> None:
    """Have modules drop what they keep derived from their weights, which may have changed.

    They do so when they are to be trained, if their authors have thought of it, and what a
    ``functools.cached_property`` keeps is dropped here; for all other modules there is nothing to
    do.

    :param module: any; each module's mode stays.
    """
    parts = list(module.modules())
    for part in parts:
        for name in cached_properties(part):
            part.__dict__.pop(name, None)
    if all(type(part).train is nn.Module.train for part in parts):
        return
    modes = [part.training for part in parts]
    module.train()
    module.train(modes[0])
    for part, mode in zip(parts, modes):
        part.training = mode


def _point_flat_weights(module: nn.RNNBase) -> None:
    """Recurrent layers compute with a list of their tensors, not with their attributes."""
    names = module._flat_weights_names  # noqa: SLF001 - torch has no public name
    module._flat_weights = [getattr(module, name) for name in names]  # noqa: SLF001 - as above
