"""What is kept of a finished task besides its weights, as bytes: named tensors of a few types.

A record is ``name, count, count float32 numbers``. A tensor of another type or of several
dimensions says so behind its name, ``name NUL type NUL sizes``, and is filled up to whole float32
numbers, so that releases that know float32 vectors alone pass over it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from avalanche_compress.codec import ByteReader, ByteWriter, CorruptStreamError

_TYPES = {"int8": torch.int8, "float16": torch.float16, "float32": torch.float32}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_SIZES = re.compile(r"\d{1,9}(,\d{1,9}){0,7}")


def write_statistics(writer: ByteWriter, statistics: Mapping[str, Tensor]) -> None:
    """Append named tensors; what is neither int8 nor float16 becomes float32.

    :param writer: the section.
    :param statistics: by name.

    >>> writer = ByteWriter()
    >>> write_statistics(writer, {"codes": torch.tensor([[1, -2]], dtype=torch.int8)})
    >>> read_statistics(ByteReader(writer.getvalue()))
    {'codes': tensor([[ 1, -2]], dtype=torch.int8)}
    """
    writer.write_uint(len(statistics))
    for name, tensor in sorted(statistics.items()):
        tensor = tensor if tensor.dtype in _NAMES else tensor.float()
        if tensor.dtype == torch.float32 and tensor.dim() <= 1:
            tag = name
        else:
            sizes = ",".join(map(str, tensor.shape))
            tag = f"{name}\0{_NAMES[tensor.dtype]}\0{sizes}"
        count = tensor.numel() * tensor.element_size()
        writer.write_bytes(tag.encode())
        writer.write_uint(-(-count // 4))
        writer.write_tensor(tensor)
        writer.write_raw(bytes(-count % 4))


def read_statistics(reader: ByteReader) -> dict[str, Tensor]:
    """The inverse of :func:`write_statistics`; memory is taken by what there is.

    :param reader: the section, which may be of an untrusted file.
    :raises CorruptStreamError: if it is not as tensors are written.
    """
    statistics: dict[str, Tensor] = {}
    for _ in range(reader.read_uint()):
        name, *described = reader.read_bytes().decode().split("\0")
        if statistics and name <= next(reversed(statistics)):
            raise CorruptStreamError(f"statistics {name[:20]!r} out of order")
        statistics[name] = _read_tensor(reader, name, described)
    return statistics


def _read_tensor(reader: ByteReader, name: str, described: list[str]) -> Tensor:
    words = reader.read_uint()
    if not described:
        return reader.read_tensor(torch.float32, (words,))
    kind, sizes = described if len(described) == 2 else ("", "")
    if kind not in _TYPES or not _SIZES.fullmatch(sizes):
        raise CorruptStreamError(f"statistics {name[:20]!r} of the type {kind[:20]!r}")
    shape = [int(size) for size in sizes.split(",")]
    count = math.prod(shape) * _TYPES[kind].itemsize
    if -(-count // 4) != words or (kind == "float32" and len(shape) == 1):
        raise CorruptStreamError(f"statistics {name[:20]!r} of {words} words for sizes {sizes}")
    tensor = reader.read_tensor(_TYPES[kind], shape)
    if any(reader.read_raw(-count % 4)):
        raise CorruptStreamError(f"statistics {name[:20]!r} that are not filled up with zeros")
    return tensor
