"""Every task is a sub-network: what the stores that keep a mask for each task have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from avalanche_compress.codec import CorruptStreamError, Float, Values, all_finite, magnitude_mask
from avalanche_compress.core.cache import MaskCache
from avalanche_compress.core.store import Place, WeightStore, non_finite
from avalanche_compress.core.table import Table


class SubnetworkStore(WeightStore):
    """``W_t = frozen + trainable * scratch`` on the mask ``M_t`` of the open task, else 0.

    What a finished task keeps is its mask, and values at the slots ``O_t`` of it that it wrote.
    Both are in its section; some masks are cached, others are decoded when they are asked for.

    :param place: the module and the name of its weight, of any shape.
    :param name: dotted name of the weight in the model.
    """

    frozen: Tensor
    """The values that the open task sees and cannot change."""
    trainable: Tensor
    """1.0 where the open task writes, else 0.0; a float, as it multiplies weights."""
    density: float
    """The fraction that a mask keeps, where the mask is learned."""
    lifts_gradients: bool = False
    """Whether the open task's optimiser is faster so, see :func:`is_faster_lifted`."""
    _mask: Tensor | None
    _available: Tensor | None

    def __init__(self, place: Place, name: str = "weight"):
        super().__init__(place, name)
        scratch = self.scratch.detach()
        self.register_buffer("frozen", torch.zeros_like(scratch))
        self.register_buffer("trainable", torch.ones_like(scratch))
        # buffers, so that they go with the network to a device; the extra state holds them
        self.register_buffer("_mask", None, persistent=False)
        self.register_buffer("_available", None, persistent=False)
        self.density = 1.0
        self._quantised: Values | None = None
        self._masks = MaskCache(scratch.numel())
        self._kept_by = self._new_table()

    @property
    def scored(self) -> bool:
        """Whether the mask is learned by scores."""
        return False

    @property
    @abstractmethod
    def writable(self) -> Tensor:
        """The slots that the open task may write (bool), whatever its mask keeps of them."""

    def weight(self) -> Tensor:
        tensors = self.frozen, self.trainable, self.scratch
        weight: Tensor = _MaskedWeight.apply(self.lifts_gradients, *tensors)
        return weight

    @property
    def mask(self) -> Tensor:
        """The open task's mask M_t (bool): as :meth:`fix_mask` fixed it, else as it is just now."""
        return self._unfixed_mask() if self._mask is None else self._mask

    @property
    def owned(self) -> Tensor:
        """The slots that the open task writes, O_t (bool): kept by its mask and writable."""
        return self.mask & self.writable

    def fix_mask(self, mask: Tensor) -> None:
        """From now on train and evaluate with this mask.

        :param mask: bool, of the weight's shape; slots outside what this task may use drop out.
        """
        self._mask = mask if self._available is None else mask & self._available
        self._quantised = None

    def prune(self, fraction: float) -> None:
        """Keep all that earlier tasks give it and the largest weights of its own.

        :param fraction: fraction of the writable weights to drop (see
            :func:`~avalanche_compress.codec.selection.magnitude_mask`).
        :raises NonFiniteError: if a weight is NaN or infinite.
        """
        writable = self.writable
        own = values_where(writable, self.scratch.detach())
        if not all_finite(own):
            raise non_finite(self.name)
        mask = ~writable
        mask[writable] = magnitude_mask(own, fraction)
        self.fix_mask(mask)

    def thin(self, part: float) -> None:
        owned, mask = self.owned, self.mask.clone()
        mask[owned] = magnitude_mask(self.scratch.detach()[owned], 1 - part)
        if part < 1:
            self.fix_mask(mask)

    def planned_bytes(self, extent: float, bits: float) -> float:
        # the density of a mask, of the free weights where it is not learned
        free = self.free_weights
        count = self.shape.numel() if free is None else free
        doubt = sum(-p * math.log2(p) for p in (extent, 1 - extent) if p)
        return count * (doubt + extent * bits) / 8

    def kept_values(self) -> list[Tensor]:
        if self._quantised is not None:
            return [self._quantised.decode()]
        return [values_where(self.owned, self.scratch.detach())]

    def kept_gradients(self) -> list[Tensor]:
        gradient = self.scratch.grad
        gradient = torch.zeros_like(self.scratch) if gradient is None else gradient
        return [values_where(self.owned, gradient)]

    @torch.no_grad()
    def keep_values(self, values: Sequence[Values]) -> None:
        self.fix_mask(self.mask)
        (kept,) = values
        self.scratch[self.owned] = kept.decode().to(self.scratch)
        self._quantised = kept

    def mask_of(self, task: int) -> Tensor:
        """The mask of a finished task.

        :param task: its label.
        :return: bool, of the weight's shape.
        """
        return self._shaped(self._mask_at(self._reach(task)))

    def density_of(self, task: int) -> float | None:
        return int(self.mask_of(task).sum()) / self.shape.numel()

    def stored_values(self, task: int) -> int:
        return self._kept_by[self._reach(task)][0]

    def value_bits(self, task: int) -> int:
        added, bits, *_ = self._kept_by[self._reach(task)]
        return added * bits

    def get_extra_state(self) -> dict[str, Any]:
        """The finished tasks, and what the open one may use."""
        chosen = {"density": self.density, "mask": self._mask, "available": self._available}
        return {"finished": super().get_extra_state(), "open": chosen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state["finished"])
        chosen = state["open"]
        if not 0 <= chosen["density"] <= 1:
            raise CorruptStreamError(
                f"{self.name} has the density {chosen['density']} in its state"
            )
        self.density = chosen["density"]
        self._mask, self._available = (
            None if mask is None else mask.to(self.frozen.device)
            for mask in (chosen["mask"], chosen["available"])
        )
        self._quantised = None

    def _load_from_state_dict(self, *args: Any) -> None:
        # an open task sees finished tasks' own buffers, and loading writes into the buffers
        self.frozen, self.trainable = self.frozen.clone(), self.trainable.clone()
        super()._load_from_state_dict(*args)

    def forget(self) -> None:
        super().forget()
        self._masks.clear()
        self._kept_by.clear()

    def _new_table(self) -> Table:
        """What to write down of each task: its values and their bits, and what else there is."""
        return Table(2)

    def _unfixed_mask(self) -> Tensor:
        if self._available is not None:
            return self._available
        return torch.ones_like(self.frozen, dtype=torch.bool)

    def _kept(self) -> Values:
        """The open task's values, as codes if they were quantised."""
        return Float(self.kept_values()[0]) if self._quantised is None else self._quantised

    def _mask_at(self, position: int) -> Tensor:
        """(n,) The mask of a finished task, on the CPU.

        :param position: of the task in order of learning.
        """
        mask = self._masks.get(position)
        if mask is None:
            mask = self._recall_mask(position)
            self._masks.add(position, mask)
        return mask

    @abstractmethod
    def _recall_mask(self, position: int) -> Tensor:
        """(n,) A mask that is not cached, decoded by way of some before it.

        :param position: of the task in order of learning.
        :raises CorruptStreamError: if a section does not fit.
        """

    def _shaped(self, mask: Tensor) -> Tensor:
        return mask.view(self.frozen.shape).to(self.frozen.device)


