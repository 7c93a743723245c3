"""A driver in a separate process, with records from storage or with all records in RAM.

`python -m benchmarks.store.driver_process BUNDLE storage|ram` reads orders and writes answers, each one line of JSON.

    order:   {"drop": whether to empty the page cache first, "seed": seed, "prompt": tokens, "steps": tokens}
    answer:  {"prefill": seconds, "decode": seconds}
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from molkv_bundle import Ids, Records, RowDtype
from molkv_export.bench.machine import drop_from_page_cache
from molkv_runtime import Generator, Store


class _Copied(NamedTuple):
    """A finished read of records."""

    records: Records

    def result(self) -> Records:
        """Return the records."""
        return self.records

    def wait(self) -> None:
        """Return at once."""


class RecordsInRam:
    """An expert store whose records are all in RAM."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.vocab_size = store.vocab_size
        self.value_dtype: RowDtype = store.value_dtype
        self._records = store.buffer(store.vocab_size)
        for start in range(0, store.vocab_size, 4096):
            stop = min(store.vocab_size, start + 4096)
            store.gather(np.arange(start, stop), self._records[start:])
        self._bytes = self._records.view(np.uint8).reshape(len(self._records), -1)

    def buffer(self, count: int) -> Records:
        """Return new memory for `count` records."""
        return self._store.buffer(count)

    def check_ids(self, ids: npt.NDArray[Any]) -> None:
        """Check that these are token ids of the vocabulary."""
        self._store.check_ids(ids)

    def gather(self, ids: Ids, out: Records | None = None) -> Records:
        """Copy the records of token ids to `out`."""
        if out is None:
            out = self.buffer(len(ids))
        rows = out.view(np.uint8).reshape(len(out), -1)
        np.take(self._bytes, ids, axis=0, out=rows[: len(ids)], mode="clip")
        return out[: len(ids)]

    def start_gather(self, ids: Ids, out: Records) -> _Copied:
        """Copy the records of token ids to `out` at once."""
        return _Copied(self.gather(ids, out))


def main() -> None:
    """Answer each line of JSON with a line of JSON."""
    bundle, mode = sys.argv[1:]
    generator = Generator(bundle)
    paths = [generator.bundle.path / shard.file for shard in generator.bundle.manifest.experts.shards]
    if mode == "ram":
        generator.store = RecordsInRam(generator.store)
        drop_from_page_cache(paths)
    state = generator.sequences(max_length=1024)
    vocab_size = generator.config.vocab_size
    state.prefill(0, np.arange(64))
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["drop"]:
            drop_from_page_cache(paths)
        random = np.random.default_rng(order["seed"])
        state.lengths[:] = 0
        prompt = random.integers(0, vocab_size, order["prompt"])
        ids = random.integers(0, vocab_size, (order["steps"], 1))
        start = time.perf_counter()
        state.prefill(0, prompt)
        first = time.perf_counter()
        for one in ids:
            state.decode(one)
        end = time.perf_counter()
        print(json.dumps({"prefill": first - start, "decode": end - first}), flush=True)


if __name__ == "__main__":
    main()
