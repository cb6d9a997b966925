"""Training in bfloat16 on processors that have no instructions for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_PRODUCTS = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}


class ProductsInFloat32(TorchDispatchMode):
    """Computes products and convolutions of bfloat16 tensors in float32 and rounds what comes out.

    As processors with bfloat16 do, which add up in float32 as well: results differ in the order of
    additions. Without such instructions torch takes 10 to 15 times as long as in float32 (torch
    2.14, ``cacl_net`` and ``alexnet_wsn`` at batch 64 on an AMD EPYC with AVX2); this takes about
    as long.

    >>> with ProductsInFloat32():
    ...     torch.mm(torch.ones(1, 300).bfloat16(), torch.ones(300, 1).bfloat16()).item()
    300.0
    """

    @classmethod
    def where_slow(cls, bf16: bool, device: str) -> AbstractContextManager[Any]:
        """This, if training on ``device`` (``"cpu"`` or ``"cuda"``) in bfloat16 would be slow."""
        slow = device == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT")
        return cls() if bf16 and slow else nullcontext()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in _PRODUCTS or not _any_low(args):
            return func(*args, **kwargs or {})
        args = tree_map_only(torch.Tensor, torch.Tensor.float, args)
        return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, func(*args, **kwargs or {}))


def _any_low(args: tuple[Any, ...]) -> bool:
    return any(isinstance(arg, torch.Tensor) and arg.dtype == torch.bfloat16 for arg in args)
