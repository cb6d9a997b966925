"""A weight that is composed only where somebody reads it as a whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_DESCRIBED = ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda")
_DESCRIPTIONS = {
    *(getattr(Tensor, name).__get__ for name in _DESCRIBED),
    *(Tensor.size, Tensor.dim, Tensor.numel),
}


class DeferredWeight(Tensor):
    """Stands for a weight of several parts, in a layer that may do without the whole.

    A function of torch that is called with it is first offered to ``apply``, which may know how to
    compute it from the parts; every other one gets the whole weight, and none is needed for its
    shape, type and device. Gradients reach the parts on
    either way. The whole weight is composed once, and once more in each region of the model that
    is computed again in the backward pass (``torch.utils.checkpoint``): there the second pass has
    to save the tensors that the first one saved.

    :param like: has the shape, the dtype and the device.
    :param compose: makes the whole weight, differentiable in its parts.
    :param apply: ``(function, args, kwargs)`` returns the function's result, or None if it needs
        the whole weight.

    >>> import torch
    >>> column, row = torch.ones(3, 1), torch.ones(1, 2)
    >>> linear = torch.nn.functional.linear
    >>> def apply(function, args, kwargs):
    ...     return args[0] @ row.t() @ column.t() if function is linear else None
    >>> weight = DeferredWeight(torch.empty(3, 2), lambda: column @ row, apply)
    >>> linear(torch.ones(1, 2), weight), weight.sum()
    (tensor([[2., 2., 2.]]), tensor(6.))
    """

    _compose: Callable[[], Tensor]
    _apply: Callable[..., Tensor | None]
    _whole: tuple[Any, Tensor] | None

    @staticmethod
    def __new__(cls, like: Tensor, compose: Callable[[], Tensor], apply: Callable[..., Any]) -> Any:
        # torch documents it for subclasses like this one, without a stub
        make = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]  # noqa: SLF001
        weight = make(cls, like.shape, dtype=like.dtype, device=like.device, requires_grad=True)
        weight.__dict__.update(_compose=compose, _apply=apply, _whole=None)
        return weight

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _DESCRIPTIONS:
            with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as in torch's own
                return function(*args, **kwargs)
        weight = args[1] if len(args) > 1 else None
        if isinstance(weight, cls):
            result = weight.__dict__["_apply"](function, args, kwargs)
            if result is not None:
                return result
        args, kwargs = tree_map(_whole, (args, kwargs))
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # below autograd, where only code comes that hides its tensors from __torch_function__
        raise RuntimeError(f"{function} has to be given the whole weight: call torch's functions.")


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """While it lasts, autocast rounds nothing on a device.

    Parts are composed in their own type, or a commit under autocast would round them.

    :param device: any.

    >>> with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()  # which takes a fiftieth of the time


def rounded_under_autocast(*parts: Tensor) -> tuple[Tensor, ...]:
    """Parts of a weight in the type that autocast computes with; as they are where it is not on.

    Their products and sums are then of that type throughout. Autocast leaves double precision
    alone, and so does this.

    :param parts: of one type, on one device.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     rounded_under_autocast(torch.ones(1))[0].dtype
    torch.bfloat16
    """
    device = parts[0].device.type
    if parts[0].dtype is not torch.float32 or not torch.is_autocast_enabled(device):
        return parts
    dtype = torch.get_autocast_dtype(device)
    return tuple(part.to(dtype) for part in parts)


def _whole(value: Any) -> Any:
    if not isinstance(value, DeferredWeight):
        return value
    parts, region = value.__dict__, _region()
    if parts["_whole"] is None or parts["_whole"][0] != region:
        parts["_whole"] = region, parts["_compose"]()
    return parts["_whole"][1]


def _region() -> tuple[bool, Any]:
    """What tells a checkpointed region, and its second pass, from all that is around it."""
    graph = torch._C._autograd  # noqa: SLF001 - torch has no public name
    hooks = graph._top_saved_tensors_default_hooks(True)  # noqa: SLF001 - as above
    return torch.is_grad_enabled(), hooks and hooks[0]
