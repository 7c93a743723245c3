"""Shards: the safetensors files of a table. A shard has one tensor, and each row of the tensor is a record.

`docs/bundle-format.md`, "Tables", describes the format.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from molkv_bundle.errors import BundleError
from molkv_bundle.manifest import Shard, Table
from molkv_bundle.record import CHECKSUM_BYTES, PAGE_BYTES, Records
from molkv_bundle.remote import RemoteFolder
from molkv_bundle.safetensors_file import TensorFile

try:
    from zlib_ng.zlib_ng import crc32  # uses the processor's CRC instructions: 9 times as fast as zlib's
except ModuleNotFoundError:  # there is no wheel for this platform
    from zlib import crc32

RECORDS = "records"  # name of the only tensor in a shard
FORMAT = "molkv-table"
Access = Literal["pread", "mmap"]

_ROW_BYTES = 8  # size of the row number in the data that a checksum covers


def record_bytes(records: Records) -> memoryview:
    """Return the memory of contiguous records as bytes, without a copy."""
    return records.view(np.uint8).data


class RecordChecksum:
    """The checksum of a table's records: the CRC-32 (as in zlib) of the table id, the row number and the record."""

    def __init__(self, table: Table) -> None:
        self._start = crc32(bytes.fromhex(table.id))

    def of(self, record: memoryview, row: int) -> int:
        """Return the checksum of the record in a row, without the last four bytes, which store the checksum."""
        start = crc32(row.to_bytes(_ROW_BYTES, "little"), self._start)
        return crc32(record[:-CHECKSUM_BYTES], start)

    def is_right(self, record: memoryview, row: int) -> bool:
        """Return whether a record holds its checksum."""
        return self.of(record, row) == int.from_bytes(record[-CHECKSUM_BYTES:], "little")


