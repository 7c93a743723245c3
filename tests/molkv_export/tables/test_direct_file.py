"""Files written past the page cache: the bytes are those of a plain file, whatever the pieces and the file system."""

from __future__ import annotations

import errno
from pathlib import Path

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
        [PAGE, 3 * PAGE, 2 * PAGE],  # all blocks
        [PAGE, 3 * PAGE + 64, PAGE],  # a tail in the middle, so that the next block is in the wrong place
        [100, PAGE],
        [64 * 1024 + 1],
    ],
)
def test_bytes_are_those_given(tmp_path: Path, sizes: list[int]) -> None:
    pieces = [_aligned(size, seed) for seed, size in enumerate(sizes)]
    assert _write(tmp_path / "file", pieces) == b"".join(pieces)


def test_memory_need_not_be_aligned(tmp_path: Path) -> None:
    data = _aligned(4 * PAGE, 0)[64 : 64 + 2 * PAGE]
    assert _write(tmp_path / "file", [data]) == bytes(data)


def test_large_slabs_are_on_pages() -> None:
    assert aligned_zeros(100_000, np.dtype(np.float32)).ctypes.data % PAGE == 0


def test_only_whole_blocks_at_their_place_pass_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch, asked = DirectFile._switch, []

    def watch(self: DirectFile, direct: bool) -> None:
        asked.append(direct)
        switch(self, direct)

    monkeypatch.setattr(DirectFile, "_switch", watch)
    _write(tmp_path / "file", [_aligned(2 * PAGE, 0), _aligned(PAGE + 64, 1), _aligned(PAGE, 2)])
    assert asked == [True, True, False, False], "two blocks, one block, its tail, a block in the wrong place"


def test_file_system_without_direct_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the flag and refuses the write, as some network file systems do."""

    def refuse(_: DirectFile, direct: bool) -> None:
        refused.append(direct)
        if direct:
            raise OSError(errno.EINVAL, "Invalid argument")

    refused: list[bool] = []
    monkeypatch.setattr(DirectFile, "_switch", refuse)
    pieces = [_aligned(2 * PAGE, seed) for seed in range(3)]
    assert _write(tmp_path / "file", pieces) == b"".join(pieces)
    assert refused.count(True) == 1, "asked again after it was refused"
