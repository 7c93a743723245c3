"""`python -m benchmarks.scale --folder FOLDER`: the tables of docs/scale.md.

Rates of writing an expert store from expert networks: by one process, and by the workers of a Ray cluster on this
machine. The last table multiplies the best rate of a core. The benchmark needs 1 GB of disk, and removes its files.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import torch
from ray.cluster_utils import Cluster

from benchmarks.store.model import model_config, write_checkpoint
from molkv_bundle import MolkvConfig, record_dtype
from molkv_export.commands.options import PATH

_WIDTH = 2048  # of the expert networks, in the measured model
_LAYERS = 2
_STORE = 300_000_000  # bytes
_SHARDS = 8
_OBJECT_STORE = 80 * 1024**2  # bytes; Ray's smallest
_TIME = re.compile(r"expert store: ([\d.]+) s")
_POLL_SECONDS = 0.1
_GIB = 1024**3
# vocab_size, num_hidden_layers, hidden_size, num_experts. Their expert networks are 8/3 times as wide as hidden_size.
_LARGE = (
    (50_432, 12, 768, 4),
    (50_432, 24, 2048, 4),
    (128_256, 16, 2048, 4),
    (151_936, 36, 2560, 4),
    (128_256, 32, 4096, 4),
    (262_144, 48, 5120, 4),
)


class Way(NamedTuple):
    """A way to write a store."""

    name: str
    cores: int  # for PyTorch in one process
    workers: int = 0  # of a Ray cluster; 0: no cluster


class Cost(NamedTuple):
    """The time and the memory of an export's store."""

    seconds: float
    peak: int  # largest resident size of a process that computed rows, in bytes


_WAYS = (
    Way("one process, 1 core", 1),
    Way("one process, 2 cores", 2),
    Way("Ray, 1 worker", 1, 1),
    Way("Ray, 2 workers", 1, 2),
    Way("Ray, 4 workers", 1, 4),
)


@click.command()
@click.option("--folder", type=PATH, required=True, help="Folder for the files.")
@click.option("--runs", default=3, show_default=True, help="Number of runs of each way, in turns.")
def main(folder: Path, runs: int) -> None:
    """Print the tables."""
    click.echo(f"{os.cpu_count()} cores, Linux {platform.release()}, torch {torch.__version__}\n")
    config = _config(1, _LAYERS, 768, 4)
    stride = record_dtype(config, "float16").itemsize
    config = msgspec.structs.replace(config, vocab_size=_STORE // stride)
    checkpoint = write_checkpoint(config, folder / "checkpoint")
    costs: dict[Way, list[Cost]] = {way: [] for way in _WAYS}
    for _ in range(runs):
        for way, found in costs.items():
            found.append(_measure(way, checkpoint, folder / "bundle"))
    shutil.rmtree(folder)
    rates = {way: _STORE / statistics.median(cost.seconds for cost in found) / 1e6 for way, found in costs.items()}
    click.echo("| way | MB/s | of one process, 1 core | peak RSS of a process, MiB |\n|---|---|---|---|")
    for way, found in costs.items():
        peak = max(cost.peak for cost in found) / 1024**2
        click.echo(f"| {way.name} | {rates[way]:.1f} | {rates[way] / rates[_WAYS[0]]:.2f} | {peak:,.0f} |")
    click.echo()
    _print_large(rates[_WAYS[0]] * 1e6)


def _config(vocabulary: int, layers: int, hidden: int, experts: int) -> MolkvConfig:
    return msgspec.structs.replace(
        model_config(1),
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        num_experts=experts,
        expert_layers=tuple(range(layers)),
        expert_intermediate_size=_WIDTH,
    )


def _measure(way: Way, checkpoint: Path, bundle: Path) -> Cost:
    command = [sys.executable, "cli.py", "export", str(checkpoint), str(bundle), "--force", "-v"]
    command += ["--shard-size", str(_STORE // _SHARDS + 2**20)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(way.cores)}
    with _cluster(way.workers) as address:
        engine = ["--engine", "ray", "--address", address] if address else []
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen([*command, *engine], env=environment, stdout=log, stderr=log)
            peak = 0
            while process.poll() is None:
                peak = max(peak, _peak(0 if address else process.pid))
                time.sleep(_POLL_SECONDS)
            log.seek(0)
            text = log.read()
    found = _TIME.search(text)
    if process.returncode or found is None:
        raise SystemExit(text)
    return Cost(float(found[1]), peak)


@contextmanager
def _cluster(workers: int) -> Iterator[str]:
    """Start a Ray cluster with some workers on this machine; yield its address, or "" for no workers."""
    if not workers:
        yield ""
        return
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": workers, "object_store_memory": _OBJECT_STORE})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def _peak(process: int) -> int:
    """Return the peak resident size of a process in bytes; for 0, the largest of Ray's tasks that run now."""
    most = 0
    for folder in [Path(f"/proc/{process}")] if process else Path("/proc").glob("[0-9]*"):
        try:
            if process or (folder / "cmdline").read_bytes().startswith(b"ray::_task"):
                [line] = [line for line in (folder / "status").read_text().splitlines() if line.startswith("VmHWM")]
                most = max(most, int(line.split()[1]) * 1024)
        except (OSError, ValueError):  # the process has ended
            continue
    return most


def _print_large(rate: float) -> None:
    """Print the size of large tables, and the time of a core that computes them.

    A network of width f has 3 d f weights, so a row of d numbers takes 6 d f operations: the time for a byte grows with
    f, and does not depend on d.

    Args:
        rate: Bytes per second of a core, for networks of width `_WIDTH` and a float16 store.
    """
    click.echo(
        "| vocabulary | layers | hidden size | experts | table, float16 | int8 | core hours |\n" + "|---" * 7 + "|"
    )
    for vocabulary, layers, hidden, experts in _LARGE:
        config = _config(vocabulary, layers, hidden, experts)
        table, small = (vocabulary * record_dtype(config, dtype).itemsize / 1e9 for dtype in ("float16", "int8"))
        width = 8 * hidden // 3
        hours = table * 1e9 / rate * width / _WIDTH / 3600
        click.echo(
            f"| {vocabulary:,} | {layers} | {hidden:,} | {experts} | {table:,.0f} GB | {small:,.0f} GB | {hours:,.1f} |"
        )


main()
