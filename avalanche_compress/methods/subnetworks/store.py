"""W_t = M_t * V: every task is a sub-network of one shared weight tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    ThresholdWindow,
    Values,
    decode_mask,
    encode_mask,
    kept_count,
    read_values,
    recall_mask,
    recall_mask_among,
    top_mask_,
    top_threshold,
    where_top,
    write_values,
)
from avalanche_compress.core.store import Place
from avalanche_compress.errors import CapacityExhaustedError
from avalanche_compress.methods.subnetworks.subnetwork import (
    SubnetworkStore,
    gradient_where,
    positions,
    where_kept,
)

_NOBODY = torch.iinfo(torch.int32).max
_LEAP = 32


class MaskedStore(SubnetworkStore):
    """``W_t = M_t * V``, where a task writes V only on slots that no earlier task uses.

    With ``U = M_1 | ... | M_{t-1}`` the slots in use, task t trains

    - unscored (PackNet, Mallya and Lazebnik, CVPR 2018): ``W = U V + (1 - U) scratch``, then
      :meth:`prune` keeps the largest free weights;
    - scored (WSN, Kang et al., ICML 2022): ``W = M (U V + (1 - U) scratch)`` with
      ``M = top(|scores|)``, gradients passed straight through the threshold to the scores.

    A committed slot keeps its owner's value for ever; later tasks may read it. A density is a part
    of the weights that the task may use: where it may not read all earlier tasks' (``sharing``),
    of the free ones and of those that it may read.

    A section says which slots the task wrote, which of the others it reads, and the values. The
    second is coded given one earlier mask (see :func:`context_position`), so that of many tasks'
    masks few are decoded for one of them.

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
    _owner: Tensor
    """Position of the task that has written the slot (int32), :data:`_NOBODY` where free."""

    def __init__(self, place: Place, name: str = "weight", *, scored: bool = False):
        super().__init__(place, name)
        scratch = self.scratch.detach()
        self.register_buffer("value", torch.zeros_like(scratch))
        self.register_buffer("free", torch.ones_like(scratch))
        owner = torch.full_like(scratch, _NOBODY, dtype=torch.int32)
        self.register_buffer("_owner", owner, persistent=False)  # the sections tell
        self.scores = nn.Parameter(_initial_scores(scratch)) if scored else None
        self._bar: _Bar | None = None
        self._window = ThresholdWindow()
        self._draft: _Draft | None = None

    @torch.no_grad()
    def draw_scores(self) -> None:
        """Let scores start at random, as in WSN's code: Kaiming-uniform with a = sqrt(5)."""
        if self.scores is None:
            return
        if self.scores.dim() < 2:
            nn.init.uniform_(self.scores, -1, 1)
        else:
            nn.init.kaiming_uniform_(self.scores, a=5**0.5)

    @property
    def scored(self) -> bool:
        return self.scores is not None

    @property
    def writable(self) -> Tensor:
        return self.free != 0

    @property
    def free_weights(self) -> int | None:
        if self.scores is not None:
            return None
        self.read_on()
        return int(self.free.sum())

    @torch.no_grad()
    def planned_bytes(self, extent: float, bits: float) -> float:
        if self.scores is None:
            return super().planned_bytes(extent, bits)
        # a task that chooses from all weights has few of its own, and masks are alike: how few, and
        # how much, the scores tell as they are now
        self.read_on()
        before, self.density = self.density, extent
        mask = self._unfixed_mask()
        self.density = before
        own = float((mask & self.writable).sum())
        return sum(map(len, self._coded_mask(mask))) + own * bits / 8

    def config(self) -> dict[str, Any]:
        return {"scored": self.scored}

    def check_open(self, reusable: Sequence[int]) -> None:
        if self.scores is None:
            return
        if not bool(self._free_or_used_by(reusable).any()):
            raise CapacityExhaustedError(
                f"{self.name} has no weights that the new task may use: lower the density of "
                "each task, let it reuse more earlier tasks (sharing='all'), or start from a wider "
                "model."
            )

    def open(self, reusable: Sequence[int]) -> None:
        self._mask = None
        self._quantised = None
        if self.scores is not None:
            _reset_nonfinite(self.scores, self.scratch)
        if set(self.sections) <= set(reusable):
            self._available = None
            self.frozen = self.value
        else:
            self._available = self._free_or_used_by(reusable)
            self.frozen = where_kept(self._available, self.value)
        self.trainable = self.free
        if reusable and not self.scored:
            # beside old weights, pruned ones start at zero (PackNet); scored ones go on (WSN)
            with torch.no_grad():
                self.scratch.masked_fill_(self.free != 0, 0.0)

    def weight(self) -> Tensor:
        if self.scores is None or self._mask is not None:
            return super().weight()
        threshold = top_threshold(self._magnitude(), self._share(), self._window)
        tensors = (self.frozen, self.trainable, self.scratch, self.scores)
        weight: Tensor = _ScoredWeight.apply(self.lifts_gradients, threshold, *tensors)
        return weight

    def fix_mask(self, mask: Tensor) -> None:
        super().fix_mask(mask)
        self.frozen = where_kept(self.mask, self.value)
        self.trainable = self.free * self.mask

    def encode(self) -> bytes:
        writer = ByteWriter()
        for coded in self._coded_mask(self.mask):
            writer.write_bytes(coded)
        write_values(self._kept().smallest(), writer)
        return writer.getvalue()

    def _coded_mask(self, mask: Tensor) -> tuple[bytes, bytes]:
        """Which of the free slots a mask keeps, and which of the others."""
        mask, free = mask.flatten().cpu(), self.free.flatten().cpu() != 0
        used = positions(~free)
        written, read = (mask.index_select(0, slots) for slots in (positions(free), used))
        return encode_mask(written), encode_mask(read, self._context(self._taken, used))

    @contextmanager
    def reading(self) -> Iterator[None]:
        owner = self._owner.flatten().cpu().clone()
        self._draft = draft = _Draft(self.value.flatten().cpu().clone(), owner)
        try:
            yield
        finally:
            self._draft = None
            # new tensors: the open task's views of the old ones stay valid until open()
            self.value = draft.value.view(self.shape).to(self.value.device)
            self.free = (draft.owner == _NOBODY).view(self.shape).to(self.free)
            self._owner = draft.owner.view(self.shape).to(self._owner.device)

    def decode(self, reader: ByteReader) -> _Section:
        free, used = self._draft_slots(True), self._draft_slots(False)
        written = decode_mask(reader.read_bytes(), free.numel())
        context = self._context(self._taken, used)
        read = decode_mask(reader.read_bytes(), used.numel(), context)
        owned = free.index_select(0, positions(written))
        mask = _with_bits(
            torch.zeros(self.value.numel(), dtype=torch.bool, device="cpu"), used, read
        )
        return self._read_values(reader, owned, _with_bits(mask, free, written))

    def recall(self, reader: ByteReader) -> _Section:
        free = self._draft_slots(True)
        written = recall_mask(reader.read_bytes(), free.numel())
        reader.read_bytes()  # what the task reads matters to nobody else
        return self._read_values(reader, free.index_select(0, positions(written)), None)

    def _draft_slots(self, free: bool) -> Tensor:
        """Indices of the slots that nobody has written, or of the others."""
        assert self._draft is not None
        unwritten = self._draft.owner.numpy() == _NOBODY  # an eighth of the time it takes in torch
        return positions(torch.from_numpy(unwritten if free else ~unwritten))

    def _read_values(self, reader: ByteReader, owned: Tensor, mask: Tensor | None) -> _Section:
        return _Section(mask, owned, read_values(reader, owned.numel(), self.value.dtype))

    @torch.no_grad()
    def accept(self, task: int, content: _Section) -> None:
        draft = self._draft
        assert draft is not None
        mask, owned, values = content
        self._quantised = None  # the codes are in the section now
        draft.value.scatter_(0, owned, values.decode().to(draft.value))
        draft.owner.scatter_(0, owned, self._taken)
        if mask is not None:
            self._masks.add(self._taken, mask)
        self._kept_by.append(owned.numel(), values.bits)

    def committed(self, task: int) -> Tensor:
        return where_kept(self.mask_of(task), self.value)

    def forget(self) -> None:
        super().forget()
        self.value = torch.zeros_like(self.value)
        self.free = torch.ones_like(self.free)
        self._owner.fill_(_NOBODY)

    def _recall_mask(self, position: int) -> Tensor:
        waiting: list[tuple[int, bytes]] = []
        while position >= 0 and (not waiting or self._masks.get(position) is None):
            waiting.append((position, self._coded_read(position)))
            position = context_position(position) if _is_open(waiting[-1][1]) else -1
        tasks, owner = list(self.sections), self._owner.flatten().cpu()
        for step, coded in reversed(waiting):
            groups = [owner < step]
            if _is_open(coded) and context_position(step) >= 0:
                known = self._mask_at(context_position(step))
                groups = [groups[0] & ~known, groups[0] & known]
            with self._damage_named(tasks[step]):
                mask = recall_mask_among(coded, owner == step, groups)
            self._masks.add(step, mask)
        return mask

    def _coded_read(self, position: int) -> bytes:
        """What a section says of the slots that the task reads and did not write."""
        reader = ByteReader(list(self.sections.values())[position])
        reader.read_bytes()  # what the task wrote has its number on it
        return reader.read_bytes()

    def _context(self, position: int, used: Tensor) -> Tensor | None:
        """What is known of the slots in use before it is known which of them a task reads.

        :param position: the task's.
        :param used: (m,) their indices.
        :return: (m,) uint8 or None.
        """
        known = context_position(position)
        return None if known < 0 else self._mask_at(known).view(torch.uint8).index_select(0, used)

    def _unfixed_mask(self) -> Tensor:
        if self.scores is None:
            return super()._unfixed_mask()
        return top_mask_(self._magnitude(), self._share()) != 0

    def _magnitude(self) -> Tensor:
        """What the scores of weights are compared by, -inf for those that the task may not use."""
        assert self.scores is not None
        magnitude = self.scores.detach().abs()
        if self._available is None:
            return magnitude
        return magnitude + self._bar_of(self._available).bar  # -inf, below every magnitude

    def _share(self) -> float:
        """The part of all weights that is :attr:`density` of those that the task may use."""
        if self._available is None:
            return self.density
        count, usable = self.value.numel(), self._bar_of(self._available).usable
        return 1 - (count - kept_count(self.density, usable)) / max(1, count - 1)

    def _bar_of(self, available: Tensor) -> _Bar:
        if self._bar is None or self._bar.available is not available:
            choices = torch.tensor([-torch.inf, 0.0]).to(self.value)
            self._bar = _Bar(available, choices[available.int()], int(available.sum()))
        return self._bar

    def _free_or_used_by(self, tasks: Sequence[int]) -> Tensor:
        if set(self.sections) <= set(tasks):
            return torch.ones_like(self.free, dtype=torch.bool)
        available = self.free != 0
        for task in tasks:
            available = available | self.mask_of(task)
        return available


