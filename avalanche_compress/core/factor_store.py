"""Weights that are composed of a few tensors: keeping, quantising and handing out the parts."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_compress.codec import (
    ByRow,
    ByteReader,
    ByteWriter,
    Constant,
    CorruptStreamError,
    Float,
    Values,
    decode_mask,
    entries_of,
    quantise_codebook,
    read_values,
    recall_mask,
    write_values,
)
from avalanche_compress.core.deferred import DeferredWeight
from avalanche_compress.core.store import Place, WeightStore
from avalanche_compress.core.table import Table

MaskReader = Callable[[bytes, int], Tensor]
"""Decodes a mask of so many elements, with all checks or with trust in a checksum."""
Shape = tuple[int, ...]
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_LOOK_UPS = (F.embedding, F.embedding_bag)
_UNREAD_BITS = 4
_PART_BYTES = 12
"""About what says how the values of a part are kept."""


class Part(NamedTuple):
    """A tensor that the open task trains, and which of its entries it keeps."""

    tensor: Tensor
    mask: Tensor | None = None
    """bool, of the tensor's shape; None for all entries."""
    width: int | None = None
    """How many entries of a row of the weight stand side by side; None if there are no rows."""
    unread: float | None = None
    """What the entries become of rows that nobody has looked up; None to keep them in few bits."""

    def entries(self, tensor: Tensor) -> Tensor:
        """The kept entries of a tensor of this shape, (n,).

        :param tensor: the values, or their gradients.
        """
        return tensor.flatten() if self.mask is None else tensor[self.mask]

    def fill(self, numbers: Tensor) -> None:
        """Write the kept entries.

        :param numbers: (n,).
        """
        if self.mask is None:
            self.tensor.copy_(numbers.view(self.tensor.shape))
        else:
            self.tensor[self.mask] = numbers


class Block(NamedTuple):
    """What one task keeps, as its section tells."""

    rank: int
    tensors: tuple[Tensor, ...]
    """The parts, zero where an entry was not kept; one of the weight's size if it is dense."""
    numbers: int
    """How many entries were kept."""
    bits: int
    """What these take, codebooks not counted."""


class Layout(NamedTuple):
    """What the head of a section says of the parts that follow."""

    rank: int
    shapes: Sequence[Shape]
    masks: Sequence[Tensor | None]


