"""Exports for benchmarks: measured in a separate process, or without a second copy of an expert store."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from molkv_bundle import Bundle
from molkv_export import GraphOptions, add_profile

_CODE = (
    "import resource, subprocess, sys; rc = subprocess.run(sys.argv[1:]).returncode; "
    "print('PEAK', rc, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


class Cost(NamedTuple):
    """Time and memory of an export."""

    seconds: float
    peak_mib: float  # peak resident size, in MiB


def export_measured(checkpoint: Path, bundle: Path, *options: str) -> Cost:
    """Run `molkv-export export` with options, and return its time and memory."""
    command = [sys.executable, "cli.py", "export", str(checkpoint), str(bundle), *options, "--force"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _CODE, *command], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    _, status, size = done.stdout.strip().splitlines()[-1].split()
    if status != "0":
        raise SystemExit(done.stderr)
    return Cost(seconds, int(size) / 1024)


def export_with_store_of(first: Path, checkpoint: Path, bundle: Path, graph: GraphOptions) -> None:
    """Export a checkpoint with other graphs than a first bundle. Both share the files of one store by hard links."""
    incomplete = bundle.with_name("incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    shutil.copytree(first, incomplete, copy_function=os.link)
    add_profile(checkpoint, incomplete, "cpu", graph=graph, force=True)
    for shard in Bundle(first).manifest.experts.shards:
        (incomplete / shard.file).unlink()  # a copy: the exporter links no file that has other links
        (incomplete / shard.file).hardlink_to(first / shard.file)
    incomplete.rename(bundle)
