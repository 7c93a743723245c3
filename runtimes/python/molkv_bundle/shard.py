"""A shard: one file of the expert store (`docs/bundle-format.md`, "Shard")."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any, Literal

import msgspec

from molkv_bundle.errors import BundleError
from molkv_bundle.manifest import Shard, StoreInfo
from molkv_bundle.record import CHECKSUM_BYTES, PAGE_BYTES, checksum
from molkv_bundle.tensor_file import TensorFile

RECORDS = "records"  # name of a shard's one tensor
FORMAT = "molkv-expert-store"

Access = Literal["pread", "mmap"]


def shard_header(shard: Shard, store: StoreInfo) -> bytes:
    """Make a safetensors header that ends on a page: one U8 tensor `records`, the layout as metadata."""
    header = {
        "__metadata__": {"format": FORMAT, "layout": msgspec.json.encode(_layout(shard, store)).decode()},
        RECORDS: {"dtype": "U8", "shape": [shard.count, store.stride], "data_offsets": [0, shard.count * store.stride]},
    }
    text = msgspec.json.encode(header)
    text = text.ljust(-(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES - 8)
    return len(text).to_bytes(8, "little") + text


def _layout(shard: Shard, store: StoreInfo) -> dict[str, Any]:
    return {"first_id": shard.first_id, "count": shard.count, "stride": store.stride, "fields": store.fields}


class OpenShard:
    """A shard whose header is that of the manifest, open for reading records."""

    def __init__(self, path: Path, shard: Shard, store: StoreInfo, access: Access, verify_checksums: bool) -> None:
        """Open the file.

        Args:
            path: The file.
            shard: Its entry in the manifest.
            store: The layout of records.
            access: Positioned reads, or a memory map.
            verify_checksums: Whether each record is checked when it is read.

        Raises:
            BundleError: The header does not say what the manifest says.
        """
        self.path, self.first_id, self._stride = path, shard.first_id, store.stride
        self._verify = verify_checksums
        self._file = TensorFile(path, BundleError)
        self._start = self._check_header(shard, store)
        self._size = self._file.size()
        self._map: mmap.mmap | None = None
        if access == "mmap":
            self._map = self._file.map()
            self._view = memoryview(self._map)

    def _check_header(self, shard: Shard, store: StoreInfo) -> int:
        entry = self._file.entries.get(RECORDS)
        if entry is None or entry.dtype != "U8" or entry.shape != (shard.count, store.stride):
            found = "none" if entry is None else f"{entry.dtype} {list(entry.shape)}"
            raise BundleError(
                f"{self.path}: tensor {RECORDS!r}: found {found}, "
                f"expected U8 {[shard.count, store.stride]} by the manifest"
            )
        layout = json.dumps(msgspec.to_builtins(_layout(shard, store)), sort_keys=True)
        try:
            found = json.dumps(json.loads(self._file.metadata.get("layout", "")), sort_keys=True)
        except (ValueError, RecursionError):
            found = "none"
        if self._file.metadata.get("format") != FORMAT or found != layout:
            raise BundleError(f"{self.path}: the layout in its header is not the manifest's; the file was replaced")
        return entry.start

    def read(self, token: int, records: list[memoryview]) -> None:
        """Read the records of consecutive token ids from `token` on into as many buffers of a stride each.

        Raises:
            BundleError: A record cannot be read, or its checksum does not fit.
        """
        offset = self._start + (token - self.first_id) * self._stride
        try:
            self._fill(records, offset)
        except BundleError as error:
            if len(records) > 1:  # find out which of them it is
                for index, record in enumerate(records):
                    self.read(token + index, [record])
                return
            raise BundleError(f"{error}; it is part of {self._name(token)}") from error
        if self._verify:
            for index, record in enumerate(records):
                if checksum(record) != int.from_bytes(record[-CHECKSUM_BYTES:], "little"):
                    raise BundleError(
                        f"{self.path}: {self._name(token + index)} fails its checksum; "
                        "the file is damaged, copy or export the bundle again"
                    )

    def _fill(self, records: list[memoryview], offset: int) -> None:
        if self._map is None:
            self._file.announce(offset, len(records) * self._stride)
            self._file.read_into(records, offset)
            return
        if self._file.size() < self._size:  # a page that is gone would kill the process
            raise BundleError(f"{self.path}: has become shorter while it was read; is it truncated?")
        self._file.announce_mapped(self._map, offset, len(records) * self._stride)
        for record in records:
            record[:] = self._view[offset : offset + self._stride]
            offset += self._stride

    def _name(self, token: int) -> str:
        return f"record {token - self.first_id} (token id {token})"

    def close(self) -> None:
        """Close the file."""
        if self._map is not None:
            self._view.release()
            self._map.close()
        self._file.close()
