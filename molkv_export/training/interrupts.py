"""Interrupts that wait for the end of a training step, so that the state is saved between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interrupts:
    """The signals that came while they were held."""

    def __init__(self) -> None:
        self.came = False

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        """Remember the first signal. A second one interrupts at once."""
        if self.came:
            raise KeyboardInterrupt
        self.came = True


@contextmanager
def hold_interrupts() -> Iterator[Interrupts]:
    """Hold SIGINT, SIGTERM and SIGHUP; the block asks `came` at a point where it can stop.

    Signals that the process ignores stay ignored. Python lets only the main thread handle signals: in other threads
    nothing is held.
    """
    interrupts = Interrupts()
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            # A handler that is not Python's own (None), or no handler at all, is left as it is.
            if number is not None and callable(signal.getsignal(number)):
                handlers[number] = signal.signal(number, interrupts.note)
    try:
        yield interrupts
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
