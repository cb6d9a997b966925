"""W_t = C_t[Z_t] on M_t: every task has its own low-bit value in a 32-bit slot."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    Values,
    decode_mask,
    encode_mask,
    read_values,
    recall_mask_among,
    skip_values,
    write_values,
)
from avalanche_compress.core.cache import PassedMasks
from avalanche_compress.core.store import Place
from avalanche_compress.core.table import Table
from avalanche_compress.errors import CapacityExhaustedError, TaskStateError
from avalanche_compress.methods.ada_qpacknet.fill import SLOT_BITS, PageFill
from avalanche_compress.methods.ada_qpacknet.section import FRESH, NEWEST, SOURCES, Head, Section
from avalanche_compress.methods.subnetworks.subnetwork import SubnetworkStore, where_kept

_POLICIES = ("raise", "grow_copy", "reuse_frozen")
_LEAST_OPEN = 0.1
"""Of a page's slots: with less than this open a task learns badly or, from .04 on, nothing."""


class SlottedStore(SubnetworkStore):
    """``W_t[i] = C_t[Z_t[i]]`` where ``M_t[i] = 1``, else 0; no value is shared between tasks.

    Slot i has ``u[i] = sum_t b_t M_t[i]`` of its 32 bits in use: a task pays b_t bits for each
    weight that it keeps, and nothing for those that it prunes (Ada-QPacknet, Pietron et al.,
    arXiv 2308.07939; its public code charges all weights and refuses a task that would just fit).
    A slot is open to the next task while ``u[i] + reserved_bits <= 32``; floats, of any precision,
    take a slot whole. With 4 bits and nothing pruned eight tasks find room.

    A task's weights start from those of the newest task that it may read, where that one keeps
    any, and go on from what the module holds elsewhere (our choice; the public code redraws them).

    :param place: the module and the name of its weight, of any shape.
    :param name: dotted name of the weight in the model.
    :param policy: when less than a tenth of the slots is open to a new task: ``"grow_copy"`` starts
        a fresh page of slots for this weight; ``"reuse_frozen"`` lets the task compute with the
        newest weight that it may read and adds no value (both our choice); ``"raise"`` warns, and
        when none is open raises a ``CapacityExhaustedError``.
    :raises TaskStateError: if the policy is none of these.

    >>> layer = torch.nn.Linear(4, 2, bias=False)
    >>> store = SlottedStore(Place(layer, "weight"))
    >>> store.open([])
    >>> store.prune(0.5)
    >>> from avalanche_compress.codec import Codebook
    >>> codes = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    >>> store.keep_values([Codebook(codes, torch.tensor([-2.0, -1.0, 1.0, 2.0]))])
    >>> store.check_commit()
    >>> store.restore(7, store.encode())
    >>> store.value_bits(7), store.slot_used  # 4 values of 2 bits in 8 slots of 32 bits
    (8, 3.125)
    """

    kind = "slotted"
    counts_bits = True

    pages: int
    """How many slots there are for each weight: 1, and one more whenever a page was full."""
    _available: Tensor

    def __init__(self, place: Place, name: str = "weight", *, policy: str = "raise"):
        super().__init__(place, name)
        if policy not in _POLICIES:
            raise TaskStateError(f"policy={policy!r} must be one of {', '.join(_POLICIES)}.")
        self.policy = policy
        self.pages = 1
        self._available = torch.ones_like(self.frozen, dtype=torch.bool)
        self._granted = self.reserved_bits  # to the open task
        self._source: int | None = None  # the finished task that the open one computes with
        self._fresh = False  # whether the open task has a fresh page
        self._fills: dict[int, PageFill] = {}  # of the newest page and of the last one walked

    @property
    def occupancy(self) -> Tensor:
        """u, bits in use in each slot of the newest page: uint8, of the weight's shape; a copy."""
        self.read_on()
        return self._shaped(self._newest_fill().level.clone())

    @property
    def writable(self) -> Tensor:
        return self._available if self._source is None else torch.zeros_like(self._available)

    def config(self) -> dict[str, Any]:
        return {"policy": self.policy}

    def check_open(self, reusable: Sequence[int]) -> None:
        if not 1 <= self.reserved_bits <= SLOT_BITS:
            raise TaskStateError(f"reserved_bits={self.reserved_bits} must lie in 1..{SLOT_BITS}.")
        if self._newest(reusable) is not None and self.policy == "reuse_frozen":
            return
        if self.policy != "grow_copy" and not bool(self._room(self.reserved_bits).any()):
            raise CapacityExhaustedError(
                f"{self.name} has {self.occupancy.numel()} slots of {SLOT_BITS} bits and none has "
                f"{self.reserved_bits} bits left for the new task (the emptiest has "
                f"{SLOT_BITS - int(self.occupancy.min())}): prune more of each task, use fewer "
                "bits, start from a wider model, or choose policy='grow_copy' or 'reuse_frozen'."
            )

    @torch.no_grad()
    def open(self, reusable: Sequence[int]) -> None:
        newest = self._newest(reusable)
        if newest is not None:
            self.scratch.copy_(
                torch.where(self.mask_of(newest), self.committed(newest), self.scratch)
            )
        self._mask = None
        self._quantised = None
        self._granted, self._source, self._fresh = self.reserved_bits, None, False
        self._available = self._room(self._granted)
        if int(self._available.sum()) < _LEAST_OPEN * self._available.numel():
            self._leave_page(newest)
        self._see(self._available)

    def _leave_page(self, newest: int | None) -> None:
        """Do without the few slots that are open, as the policy says."""
        if self.policy == "grow_copy":
            self._fresh = True
            self._available = torch.ones_like(self._available)
        elif self.policy == "reuse_frozen" and newest is not None:
            self._source = newest
            self._available = self.mask_of(newest)
        else:
            warnings.warn(
                f"{self.name} has less than {_LEAST_OPEN:.0%} of its slots open to the new task, "
                "which reads nothing of others and may learn little: choose policy='grow_copy', "
                "prune more of each task, use fewer bits, or start from a wider model.",
                stacklevel=2,
            )

    def fix_mask(self, mask: Tensor) -> None:
        super().fix_mask(mask)
        self._see(self.mask)

    def check_commit(self) -> None:
        super().check_commit()
        kept = int(self.owned.sum())
        bits = self._kept().word_bits
        if kept and bits > self._granted:
            raise CapacityExhaustedError(
                f"{self.name} has {kept} values of {bits} bits to keep and {self._granted} bits of "
                "a slot were reserved when the task was opened: use fewer bits, or set a larger "
                "reserved_bits before (floats take all 32)."
            )

    def encode(self) -> bytes:
        mask, closed = self.mask.flatten().cpu(), ~self._available.flatten().cpu()
        place = NEWEST
        if self._source is not None:
            place = SOURCES + list(self.sections).index(self._source)
        elif self._fresh:
            place = FRESH
        writer = ByteWriter()
        for number in (self._granted, place, int(self.owned.sum())):
            writer.write_uint(number)
        last = self._mask_at(self._taken - 1) if self._taken and place != FRESH else None
        writer.write_bytes(encode_mask(mask, _context(last, closed)))
        write_values(self._kept().shortest(), writer)
        return writer.getvalue()

    def decode(self, reader: ByteReader) -> Section:
        head = self._read_head(reader)
        fill = self._newest_fill()
        closed, last = fill.closed(self._taken, head.reserved_bits), None
        if head.place == NEWEST and bool(closed.numpy().all()):
            raise CorruptStreamError(f"no slot is open to {head.reserved_bits} bits a value")
        if head.place == FRESH:
            closed = torch.zeros_like(closed)
        elif self._taken:
            last = self._mask_at(self._taken - 1)
        if head.source is not None:
            closed = ~self._mask_at(head.source)
        mask = decode_mask(reader.read_bytes(), closed.numel(), _context(last, closed))
        head.check_mask(mask, closed)
        charge = read_values(reader, head.added, self.frozen.dtype).word_bits
        head.check_charge(charge)
        return Section(head, charge, mask)

    def recall(self, reader: ByteReader) -> Section:
        head = self._read_head(reader)
        reader.read_bytes()  # the mask is decoded when it is needed
        charge = skip_values(reader, head.added, self.frozen.dtype)
        head.check_charge(charge)
        return Section(head, charge, None)

    @torch.no_grad()
    def accept(self, task: int, content: Section) -> None:
        head, charge, mask = content
        self._quantised = None  # the codes are in the section now
        if head.source is None:
            self.pages += head.place == FRESH
            self._kept_by.append(head.added, charge, self.pages - 1, self._taken)
        else:
            _, _, page, owner = self._kept_by[head.source]
            self._kept_by.append(head.added, charge, page, owner)
        if mask is not None:
            self._masks.add(self._taken, mask)
            self._fill_of(self.pages - 1).add(head.reserved_bits, head.added and charge, mask)

    @torch.no_grad()
    def committed(self, task: int) -> Tensor:
        mask, position = self.mask_of(task), self.position_of(task)
        *_, owner = self._kept_by[position]
        values = self._values_at(owner).decode().to(self.frozen)
        weight = torch.zeros_like(self.frozen)
        if owner == position:
            return weight.masked_scatter_(mask, values)
        weight.masked_scatter_(self._shaped(self._mask_at(owner)), values)
        return where_kept(mask, weight)

    @property
    def slot_used(self) -> float:
        """``100 sum_i u[i] / (32 n)``: percent of the slots' bits in use, on all pages."""
        used = sum(self.value_bits(task) for task in self.sections)
        return 100 * used / max(1, SLOT_BITS * self.pages * self.frozen.numel())

    def slot_words(self, page: int = -1) -> Tensor:
        """The slots with all tasks' codes side by side, for inspection.

        ``sum_t Z_t[i] << offset_t[i]`` with ``offset_t[i] = sum_{s<t} b_s M_s[i]``. A fixed-point
        code counts from the lowest, a float is its bits in single precision.

        :param page: which of :attr:`pages`, by default the newest.
        :return: int64, of the weight's shape, each in ``0 .. 2**32 - 1``; a copy.
        """
        self.read_on()
        page = range(self.pages)[page]
        words = torch.zeros_like(self.frozen, dtype=torch.int64)
        offset = torch.zeros_like(words)
        for position, (_, bits, of_page, owner) in enumerate(self._kept_by):
            if of_page == page and owner == position:
                mask = self._shaped(self._mask_at(position))
                codes = self._values_at(position).words().to(words.device)
                words[mask] |= codes << offset[mask]
                offset += mask * bits
        return words

    def get_extra_state(self) -> dict[str, Any]:
        state = super().get_extra_state()
        chosen = {"reserved_bits": self.reserved_bits, "granted": self._granted}
        state["open"].update(chosen, source=self._source, fresh=self._fresh)
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        chosen = state["open"]
        self.reserved_bits, self._granted = chosen["reserved_bits"], chosen["granted"]
        self._source, self._fresh = chosen["source"], chosen["fresh"]

    def forget(self) -> None:
        super().forget()
        self.pages = 1
        self._fills.clear()

    def _room(self, reserved_bits: int) -> Tensor:
        return self.occupancy <= SLOT_BITS - reserved_bits

    def _newest(self, reusable: Sequence[int]) -> int | None:
        return next((task for task in reversed(list(self.sections)) if task in reusable), None)

    def _see(self, mask: Tensor) -> None:
        """Compute with the weights in ``mask`` and no others."""
        self.trainable = (mask & self.writable).to(self.frozen.dtype)
        if self._source is None:
            self.frozen = torch.zeros_like(self.frozen)
        else:
            self.frozen = where_kept(mask, self.committed(self._source))

    def _read_head(self, reader: ByteReader) -> Head:
        head = Head(*(reader.read_uint() for _ in range(3)))
        if not 1 <= head.reserved_bits <= SLOT_BITS:
            raise CorruptStreamError(f"{head.reserved_bits} reserved bits in a slot of {SLOT_BITS}")
        policy = {NEWEST: self.policy, FRESH: "grow_copy"}.get(head.place, "reuse_frozen")
        if policy != self.policy:
            raise CorruptStreamError(f"a task of policy {policy}, not {self.policy}")
        if head.source is not None and (head.source >= self._taken or head.added):
            raise CorruptStreamError(
                f"a task of {head.added} values that reads number {head.source} of {self._taken}"
            )
        if head.added > self.frozen.numel():
            raise CorruptStreamError(f"{head.added} values in {self.frozen.numel()} slots")
        return head

    def _new_table(self) -> Table:
        """Of each task its values and their bits, its page, and the position of their owner."""
        return Table(4)

    def _values_at(self, position: int) -> Values:
        """A task's values out of its section: kept as packed codes, not a second time."""
        task, reader = self._section(position)
        with self._damage_named(task):
            self._read_head(reader)
            reader.read_bytes()  # the mask, which is cached
            return read_values(reader, self._kept_by[position][0], self.frozen.dtype)

    def _section(self, position: int) -> tuple[int, ByteReader]:
        """A task's label and its section from the start."""
        task = list(self.sections)[position]
        return task, ByteReader(self.sections[task])

    def _newest_fill(self) -> PageFill:
        """How full the newest page is, with all tasks on it."""
        fill = self._fill_of(self.pages - 1)
        if fill.end < self._taken:
            self._recall_mask(self._taken - 1)
        return fill

    def _fill_of(self, page: int) -> PageFill:
        """How full a page is, with none of its tasks at first.

        :param page: number of the page.
        """
        if page not in self._fills:
            kept = {
                number: self._fills[number] for number in self._fills if number == self.pages - 1
            }
            start = self._kept_by.column(2).index(page) if len(self._kept_by) else 0
            self._fills = {**kept, page: PageFill(self.frozen.numel(), start)}
        return self._fills[page]

    def _recall_mask(self, position: int) -> Tensor:
        """(n,) A mask by way of those before it on its page; its page is filled up to it."""
        fill = self._fill_of(self._kept_by[position][2])
        first, passed = self._plan(fill, position)
        last = None
        if first >= fill.start:
            last = self._masks.get(first)
            passed.keep(first, last)  # type: ignore[arg-type]
        for step in range(first + 1, position + 1):
            mask = self._masks.get(step)
            if mask is None:
                mask = self._recall_next(step, last, fill, passed)
            if step == fill.end:
                added, charge, *_ = self._kept_by[step]
                head = self._read_head(self._section(step)[1])
                fill.add(head.reserved_bits, added and charge, mask)
            passed.keep(step, mask)
            if self._masks.lies_evenly(step, len(self.sections)):  # the next walk begins here
                self._masks.add(step, mask)
            last = mask
        assert last is not None
        return last

    def _plan(self, fill: PageFill, position: int) -> tuple[int, PassedMasks]:
        """After which task a walk begins, and what keeps the masks that its steps read values by.

        :param fill: of the task's page.
        :param position: the task that the walk leads to.
        """
        first, step = self._last_known(fill.start, min(position, fill.end)), position
        last_use: dict[int, int] = {}
        while step > first:
            head = self._read_head(self._section(step)[1])
            if head.source is not None:
                last_use.setdefault(head.source, step)
                first = min(first, self._last_known(fill.start, head.source + 1))
            elif step < fill.end and not fill.knows(step, head.reserved_bits):
                fill.restart()
                first = fill.start - 1
            step -= 1
        return first, PassedMasks(self.frozen.numel(), last_use)

    def _recall_next(
        self, position: int, last: Tensor | None, fill: PageFill, passed: PassedMasks
    ) -> Tensor:
        """(n,) A mask, given what is known before it.

        :param position: of the task in order of learning.
        :param last: (n,) bool, the mask before on its page.
        :param fill: of its page.
        :param passed: masks of tasks whose values it may read.
        """
        task, reader = self._section(position)
        with self._damage_named(task):
            head = self._read_head(reader)
            source = head.source
            if source is None:
                closed = fill.closed(position, head.reserved_bits)
            else:
                closed = ~passed.take(source, position)
            mask = torch.zeros_like(closed)
            recall_mask_among(reader.read_bytes(), mask, _groups(last, closed))
            head.check_mask(mask, closed)
        return mask

    def _last_known(self, start: int, position: int) -> int:
        """The last task of a page before a position whose mask is cached; else before the page."""
        return max(self._masks.nearest(position - 1), start - 1)


def _context(last: Tensor | None, closed: Tensor) -> Tensor:
    """What is known of a slot before it is known whether a task keeps it: last + 2 closed.

    :param last: (n,) bool, the mask of the task before on its page.
    :param closed: (n,) bool, slots that it cannot keep.
    :return: (n,) uint8.
    """
    context = closed.numpy().view(np.uint8) * np.uint8(2)  # a quarter of the time it takes in torch
    if last is not None:
        context += last.numpy().view(np.uint8)
    return torch.from_numpy(context)


def _groups(last: Tensor | None, closed: Tensor) -> list[Tensor]:
    """Where each value of :func:`_context` stands, in ascending order of them."""
    if last is None:
        return [~closed, closed]
    return [~closed & ~last, ~closed & last, closed & ~last, closed & last]
