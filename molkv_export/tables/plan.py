"""What a table will look like, and what writing it will take."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from molkv_bundle import (
    ROW_FORMATS,
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
    from molkv_export.tables.rows import RowSource  # needs PyTorch, and shards are also planned without it

_NO_ID = "0" * 16  # of a table whose origin is not known yet
SLABS = 4  # of records: one is filled, one gets its checksums, one is written, one is hashed


def plan_table(config: ModelConfig, dtype: RowDtype, shard_size: int) -> Table:
    """Decide on the layout of records and the ranges of shards.

    Args:
        config: The model.
        dtype: Of the values.
        shard_size: No shard becomes larger, in bytes.

    Raises:
        RequestError: shard_size does not hold even one record, there is no such dtype, or rows cannot be stored in it.
    """
    if dtype not in ROW_FORMATS:
        raise RequestError(f"experts_dtype is {dtype!r}, expected one of {', '.join(ROW_FORMATS)}")
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
    """Return a planned table with the id that belongs to its bytes.

    Args:
        table: From `plan_table`.
        origin: All that decides on the bytes, beside the layout of the table: what the rows are made from, by what.
    """
    layout = {"index": table.index, "rows": table.rows, "dtype": table.dtype, "stride": table.stride}
    text = msgspec.json.encode({"origin": origin, "layout": layout, "fields": table.fields}, order="sorted")
    return msgspec.structs.replace(table, id=hashlib.sha256(text).hexdigest()[: len(_NO_ID)])


def plan_shards(table: Table, largest: int, name: str) -> Table:
    """Return a table of the same records in files of at most `largest` bytes.

    Args:
        table: How records are laid out; its shards do not matter.
        largest: Size of a file, with its header, in bytes.
        name: What `largest` is called in an error.

    Raises:
        RequestError: A file of this size does not hold even one record.
    """
    longest_header = _data_offset(table, table.rows, table.rows)
    per_shard = (largest - longest_header) // table.stride
    if per_shard < 1:
        raise RequestError(
            f"{name} is {largest} bytes, expected at least {table.stride + longest_header} (a record and a header)"
        )
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
    """Return the size of a shard's header, in bytes."""
    return len(shard_header(Shard(file="", first_row=first_row, count=count, data_offset=0), table))


def shard_bytes(shard: Shard, table: Table) -> int:
    """Return the size of a shard's file."""
    return shard.data_offset + shard.count * table.stride


class Memory(NamedTuple):
    """How the memory for writing a table is used."""

    slab_ids: int  # records that are finished before they are written, layer by layer
    total: int  # bytes, at most


def plan_memory(source: RowSource, table: Table, max_memory: int) -> Memory:
    """Cut the table into slabs, as large as memory allows where each slab loads every expert network once.

    Raises:
        RequestError: max_memory is not enough for the smallest slab.
    """
    step = source.ids_at_once
    largest = max(shard.count for shard in table.shards)
    least = source.working_bytes + SLABS * min(step, largest) * table.stride
    if max_memory < least:
        raise RequestError(f"max_memory is {max_memory} bytes, expected at least {least} for this model")
    steps = 1
    if source.loads_networks:
        steps = (max_memory - source.working_bytes) // (SLABS * table.stride * step)
    slab = min(largest, max(1, steps) * step)
    return Memory(slab, source.working_bytes + SLABS * slab * table.stride)
