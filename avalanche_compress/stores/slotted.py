"""W_t = C_t[Z_t] on M_t: every task has its own low-bit value in a 32-bit slot."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.coding import (
    ByteReader,
    ByteWriter,
    Codebook,
    CorruptStreamError,
    recall_mask,
)
from avalanche_compress.errors import CapacityExhaustedError, TaskStateError
from avalanche_compress.stores.at_hand import RowsAtHand
from avalanche_compress.stores.base import Place
from avalanche_compress.stores.ledger import Ledger
from avalanche_compress.stores.subnetwork import MaskReader, SubnetworkStore, mask_context
from avalanche_compress.stores.values import Values, decoded, read_values

SLOT_BITS = 32
"""Bits of a slot, B: what one weight takes in a dense model."""
_POLICIES = ("raise", "grow_copy", "reuse_frozen")
_LEVELS = 8
"""Tasks after which it is at hand how full the slots are: two weights' memory in single precision,
and one for those that :class:`RowsAtHand` has besides."""


class SlottedStore(SubnetworkStore):
    """``W_t[i] = C_t[Z_t[i]]`` where ``M_t[i] = 1``, else 0; no value is shared between tasks.

    Slot i has ``u[i] = sum_t b_t M_t[i]`` of its 32 bits in use: a task pays b_t bits for each
    weight that it keeps, and nothing for those that it prunes (Ada-QPacknet, Pietron et al.,
    arXiv 2308.07939; its public code charges all weights and refuses a task that would just fit).
    A slot is open to the next task while ``u[i] + reserve <= 32``; floats, of any precision, take
    a slot whole. With 4 bits and nothing pruned eight tasks find room.

    A task's weights start from those of the newest task that it may read, where that one keeps
    any, and go on from what the module holds elsewhere (our choice; the public code redraws them).

    :param place: the module and the name of its weight, of any shape.
    :param name: dotted name of the weight in the model.
    :param policy: when no slot is open to a new task: ``"raise"`` a ``CapacityExhaustedError``;
        ``"grow_copy"`` starts a fresh page of slots for this weight; ``"reuse_frozen"`` lets the
        task compute with the newest weight that it may read and adds no value (our choice).
    :raises TaskStateError: if the policy is none of these.

    >>> layer = torch.nn.Linear(4, 2, bias=False)
    >>> store = SlottedStore(Place(layer, "weight"))
    >>> store.open([])
    >>> store.prune(0.5)
    >>> codes = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    >>> store.keep_values([Codebook(codes, torch.tensor([-2.0, -1.0, 1.0, 2.0]))])
    >>> store.check_commit()
    >>> store.restore(7, store.encode())
    >>> store.value_bits(7), store.slot_used  # 4 values of 2 bits in 8 slots of 32 bits
    (8, 3.125)
    """

    kind = "slotted"

    occupancy: Tensor
    """u, bits in use in each slot of the newest page: uint8, of the weight's shape."""
    pages: int
    """How many slots there are for each weight: 1, and one more whenever a page was full."""
    _available: Tensor

    def __init__(self, place: Place, name: str = "weight", *, policy: str = "raise"):
        super().__init__(place, name)
        if policy not in _POLICIES:
            raise TaskStateError(f"policy={policy!r} must be one of {', '.join(_POLICIES)}.")
        self.policy = policy
        self.pages = 1
        # not in a state_dict: the sections tell
        occupancy = torch.zeros(self.shape, dtype=torch.uint8, device=self.frozen.device)
        self.register_buffer("occupancy", occupancy, persistent=False)
        self._available = torch.ones_like(self.frozen, dtype=torch.bool)
        self._granted = self.reserve  # to the open task
        self._source: int | None = None  # the finished task that the open one computes with
        self._levels = RowsAtHand(occupancy.numel(), _LEVELS)
        self._draft: _Draft | None = None

    @property
    def writable(self) -> Tensor:
        if self._source is not None:
            return torch.zeros_like(self._available)
        return self._available

    def config(self) -> dict[str, Any]:
        return {"policy": self.policy}

    def check_open(self, reusable: Sequence[int]) -> None:
        if not 1 <= self.reserve <= SLOT_BITS:
            raise TaskStateError(f"reserve={self.reserve} bits must lie between 1 and {SLOT_BITS}.")
        if self._newest(reusable) is not None and self.policy == "reuse_frozen":
            return
        if self.policy != "grow_copy" and not bool(self._room(self.reserve).any()):
            raise CapacityExhaustedError(
                f"{self.name} has {self.occupancy.numel()} slots of {SLOT_BITS} bits and none has "
                f"{self.reserve} bits left for the new task (the emptiest has "
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
        self._granted = self.reserve
        self._source = None
        self._available = self._room(self._granted)
        if not bool(self._available.any()):
            if self.policy == "reuse_frozen":
                assert newest is not None, "check_open refuses this"
                self._source = newest
                self._available = self.mask_of(newest)
            else:
                self._available = torch.ones_like(self._available)
        self._see(self._available)

    def fix_mask(self, mask: Tensor) -> None:
        super().fix_mask(mask)
        self._see(self.mask)

    def check_commit(self) -> None:
        super().check_commit()
        kept = int(self.own.sum())
        bits = _charge(self._kept())
        if kept and bits > self._granted:
            raise CapacityExhaustedError(
                f"{self.name} has {kept} values of {bits} bits to keep and {self._granted} bits of "
                "a slot were reserved when the task was opened: use fewer bits, or set a larger "
                "reserve before (floats take all 32)."
            )

    def encode(self) -> bytes:
        writer = ByteWriter()
        writer.write_uint(self._granted)
        if self._source is not None:
            writer.write_uint(list(self.sections).index(self._source))
        self._write_open(writer, ~self._available)
        return writer.getvalue()

    @contextmanager
    def reading(self) -> Iterator[None]:
        occupancy = self.occupancy.flatten().cpu().clone()
        self._draft = draft = _Draft(occupancy, self._newest_mask())
        try:
            yield
        finally:
            self._draft = None
            self.occupancy = draft.occupancy.view(self.shape).to(self.occupancy.device)

    def _read_section(self, reader: ByteReader, read_mask: MaskReader) -> _Section:
        draft = self._draft
        assert draft is not None
        reserve = reader.read_uint()
        if not 1 <= reserve <= SLOT_BITS:
            raise CorruptStreamError(f"a reserve of {reserve} bits in a slot of {SLOT_BITS}")
        closed = _closed(draft.occupancy, reserve)
        full = bool(closed.numpy().all())  # a tenth of the time it takes in torch
        source = None
        if full and self.policy == "reuse_frozen":
            source = self._read_source(reader)
            closed = ~self._mask_at(source)
        elif full and self.policy == "grow_copy":
            closed = torch.zeros_like(closed)
        elif full:
            raise CorruptStreamError(f"a task of {reserve} bits a value where no slot is open")
        context = mask_context(draft.last, closed)
        mask = read_mask(reader.read_bytes(), closed.numel(), context)
        if bool((mask.numpy() & closed.numpy()).any()):
            raise CorruptStreamError("a mask that keeps slots which are not open")
        added = 0 if source is not None else int(np.count_nonzero(mask.numpy()))
        charge = _charge(read_values(reader, added, self.frozen.dtype))
        if added and charge > reserve:
            raise CorruptStreamError(f"values of {charge} bits where {reserve} were reserved")
        return _Section(mask, added, charge, source, full)

    @torch.no_grad()
    def accept(self, task: int, content: _Section) -> None:
        draft = self._draft
        assert draft is not None
        mask, added, charge, source, full = content
        self._quantised = None  # the codes are in the section now
        self._masks.add(self._taken, mask)
        draft.last = mask
        if source is not None:
            _, _, page, owner = self._kept_by[source]
            self._kept_by.append(added, charge, page, owner)
            return
        if full:
            self.pages += 1
            draft.occupancy.zero_()
        self._kept_by.append(added, charge, self.pages - 1, self._taken)
        draft.occupancy += charge * mask.view(torch.uint8)
        self._levels.add(self._taken, draft.occupancy)

    @torch.no_grad()
    def committed(self, task: int) -> Tensor:
        mask, position = self.mask_of(task), self.position_of(task)
        *_, owner = self._kept_by[position]
        values = decoded(self._values_at(owner)).to(self.frozen)
        weight = torch.zeros_like(self.frozen)
        if owner == position:
            return weight.masked_scatter_(mask, values)
        weight.masked_scatter_(self._shaped(self._mask_at(owner)), values)
        return torch.where(mask, weight, 0.0)

    @property
    def slot_used(self) -> float:
        """``100 sum_i u[i] / (32 n)``: percent of the slots' bits in use, on all pages."""
        used = sum(self.value_bits(task) for task in self.sections)
        return 100 * used / max(1, SLOT_BITS * self.pages * self.occupancy.numel())

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
        for position, (_, bits, own, owner) in enumerate(self._kept_by):
            if own == page and owner == position:
                mask = self._shaped(self._mask_at(position))
                codes = _codes(self._values_at(position)).to(words.device)
                words[mask] |= codes << offset[mask]
                offset += mask * bits
        return words

    def get_extra_state(self) -> dict[str, Any]:
        state = super().get_extra_state()
        state["open"].update(reserve=self.reserve, granted=self._granted, source=self._source)
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        chosen = state["open"]
        self.reserve, self._granted = chosen["reserve"], chosen["granted"]
        self._source = chosen["source"]

    def forget(self) -> None:
        super().forget()
        self.pages = 1
        self.occupancy = torch.zeros_like(self.occupancy)
        self._levels.clear()

    def _room(self, reserve: int) -> Tensor:
        return self.occupancy <= SLOT_BITS - reserve

    def _newest(self, reusable: Sequence[int]) -> int | None:
        return next((task for task in reversed(list(self.sections)) if task in reusable), None)

    def _see(self, mask: Tensor) -> None:
        """Compute with the weights in ``mask`` and no others."""
        self.trainable = (mask & self.writable).to(self.frozen.dtype)
        if self._source is None:
            self.frozen = torch.zeros_like(self.frozen)
        else:
            self.frozen = torch.where(mask, self.committed(self._source), 0.0)

    def _read_source(self, reader: ByteReader) -> int:
        """The position of the task that a task without values of its own computes with."""
        position = reader.read_uint()
        if position >= self._taken:
            raise CorruptStreamError(f"a task that reads number {position} of {self._taken}")
        return position

    def _new_ledger(self) -> Ledger:
        """Of each task its values and their bits, its page, and the position of their owner."""
        return Ledger(4)

    def _values_at(self, position: int) -> Values:
        """A task's values out of its section: kept as packed codes, not a second time."""
        reader = ByteReader(list(self.sections.values())[position])
        reader.read_uint()
        reader.read_bytes()  # the mask, which is at hand already
        return read_values(reader, self._kept_by[position][0], self.frozen.dtype)

    def _recall_mask(self, position: int) -> Tensor:
        pages, sections = self._kept_by.column(2), list(self.sections.values())
        first = self._last_known(position)
        last, level = self._masks.get(first), self._levels.get(first)
        empty = torch.zeros(self.occupancy.numel(), dtype=torch.uint8)
        occupancy = empty if level is None else level.clone()
        passed: list[Tensor] = []  # from the first task on, if any may read another one's values
        for own in range(first + 1, position + 1):
            _, charge, page, owner = self._kept_by[own]
            if own and page != pages[own - 1]:
                occupancy.zero_()
            mask = self._masks.get(own)
            if mask is None:
                reader = ByteReader(sections[own])
                closed = _closed(occupancy, reader.read_uint())
                if owner != own:
                    closed = ~passed[reader.read_uint()]
                context = mask_context(last, closed)
                mask = recall_mask(reader.read_bytes(), closed.numel(), context)
            if owner == own:
                occupancy += charge * mask.view(torch.uint8)
            if self.policy == "reuse_frozen":
                passed.append(mask)
            last = mask
        assert last is not None
        self._levels.add(position, occupancy)
        return last

    def _last_known(self, position: int) -> int:
        """The last task before one whose mask and levels are at hand; -1 for the start."""
        if self.policy == "reuse_frozen":
            return -1
        known = self._levels.nearest(position - 1)
        while known >= 0 and self._masks.get(known) is None:
            known = self._levels.nearest(known - 1)
        return known


@dataclass
class _Draft:
    """What is known after some sections, in one row each, on the CPU."""

    occupancy: Tensor
    last: Tensor | None
    """The newest mask."""


class _Section(NamedTuple):
    """What one task keeps, as its section tells; its values stay in there."""

    mask: Tensor
    added: int
    """How many values it has of its own."""
    charge: int
    """Bits of a slot that each takes."""
    source: int | None
    """The position of the task that it computes with, if it has no values of its own."""
    full: bool
    """Whether no slot was open to it."""


def _closed(occupancy: Tensor, reserve: int) -> Tensor:
    """Where a slot has not the room for a value (bool), on the CPU."""
    # NumPy compares bytes in a twentieth of the time that torch takes
    return torch.from_numpy(occupancy.numpy() > SLOT_BITS - reserve)


def _charge(values: Values) -> int:
    """Bits that each value takes of its slot."""
    return SLOT_BITS if isinstance(values, Tensor) else values.bits


def _codes(values: Values) -> Tensor:
    """(n,) Values as they stand in their slots: int64, not negative."""
    if isinstance(values, Tensor):
        return values.float().view(torch.int32).long() & (1 << SLOT_BITS) - 1
    if isinstance(values, Codebook):
        return values.codes.long()
    return values.codes.long() + (1 << (values.bits - 1))
