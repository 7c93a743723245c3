"""A limit on the memory of a process, including its page cache: a Linux control group, version 1 or 2."""

from __future__ import annotations

import os
from pathlib import Path


class MemoryCap:
    """A control group for one process. It needs root rights."""

    def __init__(self, name: str) -> None:
        root = Path("/sys/fs/cgroup")
        first = root / "memory"
        self._group = (first if first.is_dir() else root) / f"{name}-{os.getpid()}"
        self._group.mkdir()
        prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes"
        names = prefix if first.is_dir() else ("memory.max", "memory.current", "memory.peak")
        self._limit, self._usage, self._peak = (self._group / each for each in names)

    def add(self, process: int) -> None:
        """Put a process into the group."""
        (self._group / "cgroup.procs").write_text(str(process))

    def limit(self, size: int) -> None:
        """Set the limit in bytes."""
        self._limit.write_text(str(size))

    @property
    def usage(self) -> int:
        """The number of bytes in use."""
        return int(self._usage.read_text())

    @property
    def peak(self) -> int:
        """The largest number of bytes that was in use so far."""
        return int(self._peak.read_text())

    def remove(self) -> None:
        """Remove the group. Its processes must have ended."""
        self._group.rmdir()
