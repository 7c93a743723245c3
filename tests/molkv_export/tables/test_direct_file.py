"""Files written without the page cache hold the right bytes for all piece sizes and file systems."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molkv_export.tables.direct_file import DirectFile, aligned_zeros

PAGE = 4096


def _write(path: Path, pieces: list[memoryview]) -> bytes:
    file = DirectFile(path)
    for piece in pieces:
        while piece:
            piece = piece[file.write(piece) :]
    size = file.sync()
    file.close()
    assert size == path.stat().st_size
    return path.read_bytes()


def _aligned(size: int, seed: int) -> memoryview:
    array = aligned_zeros(size, np.dtype(np.uint8))
    array[:] = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return memoryview(array)


@pytest.mark.parametrize(
    "sizes",
    [
        [PAGE, 3 * PAGE, 2 * PAGE],  # whole blocks only
        [PAGE, 3 * PAGE + 64, PAGE],  # a partial block in the middle, so that the next block is not aligned
        [100, PAGE],
        [64 * 1024 + 1],
    ],
)
def test_a_file_holds_the_given_bytes(tmp_path: Path, sizes: list[int]) -> None:
    pieces = [_aligned(size, seed) for seed, size in enumerate(sizes)]
    assert _write(tmp_path / "file", pieces) == b"".join(pieces)


def test_memory_need_not_be_aligned(tmp_path: Path) -> None:
    data = _aligned(4 * PAGE, 0)[64 : 64 + 2 * PAGE]
    assert _write(tmp_path / "file", [data]) == bytes(data)


def test_large_slabs_begin_at_a_page() -> None:
    assert aligned_zeros(100_000, np.dtype(np.float32)).ctypes.data % PAGE == 0


class _Flags:
    """File status flags, kept here instead of in the system, so that every file system seems to accept O_DIRECT."""

    def __init__(self) -> None:
        self.direct = False
        self.switched: list[tuple[int, bool]] = []  # position in the file, and whether writes from there are direct

    def __call__(self, file: io.FileIO, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL:
            self.direct = bool(flags & os.O_DIRECT)
            self.switched.append((file.tell(), self.direct))
        return os.O_DIRECT if self.direct else 0


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> _Flags:
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no O_DIRECT")
    found = _Flags()
    monkeypatch.setattr(fcntl, "fcntl", found)
    return found


def test_only_whole_aligned_blocks_bypass_the_page_cache(tmp_path: Path, flags: _Flags) -> None:
    _write(tmp_path / "file", [_aligned(2 * PAGE, 0), _aligned(PAGE + 64, 1), _aligned(PAGE, 2)])
    # The tail of 64 bytes goes through the page cache, and so does the block behind it, which is in the wrong place.
    assert flags.switched == [(0, True), (3 * PAGE, False)]


def test_a_file_system_without_direct_access_works(tmp_path: Path, flags: _Flags) -> None:
    """Simulate a file system that accepts O_DIRECT and refuses the write, like some network file systems."""
    refused: list[int] = []

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            if flags.direct:
                refused.append(self.tell())
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return super().write(data)

    class NetworkPath(type(tmp_path)):  # type: ignore[misc]
        def open(self, mode: str, **_: int) -> File:
            return File(self, mode)

    pieces = [_aligned(2 * PAGE, seed) for seed in range(3)]
    assert _write(NetworkPath(tmp_path / "file"), pieces) == b"".join(pieces)
    assert refused == [0], "direct access is asked for once"
