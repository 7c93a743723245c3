"""A stopwatch, and wrappers of a store and a graph that measure the time of all calls."""

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
    """Seconds by name, and the number of bytes read."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.bytes_read = 0

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the duration of a `with` block to the seconds of a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def reset(self) -> None:
        """Set all seconds and the bytes to zero."""
        self.seconds.clear()
        self.bytes_read = 0


class TimedGraph:
    """A graph that times its calls under the name "graph"."""

    def __init__(self, graph: Graph, stopwatch: Stopwatch) -> None:
        self._graph, self._stopwatch = graph, stopwatch

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind buffers of the wrapped graph; return a timed call."""
        return _TimedCall(self._graph.bind(length, inputs, outputs), self._stopwatch)


class _TimedCall:
    def __init__(self, call: Call, stopwatch: Stopwatch) -> None:
        self._call, self._stopwatch = call, stopwatch

    def run(self) -> None:
        with self._stopwatch.time("graph"):
            self._call.run()


class TimedStore:
    """A store that times its reads under the name "gather". For a background read, only the waiting time counts."""

    def __init__(self, store: Store, stopwatch: Stopwatch) -> None:
        self.vocab_size, self.value_dtype = store.vocab_size, store.value_dtype
        self._store, self._stopwatch = store, stopwatch

    def buffer(self, count: int) -> Records:
        """Allocate memory for a number of records."""
        return self._store.buffer(count)

    def check_ids(self, ids: npt.NDArray[Any]) -> None:
        """Check that an array holds valid token ids."""
        self._store.check_ids(ids)

    def gather(self, ids: Ids, out: Records | None = None) -> Records:
        """Read the records of token ids."""
        with self._stopwatch.time("gather"):
            records = self._store.gather(ids, out)
        self._count(ids, records)
        return records

    def start_gather(self, ids: Ids, out: Records) -> Pending:
        """Start to read the records of token ids in the background."""
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
