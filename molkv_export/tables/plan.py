"""What the store will look like, and what writing it will take."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from molkv_bundle import (
    ModelConfig,
    RequestError,
    RowDtype,
    Shard,
    StoreInfo,
    record_dtype,
    record_fields,
    shard_header,
)

if TYPE_CHECKING:
    from molkv_export.tables.rows import RowSource  # needs PyTorch, and shards are also planned without it

SLABS = 4  # of records: one is filled, one gets its checksums, one is written, one is hashed


def plan_store(config: ModelConfig, dtype: RowDtype, shard_size: int) -> StoreInfo:
    """Decide on the layout of records and the ranges of shards.

    Args:
        config: The model.
        dtype: Of the values.
        shard_size: No shard becomes larger, in bytes.

    Raises:
        RequestError: shard_size does not hold even one record, or rows cannot be stored in this dtype.
    """
    try:
        stride = record_dtype(config, dtype).itemsize
    except ValueError as error:
        raise RequestError(f"experts_dtype is {dtype}: {error}") from error
    store = StoreInfo(dtype=dtype, stride=stride, fields=record_fields(config, dtype), shards=())
    return plan_shards(store, config.vocab_size, shard_size, "shard_size")


def plan_shards(store: StoreInfo, vocab_size: int, largest: int, name: str) -> StoreInfo:
    """Return a store of the same records in files of at most `largest` bytes.

    Args:
        store: How records are laid out; its shards do not matter.
        vocab_size: Number of records.
        largest: Size of a file, with its header, in bytes.
        name: What `largest` is called in an error.

    Raises:
        RequestError: A file of this size does not hold even one record.
    """
    longest_header = len(shard_header(Shard(file="", first_id=vocab_size, count=vocab_size), store))
    per_shard = (largest - longest_header) // store.stride
    if per_shard < 1:
        raise RequestError(
            f"{name} is {largest} bytes, expected at least {store.stride + longest_header} (a record and a header)"
        )
    firsts = range(0, vocab_size, per_shard)
    shards = tuple(
        Shard(
            file=f"experts-{number:05d}-of-{len(firsts):05d}.safetensors",
            first_id=first,
            count=min(per_shard, vocab_size - first),
        )
        for number, first in enumerate(firsts, start=1)
    )
    return msgspec.structs.replace(store, shards=shards)


def shard_bytes(shard: Shard, store: StoreInfo) -> int:
    """Return the size of a shard's file."""
    return len(shard_header(shard, store)) + shard.count * store.stride


class Memory(NamedTuple):
    """How the memory for writing the store is used."""

    slab_ids: int  # records that are finished before they are written, layer by layer
    total: int  # bytes, at most


def plan_memory(source: RowSource, store: StoreInfo, max_memory: int) -> Memory:
    """Cut the store into slabs, as large as memory allows where each slab loads every expert network once.

    Raises:
        RequestError: max_memory is not enough for the smallest slab.
    """
    step = source.ids_at_once
    largest = max(shard.count for shard in store.shards)
    least = source.working_bytes + SLABS * min(step, largest) * store.stride
    if max_memory < least:
        raise RequestError(f"max_memory is {max_memory} bytes, expected at least {least} for this model")
    steps = 1
    if source.loads_networks:
        steps = (max_memory - source.working_bytes) // (SLABS * store.stride * step)
    slab = min(largest, max(1, steps) * step)
    return Memory(slab, source.working_bytes + SLABS * slab * store.stride)