class FactorStore(WeightStore):
    """A task keeps a few tensors of which its weight is composed, or one dense tensor.

    A subclass says which tensors the open task keeps (:meth:`_parts`), what a section begins with
    (:meth:`_write_head`, :meth:`_read_layout`), and how a weight is composed of them.

    :param place: the module and the name of its weight.
    :param name: dotted name of the weight in the model.
    """

    factored: bool
    """Whether tasks may train factors; else each has a dense tensor."""
    rows_read: Tensor
    """bool (n,): the rows that the open task has looked up in training; (0,) if it is no table."""
    supports_factored_forward: bool = False
    """Whether the layer can compute from the factors, see :meth:`_forward`."""

    def __init__(self, place: Place, name: str = "weight"):
        super().__init__(place, name)
        self._dense = True
        self._quantised: list[Values] | None = None
        self._sizes = Table(3)  # of each task: its rank, its numbers and their bits
        self.is_table = isinstance(place.module, _TABLES)
        """Whether rows of the weight are looked up, see :meth:`compact_rows`."""
        rows = len(self.scratch) if self.is_table else 0
        # a buffer, so that it goes with the network to a device; the extra state holds it
        nothing = self.scratch.new_zeros(rows, dtype=torch.bool)
        self.register_buffer("rows_read", nothing, persistent=False)

    # ------------------------------------------------------------------ what a subclass says

    @abstractmethod
    def _parts(self) -> list[Part]:
        """What the open task keeps, in a fixed order."""

    @abstractmethod
    def part_sizes(self, rank: int) -> list[int]:
        """How many numbers each part of a task has that adds so many terms to the weight.

        :param rank: of the task; of no meaning where a weight is not factored.
        """

    def planned_bytes(self, extent: float, bits: float) -> float:
        return sum(_PART_BYTES + size * bits / 8 for size in self.part_sizes(round(extent)))

    @abstractmethod
    def _write_head(self, writer: ByteWriter) -> None:
        """Append what :meth:`_read_layout` reads of the open task.

        :param writer: the section.
        """

    @abstractmethod
    def _read_layout(self, reader: ByteReader, position: int, read_mask: MaskReader) -> Layout:
        """The head of a section.

        :param reader: the section, from its start.
        :param position: of the task in order of learning.
        :param read_mask: for masks, if there are any.
        :raises CorruptStreamError: if it is not what :meth:`_write_head` writes.
        """

    def _forward(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        """A layer's output from the factors, where that is less work; None for the whole weight.

        :param function: of torch, called with the weight as its second argument.
        :param args: its arguments.
        :param kwargs: its arguments by name.
        """
        return None

    # ------------------------------------------------------------------ the open task

    @property
    def dense(self) -> bool:
        """Whether the open task trains a dense tensor, the scratch, and keeps that."""
        return self._dense

    def check_open(self, reusable: Sequence[int]) -> None:
        """Nothing to refuse: there is always room for further factors."""

    def open(self, reusable: Sequence[int]) -> None:
        self.rows_read = torch.zeros_like(self.rows_read)

    def watched(self, weight: Tensor) -> Tensor:
        if not self.is_table or not weight.requires_grad:
            return weight

        def whole() -> Tensor:
            self.rows_read.fill_(True)
            return weight

        def look_up(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
            if function not in _LOOK_UPS:
                return None
            self.rows_read[args[0].flatten()] = True
            result: Tensor = function(args[0], weight, *args[2:], **kwargs)
            return result

        watching: Tensor = DeferredWeight(weight, whole, look_up)
        return watching

    @property
    def has_unread_rows(self) -> bool:
        """Whether the open task has looked up some rows of a table, and not all."""
        return bool(self.rows_read.any()) and not bool(self.rows_read.all())

    @torch.no_grad()
    def compact_rows(self) -> None:
        """Let rows of a table that the open task has never looked up take few bytes.

        Training says nothing about them. Of a weight that the task has started from, a row stays
        as it was but for rounding to 4 bits; a change of it becomes none (our choice).
        """
        if self.has_unread_rows:
            self.keep_values(list(map(self._by_row, self._parts(), self._kept())))

    def _by_row(self, part: Part, values: Values) -> Values:
        if part.width is None:
            return values
        numbers = values.decode()
        read = entries_of(self.rows_read, part.width, len(numbers))
        unread = numbers[~read]
        rest: Values = quantise_codebook(unread, _UNREAD_BITS)
        if part.unread is not None:
            rest = Constant(unread.new_full((1,), part.unread), len(unread))
        return ByRow(self.rows_read.clone(), part.width, Float(numbers[read]), rest)

    def substitute(self) -> Tensor:
        """The weight; in training, a stand-in with which a layer may compute from the factors.

        A layer's gradient then has no part of the weight's size. Evaluation, and layers for which
        that would be slower, take the whole weight, as committed tasks do.
        """
        if self._dense or not self.supports_factored_forward or not torch.is_grad_enabled():
            return self.weight()
        deferred: Tensor = DeferredWeight(self.scratch, self.weight, self._forward)
        return deferred

    def kept_values(self) -> list[Tensor]:
        return [values.decode() for values in self._kept()]

    def kept_gradients(self) -> list[Tensor]:
        return [
            part.entries(
                torch.zeros_like(part.tensor) if part.tensor.grad is None else part.tensor.grad
            )
            for part in self._parts()
        ]

    @torch.no_grad()
    def keep_values(self, values: Sequence[Values]) -> None:
        for part, kept in zip(self._parts(), values):
            part.fill(kept.decode())
        self._quantised = list(values)

    def _kept(self) -> list[Values]:
        if self._quantised is not None:
            return self._quantised
        return [Float(part.entries(part.tensor.detach())) for part in self._parts()]

    def _train(self, dense: bool, **factors: Tensor) -> None:
        """From now on train these.

        :param dense: train the scratch instead; then the factors are empty.
        :param factors: by attribute.
        """
        for name, tensor in factors.items():
            copied = tensor.detach().clone(memory_format=torch.contiguous_format)
            setattr(self, name, nn.Parameter(copied))
        self._quantised = None
        self._dense = dense

    # ------------------------------------------------------------------ finished tasks

    def encode(self) -> bytes:
        writer = ByteWriter()
        self._write_head(writer)
        for values in self._kept():
            write_values(values.smallest(), writer)
        return writer.getvalue()

    @torch.no_grad()
    def decode(self, reader: ByteReader) -> Block:
        return self._read_block(reader, self._taken, decode_mask)

    def accept(self, task: int, content: Block) -> None:
        self._sizes.append(content.rank, content.numbers, content.bits)

    def rank_of(self, task: int) -> int | None:
        return self._sizes[self._reach(task)][0] if self.factored else None

    def stored_values(self, task: int) -> int:
        return self._sizes[self._reach(task)][1]

    def value_bits(self, task: int) -> int:
        return self._sizes[self._reach(task)][2]

    def get_extra_state(self) -> dict[str, Any]:
        """The finished tasks, and how the open one is trained."""
        return {"finished": super().get_extra_state(), "open": self._open_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state["finished"])
        self._quantised = None
        self._set_open_state(state["open"])

    def _open_state(self) -> dict[str, Any]:
        """What a state has to hold of the open task besides its parameters."""
        return {"dense": self._dense, "rows_read": self.rows_read}

    def _set_open_state(self, state: dict[str, Any]) -> None:
        self._dense = state["dense"]
        rows = state.get("rows_read", torch.ones_like(self.rows_read))  # of earlier versions: all
        if rows.shape != self.rows_read.shape or rows.dtype != torch.bool:
            raise CorruptStreamError(f"{self.name} has the rows {rows} in its state")
        self.rows_read = rows.to(self.scratch.device)

    def forget(self) -> None:
        super().forget()
        self._sizes.clear()

    def _block_at(self, position: int, section: bytes) -> Block:
        """What a finished task keeps, on the weight's device.

        :param position: of the task in order of learning.
        :param section: the task's.
        """
        reader = ByteReader(section)
        block = self._read_block(
            reader, position, recall_mask if position < self._taken else decode_mask
        )
        reader.finish()
        device = self.scratch.device
        return block._replace(tensors=tuple(tensor.to(device) for tensor in block.tensors))

    def _read_block(self, reader: ByteReader, position: int, read_mask: MaskReader) -> Block:
        rank, shapes, masks = self._read_layout(reader, position, read_mask)
        dtype = self.scratch.dtype
        tensors, numbers, bits = [], 0, 0
        for shape, mask in zip(shapes, masks):
            count = math.prod(shape) if mask is None else int(mask.sum())
            values = read_values(reader, count, dtype)
            tensors.append(_spread(values.decode().to(dtype), shape, mask))
            numbers += count
            bits += values.bits_of(count)
        return Block(rank, tuple(tensors), numbers, bits)


def _spread(entries: Tensor, shape: Shape, mask: Tensor | None) -> Tensor:
    """A tensor of some entries, the others zero.

    :param entries: (n,).
    :param shape: of the tensor.
    :param mask: bool, of so many elements; None if all entries are there.
    """
    if mask is None:
        return entries.view(shape)
    return torch.zeros(shape, dtype=entries.dtype, device="cpu").masked_scatter_(
        mask.view(shape), entries
    )
