"""What the machine gives: memory bandwidth, and the memory that this process takes of it."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

_BYTES = 256 * 1024 * 1024  # several times the largest cache
_TRIALS = 8
_STATUS = Path("/proc/self/status")


def memory_bandwidth(threads: int) -> float:
    """Measure how many bytes a second some threads can read together; the best of several trials.

    They look for the largest number of an array, which numpy does in the processor's widest steps.
    """
    array = np.ones(_BYTES // 4, np.float32)
    parts = np.array_split(array, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TRIALS):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, array.nbytes / (time.perf_counter() - start))
    return best


def peak_rss() -> int:
    """Return the largest resident size of this process so far, in bytes; 0 where the system does not tell."""
    if _STATUS.exists():  # what getrusage says on Linux goes back to the process that started this one
        status = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    if resource is None:
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size
