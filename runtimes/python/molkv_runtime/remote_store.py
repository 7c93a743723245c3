"""The store of a remote bundle: records come by range requests, and are kept in a cache on the disk."""

from __future__ import annotations

import hashlib
import logging
import threading
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from molkv_bundle import Bundle, BundleError, Ids, Records, RemoteShard, cache_folder, record_bytes
from molkv_runtime.record_cache import RecordCache
from molkv_runtime.store import Pending, RecordReader

CACHE_BYTES = 256 * 1024**2  # of the records of one store; the cache in browsers has the same limit
_REQUESTS = 16  # at the same time
_LONGEST_RUN = 1024 * 1024  # bytes; longer runs are divided, and read in parallel
_LOG = logging.getLogger(__name__)

_Loaded = dict[int, memoryview]  # records by row


class Counts(NamedTuple):
    """What a store has read so far."""

    hits: int = 0  # records that were in the cache
    misses: int = 0  # records that came over the network
    requests: int = 0
    received: int = 0  # bytes of the answers


class _Run(NamedTuple):
    """Consecutive records of one shard, which one request reads."""

    shard: RemoteShard
    row: int
    length: int


class _Gathering(NamedTuple):
    """A read in another thread; see `Pending`."""

    work: Future[Records]

    def result(self) -> Records:
        return self.work.result()

    def wait(self) -> None:
        wait([self.work])


class RemoteStore(RecordReader, AbstractContextManager["RemoteStore"]):
    """The records of a remote bundle. Several threads may use it. No record is downloaded twice at the same time."""

    def __init__(self, bundle: Bundle, *, verify_checksums: bool = True, cache_bytes: int = CACHE_BYTES) -> None:
        """Open the cache. Nothing is read over the network.

        Args:
            bundle: A remote bundle.
            verify_checksums: Whether to check the checksums of records from the cache. Records from the network are
                checked in any case.
            cache_bytes: The size of the records that the cache keeps.

        Raises:
            BundleError: The layout of the records does not agree with the model.
        """
        assert bundle.remote is not None
        super().__init__(bundle)
        table, self._stride = bundle.manifest.experts, bundle.manifest.experts.stride
        self._shards = [RemoteShard(bundle.remote, shard, table) for shard in table.shards]
        self._first_rows = [shard.first_row for shard in table.shards]
        # A table's id is not enough: on different processors, the records of a table may be rounded differently.
        hashes = "".join(bundle.manifest.files[shard.file].sha256 for shard in table.shards)
        name = hashlib.sha256((table.id + hashes).encode()).hexdigest()
        self._cache = RecordCache(cache_folder() / "records" / f"{name}.sqlite", cache_bytes // self._stride)
        self._verify_checksums = verify_checksums
        self._lock = threading.Lock()  # of the cache, the counts, and the requests by row
        self._counts = Counts()
        self._loading: dict[int, Future[_Loaded]] = {}
        self._requests = ThreadPoolExecutor(_REQUESTS, "remote-store")
        self._gathers = ThreadPoolExecutor(_REQUESTS, "remote-gather")  # these wait for requests

    @property
    def counts(self) -> Counts:
        """What the store has read so far."""
        return self._counts

    def log_reads(self) -> None:
        """Log what was read so far."""
        _LOG.info("records: %d from the cache, %d over the network, in %d requests of %d bytes", *self._counts)

    def gather(self, ids: Ids, out: Records | None = None) -> Records:
        """Read the records of token ids [n]. Each distinct id is read once, with several requests at a time.

        For the arguments and the errors see `ExpertStore.gather`. A BundleError also means that the server does not
        answer, or that a record is damaged in two answers.
        """
        self.check_process()
        self.check_ids(ids)
        out = self.buffer(len(ids)) if out is None else out[: len(ids)]
        tokens = ids.tolist()
        found = self._records(sorted(set(tokens)))
        memory, stride = record_bytes(out), self._stride
        for index, token in enumerate(tokens):
            memory[index * stride : (index + 1) * stride] = found[token]
        return out

    def start_gather(self, ids: Ids, out: Records) -> Pending:
        """Start to read in the background. For the arguments see `gather`. Do not use `out` before the read is done."""
        self.check_process()
        self.check_ids(ids)
        return _Gathering(self._gathers.submit(self.gather, np.array(ids), out))

    def _records(self, rows: list[int]) -> _Loaded:
        """Return the records of rows, which are in ascending order and distinct."""
        with self._lock:
            found = self._from_cache(rows)
            missing = [row for row in rows if row not in found]
            runs = list(self._runs([row for row in missing if row not in self._loading]))
            for run in runs:
                work = self._requests.submit(self._load, run)
                self._loading |= dict.fromkeys(range(run.row, run.row + run.length), work)
            waiting = {row: self._loading[row] for row in missing}
            hits, misses, requests, received = self._counts
            self._counts = Counts(hits + len(found), misses + sum(run.length for run in runs), requests, received)
        for row, work in waiting.items():
            found[row] = work.result()[row]
        return found

    def _from_cache(self, rows: list[int]) -> _Loaded:
        found = self._cache.get(rows)
        return {row: record for row, record in found.items() if self._is_usable(row, record)}

    def _is_usable(self, row: int, record: memoryview) -> bool:
        is_whole = len(record) == self._stride
        return is_whole and (not self._verify_checksums or self._shard(row).is_sound(row, record))

    def _runs(self, rows: list[int]) -> Iterator[_Run]:
        """Yield the runs that cover rows, which are in ascending order."""
        longest = max(1, _LONGEST_RUN // self._stride)
        while rows:
            shard, count = self._shard(rows[0]), 1
            limit = min(longest, shard.stop_row - rows[0], len(rows))
            while count < limit and rows[count] == rows[0] + count:
                count += 1
            yield _Run(shard, rows[0], count)
            rows = rows[count:]

    def _load(self, run: _Run) -> _Loaded:
        """Read a run, and put its records into the cache."""
        sound: _Loaded = {}
        try:
            sound = self._read(run)
        finally:
            with self._lock:
                self._cache.put(sound)
                for row in range(run.row, run.row + run.length):
                    del self._loading[row]
        return sound

    def _read(self, run: _Run) -> _Loaded:
        for _ in range(2):  # an answer can be damaged on its way
            records = run.shard.read(run.row, run.length)
            with self._lock:
                hits, misses, requests, received = self._counts
                self._counts = Counts(hits, misses, requests + 1, received + run.length * self._stride)
            damaged = [row for row, record in records.items() if not run.shard.is_sound(row, record)]
            if not damaged:
                return records
        raise BundleError(run.shard.damage(damaged[0]))

    def _shard(self, row: int) -> RemoteShard:
        return self._shards[bisect_right(self._first_rows, row) - 1]

    def close(self) -> None:
        """Wait for the requests that run, and close the cache."""
        self._gathers.shutdown()
        self._requests.shutdown()
        self._cache.close()

    def __exit__(self, *_: object) -> None:
        self.close()
