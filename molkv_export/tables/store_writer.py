"""Writing the expert store (`docs/bundle-format.md`, "The expert store"): compute, quantize, check, hash, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from molkv_bundle import (
    ROW_FORMATS,
    CheckpointError,
    FileInfo,
    Records,
    RowDtype,
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

    A slab of records is filled while the one before it gets its checksums, and the one before that is written and
    hashed; at the same time finished shards are brought to the disk.

    Args:
        source: Where the rows come from.
        store: From `plan_store`.
        slab_ids: Records in a slab, from `plan_memory`.
        folder: Where the shards go.
        finished: Shards that are there already.
        finish: Told size and hash of every other shard, once it is safe on the disk.
        advance: Told the number of bytes after each piece is written.

    Raises:
        CheckpointError: A value does not fit the store's dtype.
        OSError: The disk is full, or fails.
    """
    dtype = record_dtype(source.config, store.dtype)
    slabs = [aligned_zeros(slab_ids, dtype) for _ in range(SLABS)]  # zeros: records end with padding
    written: list[Future[Future[None]]] = []  # each gives the end of hashing
    safe: list[Future[None]] = []
    with ExitStack() as stack:
        if not source.loads_networks:
            stack.enter_context(_one_torch_thread())
        # Entered last, so left first: files are closed when no thread uses them any more.
        files = stack.enter_context(ExitStack())
        hasher = stack.enter_context(ThreadPoolExecutor(1, "hash"))
        writer = stack.enter_context(ThreadPoolExecutor(1, "write"))
        checker = stack.enter_context(ThreadPoolExecutor(1, "checksums"))
        syncer = stack.enter_context(ThreadPoolExecutor(1, "sync"))
        for shard in store.shards:
            if shard.file in finished:
                continue
            output = _ShardOutput(folder / shard.file, hasher, advance)
            files.callback(output.close)
            output.put(memoryview(shard_header(shard, store))).result()
            for start in range(shard.first_id, shard.first_id + shard.count, slab_ids):
                if len(written) >= SLABS:
                    written[-SLABS].result().result()  # its slab is free again
                records = slabs[len(written) % SLABS][: min(slab_ids, shard.first_id + shard.count - start)]
                fill(records, source, store.dtype, start)
                checked = checker.submit(_add_checksums, records, store.stride)
                written.append(writer.submit(output.write, checked))
            safe.append(syncer.submit(_finish, written[-1], output, finish))
        for work in safe:
            work.result()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Copying rows needs no second thread, and PyTorch's wait for work by spinning, which slows down the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _add_checksums(records: Records, stride: int) -> memoryview:
    data = record_bytes(records)
    records["checksum"] = [checksum(data[start : start + stride]) for start in range(0, len(data), stride)]
    return data


def _finish(last_write: Future[Future[None]], output: _ShardOutput, finish: Callable[[str, FileInfo], None]) -> None:
    last_write.result().result()
    finish(output.path.name, output.finish())


class _ShardOutput:
    """A shard's file while it is written."""

    def __init__(self, path: Path, hasher: ThreadPoolExecutor, advance: Callable[[int], object]) -> None:
        self.path, self._hasher, self._advance = path, hasher, advance
        self._file = DirectFile(path)
        self._digest = hashlib.sha256()

    def write(self, data: Future[memoryview]) -> Future[None]:
        """Write what comes; gives the end of hashing, which may be later."""
        return self.put(data.result())

    def put(self, data: memoryview) -> Future[None]:
        """Write some bytes, and hash them at the same time or later."""
        hashing = self._hasher.submit(self._digest.update, data)
        while data:
            count = self._file.write(data)
            self._advance(count)
            data = data[count:]
        return hashing

    def finish(self) -> FileInfo:
        """Bring the file to the disk."""
        size = self._file.sync()
        self.close()
        return FileInfo(size=size, sha256=self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()


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
