"""Measure the memory bandwidth and the memory of this process; inspect and clear the page cache."""

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
    """Return the memory bandwidth of all threads together, in bytes per second, as the best of several trials.

    The threads compute the maximum of an array, for which numpy uses the widest instructions of the processor.
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
    """Return the peak resident size of this process in bytes; 0 if the system does not report it."""
    if _STATUS.exists():  # on Linux, getrusage may report the peak of the parent process
        status = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    if resource is None:
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def can_drop_from_page_cache() -> bool:
    """Return whether this system can drop files from its page cache."""
    return hasattr(os, "posix_fadvise")


def drop_from_page_cache(paths: Sequence[Path]) -> None:
    """Drop files from the page cache, so that the next read comes from storage."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def count_in_page_cache(path: Path, offsets: Sequence[int], size: int) -> int:
    """Count the ranges [offset, offset + size) of a file that are in the page cache.

    A read with RWF_NOWAIT succeeds only for cached ranges.
    """
    descriptor, buffer, found = os.open(path, os.O_RDONLY), bytearray(size), 0
    for offset in offsets:
        try:
            found += os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT) == size
        except BlockingIOError:
            continue
    os.close(descriptor)
    return found
