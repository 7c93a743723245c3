"""The machine: its memory bandwidth, the memory that this process takes, and which files are in the page cache."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
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


def drop_from_page_cache(paths: Sequence[Path]) -> None:
    """Take files out of the page cache, so that they are read from storage."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def count_in_page_cache(path: Path, offsets: Sequence[int], size: int) -> int:
    """Count how many of some ranges are in the page cache: a read that must not wait succeeds only there."""
    descriptor, buffer, found = os.open(path, os.O_RDONLY), bytearray(size), 0
    for offset in offsets:
        try:
            found += os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT) == size
        except BlockingIOError:
            continue
    os.close(descriptor)
    return found
