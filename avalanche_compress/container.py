"""The outside of an archive: a safetensors file of bytes, a manifest with a schema, a checksum."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NoReturn

from safetensors import SafetensorError, deserialize
from safetensors.torch import save as save_safetensors

from avalanche_compress.codec import bytes_tensor
from avalanche_compress.errors import ArchiveError
from avalanche_compress.files import FileLike, name_of, open_to_read

FORMAT = "avalanche_compress"
VERSION = 2
"""The newest format. A file has the oldest that can hold it, so that older releases read it: the
first had nothing that all tasks share, and options of stores were text or yes and no."""
PARTS = ("tasks", "static")
"""The tensors of the file, each a run of bytes."""
SHARED = "shared"
"""A further one, if there is anything in it, from version 2 on."""

Manifest = dict[str, Any]
_LONGEST_HEADER = 1 << 22
_CHUNK = 1 << 20
"""Bytes read at a time."""


def pack(manifest: Manifest, content: dict[str, bytes]) -> bytes:
    """The bytes of a file; version and checksum are added to the manifest.

    :param manifest: the fields that say what was trained.
    :param content: bytes by name, for each of :data:`PARTS` and for :data:`SHARED`.
    :raises ArchiveError: if the manifest does not fit the schema, or is longer than any is read.
    """
    content = {name: content[name] for name in _parts(content)}
    manifest = {"version": VERSION, **manifest}
    if not _fits_schema({**manifest, "sha256": ""}):
        odd = [entry for entry in manifest.get("weights", ()) if not _is_layout(entry)]
        raise ArchiveError(
            f"the network cannot be archived: {odd or list(manifest)} does not fit. An option of a "
            "store is text, a bool, None, a finite float or an int of 64 bits."
        )
    manifest["version"] = _version(manifest, content)
    manifest["sha256"] = _checksum(manifest, content)
    text = _compact(manifest)
    if 2 * len(text) > _LONGEST_HEADER:
        raise ArchiveError(f"the network cannot be archived: its manifest has {len(text)} bytes.")
    tensors = {name: bytes_tensor(part) for name, part in content.items()}
    # one entry: safetensors writes several in an order that differs from run to run
    return bytes(save_safetensors(tensors, metadata={FORMAT: text}))


def unpack(source: FileLike) -> tuple[Manifest, dict[str, memoryview]]:
    """What :func:`pack` was given, with all that can be checked without a model checked.

    :param source: a path, or a file that is open in binary mode, which is read from where it is to
        the archive's end and a byte further.
    :return: the manifest, which has the fields of the schema and no others, and the content; what
        is shared is empty if there is nothing.
    :raises FileNotFoundError: if there is no file.
    :raises ArchiveError: if the file is none of these, is damaged, or is of a newer format.
    """
    name = name_of(source)
    try:
        with open_to_read(source) as file:
            data, metadata = _read_container(file, name)
        tensors = dict(deserialize(data))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no archive at {name}") from error
    except (SafetensorError, OSError) as error:
        raise ArchiveError(f"{name} is no archive, or it is truncated: {error}") from error
    manifest = _read_manifest(name, metadata)
    if not _fits_version(set(tensors), manifest):
        raise ArchiveError(f"{name} is damaged: it does not hold what an archive does")
    if any(part["dtype"] != "U8" or len(part["shape"]) != 1 for part in tensors.values()):
        raise ArchiveError(f"{name} is damaged: its content is not made of bytes")
    content = {part: memoryview(tensor["data"]) for part, tensor in tensors.items()}
    if manifest.pop("sha256") != _checksum(manifest, content):
        raise ArchiveError(f"{name} is altered: its checksum does not match its content")
    return manifest, {SHARED: memoryview(b""), **content}


def _parts(content: Mapping[str, bytes | memoryview]) -> tuple[str, ...]:
    """The tensors that a file of this content has, in the order of the checksum."""
    return (*PARTS, SHARED) if content.get(SHARED) else PARTS


def _version(manifest: Manifest, content: Mapping[str, bytes]) -> int:
    """The oldest format that can hold it."""
    options = [value for *_, config in manifest["weights"] for value in config.values()]
    plain = all(isinstance(value, (str, bool)) for value in options)
    return 1 if plain and SHARED not in content and "constants" not in manifest else VERSION


def _fits_version(names: set[str], manifest: Manifest) -> bool:
    """Whether these are the tensors of a file."""
    return names == {*PARTS} or (manifest["version"] > 1 and names == {*PARTS, SHARED})


def _read_container(file: BinaryIO, name: str) -> tuple[bytes, dict[str, Any]]:
    """A safetensors file, no byte of it more than its header says, and the header's metadata.

    A header is refused that would take memory to parse and that no archive needs.
    """
    start = _read(file, 8, name)
    length = int.from_bytes(start, "little")
    if length > _LONGEST_HEADER:
        raise ArchiveError(f"{name} is no archive, or it is damaged: a header of {length} bytes")
    header = _read(file, length, name)
    try:
        entries = json.loads(header)
        metadata = dict(entries.pop("__metadata__", None) or {})
        size = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ArchiveError(f"{name} is no archive, or its header is damaged") from error
    except RecursionError as error:
        raise ArchiveError(f"{name} is no archive: its header is nested too deeply") from error
    return start + header + _read(file, size + 1, name), metadata


def _read(file: BinaryIO, size: int, name: str) -> bytes:
    """So many bytes, or as many as there are: memory is taken by what there is."""
    chunks = []
    while size > 0:
        chunk = file.read(min(size, _CHUNK))
        if isinstance(chunk, str):
            raise ArchiveError(f"{name} is open as text: open it in binary mode, 'rb'.")
        if not chunk:
            break
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _read_manifest(name: str, metadata: dict[str, Any]) -> Manifest:
    if FORMAT not in metadata:
        raise ArchiveError(f"{name} is not an archive of {FORMAT}")
    try:
        manifest = json.loads(metadata[FORMAT], parse_constant=_refuse_constant)
    except (ValueError, TypeError, RecursionError) as error:
        raise ArchiveError(f"{name} is damaged: its manifest cannot be read") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise ArchiveError(
            f"{name} has format {version} and this release reads up to {VERSION}: upgrade "
            f"avalanche-compress{_release_of(manifest)} to read it."
        )
    if not _fits_schema(manifest):
        raise ArchiveError(f"{name} is damaged: its manifest does not fit")
    return dict(manifest)


def _release_of(manifest: Manifest) -> str:
    """The first release that reads a newer format, which its manifests have to name."""
    release = manifest.get("release")
    named = isinstance(release, str) and re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,2}", release)
    return f" to {release} or later" if named else ""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _fits_schema(manifest: Any) -> bool:
    """Whether a manifest has exactly the fields that there are, each of its type."""
    fields: dict[str, Callable[[Any], bool]] = {
        "version": lambda value: _is_integer(value) and 1 <= value <= VERSION,
        "head": lambda value: _is_text(value) or _is_list_of(_is_text)(value),
        "exclude": _is_list_of(_is_text),
        "include": _is_list_of(_is_text),
        "weights": _is_list_of(_is_layout),
        "rest": _is_text,
        "sha256": _is_text,
    }
    if not isinstance(manifest, dict) or manifest.keys() - {"constants"} != fields.keys():
        return False
    if "constants" in manifest:
        fields["constants"] = _are_marks
        if manifest["version"] == 1:
            return False
    return all(fits(manifest[name]) for name, fits in fields.items())


def _are_marks(value: Any) -> bool:
    """Whether a value is fingerprints by name."""
    return isinstance(value, dict) and all(
        _is_text(name) and _is_integer(mark) for name, mark in value.items()
    )


def _is_layout(value: Any) -> bool:
    """Whether a value is the name, kind, shape and options of a store."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    name, kind, shape, config = value
    return (
        _is_text(name)
        and _is_text(kind)
        and _is_list_of(_is_integer)(shape)
        and isinstance(config, dict)
        and all(map(_is_text, config))
        and all(map(_is_scalar, config.values()))
    )


def _is_scalar(value: Any) -> bool:
    """Whether a value is one that any JSON gives back as it is."""
    if isinstance(value, float):
        return math.isfinite(value)
    return (
        value is None
        or _is_text(value)
        or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(fits(entry) for entry in value)


def _compact(manifest: Manifest) -> str:
    return json.dumps(manifest, separators=(",", ":"))


def _checksum(manifest: Manifest, content: Mapping[str, bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in (_compact(manifest).encode(), *(content[name] for name in _parts(content))):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
