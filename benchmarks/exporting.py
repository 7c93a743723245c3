"""Run exports, each in a separate process, and measure them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

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
