"""Planning a table before it is written: the layout of records, the shards, and the use of memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from molkv_bundle import (
    ROW_FORMATS,
    ArgumentError,
    ModelConfig,
    RequestError,
    RowDtype,
    Shard,
    Table,
    record_dtype,
    record_fields,
    shard_header,
)

if TYPE_CHECKING:
    from molkv_export.tables.rows import RowSource  # needs PyTorch, but `plan_shards` must work without it

DEFAULT_SHARD_SIZE = 1024**3
DEFAULT_MAX_MEMORY = 1024**3
_NO_ID = "0" * 16  # the id of a table before `with_id`
# Number of slabs (buffers of records): one is filled, one gets its checksums, one is written, and one is hashed.
SLABS = 4


def plan_table(config: ModelConfig, dtype: RowDtype, shard_size: int) -> Table:
    """Choose the layout of records and the range of rows of each shard.

    Args:
        config: The model's configuration.
        dtype: Dtype of the values.
        shard_size: Largest size of a shard, in bytes.

    Raises:
        ArgumentError: shard_size is too small for one record, or the dtype is unknown.
        RequestError: The dtype cannot hold these rows.
    """
    if dtype not in ROW_FORMATS:
        raise ArgumentError("experts_dtype", dtype, f"one of {', '.join(ROW_FORMATS)}")
    try:
        stride = record_dtype(config, dtype).itemsize
    except ValueError as error:
        raise RequestError(f"experts_dtype is {dtype}: {error}") from error
    table = Table(
        index="token_id",
        rows=config.vocab_size,
        id=_NO_ID,
        dtype=dtype,
        stride=stride,
        fields=record_fields(config, dtype),
        shards=(),
    )
    return plan_shards(table, shard_size, "shard_size")


def with_id(table: Table, origin: Mapping[str, str]) -> Table:
    """Return a planned table with its id, a hash of everything that determines the table's bytes.

    Args:
        table: From `plan_table`.
        origin: The inputs that determine the bytes, apart from the layout: hashes of the checkpoint's files, and
            versions of the software.
    """
    layout = {"index": table.index, "rows": table.rows, "dtype": table.dtype, "stride": table.stride}
    text = msgspec.json.encode({"origin": origin, "layout": layout, "fields": table.fields}, order="sorted")
    return msgspec.structs.replace(table, id=hashlib.sha256(text).hexdigest()[: len(_NO_ID)])


def plan_shards(table: Table, largest: int, name: str) -> Table:
    """Return a table of the same records in shards of at most `largest` bytes.

    Args:
        table: A table with the layout of records; its shards are ignored.
        largest: Largest size of a shard's file, header included, in bytes.
        name: The argument's name for `largest` in an error message.

    Raises:
        ArgumentError: A file of this size cannot hold one record.
    """
    longest_header = _data_offset(table, table.rows, table.rows)
    per_shard = (largest - longest_header) // table.stride
    if per_shard < 1:
        least = table.stride + longest_header
        raise ArgumentError(name, f"{largest} bytes", f"at least {least} bytes (a record and a header)")
    firsts = range(0, table.rows, per_shard)
    counts = [min(per_shard, table.rows - first) for first in firsts]
    shards = tuple(
        Shard(
            file=f"experts-{number:05d}-of-{len(firsts):05d}.safetensors",
            first_row=first,
            count=count,
            data_offset=_data_offset(table, first, count),
        )
        for number, (first, count) in enumerate(zip(firsts, counts, strict=True), start=1)
    )
    return msgspec.structs.replace(table, shards=shards)


def _data_offset(table: Table, first_row: int, count: int) -> int:
    """Return the size of a shard's header in bytes; the records follow the header."""
    return len(shard_header(Shard(file="", first_row=first_row, count=count, data_offset=0), table))


def shard_bytes(shard: Shard, table: Table) -> int:
    """Return the size of a shard's file, in bytes."""
    return shard.data_offset + shard.count * table.stride


class Memory(NamedTuple):
    """A plan for the memory that writing a table uses."""

    slab_ids: int  # number of records in a slab; a slab is written when all layers of its records are filled
    threads: int  # number of pieces of a slab that are computed at a time
    total: int  # largest number of bytes in use


def plan_memory(source: RowSource, table: Table, max_memory: int, cores: int) -> Memory:
    """Choose slabs and threads such that writing a table takes at most `max_memory` bytes of RAM.

    In training form, every expert network is loaded once for each slab, so slabs are as large as memory allows, and
    each core computes a piece. A slab has at least a step for each thread, so that at most two networks are in use. In
    lookup form, slabs are as small as possible, and one thread copies.

    Args:
        source: The source of rows.
        table: The planned table.
        max_memory: The limit, in bytes.
        cores: Largest number of threads that compute.

    Raises:
        ArgumentError: max_memory is too small for the smallest slab.
    """
    step, largest = source.ids_at_once, max(shard.count for shard in table.shards)
    least = source.working_bytes + source.piece_bytes + SLABS * min(step, largest) * table.stride
    if max_memory < least:
        raise ArgumentError("max_memory", f"{max_memory} bytes", f"at least {least} bytes for this model")
    steps = threads = 1
    for count in range(1, cores + 1) if source.loads_networks else ():
        free = max_memory - source.working_bytes - count * source.piece_bytes
        fitting = free // (SLABS * table.stride * step)
        if count > max(1, fitting):
            break
        steps, threads = max(1, fitting), count
    slab = min(largest, steps * step)
    threads = min(threads, -(-slab // step))
    return Memory(slab, threads, source.working_bytes + threads * source.piece_bytes + SLABS * slab * table.stride)
