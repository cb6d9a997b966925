"""A damaged file, what may become of it, and what the fuzzer has to know of a kind of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

REFUSED, EXACT, OTHER = "refused", "exact", "other weights"
OUTCOMES = (REFUSED, EXACT, OTHER)
"""What may become of a file; whatever else happens is a failure."""


@dataclass(frozen=True)
class Case:
    """A damaged file.

    :param example: the file that it was.
    :param other: the file that parts of it may come from.
    :param mutation: what was done to it.
    """

    number: int
    example: str
    other: str
    mutation: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Target:
    """A kind of files.

    :param name: of the kind.
    :param mutations: names of what may be done to a file.
    :param mutate: does it: name, source of random numbers, the file, another one of the kind.
    :param examples: makes valid files, by name.
    :param expect: what these are to hold, by name; given to ``outcome``.
    :param outcome: reads a damaged file in a folder of its own, does with it what users do, and
        says one of :data:`OUTCOMES`, or what is wrong.
    """

    name: str
    mutations: Sequence[str]
    mutate: Callable[[str, Random, bytes, bytes], bytes]
    examples: Callable[[], dict[str, bytes]]
    expect: Callable[[dict[str, bytes]], Mapping[str, Any]]
    outcome: Callable[[Case, Mapping[str, Any], Path], str]