def context_position(position: int) -> int:
    """Whose mask conditions a task's: the one before; for every 32nd, 1024th the last such one.

    So any of n masks is decoded by way of at most ``31 log_32 n`` others.

    :param position: of the task in order of learning.
    :return: position, -1 for the first task.

    >>> [context_position(position) for position in (0, 1, 31, 32, 33, 64, 1024, 1056)]
    [-1, 0, 30, 0, 32, 32, 0, 1024]
    """
    leap = 1
    while position and position % (_LEAP * leap) == 0:
        leap *= _LEAP
    return position - leap


def _with_bits(mask: Tensor, index: Tensor, bits: Tensor) -> Tensor:
    """A mask with some of its elements set to others.

    :param mask: (n,) bool, on the CPU, changed in place.
    :param index: (m,) int64.
    :param bits: (m,) bool.
    """
    mask.numpy()[index.numpy()] = bits.numpy()  # a quarter of the time it takes in torch
    return mask


def _is_open(coded: bytes) -> bool:
    """Whether a mask is not all or nothing, so that a context tells of it."""
    return len(coded) > 1


class _Bar(NamedTuple):
    """Keeps a task to the weights that it may use."""

    available: Tensor
    bar: Tensor
    """0 where the task may use a weight, else -inf; adding is 8 times faster than a choice."""
    usable: int


