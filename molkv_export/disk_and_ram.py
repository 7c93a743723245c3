"""How much disk and RAM an export will take, said before it starts."""

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
    """What the rest of an export takes, in bytes."""

    disk: int  # for the large files that are still to be written
    free: int  # on the disk
    ram: int  # beyond what the libraries take

    def __str__(self) -> str:
        return (
            f"needs {human_bytes(self.disk)} of disk ({human_bytes(self.free)} free), "
            f"{human_bytes(self.ram)} of RAM beyond the libraries' own"
        )


def estimate_disk_and_ram(
    source: Checkpoint,
    graphs: Sequence[GraphPlan],
    table: Table,
    memory: Memory,
    *,
    finished: Collection[str],
    folder: Path,
    out: Path,
) -> DiskAndRam:
    """Find out what is still to be written, and whether it fits on the disk.

    Args:
        source: The checkpoint.
        graphs: What is to be written for each profile; the first one also makes golden vectors.
        table: The shards.
        memory: The plan for writing them.
        finished: The files of shards that are there already.
        folder: Where all will be written.
        out: The folder's name for the user.

    Raises:
        OutputError: The disk is too small.
    """
    missing = [shard for shard in table.shards if shard.file not in finished]
    disk = sum(shard_bytes(shard, table) for shard in missing) + sum(plan.nbytes for plan in graphs)
    free = shutil.disk_usage(folder).free
    if disk > free:
        raise OutputError(
            f"{out}: needs {human_bytes(disk)} of disk, {human_bytes(free)} are free; "
            "free some space or choose another disk"
        )
    # A weight is read as float32; in another dtype, what it becomes is there at the same time.
    copies = 1 if all(plan.dense == FLOAT32 for plan in graphs) else 2
    weight = copies * max(size for plan in graphs for size in plan.weights)
    golden = golden_ram(source, graphs[0].weights)
    return DiskAndRam(disk=disk, free=free, ram=max(memory.total, golden, weight))
