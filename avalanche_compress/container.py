"""The outside of an archive: a safetensors file of bytes, a manifest with a schema, a checksum."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Callable, Dict, Mapping, NoReturn

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors

from avalanche_compress.codec import bytes_tensor
from avalanche_compress.errors import ArchiveError
from avalanche_compress.files import PathLike

FORMAT = "avalanche_compress"
VERSION = 1
PARTS = ("tasks", "static")
"""The tensors of the file, each a run of bytes."""

Manifest = Dict[str, Any]
_LONGEST_HEADER = 1 << 22


def pack(manifest: Manifest, content: dict[str, bytes]) -> bytes:
    """The bytes of a file; version and checksum are added to the manifest.

    :param manifest: the fields of format 1 that say what was trained.
    :param content: bytes by name, for each of :data:`PARTS`.
    :raises ArchiveError: if the manifest is longer than anybody would read.
    """
    manifest = {"version": VERSION, **manifest}
    manifest["sha256"] = _checksum(manifest, content)
    text = _compact(manifest)
    if 2 * len(text) > _LONGEST_HEADER:
        raise ArchiveError(f"the network cannot be archived: its manifest has {len(text)} bytes.")
    tensors = {name: bytes_tensor(content[name]) for name in PARTS}
    # one entry: safetensors writes several in an order that differs from run to run
    return bytes(save_safetensors(tensors, metadata={FORMAT: text}))


def unpack(path: PathLike) -> tuple[Manifest, dict[str, memoryview]]:
    """What :func:`pack` was given, with all that can be checked without a model checked.

    :param path: the file.
    :return: the manifest, which has the fields of the schema and no others, and the content.
    :raises ArchiveError: if the file is none of these, is damaged, or is of a newer format.
    """
    try:
        _check_header(path)
        with safe_open(str(path), framework="pt") as file:
            manifest = _read_manifest(path, dict(file.metadata() or {}))
            if set(file.keys()) != set(PARTS):
                raise ArchiveError(f"{path} is damaged: it does not hold what an archive does")
            parts = {name: file.get_slice(name) for name in PARTS}
            if any(own.get_dtype() != "U8" or len(own.get_shape()) != 1 for own in parts.values()):
                raise ArchiveError(f"{path} is damaged: its content is not made of bytes")
            content = {name: memoryview(file.get_tensor(name).numpy()) for name in PARTS}
    except (SafetensorError, OSError) as error:
        raise ArchiveError(f"{path} is no archive, or it is truncated: {error}") from error
    if manifest.pop("sha256") != _checksum(manifest, content):
        raise ArchiveError(f"{path} is altered: its checksum does not match its content")
    return manifest, content


def _check_header(path: PathLike) -> None:
    """Refuse a header that would take memory to parse and that no archive needs."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ArchiveError(f"{path} is no archive, or it is damaged: a header of {length} bytes")


def _read_manifest(path: PathLike, metadata: dict[str, str]) -> Manifest:
    if FORMAT not in metadata:
        raise ArchiveError(f"{path} is not an archive of {FORMAT}")
    try:
        manifest = json.loads(metadata[FORMAT], parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{path} is damaged: its manifest cannot be read") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise ArchiveError(
            f"{path} has format {version} and this release reads up to {VERSION}: upgrade "
            f"avalanche-compress{_release_of(manifest)} to read it."
        )
    if not _fits_schema(manifest):
        raise ArchiveError(f"{path} is damaged: its manifest does not fit")
    return dict(manifest)


def _release_of(manifest: Manifest) -> str:
    """The first release that reads a newer format, which its manifests have to name."""
    release = manifest.get("release")
    named = isinstance(release, str) and re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,2}", release)
    return f" to {release} or later" if named else ""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _fits_schema(manifest: Any) -> bool:
    """Whether a manifest has exactly the fields of format 1, each of its type."""
    fields: dict[str, Callable[[Any], bool]] = {
        "version": lambda value: _is_integer(value) and value == VERSION,
        "head": _is_text,
        "exclude": _is_list_of(_is_text),
        "include": _is_list_of(_is_text),
        "weights": _is_list_of(_is_layout),
        "rest": _is_text,
        "sha256": _is_text,
    }
    if not isinstance(manifest, dict) or manifest.keys() != fields.keys():
        return False
    return all(fits(manifest[name]) for name, fits in fields.items())


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
        and all(isinstance(option, (str, bool)) for option in config.values())
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
    for part in (_compact(manifest).encode(), *(content[name] for name in PARTS)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