def positions(mask: Tensor) -> Tensor:
    """Indices where a mask is set.

    :param mask: (n,) bool, on the CPU.
    :return: (m,) int64.
    """
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # an eighth of the time it takes in torch


def values_where(mask: Tensor, values: Tensor) -> Tensor:
    """The entries that a mask keeps, in order, (m,); a copy.

    :param mask: bool.
    :param values: of the same shape.

    >>> values_where(torch.tensor([True, False]), torch.tensor([-1.5, -2.0]))
    tensor([-1.5000])
    """
    if mask.device.type != "cpu":
        return values[mask]
    # a quarter of the time that an index of booleans takes in torch
    return values.flatten().index_select(0, positions(mask.flatten()))


def where_kept(mask: Tensor, values: Tensor) -> Tensor:
    """``M V``: the values that a mask keeps, elsewhere 0.

    It multiplies their bits by 1 or 0, which on a CPU takes a tenth of ``torch.where``'s time.

    :param mask: bool.
    :param values: floats, of the same shape.

    >>> where_kept(torch.tensor([True, False]), torch.tensor([-1.5, -2.0]))
    tensor([-1.5000,  0.0000])
    """
    bits = values.view(_BITS[values.element_size()])
    return (bits * mask).view(values.dtype)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _MaskedWeight(torch.autograd.Function):
    """``frozen + trainable * scratch``, dL/dscratch = g trainable."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, lifts: bool, frozen: Tensor, trainable: Tensor, scratch: Tensor
    ) -> Tensor:
        ctx.lifts = lifts
        ctx.save_for_backward(trainable)
        return torch.addcmul(frozen, trainable, scratch)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (trainable,) = ctx.saved_tensors
        return None, None, None, gradient_where(trainable, gradient, ctx.lifts)


_LIFT = {dtype: torch.tensor(1e-13, dtype=dtype) for dtype in (torch.float32, torch.float64)}


def gradient_where(trainable: Tensor, gradient: Tensor, lifts: bool) -> Tensor:
    """The gradient at what may be trained, elsewhere 0; on a CPU 1e-13 more if that is faster.

    Adam roots a mean of the squared gradient of every masked weight at each step, and on a CPU
    torch takes five times as long for the root of an exact zero, and up to three times for that of
    a number below 1e-30. 1e-13 is far below what Adam notices (see :func:`is_faster_lifted`), and a
    thousandth of its square, where the mean begins, is above that.

    :param trainable: 1.0 or 0.0.
    :param gradient: of the same shape.
    :param lifts: whether it is for an optimiser that is faster so.
    """
    if not lifts or gradient.device.type != "cpu":
        return gradient * trainable
    lift = _LIFT.get(gradient.dtype)
    lift = gradient.new_tensor(1e-13) if lift is None else lift
    return torch.addcmul(lift, gradient, trainable)


def is_faster_lifted(optimizer: Optimizer) -> bool:
    """Whether an optimiser roots squared gradients, and does not notice one of 1e-13.

    Adam does not, as its eps is 1e-8. Those that step by a gradient's sign (Lion, Rprop) take it
    for a whole step, every time, at all weights that a mini-batch does not reach.

    :param optimizer: any.

    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> [is_faster_lifted(kind([weight])) for kind in (torch.optim.AdamW, torch.optim.Rprop)]
    [True, False]
    """
    rooting = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)
    return isinstance(optimizer, rooting) and all(g["eps"] >= 1e-9 for g in optimizer.param_groups)
