"""What an export will take, said before it starts."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from molkv_export.tables.plan import Memory, shard_bytes
from molkv_export.tables.quantize import quantize
from molkv_export.tables.rows import RowSource
from molkv_export.terminal import human_bytes
from molkv_runtime.errors import OutputError
from molkv_runtime.manifest import Shard, StoreInfo
from molkv_runtime.row_formats import ROW_FORMATS

_PROBE_BYTES = 64 * 1024 * 1024


class Needs(NamedTuple):
    """RAM, disk and time for what is still to be done."""

    ram: int  # bytes, beyond what the libraries take
    store: int  # bytes of the shards that are to be written
    disk: int  # bytes of all files that are to be written
    free: int  # bytes of disk
    seconds: float  # a guess, from a short trial of computing and of writing

    def __str__(self) -> str:
        minutes, seconds = divmod(math.ceil(self.seconds), 60)
        duration = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        return (
            f"needs {human_bytes(self.disk)} of disk ({human_bytes(self.free)} free), "
            f"{human_bytes(self.ram)} of RAM beyond the libraries' own, about {duration}"
        )

    def check(self, out: Path) -> None:
        """Refuse to start what cannot end.

        Raises:
            OutputError: The disk is too small.
        """
        if self.disk > self.free:
            raise OutputError(
                f"{out}: needs {human_bytes(self.disk)} of disk, {human_bytes(self.free)} are free; "
                "free some space or choose another disk"
            )


def estimate(
    source: RowSource, store: StoreInfo, memory: Memory, folder: Path, *, finished: set[str], dense: list[int]
) -> Needs:
    """Find out what an export will take.

    Args:
        source: Where the rows come from.
        store: What is to be written.
        memory: The plan for it.
        folder: Where it will be written.
        finished: Shards that are there already.
        dense: Bytes of each of the other files' parts that are held in RAM while they are written.
    """
    shards = [shard for shard in store.shards if shard.file not in finished]
    missing = sum(shard_bytes(shard, store) for shard in shards)
    computing = _compute_seconds(source, store, memory, shards) if shards else 0.0
    writing = _write_seconds(folder, missing + sum(dense))
    return Needs(
        ram=max(memory.total, max(dense, default=0)),
        store=missing,
        disk=missing + sum(dense),
        free=shutil.disk_usage(folder).free,
        seconds=max(computing, writing),  # they go on side by side
    )


@torch.no_grad()
def _compute_seconds(source: RowSource, store: StoreInfo, memory: Memory, shards: list[Shard]) -> float:
    layers = source.config.layers_with_experts
    if not layers:
        return 0.0
    step = min(source.ids_at_once, shards[0].count)
    start = shards[0].first_id
    spent: list[float] = []
    for stop in (start + step, start + step, min(start + 2 * step, start + shards[0].count)):
        with _timed(spent):
            for piece in source.pieces(layers[0], start, stop):
                if piece.name == "value" and ROW_FORMATS[store.dtype].scale:
                    quantize(piece.rows, store.dtype)
    # The first trial warms up; the third differs from the second by one step, without loading anything again.
    each = max(spent[2] - spent[1], 0.0)
    load = max(spent[1] - each, 0.0)
    ids = sum(shard.count for shard in shards)
    slabs = sum(-(-shard.count // memory.slab_ids) for shard in shards)
    return len(layers) * (each * ids / step + load * slabs)


def _write_seconds(folder: Path, total: int) -> float:
    size = min(total, _PROBE_BYTES)
    spent: list[float] = []
    if size > shutil.disk_usage(folder).free:
        return 0.0
    path = folder / "probe"
    try:
        with _timed(spent), path.open("wb", buffering=0) as file:
            file.write(os.urandom(1024 * 1024) * (size // 1024**2 or 1))
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    return spent[0] * total / max(size, 1)


@contextmanager
def _timed(spent: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    spent.append(time.perf_counter() - start)
