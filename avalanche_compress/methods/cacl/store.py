"""W_t = sum of U diag|sigma| V over the tasks that W_t builds on: a network that grows by rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    Factors,
    LowRankWeight,
    all_finite,
    break_even_rank,
    factored_linear,
    pack_mask,
    saves_work,
    unpack_mask,
)
from avalanche_compress.core.deferred import full_precision, rounded_under_autocast
from avalanche_compress.core.factor_store import Block, FactorStore, Layout, MaskReader, Part
from avalanche_compress.core.store import Place, non_finite
from avalanche_compress.errors import TaskStateError
from avalanche_compress.methods.cacl.maths import (
    orthogonal_factors,
    orthogonal_terms,
    random_terms,
    svd_factors,
    truncate,
)
from avalanche_compress.methods.cacl.sums import PrefixSums

DECOMPOSITIONS = ("channel", "spatial")
STORAGE = ("auto", "factors")


class FactoredStore(FactorStore):
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
        self.factored = self.initial_rank > 0
        self.supports_factored_forward = type(place.module) is nn.Linear
        self._dense = not self.factored
        self.rank: int | None = None
        """Terms of the next task that is opened; None for :attr:`initial_rank`."""
        self.residual_strength: float = 1.0
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
        self._reusable: tuple[int, ...] = ()
        self._partial: tuple[tuple[int, ...], Tensor] = ((), self._sum)
        self._sums = PrefixSums()
        self._task_bytes = 0, 0  # of so many tasks, what all their sections take

    # ------------------------------------------------------------------ the open task

    @property
    def terms(self) -> Factors:
        """The open task's terms, differentiable."""
        return Factors(self.left, self.sigma, self.right)

    def config(self) -> dict[str, Any]:
        return {"decomposition": self.decomposition, "storage": self.storage}

    @torch.no_grad()
    def open(self, reusable: Sequence[int]) -> None:
        super().open(reusable)
        self._reusable = tuple(task for task in self.sections if task in set(reusable))
        self.shared = self._sum_of(self._reusable)
        if self.factored:
            rank = self.initial_rank if self.rank is None else self.rank
            self._train_terms(self._starting_terms(rank))
            return
        self._quantised = None
        if self._reusable:
            self.scratch.zero_()

    def weight(self) -> Tensor:
        if self._dense:
            return self.shared + self.scratch
        with full_precision(self.scratch.device):
            matrix = torch.addmm(
                self._to_matrix(self.shared),
                self.left.t(),
                self.sigma.abs().unsqueeze(1) * self.right,
            )
        return self._to_weight(matrix)

    @torch.no_grad()
    def check_finite(self) -> None:
        """Refuse terms that must not be kept.

        :raises NonFiniteError: if one is NaN or infinite.
        """
        if not all(map(all_finite, self.terms)):
            raise non_finite(self.name)

    @torch.no_grad()
    def truncate(self, energy: float, mode: str = "raw", earlier: float = 0.0) -> None:
        """Drop the open task's terms of least energy.

        :param energy: see :func:`~avalanche_compress.methods.cacl.maths.truncate`.
        :param mode: ``"raw"`` or ``"exact"``.
        :param earlier: energy that counts as kept already.
        :raises NonFiniteError: if a term is NaN or infinite; then nothing has changed.
        """
        if self._dense:
            return
        self.check_finite()
        with full_precision(self.scratch.device):
            terms = truncate(self._detached(), energy, mode, earlier)
            if self.storage == "auto" and _numbers(terms) > self.rows * self.columns:
                self.scratch.copy_(self._to_weight(terms.compose()))
                self._dense = True
        self._train_terms(terms, self._dense)

    @torch.no_grad()
    def thin(self, part: float) -> None:
        if not self._dense and part < 1:
            terms = orthogonal_factors(self._detached())
            self._train_terms(terms.take(torch.arange(terms.rank) < round(part * terms.rank)))

    def part_sizes(self, rank: int) -> list[int]:
        if not self.factored:
            return [self.shape.numel()]
        return [rank * self.rows, rank, rank * self.columns]

    @property
    def reusable(self) -> tuple[int, ...]:
        """The finished tasks that the open one builds on, in order of learning."""
        return self._reusable

    def frozen_terms(self, skipped: int = 0) -> list[Factors]:
        """The terms that the open task builds on, task by task; dense differences have none.

        :param skipped: how many of :attr:`reusable` to leave out, from the first on.
        """
        blocks = self._blocks(self._reusable[skipped:])
        return [Factors(*block.tensors) for block in blocks if len(block.tensors) > 1]

    # ------------------------------------------------------------------ finished tasks

    @property
    def ranks(self) -> dict[int, int]:
        """How many terms each finished task added; those of a dense difference count too."""
        self.read_on()
        return dict(zip(self.sections, self._sizes.column(0)))

    @torch.no_grad()
    def accept(self, task: int, content: Block) -> None:
        # a new tensor, not in place: the open task's view of the old sum stays valid until open()
        self._sum = self._sum + self._product(content)
        self._keep_sum(self._taken + 1, self._sum)
        super().accept(task, content)

    def committed(self, task: int) -> Tensor:
        return self._sum_of((*self._parents_of(task), task))

    def low_rank(self, task: int) -> LowRankWeight | None:
        blocks = list(self._blocks((*self._parents_of(task), task)))
        if any(len(block.tensors) == 1 for block in blocks):
            return None
        columns = zip(*(block.tensors for block in blocks))
        return LowRankWeight(Factors(*(torch.cat(parts) for parts in columns)), self._spatial)

    def forget(self) -> None:
        super().forget()
        self._sum = torch.zeros_like(self._sum)
        self._partial = (), self._sum
        self._sums.clear()
        self._task_bytes = 0, 0

    # ------------------------------------------------------------------ within

    def _parts(self) -> list[Part]:
        # what a task builds on nothing with is its weight, and else a change of others'
        unread = 0.0 if self._reusable else None
        if self._dense:
            return [Part(self.scratch, width=self.columns, unread=unread)]
        return [Part(self.left, width=1, unread=unread), Part(self.sigma), Part(self.right)]

    def _write_head(self, writer: ByteWriter) -> None:
        writer.write_uint(self.sigma.numel())
        writer.write_uint(self._dense)
        skipped = [task not in self._reusable for task in self.sections]
        writer.write_uint(any(skipped))
        if any(skipped):
            writer.write_tensor(pack_mask(torch.tensor(skipped)))

    def _read_layout(self, reader: ByteReader, position: int, read_mask: MaskReader) -> Layout:
        rank, dense, _ = _read_head(reader, position)
        shapes: list[tuple[int, ...]] = [(rank, self.rows), (rank,), (rank, self.columns)]
        if dense:
            shapes = [(self.rows * self.columns,)]
        return Layout(rank, shapes, [None] * len(shapes))

    def _open_state(self) -> dict[str, Any]:
        return {
            **super()._open_state(),
            "reusable": list(self._reusable),
            "rank": self.rank,
            "residual": self.residual_strength,
            "start": self.start,
        }

    def _set_open_state(self, state: dict[str, Any]) -> None:
        super()._set_open_state(state)
        self._reusable = tuple(state["reusable"])
        self.rank = state["rank"]
        self.residual_strength = state["residual"]
        self.start = state["start"]
        self.shared = self._sum_of(self._reusable)

    def _forward(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        # under autocast the parts are rounded to its type, and a composed weight is rounded whole
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
        strength = self.residual_strength if self._reusable else 1.0
        if self._reusable and not self.scratch.requires_grad:
            strength = 0.0  # frozen: what earlier tasks have learned, unchanged
        return Factors(*(part.to(self.shared) for part in (strength * terms.left, *terms[1:])))

    def _train_terms(self, terms: Factors, dense: bool = False) -> None:
        self._train(dense, left=terms.left, sigma=terms.scale, right=terms.right)

    def _detached(self) -> Factors:
        return Factors(*(part.detach() for part in self.terms))

    def _parents_of(self, task: int) -> tuple[int, ...]:
        """The earlier tasks that a finished one builds on."""
        earlier = list(self.sections)[: self.position_of(task)]
        *_, skipped = _read_head(ByteReader(self.sections[task]), len(earlier))
        return tuple(parent for parent, skip in zip(earlier, skipped) if not skip)

    def _blocks(self, tasks: Sequence[int]) -> Iterator[Block]:
        """What finished tasks keep, one after another."""
        position_of = {task: position for position, task in enumerate(self.sections)}
        return (self._block_at(position_of[task], self.sections[task]) for task in tasks)

    def _product(self, block: Block) -> Tensor:
        """A block as a weight: one product of contiguous tensors, the same bits at every call."""
        parts = [part.to(self.shared.device) for part in block.tensors]
        if len(parts) == 1:
            return parts[0].view(self.shared.shape)
        with full_precision(self.scratch.device):
            return self._to_weight(Factors(*parts).compose())

    def _sum_of(self, tasks: tuple[int, ...]) -> Tensor:
        """Blocks added up in the order of learning, which is the order of ``_sum`` too."""
        if tasks == tuple(self.sections):
            self.read_on()
            return self._sum
        # what was added up last is often the beginning: tasks are evaluated one after another
        done, total = self._partial
        if total.device != self._sum.device:
            self._sums.clear()
        if total.device != self._sum.device or tasks[: len(done)] != done:
            done, total = (), torch.zeros_like(self._sum)
        are_first = tasks == tuple(self.sections)[: len(tasks)]
        count, kept = self._sums.before(len(tasks))
        if are_first and kept is not None and count > len(done):
            done, total = tasks[:count], kept
        is_ours = False
        blocks = self._blocks(tasks[len(done) :])
        for number, block in enumerate(blocks, len(done) + 1):
            # in place where nobody else has the sum: as much memory anew takes longer than to add
            product = self._product(block)
            total = total.add_(product) if is_ours else total + product
            is_ours = not (are_first and self._keep_sum(number, total))
        self._partial = tasks, total
        return total

    def _keep_sum(self, count: int, total: Tensor) -> bool:
        """Keep the sum of so many first tasks, if there is memory for it; whether that was so."""
        tasks, task_bytes = self._task_bytes
        if tasks != len(self.sections):
            tasks, task_bytes = len(self.sections), sum(map(len, self.sections.values()))
            self._task_bytes = tasks, task_bytes
        return tasks > 0 and self._sums.add(count, total, task_bytes / tasks)

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


def _read_head(reader: ByteReader, earlier: int) -> tuple[int, int, list[bool]]:
    """How many terms, whether they are a dense difference, and which earlier tasks are left out."""
    rank, dense, skips = reader.read_uint(), reader.read_uint(), reader.read_uint()
    if dense > 1 or skips > 1:
        raise CorruptStreamError(f"{rank} terms of the form {dense}, {skips}")
    if not skips:
        return rank, dense, [False] * earlier
    packed = reader.read_tensor(torch.uint8, ((earlier + 7) // 8,))
    return rank, dense, unpack_mask(packed, earlier).tolist()


def _numbers(terms: Factors) -> int:
    return sum(part.numel() for part in terms)
