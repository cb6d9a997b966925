"""W_t = W_base + (alpha / r_t) B_t A_t: every task adds a product of low rank to a frozen base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    saves_work,
    truncate_product,
)
from avalanche_compress.core.base_store import BaseStore
from avalanche_compress.core.deferred import full_precision, rounded_under_autocast
from avalanche_compress.core.factor_store import Layout, MaskReader, Part
from avalanche_compress.core.store import Place
from avalanche_compress.errors import TaskStateError
from avalanche_compress.methods.lora.maths import (
    adapt_weight,
    adapted_embedding,
    adapted_linear,
)

_DENSE = 0
"""What the section of a dense weight begins with; another one with its rank and 1."""


class AdaptedStore(BaseStore):
    """``W_t = W_base + (alpha / r_t) B_t A_t`` over a base that is frozen for ever.

    A starts uniform in ``±1 / sqrt(m)`` and B at zero, so that a task starts from the base (Hu et
    al., LoRA, arXiv 2106.09685). Tasks know nothing of each other, as in O-LoRA and InfLoRA, but
    without a constraint between them: each is evaluated with its own product.

    A kernel (O, I, ...) of K positions is the matrix (O, I K), for each group of a grouped
    convolution a matrix of its own, all of one rank; an embedding is its table. Kept whole by every
    task is a weight that has fewer numbers than its product of rank one, such as a vector or the
    kernels of a depthwise convolution.

    :param place: the module and the name of its weight.
    :param name: dotted name of the weight in the model.
    :param base: ``"first"`` task, ``"given"`` or ``"external"``, see
        :class:`~avalanche_compress.core.base_store.BaseStore`.
    :param alpha: strength of the product. With Adam it acts as the learning rate of B and A does,
        in proportion to that of all else (section 4.1 of the paper).
    :raises TaskStateError: if there is no such base, or alpha is not a number above 0.

    >>> store = AdaptedStore(Place(nn.Linear(6, 4, bias=False), "weight"), base="given")
    >>> store.rank = 2
    >>> store.open([])
    >>> store.left.shape, store.right.shape
    (torch.Size([1, 4, 2]), torch.Size([1, 2, 6]))
    >>> store.restore(7, store.encode())
    >>> torch.equal(store.committed(7), store.base), store.stored_values(7)
    (True, 20)
    """

    kind = "adapted"

    left: nn.Parameter
    """B of the open task, (G, n, r); empty while it trains a whole weight, as A."""
    right: nn.Parameter
    """A of the open task, (G, r, m)."""

    def __init__(
        self, place: Place, name: str = "weight", *, base: str = "first", alpha: float = 8.0
    ):
        super().__init__(place, name, base=base)
        if not 0 < alpha < math.inf:
            raise TaskStateError(f"alpha={alpha} must be a finite number above 0.")
        self.alpha = float(alpha)
        self.width = self.columns * self.kernel_size
        """m, columns of a group's matrix, which has :attr:`rows` rows."""
        self.factored = self.break_even_rank > 0
        layer = type(place.module)
        self.supports_factored_forward = self.groups == 1 and layer in (nn.Linear, nn.Embedding)
        self.rank = 4
        """Of the next task that is opened; at most :attr:`break_even_rank` is taken."""
        self._train_dense()

    @property
    def full_rank(self) -> int:
        """The largest rank that a product can have."""
        return min(self.rows, self.width)

    @property
    def break_even_rank(self) -> int:
        """The largest rank at which both factors have no more numbers than the weight, or 0."""
        rank = self.scratch.numel() // (self.groups * (self.rows + self.width))
        return min(rank, self.full_rank)

    def part_sizes(self, rank: int) -> list[int]:
        if not self.factored:
            return [self.shape.numel()]
        return [rank * self.groups * self.rows, rank * self.groups * self.width]

    # ------------------------------------------------------------------ the open task

    def config(self) -> dict[str, Any]:
        return {**super().config(), "alpha": self.alpha}

    def open(self, reusable: Sequence[int]) -> None:
        super().open(reusable)
        if self.trains_base or not self.factored:
            self._train_dense()
            return
        rank = min(self.rank, self.break_even_rank)
        right = self.scratch.new_empty(self.groups, rank, self.width)
        bound = self.width**-0.5
        with torch.no_grad():
            right.uniform_(-bound, bound)
        left = self.scratch.new_zeros(self.groups, self.rows, rank)
        self._train(dense=False, left=left, right=right)

    def weight(self) -> Tensor:
        return self.scratch if self._dense else self._compose(self.left, self.right)

    @torch.no_grad()
    def thin(self, part: float) -> None:
        if self._dense or part == 1:
            return
        before = self.right.shape[1]
        rank = round(part * before)
        left, right = truncate_product(self.left, self.right, rank)
        # the same product, though a smaller rank scales it more
        left *= self._scale(before) / self._scale(rank)
        self._train(dense=False, left=left, right=right)

    # ------------------------------------------------------------------ within

    def _train_dense(self) -> None:
        empty = self.scratch.new_empty(0)
        self._train(dense=True, left=empty, right=empty)

    def _scale(self, rank: int) -> float:
        return self.alpha / max(1, rank)

    def _compose(self, *parts: Tensor) -> Tensor:
        left, right = parts
        base = self._by_group(self._frozen_base()).flatten(2)
        with full_precision(self.scratch.device):
            weight = adapt_weight(base, left, right, self._scale(right.shape[1]))
        return weight.view(self.shape)

    def _forward(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        x, _, *others = args
        rank = self.right.shape[1]
        if function is F.linear and not kwargs and isinstance(x, Tensor):
            if not saves_work(self.rows, self.width, rank, x.numel() // self.width):
                return None
            return adapted_linear(x, *self._rounded(), self._scale(rank), *others)
        rescales = kwargs.get("max_norm") is not None or kwargs.get("scale_grad_by_freq")
        if function is F.embedding and not others and not rescales:
            parts = self._frozen_base(), self.left[0], self.right[0]
            with full_precision(self.scratch.device):  # as looking up is under autocast
                return adapted_embedding(x, *parts, self._scale(rank), kwargs.get("padding_idx"))
        return None

    def _rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, B and A of the open task, of a weight in one group; rounded under autocast."""
        parts = self._frozen_base(), self.left[0], self.right[0]
        return rounded_under_autocast(*parts)  # type: ignore[return-value]

    def _parts(self) -> list[Part]:
        if self._dense:
            return [self._dense_part]
        return [Part(self.left, width=self.left.shape[2], unread=0.0), Part(self.right)]

    def _write_head(self, writer: ByteWriter) -> None:
        writer.write_uint(_DENSE if self._dense else 1 + self.right.shape[1])

    def _read_layout(self, reader: ByteReader, position: int, read_mask: MaskReader) -> Layout:
        form = reader.read_uint()
        if form == _DENSE:
            return Layout(self.full_rank, [(self.scratch.numel(),)], [None])
        rank = form - 1
        if rank > self.break_even_rank or not self.factored:
            raise CorruptStreamError(f"{self.name} of a product of rank {rank}")
        self._check_has_base(position)
        g, n, m = self.groups, self.rows, self.width
        return Layout(rank, [(g, n, rank), (g, rank, m)], [None, None])

    def _open_state(self) -> dict[str, Any]:
        return {**super()._open_state(), "rank": self.rank}

    def _set_open_state(self, state: dict[str, Any]) -> None:
        super()._set_open_state(state)
        self.rank = state["rank"]
