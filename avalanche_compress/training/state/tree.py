"""Plain values and tensors, nested at will, as bytes that hold no code.

The bytes are ``magic (8), version (4), length of the structure (8), length of the tensors (8),
SHA-256 of both (32)``, all little-endian, then the structure as JSON and the tensors in the format
of safetensors. In the JSON a number, a text, a truth value and null stand for themselves;
everything else is an object of one key that names its kind, ``{"tuple": [...]}`` or
``{"tensor": 3}``.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from avalanche_compress.errors import TrainingStateError

VERSION = 1
HEADER = struct.Struct("<8sIQQ32s")
_MAGIC = b"AVCMPTRS"
SCALARS = (bool, int, float, str, type(None))
_KEYS = (str, int)


class DamagedError(TrainingStateError):
    """The bytes are not those that were written; an older file may do instead."""


def pack(tree: Any) -> bytes:
    """A tree as bytes.

    :param tree: None, a bool, int, float, str or tensor, or lists, tuples and dictionaries (with
        keys of str or int) of trees.
    :raises TrainingStateError: naming the place of the first value that is none of these.

    >>> import torch
    >>> data = pack({"step": 3, "moments": [torch.ones(2), (0.5, None)]})
    >>> unpack(data, "a file")
    {'step': 3, 'moments': [tensor([1., 1.]), (0.5, None)]}
    """
    tensors: list[Tensor] = []
    structure = json.dumps(_encode(tree, "", tensors), separators=(",", ":")).encode()
    named = {str(n): _bare(tensor) for n, tensor in enumerate(tensors)}
    content = bytes(save_safetensors(named))
    digest = hashlib.sha256(structure + content).digest()
    return HEADER.pack(_MAGIC, VERSION, len(structure), len(content), digest) + structure + content


def unpack(data: bytes, source: object) -> Any:
    """The inverse of :func:`pack`: builds plain values and tensors, and nothing else.

    :param data: the bytes.
    :param source: where they come from, for messages.
    :return: the tree; its tensors are on the CPU.
    :raises DamagedError: if a byte is missing, altered or too many.
    :raises TrainingStateError: if the bytes are of another format or version.
    """
    if not fits_header(data[: HEADER.size], len(data), source):
        raise DamagedError(f"{source} is truncated or overlong: it has {len(data)} bytes.")
    _, _, length, _, digest = HEADER.unpack_from(data)
    if hashlib.sha256(data[HEADER.size :]).digest() != digest:
        raise DamagedError(f"{source} is damaged: its content does not match its SHA-256.")
    structure, content = data[HEADER.size :][:length], data[HEADER.size + length :]
    try:
        # cloned into torch's memory: results may depend on how other memory happens to be aligned
        tensors = {name: tensor.clone() for name, tensor in load_safetensors(content).items()}
        return _decode(json.loads(structure), tensors)
    except (
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise DamagedError(f"{source} is damaged: its content cannot be read ({error}).") from error


def fits_header(header: bytes, size: int, source: object) -> bool:
    """Whether a file is as long as its header says; nothing else of it is looked at.

    :param header: its first bytes, as many as :data:`HEADER` has.
    :param size: its length.
    :param source: the file, for messages.
    :raises TrainingStateError: if it is a file of another kind or version.
    """
    check_version(header, source)
    if len(header) < HEADER.size:
        return False
    _, _, structure, content, _ = HEADER.unpack(header[: HEADER.size])
    return bool(HEADER.size + structure + content == size)


def check_version(data: bytes, source: object) -> None:
    """Refuse a file of another kind or version; one that is too short to tell passes.

    :param data: its first bytes, as many as :data:`HEADER` has, or more.
    :param source: the file, for messages.
    :raises TrainingStateError: if it is one.
    """
    if len(data) < HEADER.size:
        return
    magic, version, *_ = HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise TrainingStateError(f"{source} is no training state of avalanche_compress.")
    if version != VERSION:
        raise TrainingStateError(
            f"{source} has version {version} of the training state and this package reads version "
            f"{VERSION}: go on with the release that has written it."
        )


def is_plain(tree: Any) -> bool:
    """Whether :func:`pack` takes a value.

    :param tree: any value.

    >>> import torch
    >>> is_plain([1, {"a": torch.ones(1)}]), is_plain({"a": object()})
    (True, False)
    """
    try:
        _encode(tree, "", [])
    except (TrainingStateError, RecursionError):
        return False
    return True


def _bare(tensor: Tensor) -> Tensor:
    """A copy, since safetensors refuses tensors that share memory."""
    return tensor.detach().cpu().contiguous().clone()


def _encode(tree: Any, place: str, tensors: list[Tensor]) -> Any:
    if isinstance(tree, SCALARS):
        return tree
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return {"tensor": len(tensors) - 1}
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_encode(branch, f"{place}/{n}", tensors) for n, branch in enumerate(tree)]}
    if isinstance(tree, dict) and all(isinstance(key, _KEYS) for key in tree):
        pairs = [[key, _encode(branch, f"{place}/{key}", tensors)] for key, branch in tree.items()]
        return {"dict": pairs}
    raise TrainingStateError(
        f"{place.lstrip('/') or 'the value'} is a {type(tree).__name__}, and a training state "
        "holds tensors and plain values only: save_checkpoint, which pickles, may hold it."
    )


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, SCALARS):
        return tree
    ((kind, content),) = tree.items()
    kinds: dict[str, Callable[[], Any]] = {
        "tensor": lambda: tensors[str(content)],
        "list": lambda: _decode_all(content, tensors),
        "tuple": lambda: tuple(_decode_all(content, tensors)),
        "dict": lambda: {_key(key): _decode(branch, tensors) for key, branch in content},
    }
    return kinds[kind]()


def _decode_all(trees: Sequence[Any], tensors: dict[str, Tensor]) -> list[Any]:
    return [_decode(branch, tensors) for branch in trees]


def _key(key: Any) -> Any:
    if not isinstance(key, _KEYS):
        raise TypeError(f"a key of the kind {type(key).__name__}")
    return key
