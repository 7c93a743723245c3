"""`python -m benchmarks.checksum`: the speed of computing a record's checksum with zlib and with zlib-ng."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable

import numpy as np
from zlib_ng import zlib_ng

_SIZES = (5_440, 20_480, 81_920)  # bytes of a record: the size in stdlib-mini, and two sizes of whole pages
_SECONDS = 0.02  # duration of one measurement
_ROUNDS = 41
_LIBRARIES: dict[str, Callable[[memoryview, int], int]] = {"zlib": zlib.crc32, "zlib-ng": zlib_ng.crc32}


def main() -> None:
    """Print a row for each size: GB per second of processor time for both libraries, and the median of the ratios.

    The libraries take turns.
    """
    print("| record | zlib, GB/s | zlib-ng, GB/s | zlib-ng / zlib |\n|---|---|---|---|")
    for size in _SIZES:
        record = memoryview(np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes())
        rates: dict[str, list[float]] = {name: [] for name in _LIBRARIES}
        for _ in range(_ROUNDS):
            for name, crc32 in _LIBRARIES.items():
                rates[name].append(_rate(crc32, record))
        ours, theirs = rates["zlib-ng"], rates["zlib"]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(
            f"| {size:,} | {statistics.median(theirs):.1f} | {statistics.median(ours):.1f} | {ratio:.1f} |", flush=True
        )


def _rate(crc32: Callable[[memoryview, int], int], record: memoryview) -> float:
    count = 0
    start = time.process_time()
    while (spent := time.process_time() - start) < _SECONDS:
        for _ in range(64):
            crc32(record, 1)
        count += 64
    return count * len(record) / spent / 1e9


if __name__ == "__main__":
    main()