class _Section(NamedTuple):
    """What one task keeps, as its section tells."""

    mask: Tensor | None
    """(n,) bool; None as long as nobody has asked."""
    owned: Tensor
    """Indices of the slots that it wrote."""
    values: Values


@dataclass
class _Draft:
    """What the buffers are to be after some sections, in one row each, on the CPU."""

    value: Tensor
    owner: Tensor


def _initial_scores(weight: Tensor) -> Tensor:
    """Scores start at ``|weight|``, so that the first sub-network is that of the largest weights.

    A pretrained model keeps what it can; a new one has scores of the distribution that WSN's code
    draws them from, Kaiming-uniform with a = sqrt(5), since torch's layers start with such weights.
    """
    return weight.detach().abs()


@torch.no_grad()
def _reset_nonfinite(scores: Tensor, weight: Tensor) -> None:
    """Reset scores that an attempt has made NaN or infinite."""
    finite = scores.isfinite()
    if not bool(finite.all()):
        scores.copy_(torch.where(finite, scores, _initial_scores(weight)))


class _ScoredWeight(torch.autograd.Function):
    """``M (frozen + trainable * scratch)``, straight through the threshold to the scores.

    dL/dscratch = g M trainable and dL/dscores = g (frozen + trainable * scratch) sign(scores) at
    all positions, kept or not (WSN, Kang et al. 2022). Where a task may use no weight, frozen and
    trainable are 0, so that M may be 1 there.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        lifts: bool,
        threshold: Tensor | float,
        frozen: Tensor,
        trainable: Tensor,
        scratch: Tensor,
        scores: Tensor,
    ) -> Tensor:
        weight = torch.addcmul(frozen, trainable, scratch)
        ctx.lifts, ctx.threshold = lifts, threshold
        ctx.save_for_backward(weight, trainable, scores)
        return where_top(weight, scores, threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        weight, trainable, scores = ctx.saved_tensors
        kept = where_top(gradient, scores, ctx.threshold)
        to_scores = torch.sign(scores).mul_(weight).mul_(gradient)
        to_scratch = gradient_where(trainable, kept, ctx.lifts)
        return None, None, None, None, to_scratch, to_scores
