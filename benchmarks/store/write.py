"""Compare the exporter's pipeline with plain sequential writing of the same number of bytes to the same disk."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import time
from pathlib import Path

from benchmarks.store.model import RandomRows, model_config
from molkv_export.tables.plan import plan_memory, plan_table, shard_bytes
from molkv_export.tables.table_writer import write_table
from molkv_export.terminal import human_bytes

_BUFFER_BYTES = 8 * 1024 * 1024


def write_benchmark(folder: Path, size: int, runs: int) -> str:
    """Write the store and the same number of plain bytes in turns, and return a table."""
    context = multiprocessing.get_context("spawn")  # a separate process, so that its peak RSS is that of the store
    lines, ratios = [], []
    for run in range(runs):
        plain = _plain(folder, size)
        with context.Pool(1) as pool:
            ours, peak, before = pool.apply(_ours, (folder, size))
        ratios.append(plain / ours)
        lines.append(
            f"| {run + 1} | {size / plain / 1e6:.0f} | {size / ours / 1e6:.0f} | {plain / ours:.2f} "
            f"| {human_bytes(peak)} (before: {human_bytes(before)}) |"
        )
    return "\n".join(
        [
            f"Each method writes {human_bytes(size)}, and calls fsync for each file. For the store, CRC-32 and SHA-256 "
            "are also computed.",
            "",
            "| run | plain sequential, MB/s | the store, MB/s | ratio | peak RSS of the store's process |",
            "|---|---|---|---|---|",
            *lines,
            f"| median | | | {statistics.median(ratios):.2f} | |",
        ]
    )


def _plain(folder: Path, size: int) -> float:
    buffer = os.urandom(_BUFFER_BYTES)
    start, left, number = time.perf_counter(), size, 0
    folder.mkdir()
    while left:
        number += 1
        shard = min(left, 1024**3)
        left -= shard
        with (folder / f"{number}").open("wb", buffering=0) as file:
            while shard:
                shard -= file.write(memoryview(buffer)[: min(shard, len(buffer))])
            os.fsync(file.fileno())
    spent = time.perf_counter() - start
    shutil.rmtree(folder)
    return spent


def _ours(folder: Path, size: int) -> tuple[float, int, int]:
    config = model_config(size)
    source = RandomRows(config)
    store = plan_table(config, "float16", 1024**3)
    memory = plan_memory(source, store, 1024**3, cores=1)
    before = _peak_rss()
    folder.mkdir()
    start = time.perf_counter()
    write_table(
        source,
        store,
        memory,
        folder,
        shards=store.shards,
        finish=lambda _name, _info: None,
        advance=lambda _count: None,
    )
    spent = time.perf_counter() - start
    written = sum(shard_bytes(shard, store) for shard in store.shards)
    assert written == sum(path.stat().st_size for path in folder.iterdir())
    shutil.rmtree(folder)
    return spent * size / written, _peak_rss(), before


def _peak_rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
