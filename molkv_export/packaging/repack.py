"""Cutting an expert store into smaller files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from molkv_bundle import Bundle, FileInfo, RequestError, Shard, StoreInfo, record_bytes, shard_header
from molkv_runtime import ExpertStore

_BYTES_AT_ONCE = 8 * 1024**2


def cut_store(store: StoreInfo, vocab_size: int, largest: int) -> StoreInfo:
    """Give a store of the same records in files of at most `largest` bytes.

    Raises:
        RequestError: Not even one record fits.
    """
    longest = Shard(file="", first_id=vocab_size, count=vocab_size)  # has the longest header
    header = len(shard_header(longest, store))
    per_shard = (largest - header) // store.stride
    if per_shard < 1:
        raise RequestError(f"files may have {largest} bytes, expected at least {store.stride + header} (one record)")
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


def write_shards(
    bundle: Bundle, store: StoreInfo, folder: Path, advance: Callable[[int], object]
) -> dict[str, FileInfo]:
    """Write the records of a bundle into other shards, a few at a time; each is checked when it is read.

    Args:
        bundle: Where the records are.
        store: The shards to write, from `cut_store`.
        folder: Where they go.
        advance: Told the number of bytes after each piece.

    Raises:
        BundleError: A record is damaged.
        OSError: The disk is full, or fails.
    """
    with ExpertStore(bundle) as source:
        buffer = source.buffer(max(1, _BYTES_AT_ONCE // store.stride))
        infos = {}
        for shard in store.shards:
            digest = hashlib.sha256()
            with (folder / shard.file).open("xb") as file:
                header = shard_header(shard, store)
                digest.update(header)
                file.write(header)
                stop = shard.first_id + shard.count
                for first in range(shard.first_id, stop, len(buffer)):
                    ids = np.arange(first, min(first + len(buffer), stop))
                    records = record_bytes(source.gather(ids, buffer))
                    digest.update(records)
                    file.write(records)
                    advance(len(records))
                infos[shard.file] = FileInfo(size=file.tell(), sha256=digest.hexdigest())
    return infos
