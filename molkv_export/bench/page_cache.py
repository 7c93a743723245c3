"""Making files cold, and showing that they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def drop(paths: Sequence[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cached(path: Path, offsets: Sequence[int], size: int) -> int:
    """Count how many of some ranges are in the page cache: a read that must not wait succeeds only there."""
    descriptor, buffer, found = os.open(path, os.O_RDONLY), bytearray(size), 0
    for offset in offsets:
        try:
            found += os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT) == size
        except BlockingIOError:
            continue
    os.close(descriptor)
    return found
