"""Estimate the disk space and the RAM that an export needs, before it writes the large files."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from molkv_bundle import OutputError, Table
from molkv_export.checkpoints import Checkpoint
from molkv_export.golden import golden_ram
from molkv_export.graph.build import GraphPlan
from molkv_export.graph.linear import FLOAT32
from molkv_export.tables.plan import Memory, shard_bytes
from molkv_export.terminal import human_bytes


class DiskAndRam(NamedTuple):
    """Disk space and RAM that the rest of an export needs, in bytes."""

    disk: int  # size of the large files that are not written yet
    free: int  # free space on the disk
    ram: int  # without the RAM that the libraries need

    def __str__(self) -> str:
        return (
            f"needs {human_bytes(self.disk)} of disk space ({human_bytes(self.free)} free), and "
            f"{human_bytes(self.ram)} of RAM in addition to the RAM of the libraries"
        )


def estimate_disk_and_ram(
    source: Checkpoint,
    graphs: Sequence[GraphPlan],
    table: Table,
    memory: Memory,
    *,
    finished: Collection[str],
    folder: Path,
    out: str | Path,
) -> DiskAndRam:
    """Estimate the disk space and the RAM that an export needs, and check that the disk has enough space.

    Args:
        source: The checkpoint.
        graphs: The graphs of each profile.
        table: The table with its shards.
        memory: The memory plan for writing the table.
        finished: File names of the shards that need no more space.
        folder: The folder in which all files are written.
        out: The path of the bundle, for messages.

    Raises:
        OutputError: The disk has too little free space.
    """
    missing = [shard for shard in table.shards if shard.file not in finished]
    disk = sum(shard_bytes(shard, table) for shard in missing) + sum(plan.nbytes for plan in graphs)
    free = check_free_space(disk, folder, out)
    # A weight is read as float32. If it is stored in another dtype, both copies are in RAM at the same time.
    copies = 1 if all(plan.dense == FLOAT32 for plan in graphs) else 2
    weight = copies * max(size for plan in graphs for size in plan.weights)
    golden = golden_ram(source)
    return DiskAndRam(disk=disk, free=free, ram=max(memory.total, golden, weight))


def check_free_space(needed: int, folder: Path, out: str | Path) -> int:
    """Return the free space on the disk of a folder, in bytes, after checking that it is enough for `out`.

    Raises:
        OutputError: The disk has less than `needed` bytes of free space.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{out}: needs {human_bytes(needed)} of disk space, but {human_bytes(free)} are free; "
            "free some space or choose another disk"
        )
    return free
