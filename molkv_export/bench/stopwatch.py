"""Where the time of a step goes: a store and a graph that let a stopwatch run while they work."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from molkv_bundle import Arrays, Ids, Records
from molkv_runtime import Call, Graph, Pending, Store


class Stopwatch:
    """Seconds by name, and bytes that were read."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.bytes_read = 0

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time that passes inside of a `with` to the seconds of a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def reset(self) -> None:
        """Set all to zero."""
        self.seconds.clear()
        self.bytes_read = 0


class TimedGraph:
    """A graph whose calls are timed as "graph"."""

    def __init__(self, graph: Graph, stopwatch: Stopwatch) -> None:
        self._graph, self._stopwatch = graph, stopwatch

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind as the graph does."""
        return _TimedCall(self._graph.bind(length, inputs, outputs), self._stopwatch)


class _TimedCall:
    def __init__(self, call: Call, stopwatch: Stopwatch) -> None:
        self._call, self._stopwatch = call, stopwatch

    def run(self) -> None:
        with self._stopwatch.time("graph"):
            self._call.run()


class TimedStore:
    """A store whose reads are timed as "gather": of what is read in the background, the time someone waits for it."""

    def __init__(self, store: Store, stopwatch: Stopwatch) -> None:
        self.vocab_size, self.value_dtype = store.vocab_size, store.value_dtype
        self._store, self._stopwatch = store, stopwatch

    def buffer(self, count: int) -> Records:
        """Allocate memory for some records."""
        return self._store.buffer(count)

    def check_ids(self, ids: npt.NDArray[Any]) -> None:
        """Check that these are token ids."""
        self._store.check_ids(ids)

    def gather(self, ids: Ids, out: Records | None = None) -> Records:
        """Read the records of token ids."""
        with self._stopwatch.time("gather"):
            records = self._store.gather(ids, out)
        self._count(ids, records)
        return records

    def start_gather(self, ids: Ids, out: Records) -> Pending:
        """Begin to read them."""
        self._count(ids, out)
        with self._stopwatch.time("gather"):
            return _TimedPending(self._store.start_gather(ids, out), self._stopwatch)

    def _count(self, ids: Ids, records: Records) -> None:
        self._stopwatch.bytes_read += len(np.unique(ids)) * records.dtype.itemsize


class _TimedPending:
    def __init__(self, pending: Pending, stopwatch: Stopwatch) -> None:
        self._pending, self._stopwatch = pending, stopwatch

    def result(self) -> Records:
        with self._stopwatch.time("gather"):
            return self._pending.result()

    def wait(self) -> None:
        self._pending.wait()
