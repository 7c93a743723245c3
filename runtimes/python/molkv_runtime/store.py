"""The expert store, which reads the records of token ids from flash."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from molkv_bundle import (
    MANIFEST,
    Access,
    ArgumentError,
    Bundle,
    Ids,
    OpenShard,
    Records,
    RequestError,
    RowDtype,
    checked_record_dtype,
    record_bytes,
)
from molkv_runtime.checks import InOneProcess

# Flash serves many requests in parallel. No measured disk was faster with more threads (docs/store-performance.md).
READ_THREADS = 16
_READS_PER_THREAD = 8  # with fewer reads, starting a thread takes longer than it saves
_LONGEST_READ = 1024 * 1024  # bytes; longer runs of consecutive records are split, so that more threads can read


class _Read(NamedTuple):
    """Consecutive records of one shard that one call reads."""

    shard: OpenShard
    token: int  # the token id of the first record
    records: list[memoryview]  # a buffer for each record


class Gathering(NamedTuple):
    """A read of records into a buffer, which is in progress."""

    out: Records
    reads: list[_Read]
    repeats: Ids  # rows of `out` whose token id is also in an earlier row; their records are copied, not read
    sources: Ids  # for each row in `repeats`, the row with the same token id whose record is read
    work: list[Future[None]]

    def result(self) -> Records:
        """Wait until all records are read, and return the buffer.

        Raises:
            BundleError: A record cannot be read, or its checksum is wrong.
        """
        self.wait()
        for work in self.work:
            work.result()
        if len(self.repeats):
            rows = self.out.view(np.uint8).reshape(len(self.out), -1)
            rows[self.repeats] = rows[self.sources]
        return self.out

    def wait(self) -> None:
        """Wait until no thread writes to the buffer any more. This ignores errors."""
        for work in self.work:
            work.exception()


class Pending(Protocol):
    """A read of records that is in progress."""

    def result(self) -> Records:
        """Wait until all records are read, and return them."""

    def wait(self) -> None:
        """Wait until no thread reads any more. This ignores errors."""


class Store(Protocol):
    """A source of records. For the methods see `ExpertStore`."""

    vocab_size: int
    value_dtype: RowDtype

    def buffer(self, count: int) -> Records:
        """Allocate memory for `count` records."""

    def gather(self, ids: Ids, out: Records | None = None) -> Records:
        """Read the records of token ids."""

    def start_gather(self, ids: Ids, out: Records) -> Pending:
        """Start to read the records of token ids in the background."""

    def check_ids(self, ids: npt.NDArray[Any]) -> None:
        """Check that these are token ids of the vocabulary."""


class RecordReader(InOneProcess):
    """The common part of the sources of a bundle's records."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        table = bundle.manifest.experts
        self.record_dtype = checked_record_dtype(bundle.config, table, f"{bundle.where}/{MANIFEST}")
        self.value_dtype: RowDtype = table.dtype
        self.vocab_size = bundle.config.vocab_size

    def buffer(self, count: int) -> Records:
        """Return new memory for `count` records, to gather into."""
        return np.empty(count, self.record_dtype)

    def check_ids(self, ids: npt.NDArray[Any]) -> None:
        """Check that these are token ids of the vocabulary.

        Raises:
            RequestError: An id is not an integer, or is outside the vocabulary.
        """
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise RequestError(f"token ids have dtype {ids.dtype}, expected integers")
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if wrong.size:
            raise RequestError(
                f"token id {wrong.flat[0]} is outside the vocabulary, expected 0 to {self.vocab_size - 1}"
            )

    def log_reads(self) -> None:
        """Log what came over the network so far. Nothing does, except in a `RemoteStore`."""


