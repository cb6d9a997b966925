"""W_t = diag(r_t) W_base diag(s_t) + U_t A_t: every task is a small change of one frozen weight."""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    decode_mask,
    encode_mask,
    recall_mask,
)
from avalanche_compress.codec.values import Values, bits_of, decoded, read_values, write_values
from avalanche_compress.core.deferred import DeferredWeight, rounded_under_autocast
from avalanche_compress.core.store import Place, WeightStore, non_finite
from avalanche_compress.core.table import Ledger
from avalanche_compress.errors import TaskStateError
from avalanche_compress.methods.halrp.layers import perturbed_conv2d, perturbed_linear
from avalanche_compress.methods.halrp.maths import (
    least_squares_scalings,
    perturb_weight,
    scale_weight,
    spatial_mean,
)

CONV_MODES = ("spatial_mean", "flatten", "auto")
BASES = ("first", "given")
_DENSE, _SPATIAL_MEAN, _FLATTEN = range(3)
_MaskReader = Callable[[bytes, int], Tensor]


class PerturbedStore(WeightStore):
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
        has when the first task is opened, so that the first task perturbs it like any other. It is
        then stored along with the first task.
    :raises TaskStateError: if there is no such mode or base.

    >>> store = PerturbedStore(Place(nn.Linear(6, 4, bias=False), "weight"), base="given")
    >>> store.open([])
    >>> store.perturb(*store.scalings(), torch.zeros(1, 4, 1), torch.ones(1, 1, 6))
    >>> store.restore(7, store.encode())
    >>> store.committed(7).shape, store.rank_of(7), store.stored_values(7)
    (torch.Size([4, 6]), 1, 44)
    """

    kind = "perturbed"

    base: Tensor | None
    """The frozen weight, of the weight's shape; None before there is one."""
    _left_mask: Tensor | None
    _right_mask: Tensor | None
    _quantised: list[Values] | None

    def __init__(
        self,
        place: Place,
        name: str = "weight",
        *,
        conv_mode: str = "spatial_mean",
        base: str = "first",
    ):
        super().__init__(place, name)
        if conv_mode not in CONV_MODES or base not in BASES:
            raise TaskStateError(
                f"conv_mode={conv_mode!r} must be one of {CONV_MODES} and base={base!r} one of "
                f"{BASES}."
            )
        self.conv_mode = conv_mode
        self.given = base == "given"
        """Whether the base is a weight that no task of this network has trained."""
        outputs, inputs = (*self.shape, 1, 1)[:2]
        convolution = isinstance(place.module, nn.modules.conv._ConvNd) and len(self.shape) > 1
        self.groups: int = place.module.groups if convolution else 1  # type: ignore[assignment]
        self.rows, self.columns = outputs // self.groups, inputs
        self.kernel_size = self.scratch.numel() // (outputs * inputs)
        """K, the number of kernel positions."""
        depthwise = self.groups > 1 and inputs == 1
        self.factored = not depthwise and self.break_even_rank(self.modes[0]) > 0
        """Whether tasks may perturb the base; else each keeps a whole weight."""
        self._stands_in = self.groups == 1 and type(place.module) in (nn.Linear, nn.Conv2d)
        # buffers, so that they go with the network to a device; the extra state holds them
        self.register_buffer("base", None, persistent=False)
        self.register_buffer("_left_mask", None, persistent=False)
        self.register_buffer("_right_mask", None, persistent=False)
        self._train_dense()
        self._sizes = Ledger(len(_Sizes._fields))

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
    def dense(self) -> bool:
        """Whether the open task trains a whole weight, and keeps it if nothing changes."""
        return self._dense

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """``(U, A)`` of the open task, (G, n, k) and (G, k, width), zero where pruned."""
        if self._left_mask is None or self._right_mask is None:
            return self.left, self.right
        return self.left * self._left_mask, self.right * self._right_mask

    def config(self) -> dict[str, Any]:
        return {"conv_mode": self.conv_mode, "base": BASES[self.given]}

    def check_open(self, reusable: Sequence[int]) -> None:
        """Nothing to refuse: there is always room for one more perturbation."""

    @torch.no_grad()
    def open(self, reusable: Sequence[int]) -> None:
        if self.given and self.base is None:
            self.base = self.scratch.detach().clone()
        if self.base is not None:
            self.scratch.copy_(self.base)
        self._train_dense()

    def weight(self) -> Tensor:
        if self._dense:
            return self.scratch
        return self._compose(self.row_scale, self.column_scale, *self.factors)

    def loan(self) -> Tensor:
        """The weight; in training, a stand-in with which layers compute from the factors.

        A layer's gradient then has no part of the weight's size. Evaluation, and layers for which
        that would be slower, take the whole weight, as committed tasks do.
        """
        if not self._stands_in or self._dense or not torch.is_grad_enabled():
            return self.weight()
        return DeferredWeight(self._frozen(), self.weight, self._compute)

    @torch.no_grad()
    def scalings(self, sweeps: int = 1, mode: str = "ls") -> tuple[Tensor, Tensor]:
        """The r and s with which the scaled base is nearest to the whole weight in training.

        :param sweeps: see :func:`~avalanche_compress.methods.halrp.maths.least_squares_scalings`.
        :param mode: ``"ls"`` or ``"reference"``.
        :return: (G, n) and (G, m), in float32 or better.
        :raises TaskStateError: if there is no base.
        """
        groups = zip(self._by_group(self.scratch), self._by_group(self._frozen()))
        with torch.autocast(self.scratch.device.type, enabled=False):
            pairs = [
                least_squares_scalings(tuned, base, sweeps=sweeps, mode=mode)
                for tuned, base in groups
            ]
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
        base, tuned = self._by_group(self._frozen()).to(r), self._by_group(self.scratch)
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
        parts = [part.to(self._frozen()) for part in (r, s, left, right)]
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise non_finite(self.name)
        self._train(parts, dense=False)

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

    def kept_values(self) -> list[Tensor]:
        if self._quantised is not None:
            return [decoded(values) for values in self._quantised]
        return [_chosen(part.detach(), mask) for part, mask in self._trained()]

    def kept_gradients(self) -> list[Tensor]:
        return [
            _chosen(torch.zeros_like(part) if part.grad is None else part.grad, mask)
            for part, mask in self._trained()
        ]

    @torch.no_grad()
    def keep_values(self, values: Sequence[Values]) -> None:
        for (part, mask), kept in zip(self._trained(), values):
            if mask is None:
                part.copy_(decoded(kept).view(part.shape))
            else:
                part[mask] = decoded(kept)
        self._quantised = list(values)

    # ------------------------------------------------------------------ finished tasks

    def encode(self) -> bytes:
        writer = ByteWriter()
        if self.given and not self.sections:
            writer.write_tensor(self._frozen())
        flat = not self._dense and self.right.shape[2] > self.columns
        writer.write_uint(_DENSE if self._dense else _FLATTEN if flat else _SPATIAL_MEAN)
        if not self._dense:
            writer.write_uint(self.left.shape[2])
            for part, mask in self._trained()[2:]:
                everything = torch.ones_like(part, dtype=torch.bool)
                writer.write_bytes(encode_mask(everything if mask is None else mask))
        for values in self.kept_values() if self._quantised is None else self._quantised:
            write_values(values, writer)
        return writer.getvalue()

    @torch.no_grad()
    def decode(self, reader: ByteReader) -> _Block:
        return self._read_block(reader, first=not self._taken, read_mask=decode_mask)

    @torch.no_grad()
    def accept(self, task: int, content: _Block) -> None:
        if content.base is not None:
            self.base = content.base.view(self.shape).to(self.scratch)
        self._sizes.append(*content.sizes)

    @torch.no_grad()
    def committed(self, task: int) -> Tensor:
        position, reader = self.position_of(task), ByteReader(self.sections[task])
        self.read_on(1)  # the base
        read_mask = recall_mask if position < self._taken else decode_mask
        block = self._read_block(reader, position == 0, read_mask)
        reader.finish()
        content = [part.to(self.scratch.device) for part in block.content]
        return content[0].view(self.shape) if len(content) == 1 else self._compose(*content)

    def rank_of(self, task: int) -> int | None:
        """Components that a finished task added to the base; all there are for a whole weight.

        :param task: its label.
        """
        return self._sizes_of(task).rank if self.factored else None

    def stored_values(self, task: int) -> int:
        return self._sizes_of(task).numbers

    def value_bits(self, task: int) -> int:
        return self._sizes_of(task).bits

    def added_values(self, task: int, unpruned: bool = False) -> int:
        """Numbers that a finished task stored beside the base: none if it is the base.

        :param task: its label.
        :param unpruned: count the pruned entries of its factors too.
        """
        sizes = self._sizes_of(task)
        return sizes.unpruned if unpruned else sizes.added

    def get_extra_state(self) -> dict[str, Any]:
        """The finished tasks, and how the open one is trained."""
        chosen = {
            "dense": self._dense,
            "left_mask": self._left_mask,
            "right_mask": self._right_mask,
            "base": None if self.sections else self.base,
        }
        return {"finished": super().get_extra_state(), "open": chosen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state["finished"])
        chosen = state["open"]
        self._dense = chosen["dense"]
        self._left_mask = _to(self.scratch.device, chosen["left_mask"])
        self._right_mask = _to(self.scratch.device, chosen["right_mask"])
        self._quantised = None
        if not self.sections:
            self.base = _to(self.scratch.device, chosen["base"])

    def forget(self) -> None:
        super().forget()
        self._sizes.clear()

    # ------------------------------------------------------------------ within

    def _train_dense(self) -> None:
        self._train([self.scratch.new_empty(0)] * 4, dense=True)

    def _train(self, parts: Sequence[Tensor], dense: bool) -> None:
        self.row_scale, self.column_scale, self.left, self.right = (
            nn.Parameter(part.detach().clone(memory_format=torch.contiguous_format))
            for part in parts
        )
        self._left_mask = self._right_mask = None
        self._quantised = None
        self._dense = dense

    def _trained(self) -> list[tuple[Tensor, Tensor | None]]:
        """What the open task keeps, and which entries of it: None for all."""
        if self._dense:
            return [(self.scratch, None)]
        factors = (self.left, self._left_mask), (self.right, self._right_mask)
        return [(self.row_scale, None), (self.column_scale, None), *factors]

    def _frozen(self) -> Tensor:
        if self.base is None:
            raise TaskStateError(
                f"{self.name} has no base to perturb: the first task is to become the base and "
                "is kept as it is. Use base='given' to perturb the model's own weight."
            )
        return self.base

    def _by_group(self, weight: Tensor) -> Tensor:
        """A weight as (G, n, m, K)."""
        return weight.detach().reshape(self.groups, self.rows, self.columns, self.kernel_size)

    def _compose(self, r: Tensor, s: Tensor, left: Tensor, right: Tensor) -> Tensor:
        with torch.autocast(r.device.type, enabled=False):
            weight = perturb_weight(self._by_group(self._frozen()), r, s, left, right)
        return weight.view(self.shape)

    def _compute(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        """A layer's output from scales and factors, where that is less work; else None."""
        x, *others = args
        if kwargs or not isinstance(x, Tensor):
            return None
        if function is F.linear and self._pays(x.numel() // self.columns):
            return perturbed_linear(x, *self._parts(), *others[1:])
        if function is F.conv2d and len(others) == 6 and self.right.shape[2] == self.columns:
            _, bias, stride, padding, dilation, _ = others
            plain = isinstance(padding, tuple) and set(dilation) == {1}
            if plain and self._pays_to_convolve(x, stride):
                return perturbed_conv2d(x, *self._parts(), bias, stride, padding)
        return None

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """W, r, s, U and A of the open task, of a weight in one group; rounded under autocast."""
        left, right = self.factors
        parts = self._frozen(), self.row_scale[0], self.column_scale[0], left[0], right[0]
        return rounded_under_autocast(*parts)  # type: ignore[return-value]

    def _pays(self, rows: int) -> bool:
        """Whether a linear layer is faster from scales and factors.

        With each row they cost three products with the factors, forward and back, and save the one
        of the whole weight's gradient; composing the weight costs as much as that for 100 rows.
        """
        factors = 3 * self.left.shape[2] * self.parameters_per_rank("spatial_mean")
        return (factors - self.scratch.numel()) * rows <= 100 * self.scratch.numel()

    def _pays_to_convolve(self, x: Tensor, stride: Sequence[int]) -> bool:
        """Whether a convolution is: its inputs and outputs are scaled, which takes their size."""
        outputs = x.shape[-1] * x.shape[-2] // math.prod(stride) * self.rows
        return x.numel() + x.shape[0] * outputs <= 2 * self.scratch.numel()

    def _sizes_of(self, task: int) -> _Sizes:
        return _Sizes(*self._sizes[self._reach(task)])

    def _read_block(self, reader: ByteReader, first: bool, read_mask: _MaskReader) -> _Block:
        """A section as it was written.

        :param reader: the section, from its start.
        :param first: whether it is the first task's, and so has the base in it.
        :param read_mask: one that checks what it reads, or one that trusts it.
        """
        size, dtype = self.scratch.numel(), self.scratch.dtype
        base = reader.read_tensor(dtype, (size,)) if first and self.given else None
        form = reader.read_uint()
        if form == _DENSE:
            rank, unpruned = self.full_rank(self.modes[-1]), size
            parts = [_read_entries(reader, (size,), None, dtype)]
        elif form > _FLATTEN or not self.factored or (first and base is None):
            raise CorruptStreamError(f"{self.name} of a task in the form {form}")
        else:
            mode = CONV_MODES[form - 1]
            rank, parts = self._read_perturbation(reader, mode, read_mask)
            unpruned = self.scales + rank * self.parameters_per_rank(mode)
        numbers, bits = sum(part.numbers for part in parts), sum(part.bits for part in parts)
        content = tuple(part.tensor for part in parts)
        if base is not None:
            sizes = _Sizes(rank, size + numbers, size * bits_of(base) + bits, numbers, unpruned)
            return _Block(content, base, sizes)
        if first:
            return _Block(content, content[0], _Sizes(0, numbers, bits, 0, 0))
        return _Block(content, None, _Sizes(rank, numbers, bits, numbers, unpruned))

    def _read_perturbation(
        self, reader: ByteReader, mode: str, read_mask: _MaskReader
    ) -> tuple[int, list[_Entries]]:
        rank = reader.read_uint()
        if mode not in self.modes or rank > self.full_rank(mode):
            raise CorruptStreamError(f"{self.name} of {rank} components, {mode}")
        g, n, m, dtype = self.groups, self.rows, self.columns, self.scratch.dtype
        shapes = [(g, n), (g, m), (g, n, rank), (g, rank, self.width(mode))]
        masks = [read_mask(reader.read_bytes(), math.prod(shape)) for shape in shapes[2:]]
        return rank, [
            _read_entries(reader, shape, mask, dtype)
            for shape, mask in zip(shapes, [None, None, *masks])
        ]


class _Sizes(NamedTuple):
    """What one task stored."""

    rank: int
    numbers: int
    bits: int
    added: int
    """The numbers that are not the base's."""
    unpruned: int
    """What those would be had nothing been pruned."""


class _Block(NamedTuple):
    """A task's section as it was written."""

    content: tuple[Tensor, ...]
    """A whole weight (size,), or r, s, U and A."""
    base: Tensor | None
    """The base (size,), if it is in this section."""
    sizes: _Sizes


class _Entries(NamedTuple):
    """A tensor of which some entries are stored and the others zero."""

    tensor: Tensor
    numbers: int
    bits: int


def _read_entries(
    reader: ByteReader, shape: tuple[int, ...], mask: Tensor | None, dtype: torch.dtype
) -> _Entries:
    count = math.prod(shape) if mask is None else int(mask.sum())
    values = read_values(reader, count, dtype)
    tensor = decoded(values).to(dtype)
    if mask is not None:
        tensor = torch.zeros(shape, dtype=dtype).masked_scatter_(mask.view(shape), tensor)
    tensor = tensor.view(shape)
    return _Entries(tensor, count, count * bits_of(values))


def _chosen(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """The entries of a mask, in one row; all of them where there is none."""
    return tensor.flatten() if mask is None else tensor[mask]


def _to(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
