"""What can go wrong, by name; messages say what was given, what was expected, and what to do."""

from __future__ import annotations

import difflib
from typing import Iterable


class CompressError(Exception):
    """Base of every error that this package raises on purpose."""


class UnsupportedModuleError(CompressError, TypeError):
    """A module whose weights cannot be kept per task; raised before any training."""


class UnsupportedPluginError(CompressError, TypeError):
    """A plugin or a metric that cannot work beside sub-networks that never change."""


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
