"""Where the time of a step goes: the store and the graph, with a watch around each."""

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


class Spans:
    """Seconds by name, and bytes that were read."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.bytes_read = 0

    @contextmanager
    def watch(self, name: str) -> Iterator[None]:
        """Add the time that passes to a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def reset(self) -> None:
        """Start again at zero."""
        self.seconds.clear()
        self.bytes_read = 0


class WatchedGraph:
    """A graph whose calls are watched as "graph"."""

    def __init__(self, graph: Graph, spans: Spans) -> None:
        self._graph, self._spans = graph, spans

    def bind(self, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind as the graph does."""
        return _WatchedCall(self._graph.bind(inputs, outputs), self._spans)


class _WatchedCall:
    def __init__(self, call: Call, spans: Spans) -> None:
        self._call, self._spans = call, spans

    def run(self) -> None:
        with self._spans.watch("graph"):
            self._call.run()


class WatchedStore:
    """A store whose reads are watched as "gather": of what is read in the background, the time someone waits for it."""

    def __init__(self, store: Store, spans: Spans) -> None:
        self.vocab_size, self.value_dtype = store.vocab_size, store.value_dtype
        self._store, self._spans = store, spans

    def buffer(self, count: int) -> Records:
        """Allocate memory for some records."""
        return self._store.buffer(count)

    def check_ids(self, ids: npt.NDArray[Any]) -> None:
        """Check that these are token ids."""
        self._store.check_ids(ids)

    def gather(self, ids: Ids, out: Records | None = None) -> Records:
        """Read the records of token ids."""
        with self._spans.watch("gather"):
            records = self._store.gather(ids, out)
        self._count(ids, records)
        return records

    def start_gather(self, ids: Ids, out: Records) -> Pending:
        """Begin to read them."""
        self._count(ids, out)
        with self._spans.watch("gather"):
            return _WatchedPending(self._store.start_gather(ids, out), self._spans)

    def _count(self, ids: Ids, records: Records) -> None:
        self._spans.bytes_read += len(np.unique(ids)) * records.dtype.itemsize


class _WatchedPending:
    def __init__(self, pending: Pending, spans: Spans) -> None:
        self._pending, self._spans = pending, spans

    def result(self) -> Records:
        with self._spans.watch("gather"):
            return self._pending.result()

    def wait(self) -> None:
        self._pending.wait()
