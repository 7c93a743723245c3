"""Writing a table (`docs/bundle-format.md`, "Tables"): compute, quantize, check, hash, write."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from molkv_bundle import (
    ROW_FORMATS,
    CheckpointError,
    FileInfo,
    RecordChecksum,
    Records,
    RowDtype,
    Shard,
    Table,
    record_bytes,
    record_dtype,
    shard_header,
)
from molkv_export.tables.direct_file import DirectFile, aligned_zeros
from molkv_export.tables.plan import SLABS
from molkv_export.tables.quantize import quantize
from molkv_export.tables.rows import RowSource


def write_table(
    source: RowSource,
    table: Table,
    slab_ids: int,
    folder: Path,
    *,
    finished: dict[str, FileInfo],
    finish: Callable[[str, FileInfo], None],
    advance: Callable[[int], object],
) -> None:
    """Write all shards that are not finished, one after the other.

    Args:
        source: Where the rows come from.
        table: From `plan_table`, with its id.
        slab_ids: Records in a slab, from `plan_memory`.
        folder: Where the shards go.
        finished: Shards that are there already.
        finish: Told size and hash of every other shard, once it is safe on the disk.
        advance: Told the number of bytes after each piece is written, from another thread.

    Raises:
        CheckpointError: A value does not fit the table's dtype.
        OSError: The disk is full, or fails.
    """
    dtype = record_dtype(source.config, table.dtype)
    slabs = [aligned_zeros(slab_ids, dtype) for _ in range(SLABS)]  # zeros: records end with padding
    with nullcontext() if source.loads_networks else _one_torch_thread():
        for shard in table.shards:
            if shard.file not in finished:
                finish(shard.file, write_shard(source, table, shard, slabs, folder, advance))


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Copying rows needs no second thread, and PyTorch's wait for work by spinning, which slows down the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_shard(
    source: RowSource,
    table: Table,
    shard: Shard,
    slabs: Sequence[Records],
    folder: Path,
    advance: Callable[[int], object],
) -> FileInfo:
    """Write one shard, and return its size and hash when it is safe on the disk.

    While a slab is filled, the one before it gets its checksums, and those before that are written and hashed.

    Args:
        source: Where the rows come from.
        table: What the shard is a part of.
        shard: Which records.
        slabs: Memory that is used in turn, [n] records each; zeros where no field of a record is.
        folder: Where the file goes.
        advance: Told the number of bytes after each piece is written, from another thread.

    Raises:
        CheckpointError: A value does not fit the table's dtype.
        OSError: The disk is full, or fails.
    """
    digest, header = hashlib.sha256(), memoryview(shard_header(shard, table))
    with (
        closing(DirectFile(folder / shard.file)) as file,
        ThreadPoolExecutor(1, "checksums") as checker,
        ThreadPoolExecutor(1, "write") as writer,
        ThreadPoolExecutor(1, "hash") as hasher,
    ):
        digest.update(header)
        _write(file, header, advance)
        work: deque[list[Future[Any]]] = deque()  # what is still to be done with each slab, oldest first
        checksums, stop = RecordChecksum(table), shard.first_row + shard.count
        for number, start in enumerate(range(shard.first_row, stop, len(slabs[0]))):
            if len(work) == len(slabs):
                _wait(work.popleft())
            records = slabs[number % len(slabs)][: stop - start]
            fill(records, source, table.dtype, start)
            checked = checker.submit(_add_checksums, records, start, checksums)
            written = writer.submit(lambda data: _write(file, data.result(), advance), checked)
            hashed = hasher.submit(lambda data: digest.update(data.result()), checked)
            work.append([checked, written, hashed])
        for rest in work:
            _wait(rest)
        size = file.sync()
    return FileInfo(size=size, sha256=digest.hexdigest())


def _wait(work: list[Future[Any]]) -> None:
    for each in work:
        each.result()


def _add_checksums(records: Records, first_row: int, checksums: RecordChecksum) -> memoryview:
    data, stride = record_bytes(records), records.itemsize
    records["checksum"] = [
        checksums.of(data[index * stride : (index + 1) * stride], first_row + index) for index in range(len(records))
    ]
    return data


def _write(file: DirectFile, data: memoryview, advance: Callable[[int], object]) -> None:
    while data:
        count = file.write(data)
        advance(count)
        data = data[count:]


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
