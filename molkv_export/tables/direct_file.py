"""Writing large files with direct access to the disk.

Copying into the page cache takes most of a CPU core; direct writes take a tenth of a core (docs/store-performance.md).
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from molkv_export.atomic_folder import sync

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DIRECT = getattr(os, "O_DIRECT", 0) if fcntl else 0  # 0: the system has no direct access
_BLOCK = 4096  # bytes; no disk requires a larger alignment


def aligned_zeros(count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Allocate an array [count] of zeros that begins on a page of memory, as direct access to a disk requires."""
    return np.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype, count)


class DirectFile:
    """A new file that is written from start to end. Whole blocks bypass the page cache if the system supports this."""

    def __init__(self, path: Path) -> None:
        """Create the file.

        Raises:
            OSError: The file cannot be created.
        """
        self._file = path.open("wb", buffering=0)
        self._possible = _DIRECT != 0
        self._direct = False

    def write(self, data: memoryview) -> int:
        """Write the first bytes of the data, at least one, and return their number.

        Raises:
            OSError: The disk is full or fails.
        """
        blocks = len(data) // _BLOCK * _BLOCK
        address = np.frombuffer(data, np.uint8).ctypes.data
        if self._possible and blocks and address % _BLOCK == self._file.tell() % _BLOCK == 0:
            try:
                self._switch(True)
                return self._file.write(data[:blocks])
            except OSError:
                self._possible = (
                    False  # no direct access here; if the disk is full, the write below raises the error again
                )
        self._switch(False)
        return self._file.write(data)

    def _switch(self, direct: bool) -> None:
        if direct is not self._direct:
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | _DIRECT if direct else flags & ~_DIRECT)
            self._direct = direct

    def sync(self) -> int:
        """Flush the file to the disk and return its size in bytes."""
        sync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
