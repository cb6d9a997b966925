"""Samples as tensors: how a data set hands them out, and how they are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from avalanche_compress.errors import CompressError

Decode = Callable[[Tensor], Tensor]

CHUNK = 256
"""Samples that are decoded at a time: few enough for a processor's cache."""


class NoTensorsError(CompressError, TypeError):
    """A data set's samples have to be built one by one; the message says why."""


class TensorSamples(NamedTuple):
    """What a data set's method ``tensor_samples()`` returns, so that its samples come as tensors.

    Sample i is ``decode(inputs[rows[i]])`` with the target ``targets[i]``, and these must be what
    ``dataset[i]`` gives, bit for bit, every time.

    :param inputs: ``(R, ...)``, bytes or floats, as they lie in memory; they are not copied.
    :param targets: ``(N,)`` int64.
    :param decode: makes ``(n, ...)`` inputs of a model of n rows of ``inputs``; it draws no random
        numbers. None: they are the rows themselves.
    :param rows: ``(N,)`` int64, the row of each sample; None: sample i is row i.
    """

    inputs: Tensor
    targets: Tensor
    decode: Decode | None = None
    rows: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ByteValues:
    """Bytes become the values that a table has for them: ``x[c, i] = table[c, b[order[c, i]]]``.

    Whatever is computed from a byte alone (ToTensor, Normalize) is the same bits from a table.

    :param table: float ``(256,)``, or ``(channels, 256)``.
    :param shape: of a sample, channels first.
    :param order: ``(numbers,)``, for each number of a sample the byte that it comes from; None: the
        bytes in their order.

    >>> halves = ByteValues(torch.arange(256) / 2, (1, 1, 2), order=torch.tensor([1, 0]))
    >>> halves(torch.tensor([[3, 4]], dtype=torch.uint8)).tolist()
    [[[[2.0, 1.5]]]]
    """

    table: Tensor
    shape: tuple[int, ...]
    order: Tensor | None = None

    def __call__(self, data: Tensor) -> Tensor:
        """Decode samples.

        :param data: uint8 ``(n, ...)`` on the CPU.
        :return: ``(n, *shape)``.
        """
        data = data.flatten(1)
        if self.order is not None:  # NumPy's gather of bytes is five times faster than torch's
            data = torch.from_numpy(data.numpy().take(self.order.numpy(), axis=1))
        entries = data.int()
        if self.table.dim() == 2:  # byte b of channel c is entry 256 c + b of the flat table
            channels = entries.view(len(data), len(self.table), -1)
            channels += 256 * torch.arange(len(self.table), dtype=torch.int32)[:, None]
        # an index of int32 and index_select: four times faster than table[entries]
        values = self.table.flatten().index_select(0, entries.flatten())
        return values.view(len(data), *self.shape)


class Part(NamedTuple):
    """What samples are taken from, see :class:`TensorSamples`."""

    inputs: Tensor
    decode: Decode | None

    def take(self, rows: Tensor) -> Tensor:
        """The model's inputs of some rows.

        :param rows: int64 ``(n,)``.
        """
        taken = self.inputs.index_select(0, rows.to(self.inputs.device))
        return taken if self.decode is None else self.decode(taken)


class Samples:
    """All samples of some data sets, in their order.

    :param parts: what the rows are taken from.
    :param rows: ``(N,)``, each sample's row in its part; None: sample i is row i.
    :param part_of: ``(N,)``, each sample's part; None if there is one part.
    :param columns: ``(N,)`` each: the targets, and what else the data sets add to a mini-batch.
    :param sources: the data sets inside of all wrappers.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        rows: Tensor | None,
        part_of: Tensor | None,
        columns: Sequence[Tensor],
        sources: Sequence[Any] = (),
    ):
        self._parts = parts
        self._rows = rows
        self._part_of = part_of
        self.columns = columns
        self.sources = list(sources)

    def __len__(self) -> int:
        return len(self.columns[0])

    def inputs(self, index: Tensor) -> Tensor:
        """The model's inputs of some samples, new in memory.

        :param index: int64 ``(n,)``, on the CPU.
        :return: ``(n, ...)``, on the device where the samples lie.
        """
        rows = index if self._rows is None else self._rows.index_select(0, index)
        if self._part_of is None:
            return self._parts[0].take(rows)
        part_of = self._part_of.index_select(0, index)
        taken: Tensor | None = None
        for number in torch.unique(part_of).tolist():
            chosen = (part_of == number).nonzero().flatten()
            part = self._parts[number].take(rows[chosen])
            if taken is None:
                taken = part.new_empty((len(index), *part.shape[1:]))
            taken[chosen.to(part.device)] = part
        assert taken is not None
        return taken

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets in their order.

        :param size: samples in a batch; the last may have fewer.
        """
        for index in torch.arange(len(self)).split(size):
            yield self.inputs(index), self.columns[0].index_select(0, index)

    def held(self, device: torch.device, memory: int) -> Samples:
        """The same samples, decoded once, on a device.

        :param device: where.
        :param memory: bytes that the inputs may need; beyond them they stay as they are.
        """
        part, *others = self._parts
        in_place = not others and part.decode is None and part.inputs.device == device
        first = self.inputs(torch.zeros(1, dtype=torch.int64))
        if in_place or first.numel() * first.element_size() * len(self) > memory:
            return self
        whole = _empty((len(self), *first.shape[1:]), first.dtype, device)
        for index in torch.arange(len(self)).split(CHUNK):
            whole[index[0] : index[-1] + 1] = self.inputs(index)
        return Samples([Part(whole, None)], None, None, self.columns, self.sources)


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    # NumPy asks for large pages, and the first touch of 200 MB takes 20 instead of 70 ms
    size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(tuple(shape))
