"""Options as Python's own numbers, and of the types that they should have."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from avalanche_compress.errors import TaskStateError

_WORDS = {"int": "an int", "float": "a number", "bool": "True or False"}


def plain(value: Any) -> Any:
    """A number as Python's and an array as a list; what is neither as it is.

    :param value: given as an option, perhaps by NumPy or as a tensor.

    >>> import numpy as np
    >>> plain(np.int64(3)), plain(np.array([0.5, 0.25])), plain("auto")
    (3, [0.5, 0.25], 'auto')
    """
    return value.tolist() if hasattr(value, "tolist") else value


def is_count(value: object) -> bool:
    """Whether it is an int of at least 1.

    :param value: plain.

    >>> is_count(2), is_count(2.0), is_count(True)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_types(options: Any) -> None:
    """Make the options of a dataclass plain, and refuse those of another type than its own.

    Options of several types are for the class to check. Whole floats pass as ints.

    :param options: an instance.
    :raises TaskStateError: for the first that is no ``int``, ``float`` or ``bool`` as it should be.
    """
    for field in fields(options):
        value = plain(getattr(options, field.name))
        kind, _, optional = str(field.type).partition(" | ")
        if "float" not in str(field.type) and isinstance(value, float) and value.is_integer():
            value = int(value)
        if kind in _WORDS and optional in ("", "None") and not (optional and value is None):
            found = type(value).__name__
            if found != kind and (kind, found) != ("float", "int"):
                raise TaskStateError(f"{field.name}={value!r} must be {_WORDS[kind]}.")
        object.__setattr__(options, field.name, value)  # some classes are frozen
