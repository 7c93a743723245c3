"""Writing the expert store (`docs/bundle-format.md`, "The expert store")."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from molkv_export.checkpoints import Checkpoint
from molkv_export.modeling.experts import Records
from molkv_export.tables.rows import records_in_chunks
from molkv_runtime.errors import CheckpointError, RequestError
from molkv_runtime.manifest import FileInfo, RowDtype, Shard, StoreInfo
from molkv_runtime.record import PAGE_BYTES, checksum, record_dtype, record_fields, record_stride
from molkv_runtime.store import RECORDS


def plan_store(checkpoint: Checkpoint, dtype: RowDtype, shard_size: int) -> StoreInfo:
    """Decide on the layout of records and the ranges of shards.

    Args:
        checkpoint: Where the records come from.
        dtype: Of embedding, keys and values.
        shard_size: No shard becomes larger, in bytes.

    Raises:
        RequestError: shard_size does not hold even one record.
    """
    fields = record_fields(checkpoint.config, dtype)
    stride = record_stride(fields)
    vocab_size = checkpoint.config.vocab_size
    longest = Shard(file="", first_id=vocab_size, count=vocab_size)
    header = len(shard_header(longest, StoreInfo(dtype=dtype, stride=stride, fields=fields, shards=())))
    per_shard = (shard_size - header) // stride
    if per_shard < 1:
        raise RequestError(
            f"shard_size is {shard_size} bytes, expected at least {stride + header} (a record and a header)"
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
    return StoreInfo(dtype=dtype, stride=stride, fields=fields, shards=shards)


def write_store(
    checkpoint: Checkpoint, plan: StoreInfo, folder: Path, advance: Callable[[int], None]
) -> dict[str, FileInfo]:
    """Write all shards, holding one chunk of records in RAM.

    Args:
        checkpoint: Where the records come from.
        plan: From `plan_store`.
        folder: Where the shards go.
        advance: Told the number of records after each piece is written.

    Returns:
        Size and hash of each shard's file.

    Raises:
        CheckpointError: A value does not fit the store's dtype.
    """
    pieces = _pieces(checkpoint, plan)
    files = {}
    waiting = next(pieces)
    for shard in plan.shards:
        path, digest = folder / shard.file, hashlib.sha256()
        header = shard_header(shard, plan)
        with path.open("wb") as file:
            file.write(header)
            digest.update(header)
            left = shard.count
            while left:
                data, waiting = waiting[:left], waiting[left:]
                file.write(data.data)
                digest.update(data.data)
                left -= len(data)
                advance(len(data))
                if not len(waiting):
                    waiting = next(pieces, waiting)
        files[shard.file] = FileInfo(size=path.stat().st_size, sha256=digest.hexdigest())
    return files


def shard_header(shard: Shard, plan: StoreInfo) -> bytes:
    """Make a safetensors header that ends on a page: one U8 tensor `records`, the layout as metadata."""
    layout = {"first_id": shard.first_id, "count": shard.count, "stride": plan.stride, "fields": plan.fields}
    header = {
        "__metadata__": {"format": "molkv-expert-store", "layout": msgspec.json.encode(layout).decode()},
        RECORDS: {"dtype": "U8", "shape": [shard.count, plan.stride], "data_offsets": [0, shard.count * plan.stride]},
    }
    text = msgspec.json.encode(header)
    text = text.ljust(-(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES - 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(checkpoint: Checkpoint, plan: StoreInfo) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield finished records as bytes [count, stride]."""
    dtype = record_dtype(plan.fields, plan.stride)
    for first, records in records_in_chunks(checkpoint):
        packed = np.zeros(len(records.embedding), dtype)
        _pack(packed, records, first)
        rows = packed.view(np.uint8).reshape(len(packed), plan.stride)
        packed["checksum"] = [checksum(row) for row in rows]
        yield rows


def _pack(packed: npt.NDArray[np.void], records: Records, first: int) -> None:
    tensors = {"embedding": records.embedding}
    for layer, rows in records.experts.items():
        tensors[f"expert_value.{layer}"] = rows.value
        if rows.key is not None:
            tensors[f"expert_key.{layer}"] = rows.key
    for name, tensor in tensors.items():
        field = packed[name]
        with np.errstate(over="ignore"):
            field[...] = tensor.numpy()
        if not np.isfinite(field).all():
            row = int(np.argmax(~np.isfinite(field).reshape(len(field), -1).all(axis=1)))
            largest = tensor[row].abs().max().item()
            raise CheckpointError(
                f"{checkpoint_field(name)} of token id {first + row} has values up to {largest:.3g}, "
                f"more than {field.dtype.name} can hold; export with --experts-dtype float32"
            )


def checkpoint_field(name: str) -> str:
    """Say in words which part of a record a field is."""
    kind, _, layer = name.partition(".")
    return f"{kind} of layer {layer}" if layer else kind
