"""Ending when the user or the system says so: Ctrl-C and SIGTERM are one thing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The system has asked for the end, by SIGTERM."""


@contextmanager
def stopping() -> Iterator[None]:
    """Within it SIGTERM raises :class:`Terminated`, as Ctrl-C raises ``KeyboardInterrupt``.

    A second one ends the process at once, whatever it is doing. In a thread that is not the main
    one, which cannot be told of signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(error: KeyboardInterrupt) -> int:
    """What a shell says of a process that a signal has ended: 128 and the signal's number.

    :param error: that ended it.

    >>> exit_code(KeyboardInterrupt()), exit_code(Terminated())
    (130, 143)
    """
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated
