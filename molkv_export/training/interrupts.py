"""Delaying signals to the end of a training step, so that the state is saved between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interrupts:
    """An object that tells whether a signal arrived while signals were held."""

    def __init__(self) -> None:
        self.came = False

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        """Record the first signal; at the second signal, raise KeyboardInterrupt."""
        if self.came:
            raise KeyboardInterrupt
        self.came = True


@contextmanager
def hold_interrupts() -> Iterator[Interrupts]:
    """Hold SIGINT, SIGTERM and SIGHUP in a `with` block; the block reads `came` at points where it can stop.

    Signals that the process ignores stay ignored, and signals without a Python handler keep their effect. In threads
    other than the main thread, no signal is held, since only the main thread of Python can handle signals.

    Raises:
        KeyboardInterrupt: A signal came, and the block has ended without another exception.
    """
    interrupts = Interrupts()
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            # Only handlers that are Python functions are replaced. Ignored signals, default actions and handlers in C
            # (for which `getsignal` returns None) stay in place.
            if number is not None and callable(signal.getsignal(number)):
                handlers[number] = signal.signal(number, interrupts.note)
    try:
        yield interrupts
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if interrupts.came:
        raise KeyboardInterrupt