class ExpertStore(RecordReader, AbstractContextManager["ExpertStore"]):
    """The open shards of a bundle. They use no RAM except the operating system's page cache."""

    def __init__(self, bundle: Bundle, *, access: Access = "pread", verify_checksums: bool = True) -> None:
        """Open all shards and check that they agree with the manifest.

        Args:
            bundle: The bundle.
            access: "pread" for positioned reads; "mmap" to copy from a memory map.
            verify_checksums: Whether to check the checksum of each record when it is read.

        Raises:
            BundleError: A shard is damaged or does not agree with the manifest.
        """
        super().__init__(bundle)
        table = bundle.manifest.experts
        self._shards: list[OpenShard] = []
        try:
            for shard in table.shards:
                self._shards.append(OpenShard(bundle.path / shard.file, shard, table, access, verify_checksums))
        except BaseException:
            self._close_shards()
            raise
        self._first_rows = [shard.first_row for shard in table.shards]
        self._pool = ThreadPoolExecutor(READ_THREADS, "expert-store")  # starts its threads on first use

    def gather(self, ids: Ids, out: Records | None = None) -> Records:
        """Read the records of token ids [n]. Each distinct id is read once, in file order, with many reads in parallel.

        Args:
            ids: Token ids.
            out: A `buffer` of at least n records; default: a new one. With one id and `out`, nothing is allocated.

        Returns:
            Structured array [n], the first n records of `out`.

        Raises:
            RequestError: An id is outside the vocabulary.
            BundleError: A record cannot be read, or its checksum is wrong.
        """
        out = self.buffer(len(ids)) if out is None else out[: len(ids)]
        if len(ids) == 1:
            token = self._checked(ids)
            self._shard(token).read(token, [record_bytes(out)])
            return out
        self.check_ids(ids)
        gathering = self._plan(ids, out)
        if len(gathering.reads) > _READS_PER_THREAD:
            gathering = self._start(gathering)
        else:
            _perform(gathering.reads)
        return gathering.result()

    def start_gather(self, ids: Ids, out: Records) -> Gathering:
        """Start to read in the background. For the arguments see `gather`. Do not use `out` before the read is done."""
        self.check_ids(ids)
        return self._start(self._plan(ids, out[: len(ids)]))

    def _plan(self, ids: Ids, out: Records) -> Gathering:
        tokens, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        sources = first[inverse]
        repeats = np.flatnonzero(sources != np.arange(len(ids)))
        reads = list(self._reads(tokens.tolist(), first.tolist(), record_bytes(out)))
        return Gathering(out, reads, repeats, sources[repeats], [])

    def _start(self, gathering: Gathering) -> Gathering:
        self.check_process()
        reads = gathering.reads
        threads = min(READ_THREADS, -(-len(reads) // _READS_PER_THREAD))
        # The reads of each thread are spread over the whole file, so the threads finish at about the same time.
        return gathering._replace(work=[self._pool.submit(_perform, reads[index::threads]) for index in range(threads)])

    def _reads(self, tokens: list[int], rows: list[int], memory: memoryview) -> Iterator[_Read]:
        """Yield reads for ascending token ids, each into its row in `memory`. Consecutive ids share a read."""
        stride = self.record_dtype.itemsize
        longest = min(max(1, _LONGEST_READ // stride), 512)  # buffers of one call; the system's limit is 1,024
        shard: OpenShard | None = None
        waiting: list[memoryview] = []
        start = 0
        for token, row in zip(tokens, rows, strict=True):
            owner = self._shard(token)
            if owner is not shard or token != start + len(waiting) or len(waiting) == longest:
                if shard is not None:
                    yield _Read(shard, start, waiting)
                shard, waiting, start = owner, [], token
            waiting.append(memory[row * stride : (row + 1) * stride])
        if shard is not None:
            yield _Read(shard, start, waiting)

    def _checked(self, one: Ids) -> int:
        """Check a single token id as `check_ids` does, but ten times as fast. Return the id."""
        token = one.item()
        if type(token) is not int or not 0 <= token < self.vocab_size:
            self.check_ids(one)
        return token

    def _shard(self, token: int) -> OpenShard:
        return self._shards[bisect_right(self._first_rows, token) - 1]

    def close(self) -> None:
        """Close all shards."""
        self._pool.shutdown()
        self._close_shards()

    def _close_shards(self) -> None:
        for shard in self._shards:
            shard.close()
        self._shards.clear()

    def __exit__(self, *_: object) -> None:
        self.close()


def _perform(reads: list[_Read]) -> None:
    for read in reads:
        read.shard.read(read.token, read.records)


def open_store(bundle: Bundle, *, access: Access = "pread", verify_checksums: bool = True) -> Store:
    """Open the store of a bundle: an `ExpertStore`, or a `RemoteStore` if the bundle is remote.

    Args:
        bundle: The bundle.
        access: How to read records, see `ExpertStore`. A remote store has only "pread".
        verify_checksums: Whether to check the checksum of each record when it is read.

    Raises:
        BundleError: A shard is damaged or does not agree with the manifest.
        ArgumentError: This store cannot be read with this `access`.
    """
    if bundle.remote is None:
        return ExpertStore(bundle, access=access, verify_checksums=verify_checksums)
    if access != "pread":
        raise ArgumentError("store_access", access, "pread for a remote bundle")
    from molkv_runtime.remote_store import RemoteStore  # imports SQLite, which few programs need

    return RemoteStore(bundle, verify_checksums=verify_checksums)
