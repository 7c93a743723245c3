"""Writing a table (`docs/bundle-format.md`, "Tables"): rows are computed, quantized, checked, hashed and written."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from molkv_bundle import (
    ROW_FORMATS,
    CheckpointError,
    FileInfo,
    ModelConfig,
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
from molkv_export.tables.plan import SLABS, Memory
from molkv_export.tables.quantize import quantize
from molkv_export.tables.rows import RowSource, SomeRows


def write_table(
    source: RowSource,
    table: Table,
    memory: Memory,
    folder: Path,
    *,
    shards: Sequence[Shard],
    finish: Callable[[str, FileInfo], None],
    advance: Callable[[int], object],
) -> None:
    """Write shards, one after the other.

    Args:
        source: The source of rows.
        table: From `plan_table`, with its id.
        memory: From `plan_memory`.
        folder: The folder of the shards.
        shards: The shards to write, some or all of the table's.
        finish: Called with the name, size and hash of each new shard, once the shard is safe on the disk.
        advance: Called from another thread after each piece is written, with the piece's size in bytes.

    Raises:
        CheckpointError: A value does not fit the table's dtype.
        OSError: The disk is full, or fails.
    """
    dtype = record_dtype(source.config, table.dtype)
    # zeros, since the padding of a record must be 0
    slabs = [aligned_zeros(memory.slab_ids, dtype) for _ in range(SLABS)]
    with _one_torch_thread():
        for shard in shards:
            finish(shard.file, write_shard(source, table, shard, slabs, memory.threads, folder, advance))


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Limit PyTorch to one thread for each operation.

    Two reasons: several pieces at a time use the cores better than several threads for one matrix product, whose last
    bits could depend on their number. PyTorch's idle threads wait in a busy loop, which would slow down the threads
    that hash and write.
    """
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
    threads: int,
    folder: Path,
    advance: Callable[[int], object],
) -> FileInfo:
    """Write one shard; return its size and hash when the shard is safe on the disk.

    While one slab is filled, checksums are added to the slab before it, and older slabs are written and hashed.

    Args:
        source: The source of rows.
        table: The table that the shard is a part of.
        shard: The records to write, and the name of the file.
        slabs: Buffers of n records each, used in turn. The bytes of a record that belong to no field must be 0.
        threads: Number of pieces of a slab that are computed at a time.
        folder: The folder of the file.
        advance: Called from another thread after each piece is written, with the piece's size in bytes.

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
        work: deque[list[Future[Any]]] = deque()  # unfinished work on each slab, oldest slab first
        checksums, stop = RecordChecksum(table), shard.first_row + shard.count
        for number, start in enumerate(range(shard.first_row, stop, len(slabs[0]))):
            if len(work) == len(slabs):
                _wait(work.popleft())
            records = slabs[number % len(slabs)][: stop - start]
            fill(records, source, table.dtype, start, threads)
            checked = checker.submit(_add_checksums, records, start, checksums)
            written = writer.submit(lambda data: _write(file, data.result(), advance), checked)
            hashed = hasher.submit(lambda data: digest.update(data.result()), checked)
            work.append([checked, written, hashed])
        for rest in work:
            _wait(rest)
        size = file.sync()
    return FileInfo(size=size, sha256=digest.hexdigest())


def _wait(work: Iterable[Future[Any]]) -> None:
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
def fill(records: Records, source: RowSource, dtype: RowDtype, start: int, threads: int) -> None:
    """Fill records [n] with the embeddings and rows of n token ids from `start` on, several pieces at a time.

    Raises:
        CheckpointError: A value is too large for the dtype.
    """
    stop = start + len(records)
    # With more pieces at a time than a network has here, more than two networks would be in RAM.
    threads = min(threads, -(-len(records) // source.ids_at_once))
    plain: RowDtype = ROW_FORMATS[dtype].plain
    for first in range(start, stop, source.ids_at_once):
        last = min(stop, first + source.ids_at_once)
        place = slice(first - start, last - start)
        _put(records["embedding"][place], source.embedding(first, last), plain, "embedding", first)
    if threads == 1:
        for piece in source.pieces(start, stop):
            _fill_piece(records, source.config, dtype, start, piece)
        return
    with ThreadPoolExecutor(threads, "rows") as pool:
        work: deque[Future[None]] = deque()
        for piece in source.pieces(start, stop):  # loads networks here, while each thread computes a piece
            work.append(pool.submit(_fill_piece, records, source.config, dtype, start, piece))
            if len(work) > threads:
                work.popleft().result()
        _wait(work)


@torch.no_grad()  # which holds for one thread
def _fill_piece(records: Records, config: ModelConfig, dtype: RowDtype, start: int, piece: SomeRows) -> None:
    scales = {vector.name: vector.scale for vector in config.record_vectors() if ROW_FORMATS[dtype].scale}
    place = slice(piece.ids.start - start, piece.ids.stop - start)
    rows = records["layers"][place, config.layers_with_experts.index(piece.layer)]
    scale = scales.get(piece.vector, "")
    _put(
        rows[piece.vector][:, piece.experts],
        piece.rows(),
        dtype if scale else ROW_FORMATS[dtype].plain,
        f"expert_{piece.vector} of layer {piece.layer}",
        piece.ids.start,
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
        # Rounding does not change the order of numbers, so only the smallest and the largest need a check.
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
            f"which are too large for {dtype}; export with --experts-dtype float32"
        )
