"""Writing the expert store (`docs/bundle-format.md`, "The expert store"): compute, quantize, check, hash, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from molkv_bundle import (
    ROW_FORMATS,
    CheckpointError,
    FileInfo,
    Records,
    RowDtype,
    Shard,
    StoreInfo,
    checksum,
    record_bytes,
    record_dtype,
    shard_header,
)
from molkv_export.tables.direct_file import DirectFile, aligned_zeros
from molkv_export.tables.plan import SLABS
from molkv_export.tables.quantize import quantize
from molkv_export.tables.rows import RowSource


def write_store(
    source: RowSource,
    store: StoreInfo,
    slab_ids: int,
    folder: Path,
    *,
    finished: dict[str, FileInfo],
    finish: Callable[[str, FileInfo], None],
    advance: Callable[[int], object],
) -> None:
    """Write all shards that are not finished.

    The calling thread fills slabs of records. A second thread adds checksums to each slab, a third one writes the
    slabs, shard by shard, and a fourth one hashes what the third one writes.

    Args:
        source: Where the rows come from.
        store: From `plan_store`.
        slab_ids: Records in a slab, from `plan_memory`.
        folder: Where the shards go.
        finished: Shards that are there already.
        finish: Told size and hash of every other shard, once it is safe on the disk; called by the third thread.
        advance: Told the number of bytes after each piece is written; called by the third thread.

    Raises:
        CheckpointError: A value does not fit the store's dtype.
        OSError: The disk is full, or fails.
    """
    shards = [shard for shard in store.shards if shard.file not in finished]
    slabs = _Slabs(slab_ids, record_dtype(source.config, store.dtype))

    def write_shards() -> None:
        for shard in shards:
            finish(shard.file, write_shard(shard, store, folder, slabs, advance))

    threads = nullcontext() if source.loads_networks else _one_torch_thread()
    with threads, ThreadPoolExecutor(1, "checksums") as checker, ThreadPoolExecutor(1, "write") as writer:
        try:
            writing = writer.submit(write_shards)
            writing.add_done_callback(lambda _: slabs.end_filling())
            _fill_shards(shards, source, store, slabs, checker)
            writing.result()
        finally:
            slabs.end_writing()


class _FilledSlab(NamedTuple):
    slab: Records  # [slab_ids], of which the first ones are filled
    data: Future[memoryview]  # the bytes of these, once they have their checksums


class _Slabs:
    """The memory for records: one thread takes a free slab and fills it, another one writes and frees it."""

    def __init__(self, slab_ids: int, dtype: np.dtype[Any]) -> None:
        self.slab_ids = slab_ids
        self.free: SimpleQueue[Records | None] = SimpleQueue()  # None: nobody will write what is filled
        self.filled: SimpleQueue[_FilledSlab | None] = SimpleQueue()  # None: nobody fills any more
        for _ in range(SLABS):
            self.free.put(aligned_zeros(slab_ids, dtype))  # zeros: records end with padding

    def end_filling(self) -> None:
        """Let the thread that fills not wait for slabs that nobody will free."""
        self.free.put(None)

    def end_writing(self) -> None:
        """Let the thread that writes not wait for slabs that nobody will fill."""
        self.filled.put(None)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Copying rows needs no second thread, and PyTorch's wait for work by spinning, which slows down the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fill_shards(
    shards: Sequence[Shard], source: RowSource, store: StoreInfo, slabs: _Slabs, checker: ThreadPoolExecutor
) -> None:
    """Fill the records of some shards, slab by slab; return early if writing them has failed."""
    for shard in shards:
        stop = shard.first_id + shard.count
        for start in range(shard.first_id, stop, slabs.slab_ids):
            slab = slabs.free.get()
            if slab is None:
                return
            records = slab[: stop - start]
            fill(records, source, store.dtype, start)
            slabs.filled.put(_FilledSlab(slab, checker.submit(_add_checksums, records, store.stride)))


def _add_checksums(records: Records, stride: int) -> memoryview:
    data = record_bytes(records)
    records["checksum"] = [checksum(data[start : start + stride]) for start in range(0, len(data), stride)]
    return data


def write_shard(
    shard: Shard, store: StoreInfo, folder: Path, slabs: _Slabs, advance: Callable[[int], object]
) -> FileInfo:
    """Write one shard, of slabs that another thread fills at the same time; return when it is safe on the disk."""
    digest, hashed = hashlib.sha256(), list[Future[None]]()
    with closing(DirectFile(folder / shard.file)) as file, ThreadPoolExecutor(1, "hash") as hasher:

        def write(data: memoryview) -> None:
            hashed.append(hasher.submit(digest.update, data))
            while data:
                count = file.write(data)
                advance(count)
                data = data[count:]

        write(memoryview(shard_header(shard, store)))
        for _ in range(0, shard.count, slabs.slab_ids):
            filled = slabs.filled.get()
            if filled is None:
                raise CancelledError
            write(filled.data.result())
            hasher.submit(slabs.free.put, filled.slab)  # it is written, and hashed when this thread comes to it
        size = file.sync()
        for hashing in hashed:
            hashing.result()
    return FileInfo(size=size, sha256=digest.hexdigest())


@torch.no_grad()
def fill(records: Records, source: RowSource, dtype: RowDtype, start: int) -> None:
    """Fill records [n] with the rows of the token ids from `start` on.

    Raises:
        CheckpointError: A value is more than the dtype can hold.
    """
    stop = start + len(records)
    plain: RowDtype = ROW_FORMATS[dtype].plain
    for first in range(start, stop, source.ids_at_once):
        last = min(stop, first + source.ids_at_once)
        place = slice(first - start, last - start)
        _put(records["embedding"][place], source.embedding(first, last), plain, "embedding", first)
    scales = {vector.name: vector.scale for vector in source.config.record_vectors() if ROW_FORMATS[dtype].scale}
    for piece in source.pieces(start, stop):
        place = slice(piece.first_id - start, piece.first_id - start + len(piece.rows))
        rows = records["layers"][place, source.config.layers_with_experts.index(piece.layer)]
        scale = scales.get(piece.vector, "")
        _put(
            rows[piece.vector][:, piece.experts],
            piece.rows,
            dtype if scale else plain,
            f"expert_{piece.vector} of layer {piece.layer}",
            piece.first_id,
            rows[scale][:, piece.experts] if scale else None,
        )


def _put(
    out: npt.NDArray[Any],
    rows: Tensor,
    dtype: RowDtype,
    name: str,
    first_id: int,
    scale_out: npt.NDArray[Any] | None = None,
) -> None:
    target = torch.from_numpy(out)
    if scale_out is None:
        # Rounding keeps the order, so it is enough to look at the smallest and the largest number.
        limits = torch.stack(torch.aminmax(rows)).to(target.dtype)
        target.copy_(rows)
    else:
        value, scale = quantize(rows, dtype)
        target.copy_(value)
        torch.from_numpy(scale_out).copy_(scale)
        limits = torch.stack(torch.aminmax(scale))
    if not torch.isfinite(limits).all():
        largest = rows.abs().flatten(1).amax(1)
        row = int(largest.argmax())
        raise CheckpointError(
            f"{name} of token id {first_id + row} has values up to {largest[row].item():.3g}, "
            f"more than {dtype} can hold; export with --experts-dtype float32"
        )
