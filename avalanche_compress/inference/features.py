"""What is read of a sub-network to tell samples by: inputs of the head or outputs of modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from avalanche_compress.core.batches import size_of
from avalanche_compress.core.network import TaskNetwork
from avalanche_compress.core.views import watching_task
from avalanche_compress.errors import TaskInferenceError, nearest

HEAD, FIRST = "head", "first"
"""Names of layers that every model has: the head, of which the inputs count, and the first module
behind whose weight a store stands."""

WIDEST = 512
"""Wider features are folded to so many numbers, see :func:`fold`."""


class Features:
    """Reads features ``(N, d)`` of samples under a sub-network.

    Of a convolution, or a norm of one, that is mean and deviation of each channel; of tokens
    ``(N, L, d)`` mean and deviation over L; of everything else the output, flattened. Several
    modules stand one after another.

    :param names: of modules, dotted, joined by ``+``; ``"head"`` for the head's inputs and
        ``"first"`` for the first module whose weights are shared, of which, if it is a convolution,
        whole maps are read: early channels say little without where they are strong.
    :param folded: whether features wider than :data:`WIDEST` are folded.

    >>> str(Features("first+body.3"))
    'first+body.3'
    """

    def __init__(self, names: str = HEAD, folded: bool = True):
        self.names = names.split("+")
        self.folded = folded

    def __str__(self) -> str:
        return "+".join(self.names)

    def modules_in(self, network: TaskNetwork) -> list[nn.Module]:
        """The modules that are named.

        :param network: any.
        :raises TaskInferenceError: naming one that the model does not have.
        """
        known = dict(network.backbone.named_modules())
        found: list[nn.Module] = []
        for name in self.names:
            if name == HEAD:
                found.append(network.head)
            elif name == FIRST:
                if not network.weight_stores:
                    raise TaskInferenceError(
                        f"the tasks of this model share no weights, so there is no {FIRST!r} "
                        f"module: read features of {HEAD!r} or of a module by name."
                    )
                found.append(network.weight_stores[0].place.module)
            elif name in known and name:
                found.append(known[name])
            else:
                raise TaskInferenceError(
                    f"the model has no module {name!r} to read features of"
                    f"{nearest(name, known)}: name one of its named_modules(), "
                    f"{HEAD!r} (the head's inputs, the default) or {FIRST!r}."
                )
        return found

    def __call__(self, network: TaskNetwork, x: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """A task's logits and features, in one pass.

        :param network: any.
        :param x: ``(N, ...)``.
        :param task: finished or open.
        :return: ``(N, C_t)`` and ``(N, d)``.
        :raises TaskInferenceError: if a module gives no tensor of the samples.
        """
        modules = self.modules_in(network)
        with watching_task(network, task, modules) as seen:
            logits = network.own_logits(x, task)
        parts = []
        for name, module, calls in zip(self.names, modules, seen):
            output: Any = calls[-1][0 if module is network.head else 1] if calls else None
            if isinstance(output, tuple):  # of a recurrent layer or an attention the first counts
                output = output[0]
            if not isinstance(output, Tensor) or not output.dim() or len(output) != size_of(x):
                raise TaskInferenceError(
                    f"the module {name!r} gives no tensor with a row a sample: name another one in "
                    "features=."
                )
            output = output.detach()
            whole = module is network.head or (name == FIRST and _is_convolution(module))
            row = output.flatten(1) if whole else flatten(output, module)
            parts.append(row.float())
        return logits, self._folded(torch.cat(parts, dim=1))

    def of_head(self, inputs: Tensor) -> Tensor:
        """Features of known inputs of the head.

        :param inputs: ``(N, ...)``.
        :return: ``(N, d)``.
        """
        return self._folded(inputs.flatten(1).float())

    def _folded(self, features: Tensor) -> Tensor:
        return fold(features) if self.folded else features


def flatten(output: Tensor, module: nn.Module) -> Tensor:
    """A module's output as a row of numbers a sample.

    :param output: ``(N, ...)``.
    :param module: that gave it.
    :return: ``(N, d)``.

    >>> flatten(torch.ones(2, 3, 8, 8), nn.Conv2d(1, 3, 1)).shape
    torch.Size([2, 6])
    """
    if output.dim() < 3:
        return output.flatten(1)
    channels_first = (_ConvNd, _NormBase)
    tokens = output.dim() == 3 and not isinstance(module, channels_first)
    maps = output.transpose(1, 2) if tokens else output.flatten(2)
    return torch.cat([maps.mean(dim=2), maps.std(dim=2, unbiased=False)], dim=1)


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd)


def fold(features: Tensor, widest: int = WIDEST) -> Tensor:
    """Features in fewer numbers, each the signed sum of a few of them; inner products stay about.

    Feature i goes to number ``i mod d'`` with a sign that hashes i (a count sketch; Charikar et
    al., 2002), so that nothing has to be drawn or kept.

    :param features: ``(N, d)``.
    :param widest: d' at most.
    :return: ``(N, min(d, d'))``.

    >>> fold(torch.ones(1, 3)).shape, fold(torch.ones(1, 2000)).shape
    (torch.Size([1, 3]), torch.Size([1, 512]))
    """
    width = features.shape[1]
    if width <= widest:
        return features
    index = torch.arange(width, device=features.device)
    signs = ((index * 2654435761) >> 16) % 2 * 2 - 1
    rows = -(-width // widest)
    signed = nn.functional.pad(features * signs, (0, rows * widest - width))
    return signed.view(len(features), rows, widest).sum(dim=1)
