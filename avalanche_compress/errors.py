"""What can go wrong, by name; messages say what was given, what was expected, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_MESSAGE = 500
"""Characters of an error's message, at most."""
_FEW = 6
"""Entries of a long list that a message names from its start; the last one is named, too."""
_LIST = re.compile(r"\[([^\[\]]*)\]")


def shortened(message: str) -> str:
    """A message that a terminal can show: of long lists the ends and the number of entries.

    What is still too long loses its middle, as the end says what to do.

    :param message: of any length.
    :return: one of :data:`LONGEST_MESSAGE` characters at most; the same if it was no longer.

    >>> shortened(f"task 7 is finished (finished: {list(range(300))}): take another label.")
    'task 7 is finished (finished: [0, 1, 2, 3, 4, 5, ... 299], 300 in all): take another label.'
    """
    if len(message) <= LONGEST_MESSAGE:
        return message
    message = _LIST.sub(_ends_of, message)
    if len(message) <= LONGEST_MESSAGE:
        return message
    gap = " [...] "
    start = 3 * LONGEST_MESSAGE // 5
    return message[:start] + gap + message[len(message) - LONGEST_MESSAGE + start + len(gap) :]


def _ends_of(found: re.Match[str]) -> str:
    entries = found[1].split(", ")
    if len(entries) <= 2 * _FEW:
        return found[0]
    return f"[{', '.join(entries[:_FEW])}, ... {entries[-1]}], {len(entries)} in all"


class CompressError(Exception):
    """Base of every error that this package raises on purpose; messages are :func:`shortened`."""

    def __init__(self, *args: object):
        super().__init__(*(shortened(part) if isinstance(part, str) else part for part in args))


class UnsupportedModuleError(CompressError, TypeError):
    """A module whose weights cannot be kept per task; raised before any training."""


class UnsupportedPluginError(CompressError, TypeError):
    """A plugin or a metric that cannot work with sub-networks that never change."""


class TaskLabelError(CompressError, ValueError):
    """An experience has no task label, or more than one."""


class TaskAlreadyLearnedError(CompressError, ValueError):
    """A committed task was given for training again."""


class TaskStateError(CompressError, RuntimeError):
    """A call came at the wrong moment of a task's life (open, train, shape, commit)."""


class TaskInferenceError(CompressError, ValueError):
    """A task cannot be inferred: no such rule, nothing learned, or nothing kept to compare with."""


class CapacityExhaustedError(CompressError, RuntimeError):
    """No free weights are left for a new task."""


class NonFiniteError(CompressError, ArithmeticError):
    """A loss or a weight is NaN or infinite."""


class ArchiveError(CompressError, ValueError):
    """A compressed file is truncated, altered, of a newer format, or made for another model."""


class ExportError(CompressError, RuntimeError):
    """A task cannot be written in another format: it is not traced, or answers otherwise there."""


class TrainingStateError(CompressError, RuntimeError):
    """A state to go on training from cannot be kept, is damaged, or is of another training."""


class TrainingDataError(CompressError, ValueError):
    """Samples that cannot be trained on: none, too few for BatchNorm, or of other classes."""


class ValidationDataError(CompressError, ValueError):
    """A decision needs held-out data and none was set aside."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like ``name``, as the end of an error message.

    :param name: what was given.
    :param known: what exists.
    :return: `` (did you mean 'x'?)`` or an empty string.

    >>> nearest("packnt", ["wsn", "packnet"])
    " (did you mean 'packnet'?)"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
