"""What every task has for itself: biases, norms, running statistics, heads, bare parameters."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from avalanche_compress.codec import ByteReader, ByteWriter, CorruptStreamError
from avalanche_compress.core.store import Place, Store, non_finite


class PrivateStore(Store):
    """``W_t`` = task t's own copy, in float, of every tensor that tasks do not share.

    The open task trains the modules' own Parameters and buffers; a commit copies them. All
    tensors of a task lie in its section, so that a hundred tasks are a hundred objects and not a
    hundred times the number of layers.

    :param places: the tensors, in a fixed order; their shapes may differ from task to task.
    :param names: their dotted names, for messages.
    """

    def __init__(self, places: Sequence[Place], names: Sequence[str]):
        super().__init__("private tensors")
        self.places = list(places)
        self.names = list(names)

    def check_commit(self) -> None:
        for place, name in zip(self.places, self.names):
            if not bool(torch.isfinite(place.tensor).all()):
                raise non_finite(name)

    def encode(self) -> bytes:
        writer = ByteWriter()
        for place in self.places:
            # only heads change their shape, and only in their number of classes
            writer.write_uint(place.tensor.shape[0] if place.tensor.dim() else 1)
            writer.write_tensor(place.tensor.detach().cpu())
        return writer.getvalue()

    def decode(self, reader: ByteReader) -> list[Tensor]:
        return [
            reader.read_tensor(place.tensor.dtype, _read_shape(place.tensor, reader))
            for place in self.places
        ]

    def shapes_of(self, task: int) -> list[torch.Size]:
        """The sizes of the tensors of a finished task, in the order of the places.

        :param task: its label.
        :raises CorruptStreamError: if its section has not the length that they take.
        """
        reader, shapes = ByteReader(self.sections[task]), []
        for place in self.places:
            shapes.append(_read_shape(place.tensor, reader))
            reader.read_raw(place.tensor.element_size() * shapes[-1].numel())
        reader.finish()
        return shapes

    def accept(self, task: int, content: list[Tensor]) -> None:
        """Nothing: the section is all that is kept."""

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


def _read_shape(own: Tensor, reader: ByteReader) -> torch.Size:
    """The size of a task's copy of a tensor; what it holds follows."""
    rows = reader.read_uint()
    if rows > max(1, *own.shape, reader.remaining):
        raise CorruptStreamError(f"{rows} rows in {reader.remaining} bytes")
    return torch.Size((rows, *own.shape[1:]) if own.dim() else ())
