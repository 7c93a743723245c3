"""The states of earlier calls, which later prompts with the same beginning reuse."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import NamedTuple

from molkv_bundle import Ids
from molkv_runtime.continuation import WORTHWHILE
from molkv_runtime.sequences import Sequences


class Match(NamedTuple):
    """A sequence that begins like a prompt."""

    state: Sequences
    sequence: int
    common: int  # number of equal token ids at the start

    @property
    def is_most_of_the_state(self) -> bool:
        """Whether the state holds little else than the common prefix. It then need not be kept for other prompts."""
        return len(self.state.lengths) == 1 and 2 * self.common >= int(self.state.lengths[0])


class PrefixCache:
    """States of calls that have ended, at most `max_bytes` together. The least recently used state is dropped first.

    Several threads may use an object of this class.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._states: list[Sequences] = []  # in the order of their last use
        # An iterator that the garbage collector ends returns its state at any time, even while this thread has the
        # lock. A SimpleQueue allows that.
        self._returned: SimpleQueue[Sequences] = SimpleQueue()

    def put(self, state: Sequences) -> None:
        """Keep a state. The caller must not use it any more."""
        if state.state_bytes <= self._max_bytes:
            state.trim()
            self._returned.put(state)
            if self._lock.acquire(blocking=False):
                try:
                    self._tidy()
                finally:
                    self._lock.release()

    def take(self, prompt: Ids) -> Match | None:
        """Remove and return the state with the longest common prefix with a prompt; None if no prefix is worthwhile."""
        with self._lock:
            self._tidy()
            matches = (Match(state, *state.longest_match(prompt)) for state in self._states)
            found = max(matches, key=lambda each: each.common, default=None)
            if found is None or found.common < WORTHWHILE:
                return None
            self._states = [state for state in self._states if state is not found.state]
            return found

    def clear(self) -> None:
        """Drop all states."""
        with self._lock:
            self._tidy()
            self._states.clear()

    def _tidy(self) -> None:
        """Add the returned states, and drop the oldest states that exceed the limit."""
        while not self._returned.empty():
            self._states.append(self._returned.get())
        total = sum(state.state_bytes for state in self._states)
        while total > self._max_bytes:
            total -= self._states.pop(0).state_bytes
