"""W_t = diag(r_t) W_base diag(s_t) + U_t A_t: every task is a small change of one frozen weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    all_finite,
    encode_mask,
    truncate_product,
)
from avalanche_compress.core.base_store import BaseStore
from avalanche_compress.core.deferred import full_precision, rounded_under_autocast
from avalanche_compress.core.factor_store import Layout, MaskReader, Part
from avalanche_compress.core.store import Place, non_finite
from avalanche_compress.errors import TaskStateError
from avalanche_compress.methods.halrp.layers import perturbed_conv2d, perturbed_linear
from avalanche_compress.methods.halrp.maths import (
    least_squares_scalings,
    perturb_weight,
    scale_weight,
    spatial_mean,
)

CONV_MODES = ("spatial_mean", "flatten", "auto")
_DENSE, _SPATIAL_MEAN, _FLATTEN = range(3)
Solver = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class PerturbedStore(BaseStore):
    """``W_t = diag(r_t) W_base diag(s_t) + U_t A_t`` over a base that is frozen for ever.

    The base is the weight of the first finished task, or the one that the model was given with. A
    task first trains a whole weight, which starts from the base; :meth:`perturb` then replaces it
    by scales of the base's outputs and inputs and a product of small factors, and these train on.
    As nothing but the base is shared, tasks know nothing of each other (Li et al., HALRP, TKDE
    2024).

    To a kernel (O, I, ...) of K positions ``(U A)_oi`` is added at all of them alike with
    ``"spatial_mean"``; with ``"flatten"`` it is the matrix (O, I K). Each group of a grouped
    convolution has a product of its own, all of one rank. Kept whole by every task are a weight
    that has fewer numbers than its perturbation of rank one, such as a vector, and the kernels of
    a depthwise convolution; and so is a weight that is committed before it is perturbed.

    :param place: the module and the name of its weight.
    :param name: dotted name of the weight in the model.
    :param conv_mode: ``"spatial_mean"`` (the paper's), ``"flatten"``, or ``"auto"``: whichever
        of the two who chooses the rank finds better.
    :param base: ``"first"``: the weight of the first task; ``"given"``: the weight that the module
        has when the first task is opened, so that the first task perturbs it like any other;
        ``"external"``: that one, which ``build_model`` gives again when an archive is loaded.
    :raises TaskStateError: if there is no such mode or base.

    >>> store = PerturbedStore(Place(nn.Linear(6, 4, bias=False), "weight"), base="given")
    >>> store.open([])
    >>> store.perturb(*store.scalings(), torch.zeros(1, 4, 1), torch.ones(1, 1, 6))
    >>> store.restore(7, store.encode())
    >>> store.committed(7).shape, store.rank_of(7), store.stored_values(7)
    (torch.Size([4, 6]), 1, 20)
    """

    kind = "perturbed"

    row_scale: nn.Parameter
    """r of the open task, (G, n); empty while it trains a whole weight, as the others."""
    column_scale: nn.Parameter
    """s, (G, m)."""
    left: nn.Parameter
    """U, (G, n, k)."""
    right: nn.Parameter
    """A, (G, k, m), or (G, k, m K) for the flattened kernel."""
    _left_mask: Tensor | None
    _right_mask: Tensor | None

    def __init__(
        self,
        place: Place,
        name: str = "weight",
        *,
        conv_mode: str = "spatial_mean",
        base: str = "first",
    ):
        super().__init__(place, name, base=base)
        if conv_mode not in CONV_MODES:
            raise TaskStateError(f"conv_mode={conv_mode!r} must be one of {CONV_MODES}.")
        self.conv_mode = conv_mode
        depthwise = self.groups > 1 and self.columns == 1
        self.factored = not depthwise and self.break_even_rank(self.modes[0]) > 0
        layer = type(place.module)
        self.supports_factored_forward = self.groups == 1 and layer in (nn.Linear, nn.Conv2d)
        # buffers, so that they go with the network to a device; the extra state holds them
        self.register_buffer("_left_mask", None, persistent=False)
        self.register_buffer("_right_mask", None, persistent=False)
        self._train_dense()

    # ------------------------------------------------------------------ the weight as matrices

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways in which a task may add a product to the kernel, the default first."""
        if self.kernel_size == 1:
            return ("spatial_mean",)
        return ("spatial_mean", "flatten") if self.conv_mode == "auto" else (self.conv_mode,)

    @property
    def scales(self) -> int:
        """How many numbers r and s are."""
        return self.groups * (self.rows + self.columns)

    def width(self, mode: str) -> int:
        """Columns of a group's matrix, which is (n, width) for each of G groups.

        :param mode: ``"spatial_mean"`` or ``"flatten"``.
        """
        return self.columns * (self.kernel_size if mode == "flatten" else 1)

    def full_rank(self, mode: str) -> int:
        """The largest rank that a product can have.

        :param mode: ``"spatial_mean"`` or ``"flatten"``.
        """
        return min(self.rows, self.width(mode))

    def parameters_per_rank(self, mode: str) -> int:
        """Numbers of one component of both factors, in all groups.

        :param mode: ``"spatial_mean"`` or ``"flatten"``.
        """
        return self.groups * (self.rows + self.width(mode))

    def break_even_rank(self, mode: str) -> int:
        """The largest rank at which scales and factors have no more numbers than the weight.

        :param mode: ``"spatial_mean"`` or ``"flatten"``.
        :return: 0 where there is none.
        """
        rank = (self.scratch.numel() - self.scales) // self.parameters_per_rank(mode)
        return min(max(0, rank), self.full_rank(mode))

    # ------------------------------------------------------------------ the open task

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """``(U, A)`` of the open task, (G, n, k) and (G, k, width), zero where pruned."""
        if self._left_mask is None or self._right_mask is None:
            return self.left, self.right
        return self.left * self._left_mask, self.right * self._right_mask

    def config(self) -> dict[str, Any]:
        return {"conv_mode": self.conv_mode, **super().config()}

    def open(self, reusable: Sequence[int]) -> None:
        super().open(reusable)
        self._train_dense()

    def weight(self) -> Tensor:
        if self._dense:
            return self.scratch
        return self._compose(self.row_scale, self.column_scale, *self.factors)

    @torch.no_grad()
    def scalings(
        self, sweeps: int = 1, solve: Solver = least_squares_scalings
    ) -> tuple[Tensor, Tensor]:
        """The r and s with which the scaled base is nearest to the whole weight in training.

        :param sweeps: see :func:`~avalanche_compress.methods.halrp.maths.least_squares_scalings`.
        :param solve: that function, or one that does it otherwise.
        :return: (G, n) and (G, m), in float32 or better.
        :raises TaskStateError: if there is no base.
        """
        groups = zip(self._by_group(self.scratch), self._by_group(self._frozen_base()))
        with full_precision(self.scratch.device):
            pairs = [solve(tuned, base, sweeps) for tuned, base in groups]
        r, s = zip(*pairs)
        return torch.stack(r), torch.stack(s)

    @torch.no_grad()
    def residual(self, r: Tensor, s: Tensor, mode: str) -> Tensor:
        """What the product of factors has to make up for, of the whole weight in training.

        :param r: (G, n).
        :param s: (G, m).
        :param mode: ``"spatial_mean"`` or ``"flatten"``.
        :return: (G, n, width).
        """
        base, tuned = self._by_group(self._frozen_base()).to(r), self._by_group(self.scratch)
        scaled = torch.stack([scale_weight(*group) for group in zip(base, r, s)])
        rest = tuned.to(r) - scaled
        return rest.flatten(2) if mode == "flatten" else torch.stack([*map(spatial_mean, rest)])

    @torch.no_grad()
    def perturb(self, r: Tensor, s: Tensor, left: Tensor, right: Tensor) -> None:
        """From now on train a perturbation of the base instead of a whole weight.

        :param r: (G, n).
        :param s: (G, m).
        :param left: U, (G, n, k).
        :param right: A, (G, k, m) or, for the flattened kernel, (G, k, m K).
        :raises TaskStateError: if there is no base.
        :raises NonFiniteError: if a value is NaN or infinite; then nothing has changed.
        """
        parts = [part.to(self._frozen_base()) for part in (r, s, left, right)]
        if not all(map(all_finite, parts)):
            raise non_finite(self.name)
        self._perturb(parts, dense=False)

    @torch.no_grad()
    def fix_masks(self, left: Tensor, right: Tensor) -> None:
        """From now on the entries of the factors outside these masks are zero.

        :param left: bool, of U's shape.
        :param right: bool, of A's shape.
        """
        self._left_mask, self._right_mask = left, right
        self.left.masked_fill_(~left, 0)
        self.right.masked_fill_(~right, 0)
        self._quantised = None

    @torch.no_grad()
    def thin(self, part: float) -> None:
        if self._dense or part == 1:
            return
        rank = round(part * self.left.shape[2])
        left, right = truncate_product(*self.factors, rank)
        self._perturb([self.row_scale, self.column_scale, left, right], dense=False)

    def part_sizes(self, rank: int) -> list[int]:
        if not self.factored:
            return [self.shape.numel()]
        g, n, m, width = self.groups, self.rows, self.columns, self.width(self.modes[0])
        return [g * n, g * m, rank * g * n, rank * g * width]

    @torch.no_grad()
    def compact_rows(self) -> None:
        if not self._dense and self.has_unread_rows:
            read = self.rows_read.view(1, -1, 1).expand_as(self.left)
            left, right = self._left_mask, self._right_mask
            self.fix_masks(
                read if left is None else left & read,
                torch.ones_like(self.right, dtype=torch.bool) if right is None else right,
            )
        super().compact_rows()

    # ------------------------------------------------------------------ finished tasks

    def stored_unpruned(self, task: int) -> int:
        """What :meth:`added_values` would be had nothing been pruned.

        :param task: its label.
        """
        self._reach(task)
        if self._is_base(task):
            return 0
        form, rank = self._read_form(ByteReader(self.sections[task]))
        if form == _DENSE:
            return self.scratch.numel()
        return self.scales + rank * self.parameters_per_rank(CONV_MODES[form - 1])

    # ------------------------------------------------------------------ within

    def _train_dense(self) -> None:
        self._perturb([self.scratch.new_empty(0)] * 4, dense=True)

    def _perturb(self, parts: Sequence[Tensor], dense: bool) -> None:
        names = ("row_scale", "column_scale", "left", "right")
        self._train(dense, **dict(zip(names, parts)))
        self._left_mask = self._right_mask = None

    def _parts(self) -> list[Part]:
        if self._dense:
            return [self._dense_part]
        factors = Part(self.left, self._left_mask), Part(self.right, self._right_mask)
        return [Part(self.row_scale, width=1, unread=1.0), Part(self.column_scale), *factors]

    def _write_head(self, writer: ByteWriter) -> None:
        if self._dense:
            writer.write_uint(_DENSE)
            return
        writer.write_uint(_FLATTEN if self.right.shape[2] > self.columns else _SPATIAL_MEAN)
        writer.write_uint(self.left.shape[2])
        for part in self._parts()[2:]:
            everything = torch.ones_like(part.tensor, dtype=torch.bool)
            writer.write_bytes(encode_mask(everything if part.mask is None else part.mask))

    def _read_layout(self, reader: ByteReader, position: int, read_mask: MaskReader) -> Layout:
        form, rank = self._read_form(reader)
        if form == _DENSE:
            return Layout(rank, [(self.scratch.numel(),)], [None])
        self._check_has_base(position)
        g, n, m = self.groups, self.rows, self.columns
        width = self.width(CONV_MODES[form - 1])
        shapes = [(g, n), (g, m), (g, n, rank), (g, rank, width)]
        masks = [read_mask(reader.read_bytes(), math.prod(shape)) for shape in shapes[2:]]
        return Layout(rank, shapes, [None, None, *masks])

    def _read_form(self, reader: ByteReader) -> tuple[int, int]:
        """How a task keeps its weight, and of how many components."""
        form = reader.read_uint()
        if form == _DENSE:
            return form, self.full_rank(self.modes[-1])
        if form > _FLATTEN or not self.factored:
            raise CorruptStreamError(f"{self.name} of a task in the form {form}")
        mode, rank = CONV_MODES[form - 1], reader.read_uint()
        if mode not in self.modes or rank > self.full_rank(mode):
            raise CorruptStreamError(f"{self.name} of {rank} components, {mode}")
        return form, rank

    def _open_state(self) -> dict[str, Any]:
        masks = {"left_mask": self._left_mask, "right_mask": self._right_mask}
        return {**super()._open_state(), **masks}

    def _set_open_state(self, state: dict[str, Any]) -> None:
        super()._set_open_state(state)
        self._left_mask = _to(self.scratch.device, state["left_mask"])
        self._right_mask = _to(self.scratch.device, state["right_mask"])

    def _compose(self, *parts: Tensor) -> Tensor:
        with full_precision(self.scratch.device):
            weight = perturb_weight(self._by_group(self._frozen_base()), *parts)
        return weight.view(self.shape)

    def _forward(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        x, *others = args
        if kwargs or not isinstance(x, Tensor):
            return None
        if function is F.linear and self._linear_is_cheaper(x.numel() // self.columns):
            return perturbed_linear(x, *self._rounded(), *others[1:])
        if function is F.conv2d and len(others) == 6 and self.right.shape[2] == self.columns:
            _, bias, stride, padding, dilation, _ = others
            plain = isinstance(padding, tuple) and set(dilation) == {1}
            if plain and self._convolution_is_cheaper(x, stride):
                return perturbed_conv2d(x, *self._rounded(), bias, stride, padding)
        return None

    def _rounded(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """W, r, s, U and A of the open task, of a weight in one group; rounded under autocast."""
        left, right = self.factors
        parts = self._frozen_base(), self.row_scale[0], self.column_scale[0], left[0], right[0]
        return rounded_under_autocast(*parts)  # type: ignore[return-value]

    def _linear_is_cheaper(self, samples: int) -> bool:
        """Whether a linear layer is faster from scales and factors.

        With each sample they cost three products with the factors, forward and back, and save the
        one of the whole weight's gradient; composing the weight costs as much as that for 100.
        """
        factors = 3 * self.left.shape[2] * self.parameters_per_rank("spatial_mean")
        return (factors - self.scratch.numel()) * samples <= 100 * self.scratch.numel()

    def _convolution_is_cheaper(self, x: Tensor, stride: Sequence[int]) -> bool:
        """Whether a convolution is: its inputs and outputs are scaled, which takes their size."""
        outputs = x.shape[-1] * x.shape[-2] // math.prod(stride) * self.rows
        return x.numel() + x.shape[0] * outputs <= 2 * self.scratch.numel()


def _to(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
