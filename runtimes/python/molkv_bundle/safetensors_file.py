"""A reader of safetensors files that uses positioned reads.

The safetensors library maps files into memory. Then every part of a table that the process has read counts as resident
memory of the process. With positioned reads, no part of the file counts.
"""

from __future__ import annotations

import io
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from molkv_bundle.errors import MolkvError
from molkv_bundle.files import check_regular, decode_json, file_sha256

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_RANK = 8  # dimensions of a tensor; in a hostile file, multiplying very many dimensions could take hours
ITEM_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2},
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}

_OPEN = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # without O_BINARY, Windows translates line ends
_HAS_FADVISE = hasattr(os, "posix_fadvise")  # false on Windows and macOS
_HAS_MADVISE = hasattr(mmap, "MADV_WILLNEED")  # false on Windows


class TensorEntry(NamedTuple):
    """Dtype, shape and position of a tensor in its file."""

    dtype: str  # safetensors' name: F32, F16, BF16, U8, ...
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    size: int  # bytes

    @property
    def row_bytes(self) -> int:
        """Size of one row (one index of the first dimension) in bytes."""
        return self.size // self.shape[0] if self.shape and self.shape[0] else self.size


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class TensorFile:
    """An open safetensors file, which can be read in parts."""

    def __init__(self, path: Path, error: type[MolkvError]) -> None:
        """Open a file and check its header.

        Args:
            path: The path of the file.
            error: The exception to raise, also in later reads, if the file is missing, truncated or not safetensors.
        """
        self.path = path
        self.metadata: dict[str, str] = {}
        self._error = error
        try:
            check_regular(path)
            self._fd = os.open(path, _OPEN)
        except OSError as cause:
            raise error(f"{path}: cannot be opened ({cause.strerror})") from cause
        self._closer = weakref.finalize(self, os.close, self._fd)
        self._seeking = threading.Lock()
        try:
            self.entries = self._read_header()
        except OSError as cause:
            raise error(f"{path}: cannot be read ({cause.strerror})") from cause

    def _read_header(self) -> dict[str, TensorEntry]:
        total = self.size()
        length = int.from_bytes(self._read(min(8, total), 0), "little")
        if total < 8 or length > min(total - 8, MAX_HEADER_BYTES):
            raise self._error(f"{self.path}: is not a safetensors file, or is truncated ({total} bytes)")
        try:
            header = decode_json(self._read(length, 8), dict[str, Any], self.path, self._error)
            self.metadata = msgspec.convert(header.pop("__metadata__", {}), dict[str, str])
            found = {name: msgspec.convert(entry, _Header) for name, entry in header.items()}
        except (MolkvError, msgspec.ValidationError) as cause:
            raise self._error(f"{self.path}: its safetensors header is damaged ({cause})") from cause
        entries = {name: self._entry(name, item, 8 + length, total) for name, item in found.items()}
        expected = 8 + length + sum(entry.size for entry in entries.values())
        if total != expected:
            raise self._error(
                f"{self.path}: has {total} bytes, expected {expected} according to its header; is the file truncated?"
            )
        return entries

    def _entry(self, name: str, item: _Header, data_start: int, total: int) -> TensorEntry:
        begin, end = item.data_offsets
        item_bytes = ITEM_BYTES.get(item.dtype)
        if item_bytes is None:
            raise self._error(
                f"{self.path}: tensor {name!r} has dtype {item.dtype[:20]!r}, which is unknown; "
                "write the tensor as F32, F16 or BF16"
            )
        if len(item.shape) > MAX_RANK:
            raise self._error(
                f"{self.path}: tensor {name!r} has {len(item.shape)} dimensions, expected at most {MAX_RANK}"
            )
        size = item_bytes
        for dimension in item.shape:
            size *= dimension
        if min((0, *item.shape)) < 0 or begin < 0 or end - begin != size or data_start + end > total:
            raise self._error(
                f"{self.path}: tensor {name!r} {item.dtype} {list(item.shape)} does not fit the bytes "
                f"[{begin}, {end}) that the header gives, in a file of {total} bytes; is the file truncated?"
            )
        return TensorEntry(item.dtype, item.shape, data_start + begin, size)

    def size(self) -> int:
        """Return the current size of the file in bytes."""
        return os.fstat(self._fd).st_size

    def read_into(self, buffers: list[memoryview], offset: int) -> None:
        """Fill buffers, one after the other, with the bytes of the file from `offset` on.

        Raises:
            The `error` of the constructor: The file ends before the buffers are full, or cannot be read.
        """
        while buffers:
            try:
                if hasattr(os, "preadv"):  # not Windows
                    count = os.preadv(self._fd, buffers, offset)
                else:
                    count = self._seek_and_read(buffers[0], offset)
            except OSError as cause:
                raise self._error(f"{self.path}: cannot be read at byte {offset} ({cause.strerror})") from cause
            if count == 0:
                raise self._error(
                    f"{self.path}: ends at byte {offset}, where more data was expected; is the file truncated?"
                )
            offset += count
            buffers = _rest(buffers, count)

    def _seek_and_read(self, buffer: memoryview, offset: int) -> int:
        """Read into a buffer as `os.preadv` does. A lock is needed, since all threads share the file position."""
        with self._seeking, io.FileIO(self._fd, closefd=False) as file:
            file.seek(offset)
            return file.readinto(buffer)

    def _read(self, size: int, offset: int) -> bytes:
        data = bytearray(size)
        self.read_into([memoryview(data)] if size else [], offset)
        return bytes(data)

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Return the bytes of rows `start` to `stop` - 1 of a tensor, uint8 [(stop - start) * row_bytes].

        Rows are along the first dimension. By default `stop` is the number of rows.
        """
        entry = self.entries[name]
        stop = stop if stop is not None else (entry.shape[0] if entry.shape else 1)
        out = np.empty((stop - start) * entry.row_bytes, np.uint8)
        self.read_into([out.data] if out.size else [], entry.start + start * entry.row_bytes)
        return out

    def map(self) -> mmap.mmap:
        """Return a memory map of the whole file, for random access."""
        mapped = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        if _HAS_MADVISE:
            with suppress(OSError):  # some systems refuse madvise
                mapped.madvise(mmap.MADV_RANDOM)
        return mapped

    def announce(self, offset: int, size: int) -> None:
        """Tell the operating system that these bytes will be read next.

        The operating system then reads exactly these bytes from the disk, in one request.
        """
        if _HAS_FADVISE:
            try:  # noqa: SIM105 - suppress() would take as long as the call
                os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_WILLNEED)
            except OSError:  # some systems refuse posix_fadvise
                pass

    def announce_mapped(self, mapped: mmap.mmap, offset: int, size: int) -> None:
        """Do the same for a range of a memory map. Without this, each page causes a page fault and a separate read."""
        if _HAS_MADVISE:
            page = offset - offset % mmap.PAGESIZE
            try:  # noqa: SIM105
                mapped.madvise(mmap.MADV_WILLNEED, page, offset - page + size)
            except OSError:
                pass

    def sha256(self, advance: Callable[[int], object] = lambda _: None) -> str:
        """Return the SHA-256 of the open file, even if its name now belongs to another file; see `file_sha256`."""
        return file_sha256(self._fd, advance)

    def close(self) -> None:
        """Close the file. It is also closed when this object is garbage-collected."""
        self._closer()


def _rest(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Return buffers without their first `count` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []
