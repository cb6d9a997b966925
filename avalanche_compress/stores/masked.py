"""W_t = M_t * V: every task is a sub-network of one shared weight tensor."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor, nn

from avalanche_compress.coding import (
    ByteReader,
    ByteWriter,
    decode_mask,
    encode_mask,
    kept_count,
    magnitude_mask,
    pack_mask,
    top_mask_,
    unpack_mask,
)
from avalanche_compress.errors import CapacityExhaustedError, TaskStateError
from avalanche_compress.stores.base import Place, WeightStore, non_finite
from avalanche_compress.stores.values import (
    Values,
    bits_of,
    decoded,
    read_values,
    write_values,
)


class MaskedStore(WeightStore):
    """``W_t = M_t * V``, where a task writes V only on slots that no earlier task uses.

    With ``U = M_1 | ... | M_{t-1}`` the slots in use, task t trains

    - unscored (PackNet, Mallya and Lazebnik, CVPR 2018): ``W = U V + (1 - U) scratch``, then
      :meth:`prune` keeps the largest free weights;
    - scored (WSN, Kang et al., ICML 2022): ``W = M (U V + (1 - U) scratch)`` with
      ``M = top(|scores|)``, gradients passed straight through the threshold to the scores.

    A committed slot keeps its owner's value for ever; later tasks may read it.

    :param place: the module and the name of its weight, of any shape.
    :param name: dotted name of the weight in the model.
    :param scored: learn a score for each weight.

    >>> layer = nn.Linear(4, 2, bias=False)
    >>> store = MaskedStore(Place(layer, "weight"))
    >>> store.open([])
    >>> store.prune(0.5)
    >>> store.restore(7, store.encode())
    >>> int((store.committed(7) != 0).sum()), int(store.free.sum())
    (4, 4)
    """

    kind = "masked"

    value: Tensor
    """What finished tasks have written; 0 where free."""
    free: Tensor
    """1.0 where no finished task uses the slot, else 0.0; a float, as it multiplies weights."""
    frozen: Tensor
    """The old values that the open task sees."""
    trainable: Tensor
    """1.0 where the open task may write."""

    def __init__(self, place: Place, name: str = "weight", *, scored: bool = False):
        super().__init__(place, name)
        scratch = self.scratch.detach()
        self.register_buffer("value", torch.zeros_like(scratch))
        self.register_buffer("free", torch.ones_like(scratch))
        self.register_buffer("frozen", torch.zeros_like(scratch))
        self.register_buffer("trainable", torch.ones_like(scratch))
        self.scores = nn.Parameter(_initial_scores(scratch)) if scored else None
        self.density = 1.0
        self._mask: Tensor | None = None
        self._available: Tensor | None = None
        self._quantised: Values | None = None
        self._masks: dict[int, Tensor] = {}
        self._added: dict[int, tuple[int, int]] = {}

    @property
    def scored(self) -> bool:
        """Whether the mask is learned by scores."""
        return self.scores is not None

    def config(self) -> dict[str, Any]:
        return {"scored": self.scored}

    def check_open(self, reusable: Sequence[int]) -> None:
        if self.scores is None:
            return
        available = int(self._free_or_used_by(reusable).sum())
        needed = kept_count(self.density, self.value.numel())
        if available < needed:
            raise CapacityExhaustedError(
                f"{self.name} has {available} weights that the new task may use and density "
                f"{self.density:g} asks for {needed}: lower the density, let the task reuse more "
                "earlier tasks (sharing='all'), or start from a wider model."
            )

    def open(self, reusable: Sequence[int]) -> None:
        self._mask = None
        self._quantised = None
        if set(self.sections) <= set(reusable):
            self._available = None
            self.frozen = self.value
        else:
            self._available = self._free_or_used_by(reusable)
            self.frozen = torch.where(self._available, self.value, 0.0)
        self.trainable = self.free
        if reusable and not self.scored:
            # beside old weights, pruned ones start at zero (PackNet); scored ones go on (WSN)
            with torch.no_grad():
                self.scratch.masked_fill_(self.free != 0, 0.0)

    def weight(self) -> Tensor:
        weight: Tensor
        if self.scores is None or self._mask is not None:
            weight = _MaskedWeight.apply(self.frozen, self.trainable, self.scratch)
        else:
            weight = _ScoredWeight.apply(
                self.frozen, self.trainable, self.scratch, self.scores, self._learned_mask()
            )
        return weight

    @property
    def mask(self) -> Tensor:
        """The open task's mask M_t (bool): as :meth:`fix_mask` fixed it, else as it is just now."""
        if self._mask is not None:
            return self._mask
        if self.scores is not None:
            return self._learned_mask() != 0
        if self._available is not None:
            return self._available
        return torch.ones_like(self.free, dtype=torch.bool)

    @property
    def own(self) -> Tensor:
        """The slots that the open task writes, ``O_t = M_t & ~U`` (bool)."""
        return self.mask & (self.free != 0)

    def fix_mask(self, mask: Tensor) -> None:
        """From now on train and evaluate with this mask.

        :param mask: bool, of the weight's shape; slots outside what this task may use drop out.
        """
        if self._available is not None:
            mask = mask & self._available
        self._mask = mask
        self.frozen = torch.where(mask, self.value, 0.0)
        self.trainable = self.free * mask
        self._quantised = None

    def prune(self, fraction: float) -> None:
        """Keep all that earlier tasks use and the largest free weights.

        :param fraction: fraction of the free weights to drop (see
            :func:`~avalanche_compress.coding.magnitude_mask`).
        :raises NonFiniteError: if a weight is NaN or infinite.
        """
        free = self.free != 0
        if not bool(torch.isfinite(self.scratch[free]).all()):
            raise non_finite(self.name)
        mask = ~free
        mask[free] = magnitude_mask(self.scratch.detach()[free], fraction)
        self.fix_mask(mask)

    def kept_values(self) -> list[Tensor]:
        if self._quantised is not None:
            return [decoded(self._quantised)]
        return [self.scratch.detach()[self.own]]

    @torch.no_grad()
    def keep_values(self, values: Sequence[Values]) -> None:
        self.fix_mask(self.mask)
        (kept,) = values
        self.scratch[self.own] = decoded(kept).to(self.scratch)
        self._quantised = None if isinstance(kept, Tensor) else kept

    def encode(self) -> bytes:
        mask = self.mask
        values = self._quantised if self._quantised is not None else self.kept_values()[0]
        writer = ByteWriter()
        writer.write_bytes(encode_mask(mask.flatten().cpu(), self._mask_context()))
        write_values(values, writer)
        return writer.getvalue()

    @torch.no_grad()
    def decode(self, task: int, reader: ByteReader) -> None:
        count = self.value.numel()
        flat = decode_mask(reader.read_bytes(), count, self._mask_context())
        mask = flat.view(self.value.shape).to(self.value.device)
        own = mask & (self.free != 0)
        added = int(own.sum())
        values = read_values(reader, added, self.value.dtype)
        # new tensors, not in place: the open task's views of the old ones stay valid until open()
        self.value = self.value.index_put((own,), decoded(values).to(self.value))
        self.free = self.free * ~own
        self._masks[task] = pack_mask(flat)
        self._added[task] = (added, bits_of(values))

    def committed(self, task: int) -> Tensor:
        return torch.where(self.mask_of(task), self.value, 0.0)

    def mask_of(self, task: int) -> Tensor:
        """The mask of a finished task.

        :param task: its label.
        :return: bool, of the weight's shape.
        """
        if task not in self._masks:
            raise TaskStateError(f"task {task} is not finished; finished are {list(self._masks)}.")
        flat = unpack_mask(self._masks[task], self.value.numel())
        return flat.view(self.value.shape).to(self.value.device)

    def stored_values(self, task: int) -> int:
        return self._added[task][0]

    def value_bits(self, task: int) -> int:
        added, bits = self._added[task]
        return added * bits

    def get_extra_state(self) -> dict[str, Any]:
        """The finished tasks, and what the open one may use."""
        chosen = {"density": self.density, "mask": self._mask, "available": self._available}
        return {"finished": super().get_extra_state(), "open": chosen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state["finished"])
        chosen = state["open"]
        self.density = chosen["density"]
        self._mask, self._available = chosen["mask"], chosen["available"]
        self._quantised = None

    def forget(self) -> None:
        super().forget()
        self._masks.clear()
        self._added.clear()
        self.value = torch.zeros_like(self.value)
        self.free = torch.ones_like(self.free)

    def _learned_mask(self) -> Tensor:
        """1.0 at the best-scored weights of those that the task may use, else 0.0."""
        assert self.scores is not None
        magnitude = self.scores.detach().abs()
        if self._available is not None:
            # below every magnitude, and check_open saw to it that enough others are there
            magnitude = torch.where(self._available, magnitude, -1.0)
        return top_mask_(magnitude, self.density)

    def _free_or_used_by(self, tasks: Sequence[int]) -> Tensor:
        available = self.free != 0
        for task in tasks:
            available = available | self.mask_of(task)
        return available

    def _mask_context(self) -> Tensor:
        """(n,) What decoder and encoder both know of a slot: last task's mask + 2 * in use."""
        context = 2 * (self.free == 0).flatten().to(torch.uint8).cpu()
        if self._masks:
            newest = next(reversed(self._masks))
            context += unpack_mask(self._masks[newest], context.numel()).to(torch.uint8)
        return context


def _initial_scores(weight: Tensor) -> Tensor:
    """Scores start as weights do in torch, Kaiming-uniform with a = sqrt(5), as in WSN's code."""
    scores = torch.empty_like(weight)
    if weight.dim() < 2:
        return nn.init.uniform_(scores, -1, 1)
    return nn.init.kaiming_uniform_(scores, a=5**0.5)


class _MaskedWeight(torch.autograd.Function):
    """``frozen + trainable * scratch``, dL/dscratch = g trainable."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, frozen: Tensor, trainable: Tensor, scratch: Tensor
    ) -> Tensor:
        ctx.save_for_backward(trainable)
        return torch.addcmul(frozen, trainable, scratch)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (trainable,) = ctx.saved_tensors
        return None, None, _off_zero(gradient * trainable)


class _ScoredWeight(torch.autograd.Function):
    """``M (frozen + trainable * scratch)``, straight through M's threshold to the scores.

    dL/dscratch = g M trainable and dL/dscores = g (frozen + trainable * scratch) sign(scores) at
    all positions, kept or not (WSN, Kang et al. 2022).
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, frozen: Tensor, trainable: Tensor, scratch: Tensor, scores: Tensor, mask: Tensor
    ) -> Tensor:
        weight = torch.addcmul(frozen, trainable, scratch)
        ctx.save_for_backward(weight, mask, trainable, scores)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        weight, mask, trainable, scores = ctx.saved_tensors
        to_scratch = _off_zero((gradient * mask).mul_(trainable))
        to_scores = torch.sign(scores).mul_(weight).mul_(gradient)
        return None, None, to_scratch, to_scores, None


def _off_zero(gradient: Tensor) -> Tensor:
    """Lift exact zeros by 1e-15, far below what an optimiser notices (Adam's eps is 1e-8).

    On a CPU torch takes square roots with a library that is 20 to 40 times slower at exact
    zeros, and Adam roots the squared gradient of every masked weight at each step.
    """
    return gradient.add_(1e-15) if gradient.device.type == "cpu" else gradient
