"""What an export will take, said before it starts."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from molkv_bundle import OutputError, Shard, StoreInfo
from molkv_export.durable import sync
from molkv_export.tables.plan import SLABS, Memory, shard_bytes
from molkv_export.tables.rows import RowSource
from molkv_export.tables.store_writer import write_store
from molkv_export.terminal import human_bytes

_TRIAL_BYTES = 24 * 1024 * 1024  # of a slab
_TRIAL_SHARE = 1 / 64  # of the records, at most
_PROBE = "probe"


class Needs(NamedTuple):
    """RAM, disk and time for what is still to be done."""

    ram: int  # bytes, beyond what the libraries take
    store: int  # bytes of the shards that are to be written
    disk: int  # bytes of all files that are to be written
    free: int  # bytes of disk
    seconds: float  # a guess, from a short trial

    def __str__(self) -> str:
        minutes, seconds = divmod(math.ceil(self.seconds), 60)
        duration = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        return (
            f"needs {human_bytes(self.disk)} of disk ({human_bytes(self.free)} free), "
            f"{human_bytes(self.ram)} of RAM beyond the libraries' own, about {duration}"
        )


def estimate(
    source: RowSource,
    store: StoreInfo,
    memory: Memory,
    folder: Path,
    out: Path,
    *,
    finished: set[str],
    dense: int,
    weight: int,
    golden: int,
) -> Needs:
    """Find out what an export will take, the time by writing a few records for trial.

    Args:
        source: Where the rows come from.
        store: What is to be written.
        memory: The plan for it.
        folder: Where it will be written.
        out: The folder's name for the user.
        finished: Shards that are there already.
        dense: Bytes of the dense graph.
        weight: Bytes of RAM that storing its largest weight takes.
        golden: Bytes of RAM that making golden vectors takes.

    Raises:
        OutputError: The disk is too small.
    """
    shards = [shard for shard in store.shards if shard.file not in finished]
    missing = sum(shard_bytes(shard, store) for shard in shards)
    disk, free = missing + dense, shutil.disk_usage(folder).free
    if disk > free:
        raise OutputError(
            f"{out}: needs {human_bytes(disk)} of disk, {human_bytes(free)} are free; "
            "free some space or choose another disk"
        )
    try:
        seconds = _store_seconds(source, store, memory, shards, folder) + _dense_seconds(dense, folder)
    finally:
        (folder / _PROBE).unlink(missing_ok=True)
    return Needs(max(memory.total, golden, weight), missing, disk, free, seconds)


def _store_seconds(source: RowSource, store: StoreInfo, memory: Memory, shards: list[Shard], folder: Path) -> float:
    """Guess from two trials, the second twice as long as the first: loading networks takes as long in both."""
    ids = sum(shard.count for shard in shards)
    short = min(math.ceil(ids * _TRIAL_SHARE), max(1, _TRIAL_BYTES // store.stride)) // 2
    if short == 0:
        return 0.0
    slabs = 1 if source.loads_networks else SLABS  # with nothing to load, it matters that threads work side by side
    first, second = (_trial(source, store, count, slabs, folder) for count in (short, 2 * short))
    each = max(second - first, 0.0) / (slabs * short)
    load = max(2 * first - second, 0.0) if source.loads_networks else 0.0
    return each * ids + load * sum(-(-shard.count // memory.slab_ids) for shard in shards)


def _trial(source: RowSource, store: StoreInfo, count: int, slabs: int, folder: Path) -> float:
    """Write some slabs of `count` records each, and give the seconds it took."""
    shard = Shard(file=_PROBE, first_id=0, count=min(slabs * count, source.config.vocab_size))
    start = time.perf_counter()
    write_store(
        source,
        StoreInfo(dtype=store.dtype, stride=store.stride, fields=store.fields, shards=(shard,)),
        count,
        folder,
        finished={},
        finish=lambda _name, _info: None,
        advance=lambda _count: None,
    )
    return time.perf_counter() - start


def _dense_seconds(size: int, folder: Path) -> float:
    """Guess from one part of it, written and hashed."""
    data = bytes(min(size, _TRIAL_BYTES))
    start = time.perf_counter()
    with (folder / _PROBE).open("wb", buffering=0) as file:
        file.write(data)
        sync(file.fileno())
    hashlib.sha256(data)
    return (time.perf_counter() - start) * size / len(data) if data else 0.0
