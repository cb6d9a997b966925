"""W_t = sum of U diag|sigma| V over the tasks that W_t builds on: a network that grows by rank."""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    pack_mask,
    unpack_mask,
)
from avalanche_compress.codec.low_rank import (
    Factors,
    break_even_rank,
    orthogonal_terms,
    random_terms,
    svd_factors,
    truncate,
)
from avalanche_compress.codec.values import (
    Values,
    bits_of,
    cheapest,
    decoded,
    read_values,
    write_values,
)
from avalanche_compress.core.deferred import DeferredWeight, rounded_under_autocast
from avalanche_compress.core.store import LowRankWeight, Place, WeightStore, non_finite
from avalanche_compress.core.table import Ledger
from avalanche_compress.errors import TaskStateError
from avalanche_compress.methods.cacl.layers import factored_linear, saves_work

DECOMPOSITIONS = ("channel", "spatial")
STORAGE = ("auto", "factors")


class FactoredStore(WeightStore):
    """``W_t = sum_s U_s^T diag|sigma_s| V_s`` over the earlier tasks s that t builds on, and t.

    The open task trains terms of its own on top of the sum of all frozen ones, which is one
    constant tensor: a step costs the same however many tasks there are. A commit appends the
    task's terms to the file; the sum is always taken task by task in one order, so that it has the
    same bits for ever (Teja and Panda, arXiv 2009.01956).

    A convolution (n, c, kh, kw) is the matrix (n, c kh kw) with ``decomposition="channel"``, which
    is a convolution with R filters and then one of 1 x 1; with ``"spatial"`` it is
    (c kh, n kw), which is a kh x 1 convolution and then a 1 x kw one. Everything else is
    (first dimension, all others). A weight that is too small for one term to be cheaper than
    itself (a vector, say) is not factored: each task trains and stores a dense difference.

    :param place: the module and the name of its weight.
    :param name: dotted name of the weight in the model.
    :param decomposition: ``"channel"`` or ``"spatial"``; spatial is for 2-D convolutions without
        groups, others are taken channel-wise.
    :param storage: ``"auto"`` turns a truncated task's terms into a dense difference where that has
        fewer numbers; ``"factors"`` never does.
    :raises TaskStateError: if there is no such decomposition or storage.

    >>> store = FactoredStore(Place(nn.Linear(6, 4, bias=False), "weight"))
    >>> store.open([])
    >>> store.left.shape, store.right.shape
    (torch.Size([2, 4]), torch.Size([2, 6]))
    >>> store.restore(7, store.encode())
    >>> store.committed(7).shape, store.ranks
    (torch.Size([4, 6]), {7: 2})
    """

    kind = "factored"

    shared: Tensor
    """The sum of the frozen terms that the open task builds on, of the weight's shape."""
    _sum: Tensor

    def __init__(
        self,
        place: Place,
        name: str = "weight",
        *,
        decomposition: str = "channel",
        storage: str = "auto",
    ):
        super().__init__(place, name)
        if decomposition not in DECOMPOSITIONS or storage not in STORAGE:
            raise TaskStateError(
                f"decomposition={decomposition!r} must be one of {DECOMPOSITIONS} and "
                f"storage={storage!r} one of {STORAGE}."
            )
        self.decomposition = decomposition
        self.storage = storage
        scratch = self.scratch.detach()
        #: whether a matrix view exists whose two sides are the convolution's height and width
        self._spatial = (
            decomposition == "spatial"
            and isinstance(place.module, nn.Conv2d)
            and scratch.dim() == 4
            and place.module.groups == 1
        )
        self.rows, self.columns = self._to_matrix(scratch).shape
        self.initial_rank = break_even_rank(self.rows, self.columns)
        """The break-even rank r0; 0 for a weight that is not factored."""
        self.rank: int | None = None
        """Terms of the next task that is opened; None for :attr:`initial_rank`."""
        self.residual: float = 1.0
        """What the U of later tasks are multiplied with when they start; 0 starts from earlier
        tasks' weights."""
        self.start: str = "random"
        """How terms start: ``"random"`` as in the public code, ``"orthogonal"``, or ``"svd"``: the
        first task from the module's own weight, others orthogonal."""
        self.left = nn.Parameter(scratch.new_empty(0, self.rows))
        self.sigma = nn.Parameter(scratch.new_empty(0))
        self.right = nn.Parameter(scratch.new_empty(0, self.columns))
        self.register_buffer("shared", torch.zeros_like(scratch), persistent=False)
        self.register_buffer("_sum", torch.zeros_like(scratch), persistent=False)
        self._quantised: list[Values] | None = None
        self._dense = not self.factored
        self._sizes = Ledger(3)  # of each task: its terms, its numbers and their bits
        self._reusable: tuple[int, ...] = ()
        self._partial: tuple[tuple[int, ...], Tensor] = ((), self._sum)

    # ------------------------------------------------------------------ the open task

    @property
    def factored(self) -> bool:
        """Whether tasks train terms; else dense differences."""
        return self.initial_rank > 0

    @property
    def terms(self) -> Factors:
        """The open task's terms, differentiable."""
        return Factors(self.left, self.sigma, self.right)

    def config(self) -> dict[str, Any]:
        return {"decomposition": self.decomposition, "storage": self.storage}

    def check_open(self, reusable: Sequence[int]) -> None:
        """Nothing to refuse: there is always room for more terms."""

    @torch.no_grad()
    def open(self, reusable: Sequence[int]) -> None:
        self._reusable = tuple(task for task in self.sections if task in set(reusable))
        self._quantised = None
        self._dense = not self.factored
        self.shared = self._sum_of(self._reusable)
        if self._dense:
            if self._reusable:
                self.scratch.zero_()
            return
        rank = self.initial_rank if self.rank is None else self.rank
        self._train(self._starting_terms(rank))

    def weight(self) -> Tensor:
        if self._dense:
            return self.shared + self.scratch
        with self._full_precision():
            matrix = torch.addmm(
                self._to_matrix(self.shared),
                self.left.t(),
                self.sigma.abs().unsqueeze(1) * self.right,
            )
        return self._to_weight(matrix)

    def loan(self) -> Tensor:
        """The weight; in training of a linear layer, a stand-in that may do without it.

        Evaluation, and layers for which that would be slower, take the whole weight.
        """
        linear = type(self.place.module) is nn.Linear and not self._dense
        if not linear or not torch.is_grad_enabled():
            return self.weight()
        return DeferredWeight(self.shared, self.weight, self._compute)

    @torch.no_grad()
    def check_finite(self) -> None:
        """Refuse terms that must not be kept.

        :raises NonFiniteError: if one is NaN or infinite.
        """
        if not all(bool(torch.isfinite(part).all()) for part in self.terms):
            raise non_finite(self.name)

    @torch.no_grad()
    def truncate(self, energy: float, mode: str = "raw", earlier: float = 0.0) -> None:
        """Drop the open task's terms of least energy.

        :param energy: see :func:`~avalanche_compress.codec.low_rank.truncate`.
        :param mode: ``"raw"`` or ``"exact"``.
        :param earlier: energy that counts as kept already.
        :raises NonFiniteError: if a term is NaN or infinite; then nothing has changed.
        """
        if self._dense:
            return
        self.check_finite()
        with self._full_precision():
            terms = truncate(self._detached(), energy, mode, earlier)
            if self.storage == "auto" and _numbers(terms) > self.rows * self.columns:
                self.scratch.copy_(self._to_weight(terms.compose()))
                self._dense = True
        self._train(terms)

    @property
    def reusable(self) -> tuple[int, ...]:
        """The finished tasks that the open one builds on, in order of learning."""
        return self._reusable

    def frozen_terms(self, skipped: int = 0) -> list[Factors]:
        """The terms that the open task builds on, task by task; dense differences have none.

        :param skipped: how many of :attr:`reusable` to leave out, from the first on.
        """
        blocks = self._read_all(self._reusable[skipped:])
        return [block for block in blocks if isinstance(block, Factors)]

    def kept_values(self) -> list[Tensor]:
        if self._quantised is not None:
            return [decoded(values) for values in self._quantised]
        return [part.detach().flatten() for part in self._trained()]

    def kept_gradients(self) -> list[Tensor]:
        return [
            (torch.zeros_like(part) if part.grad is None else part.grad).flatten()
            for part in self._trained()
        ]

    @torch.no_grad()
    def keep_values(self, values: Sequence[Values]) -> None:
        for part, kept in zip(self._trained(), values):
            part.copy_(decoded(kept).view(part.shape))
        self._quantised = list(values)

    # ------------------------------------------------------------------ finished tasks

    @property
    def ranks(self) -> dict[int, int]:
        """How many terms each finished task added; those of a dense difference count too."""
        self.read_on()
        return dict(zip(self.sections, self._sizes.column(0)))

    def encode(self) -> bytes:
        writer = ByteWriter()
        writer.write_uint(self.sigma.numel())
        writer.write_uint(self._dense)
        skipped = [task not in self._reusable for task in self.sections]
        writer.write_uint(any(skipped))
        if any(skipped):
            writer.write_tensor(pack_mask(torch.tensor(skipped)))
        kept = self.kept_values() if self._quantised is None else self._quantised
        for values in kept:
            write_values(cheapest(values), writer)
        return writer.getvalue()

    @torch.no_grad()
    def decode(self, reader: ByteReader) -> _Block:
        return _read_block(reader, self._taken, self.rows, self.columns, self.shared.dtype)

    @torch.no_grad()
    def accept(self, task: int, content: _Block) -> None:
        # a new tensor, not in place: the open task's view of the old sum stays valid until open()
        self._sum = self._sum + self._product(content.content)
        self._sizes.append(content.rank, content.numbers, content.bits)

    def committed(self, task: int) -> Tensor:
        return self._sum_of((*self._parents_of(task), task))

    def low_rank(self, task: int) -> LowRankWeight | None:
        blocks = self._read_all((*self._parents_of(task), task))
        if not all(isinstance(block, Factors) for block in blocks):
            return None
        terms = Factors(*(torch.cat(parts) for parts in zip(*blocks)))  # type: ignore[arg-type]
        return LowRankWeight(terms, self._spatial)

    def rank_of(self, task: int) -> int | None:
        return self._sizes[self._reach(task)][0] if self.factored else None

    def stored_values(self, task: int) -> int:
        return self._sizes[self._reach(task)][1]

    def value_bits(self, task: int) -> int:
        return self._sizes[self._reach(task)][2]

    def get_extra_state(self) -> dict[str, Any]:
        """The finished tasks, and what the open one builds on."""
        chosen = {
            "reusable": list(self._reusable),
            "dense": self._dense,
            "rank": self.rank,
            "residual": self.residual,
            "start": self.start,
        }
        return {"finished": super().get_extra_state(), "open": chosen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state["finished"])
        chosen = state["open"]
        self._reusable = tuple(chosen["reusable"])
        self._dense = chosen["dense"]
        self.rank = chosen["rank"]
        self.residual = chosen["residual"]
        self.start = chosen["start"]
        self.shared = self._sum_of(self._reusable)
        self._quantised = None

    def forget(self) -> None:
        super().forget()
        self._sizes.clear()
        self._sum = torch.zeros_like(self._sum)
        self._partial = (), self._sum

    # ------------------------------------------------------------------ within

    def _full_precision(self) -> torch.autocast:
        """Terms are composed in their own type, or a commit under autocast would round them."""
        return torch.autocast(self.shared.device.type, enabled=False)

    def _compute(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        """A linear layer's output from the terms, where that is less work; else None.

        Under autocast the parts are rounded to its type, and a composed weight is rounded whole.
        """
        x, *others = args
        if function is not F.linear or kwargs or not isinstance(x, Tensor):
            return None
        samples = x.numel() // self.columns
        if not saves_work(self.rows, self.columns, self.sigma.numel(), samples):
            return None
        parts = rounded_under_autocast(self.shared, *self.terms)
        return factored_linear(x, parts[0], Factors(*parts[1:]), *others[1:])

    def _starting_terms(self, rank: int) -> Factors:
        if self.start == "svd" and not self.sections:
            return svd_factors(self._to_matrix(self.scratch), rank)
        build = random_terms if self.start == "random" else orthogonal_terms
        terms = build(self.rows, self.columns, rank)
        strength = self.residual if self._reusable else 1.0
        if self._reusable and not self.scratch.requires_grad:
            strength = 0.0  # frozen: what earlier tasks have learned, unchanged
        return Factors(*(part.to(self.shared) for part in (strength * terms.left, *terms[1:])))

    def _train(self, terms: Factors) -> None:
        self.left, self.sigma, self.right = (nn.Parameter(part.contiguous()) for part in terms)

    def _trained(self) -> list[Tensor]:
        return [self.scratch] if self._dense else list(self.terms)

    def _detached(self) -> Factors:
        return Factors(*(part.detach() for part in self.terms))

    def _parents_of(self, task: int) -> tuple[int, ...]:
        """The earlier tasks that a finished one builds on."""
        earlier = list(self.sections)[: self.position_of(task)]
        *_, skipped = _read_header(ByteReader(self.sections[task]), len(earlier))
        return tuple(own for own, skip in zip(earlier, skipped) if not skip)

    def _read_all(self, tasks: Sequence[int]) -> list[Factors | Tensor]:
        position_of = {task: position for position, task in enumerate(self.sections)}
        return [self._read(task, position_of[task]) for task in tasks]

    def _read(self, task: int, position: int) -> Factors | Tensor:
        reader, device = ByteReader(self.sections[task]), self.shared.device
        content = _read_block(reader, position, self.rows, self.columns, self.shared.dtype).content
        reader.finish()
        if isinstance(content, Tensor):
            return content.to(device)
        return Factors(*(part.to(device) for part in content))

    def _product(self, content: Factors | Tensor) -> Tensor:
        """A block as a weight: one product of contiguous tensors, the same bits at every call."""
        if isinstance(content, Tensor):
            return content.view(self.shared.shape).to(self.shared)
        terms = Factors(*(part.to(self.shared.device) for part in content))
        with self._full_precision():
            return self._to_weight(terms.compose())

    def _sum_of(self, tasks: tuple[int, ...]) -> Tensor:
        """Blocks added up in the order of learning, which is the order of ``_sum`` too."""
        finished = tuple(self.sections)
        if tasks == finished:
            self.read_on()
            return self._sum
        # what was added up last is often the beginning: tasks are evaluated one after another
        done, total = self._partial
        if total.device != self._sum.device or tasks[: len(done)] != done:
            done, total = (), torch.zeros_like(self._sum)
        for block in self._read_all(tasks[len(done) :]):
            total = total + self._product(block)
        self._partial = tasks, total
        return total

    def _to_matrix(self, weight: Tensor) -> Tensor:
        if self._spatial:
            n, c, high, wide = weight.shape
            return weight.permute(1, 2, 0, 3).reshape(c * high, n * wide)
        return weight.reshape(weight.shape[0] if weight.dim() else 1, -1)

    def _to_weight(self, matrix: Tensor) -> Tensor:
        if self._spatial:
            n, c, high, wide = self.shape
            return matrix.view(c, high, n, wide).permute(2, 0, 1, 3)
        return matrix.view(self.shape)


class _Block(NamedTuple):
    """What one task added, as its section tells."""

    rank: int
    content: Factors | Tensor
    numbers: int
    bits: int


def _read_header(reader: ByteReader, earlier: int) -> tuple[int, int, list[bool]]:
    """How many terms, whether they are a dense difference, and which earlier tasks are left out."""
    rank, dense, skips = reader.read_uint(), reader.read_uint(), reader.read_uint()
    if dense > 1 or skips > 1:
        raise CorruptStreamError(f"{rank} terms of the form {dense}, {skips}")
    if not skips:
        return rank, dense, [False] * earlier
    packed = reader.read_tensor(torch.uint8, ((earlier + 7) // 8,))
    return rank, dense, unpack_mask(packed, earlier).tolist()


def _read_block(
    reader: ByteReader, earlier: int, rows: int, columns: int, dtype: torch.dtype
) -> _Block:
    rank, dense, _ = _read_header(reader, earlier)
    counts = [rows * columns] if dense else [rank * rows, rank, rank * columns]
    values = [read_values(reader, count, dtype) for count in counts]
    bits = sum(count * bits_of(value) for count, value in zip(counts, values))
    parts = [decoded(value).to(dtype) for value in values]
    if dense:
        return _Block(rank, parts[0], counts[0], bits)
    terms = Factors(parts[0].view(rank, rows), parts[1], parts[2].view(rank, columns))
    return _Block(rank, terms, sum(counts), bits)


def _numbers(terms: Factors) -> int:
    return sum(part.numel() for part in terms)