def shard_header(shard: Shard, table: Table) -> bytes:
    """Return the safetensors header of a shard, padded to a multiple of the page size.

    The header lists one U8 tensor `records`, and has the layout of the records as metadata.
    """
    header = {
        "__metadata__": {"format": FORMAT, "layout": msgspec.json.encode(_layout(shard, table)).decode()},
        RECORDS: {"dtype": "U8", "shape": [shard.count, table.stride], "data_offsets": [0, shard.count * table.stride]},
    }
    text = msgspec.json.encode(header)
    text = text.ljust(-(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES - 8)
    return len(text).to_bytes(8, "little") + text


def _layout(shard: Shard, table: Table) -> dict[str, Any]:
    return {
        "table": table.id,
        "first_row": shard.first_row,
        "count": shard.count,
        "stride": table.stride,
        "fields": table.fields,
    }


class OpenShard:
    """An open shard, whose header agrees with the manifest. Its records can be read."""

    def __init__(self, path: Path, shard: Shard, table: Table, access: Access, verify_checksums: bool) -> None:
        """Open the file.

        Args:
            path: The path of the file.
            shard: The shard's entry in the manifest.
            table: The table that the shard belongs to.
            access: "pread" for positioned reads, "mmap" for a memory map.
            verify_checksums: Whether to check the checksum of each record when it is read.

        Raises:
            BundleError: The file cannot be read, or its header differs from the manifest.
        """
        self.path, self.first_row, self._stride = path, shard.first_row, table.stride
        self._checksum = RecordChecksum(table) if verify_checksums else None
        self._file = TensorFile(path, BundleError)
        self._start = shard.data_offset
        self._check_header(shard, table)
        self._size = self._file.size()
        self._map: mmap.mmap | None = None
        if access == "mmap":
            self._map = self._file.map()
            self._view = memoryview(self._map)

    def _check_header(self, shard: Shard, table: Table) -> None:
        entry = self._file.entries.get(RECORDS)
        if entry is None or entry.dtype != "U8" or entry.shape != (shard.count, table.stride):
            found = "none" if entry is None else f"{entry.dtype} {list(entry.shape)}"
            raise BundleError(
                f"{self.path}: tensor {RECORDS!r}: found {found}, "
                f"expected U8 {[shard.count, table.stride]} according to the manifest"
            )
        layout = json.dumps(msgspec.to_builtins(_layout(shard, table)), sort_keys=True)
        try:
            found = json.dumps(json.loads(self._file.metadata.get("layout", "")), sort_keys=True)
        except (ValueError, RecursionError):
            found = "none"
        if self._file.metadata.get("format") != FORMAT or found != layout:
            raise BundleError(
                f"{self.path}: the layout in its header differs from that in the manifest: the file belongs to another "
                "bundle; copy or export the bundle again"
            )
        if entry.start != self._start:
            raise BundleError(
                f"{self.path}: its records start at byte {entry.start}, expected {self._start} (data_offset in the "
                "manifest)"
            )

    def read(self, row: int, records: list[memoryview]) -> None:
        """Read the records of consecutive rows, from `row` on, into buffers of `stride` bytes, one for each record.

        Raises:
            BundleError: A record cannot be read, or its checksum is wrong.
        """
        offset = self._start + (row - self.first_row) * self._stride
        try:
            self._fill(records, offset)
        except BundleError as error:
            if len(records) > 1:  # read one by one to find the record that fails
                for index, record in enumerate(records):
                    self.read(row + index, [record])
                return
            raise BundleError(f"{error}; this happened while reading {self._name(row)}") from error
        if self._checksum is not None:
            for index, record in enumerate(records):
                if not self._checksum.is_right(record, row + index):
                    raise BundleError(
                        f"{self.path}: {self._name(row + index)} fails its checksum: the file is damaged, or holds a "
                        "record of another row or another export; copy or export the bundle again"
                    )

    def _fill(self, records: list[memoryview], offset: int) -> None:
        if self._map is None:
            self._file.announce(offset, len(records) * self._stride)
            self._file.read_into(records, offset)
            return
        if self._file.size() < self._size:  # reading a mapped page beyond the end of the file kills the process
            raise BundleError(f"{self.path}: has become shorter while it was read; is the file truncated?")
        self._file.announce_mapped(self._map, offset, len(records) * self._stride)
        for record in records:
            record[:] = self._view[offset : offset + self._stride]
            offset += self._stride

    def _name(self, row: int) -> str:
        return f"record {row - self.first_row} (token id {row})"

    def close(self) -> None:
        """Close the file."""
        if self._map is not None:
            self._view.release()
            self._map.close()
        self._file.close()


class RemoteShard:
    """A shard in a remote folder. Its header is not read, since the checksums of its records cover the table's id."""

    def __init__(self, folder: RemoteFolder, shard: Shard, table: Table) -> None:
        self.file, self.first_row = shard.file, shard.first_row
        self.stop_row = shard.first_row + shard.count
        self._folder, self._start, self._stride = folder, shard.data_offset, table.stride
        self._checksum = RecordChecksum(table)

    def read(self, row: int, count: int) -> dict[int, memoryview]:
        """Return `count` records from `row` on by their rows, with one request. Their checksums are not checked.

        Raises:
            BundleError: The records cannot be read.
        """
        start = self._start + (row - self.first_row) * self._stride
        data = memoryview(self._folder.read(self.file, start, start + count * self._stride))
        return {row + index: data[index * self._stride : (index + 1) * self._stride] for index in range(count)}

    def is_sound(self, row: int, record: memoryview) -> bool:
        """Return whether the checksum of a record is right."""
        return self._checksum.is_right(record, row)

    def damage(self, row: int) -> str:
        """Return the message about a record whose checksum is wrong."""
        return (
            f"{self._folder.url}/{self.file}: record {row - self.first_row} (token id {row}) fails its checksum: the "
            "file was damaged or replaced after the upload; push the bundle again"
        )
