"""Forward passes of training in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import DynamicModule
from torch import Tensor, nn

from avalanche_compress.host.strategy import Strategy


class AutocastPlugin(SupervisedPlugin):
    """Computes the forward passes of training under ``torch.autocast`` in bfloat16.

    Works with any Avalanche strategy. Weights, logits, the loss, gradients and evaluation stay in
    float32, so that what is stored, and the logits of a learned task, do not depend on it. Where a
    processor has no instructions for bfloat16, training gets slower and not faster.

    >>> from avalanche.training import Naive
    >>> model = torch.nn.Linear(2, 2)
    >>> strategy = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    ...                  evaluator=None, plugins=[AutocastPlugin()])
    """

    state_attributes = ()

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        # Avalanche's multi-task models gather their heads' logits in float32 and take no others
        heads = [m for m in strategy.model.modules() if isinstance(m, DynamicModule)]
        handles = [head.register_forward_hook(_in_float32) for head in heads]
        cast = torch.autocast(strategy.device.type, torch.bfloat16)

        def leave(module: nn.Module, given: Any, output: Any) -> Any:
            for handle in handles:
                handle.remove()
            cast.__exit__(None, None, None)
            return _in_float32(module, given, output)

        # called as well if the pass fails, after which nothing must be left under autocast
        handles.append(strategy.model.register_forward_hook(leave, always_call=True))
        cast.__enter__()


def _in_float32(module: nn.Module, given: Any, output: Any) -> Any:
    return output.float() if isinstance(output, Tensor) else output
