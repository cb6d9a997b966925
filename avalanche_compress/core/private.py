"""What every task has for itself: biases, norms, running statistics, heads, bare parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from avalanche_compress.codec import (
    ByteReader,
    ByteWriter,
    CorruptStreamError,
    Float,
    Values,
    all_finite,
    read_values,
    skip_values,
    write_values,
)
from avalanche_compress.core.store import Place, Store, non_finite


class PrivateStore(Store):
    """``W_t`` = task t's own copy of every tensor that tasks do not share.

    The open task trains the modules' own Parameters and buffers; a commit copies them. All
    tensors of a task lie in its section, so that a hundred tasks are a hundred objects and not a
    hundred times the number of layers. They are raw floats unless :meth:`keep_values` says
    otherwise; a section of others begins with a zero, which no number of rows is.

    :param places: the tensors, in a fixed order; their shapes may differ from task to task.
    :param names: their dotted names, for messages.
    """

    def __init__(self, places: Sequence[Place], names: Sequence[str]):
        super().__init__("private tensors")
        self.places = list(places)
        self.names = list(names)
        self._kept: dict[int, Values] = {}

    def check_commit(self) -> None:
        for place, name in zip(self.places, self.names):
            if not all_finite(place.tensor):
                raise non_finite(name)

    @torch.no_grad()
    def keep_values(self, values: Mapping[int, Values]) -> None:
        """Let the open task compute with values of few bits, and keep them so.

        :param values: by the number of the tensor's place, flat.
        """
        for number, kept in values.items():
            tensor = self.places[number].tensor
            tensor.copy_(kept.decode().view(tensor.shape))
        self._kept = dict(values)

    def encode(self) -> bytes:
        writer = ByteWriter()
        if self._kept:
            writer.write_uint(0)
        for number, place in enumerate(self.places):
            # only heads change their shape, and only in their number of classes
            tensor = place.tensor.detach().cpu()
            writer.write_uint(tensor.shape[0] if tensor.dim() else 1)
            if self._kept and tensor.is_floating_point():
                write_values(self._values_of(number, tensor.flatten()), writer)
            else:
                writer.write_tensor(tensor)
        return writer.getvalue()

    def _values_of(self, number: int, flat: Tensor) -> Values:
        """A tensor as it was kept, unless it has changed since."""
        kept = self._kept.get(number)
        if kept is None or not torch.equal(kept.decode().cpu(), flat):
            return Float(flat)
        return kept.smallest()

    def decode(self, reader: ByteReader) -> list[Tensor]:
        compact, tensors = _read_form(reader), []
        for place in self.places:
            shape, dtype = _read_shape(place.tensor, reader), place.tensor.dtype
            if compact and place.tensor.is_floating_point():
                values = read_values(reader, shape.numel(), dtype)
                tensors.append(values.decode().to(dtype).view(shape))
            else:
                tensors.append(reader.read_tensor(dtype, shape))
        return tensors

    def shapes_of(self, task: int) -> list[torch.Size]:
        """The sizes of the tensors of a finished task, in the order of the places.

        :param task: its label.
        :raises CorruptStreamError: if its section has not the length that they take.
        """
        reader, shapes = ByteReader(self.sections[task]), []
        compact = _read_form(reader)
        for place in self.places:
            shape = _read_shape(place.tensor, reader)
            if compact and place.tensor.is_floating_point():
                skip_values(reader, shape.numel(), place.tensor.dtype)
            else:
                reader.read_raw(place.tensor.element_size() * shape.numel())
            shapes.append(shape)
        reader.finish()
        return shapes

    def accept(self, task: int, content: list[Tensor]) -> None:
        """The section is all that is kept."""
        self._kept = {}

    def committed(self, task: int) -> list[Tensor]:
        """The tensors of a finished task, in the order of the places.

        :param task: its label.
        """
        self.position_of(task)
        return self.tensors_in(self.sections[task])

    def tensors_in(self, section: bytes) -> list[Tensor]:
        """What a section holds, in the order of the places.

        :param section: what :meth:`encode` gave.
        """
        tensors = self.decode(ByteReader(section))
        return [tensor.to(place.tensor.device) for tensor, place in zip(tensors, self.places)]

    def stored_values(self, task: int) -> int:
        self.position_of(task)
        return sum(shape.numel() for shape in self.shapes_of(task))


def _read_form(reader: ByteReader) -> bool:
    """Whether a section has values of few bits: it begins with a zero."""
    if reader.peek() != 0:
        return False
    reader.read_uint()
    return True


def _read_shape(tensor: Tensor, reader: ByteReader) -> torch.Size:
    """The size of a task's copy of a tensor; what it holds follows."""
    rows = reader.read_uint()
    if rows > max(1, *tensor.shape, reader.remaining):
        raise CorruptStreamError(f"{rows} rows in {reader.remaining} bytes")
    return torch.Size((rows, *tensor.shape[1:]) if tensor.dim() else ())
