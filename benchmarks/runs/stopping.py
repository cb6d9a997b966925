"""Ending when the user or the system says so: Ctrl-C and SIGTERM are one thing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SECOND: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
"""What is done with a further signal of a kind."""


class Terminated(KeyboardInterrupt):
    """The system has asked for the end, by SIGTERM."""


@contextmanager
def stopping() -> Iterator[Callable[[], None]]:
    """Within it SIGTERM raises :class:`Terminated`, as Ctrl-C raises ``KeyboardInterrupt``.

    It gives a check, which raises again what has got lost: Python ignores errors in destructors and
    in callbacks of weak references. A second SIGTERM ends the process at once, whatever it is
    doing. In a thread that is not the main one, which cannot be told of signals, nothing changes.
    """
    received: list[type[KeyboardInterrupt]] = []

    def receive(number: int, frame: FrameType | None) -> None:
        signal.signal(number, _SECOND[number])
        received.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        raise received[0]

    def check() -> None:
        if received:
            raise received[0]

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in _SECOND if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, receive) for number in heard}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(error: KeyboardInterrupt) -> int:
    """What a shell says of a process that a signal has ended: 128 and the signal's number.

    :param error: that ended it.

    >>> exit_code(KeyboardInterrupt()), exit_code(Terminated())
    (130, 143)
    """
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
