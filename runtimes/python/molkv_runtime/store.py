"""The expert store: records of token ids, gathered from flash."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from molkv_runtime.bundle import Bundle
from molkv_runtime.errors import BundleError, RequestError
from molkv_runtime.manifest import MANIFEST, Shard
from molkv_runtime.record import Records, checked_record_dtype, checksum
from molkv_runtime.tensor_file import TensorFile

RECORDS = "records"  # name of a shard's one tensor


class ExpertStore(AbstractContextManager["ExpertStore"]):
    """The open shards of a bundle. Nothing of them stays in RAM beyond what the operating system caches."""

    def __init__(self, bundle: Bundle) -> None:
        """Open all shards and check that they hold every token id once.

        Raises:
            BundleError: A shard is damaged or does not fit the manifest.
        """
        info = bundle.manifest.store
        source = str(bundle.path / MANIFEST)
        self.dtype = checked_record_dtype(bundle.config, info, source)
        self.vocab_size = bundle.config.vocab_size
        _check_ranges(info.shards, self.vocab_size, source)
        self._first_ids = [shard.first_id for shard in info.shards]
        self._files: list[TensorFile] = []
        self._starts: list[int] = []
        for shard in info.shards:
            self._open(bundle, shard, info.stride)

    def _open(self, bundle: Bundle, shard: Shard, stride: int) -> None:
        file = TensorFile(bundle.path / shard.file, BundleError)
        self._files.append(file)
        entry = file.entries.get(RECORDS)
        if entry is None or entry.dtype != "U8" or entry.shape != (shard.count, stride):
            found = "none" if entry is None else f"{entry.dtype} {list(entry.shape)}"
            raise BundleError(
                f"{file.path}: tensor {RECORDS!r}: found {found}, expected U8 {[shard.count, stride]} by the manifest"
            )
        self._starts.append(entry.start)

    def gather(self, ids: npt.NDArray[np.integer[Any]]) -> Records:
        """Read the records of token ids [n], each distinct id once, in the order of the file.

        Returns:
            Structured array [n]; its fields are those of the manifest.

        Raises:
            RequestError: An id is outside the vocabulary.
            BundleError: A record cannot be read, or its checksum does not fit.
        """
        self.check_ids(ids)
        unique, inverse = np.unique(ids, return_inverse=True)
        records = np.empty(len(unique), self.dtype)
        rows = records.view(np.uint8).reshape(len(unique), self.dtype.itemsize)
        for row, token in zip(rows, unique.tolist(), strict=True):
            self._read(token, row)
        return records[inverse]

    def check_ids(self, ids: npt.NDArray[Any]) -> None:
        """Check that these are token ids.

        Raises:
            RequestError: One is not an integer, or outside the vocabulary.
        """
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise RequestError(f"token ids have dtype {ids.dtype}, expected integers")
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if wrong.size:
            raise RequestError(
                f"token id {wrong.flat[0]} is outside the vocabulary, expected 0 to {self.vocab_size - 1}"
            )

    def _read(self, token: int, row: npt.NDArray[np.uint8]) -> None:
        shard = bisect_right(self._first_ids, token) - 1
        index = token - self._first_ids[shard]
        file = self._files[shard]
        file.read_into(row, self._starts[shard] + index * self.dtype.itemsize)
        if checksum(row) != int.from_bytes(row[-4:], "little"):
            raise BundleError(
                f"{file.path}: record {index} (token id {token}) fails its checksum; the file is damaged, export again"
            )

    def close(self) -> None:
        """Close all shards."""
        for file in self._files:
            file.close()
        self._files.clear()

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_ranges(shards: tuple[Shard, ...], vocab_size: int, source: str) -> None:
    next_id = 0
    for shard in shards:
        if shard.first_id != next_id or shard.count < 1:
            raise BundleError(
                f"{source}: shard {shard.file} holds {shard.count} ids from {shard.first_id} on, "
                f"expected it to start at {next_id}"
            )
        next_id += shard.count
    if next_id != vocab_size:
        raise BundleError(f"{source}: the shards hold {next_id} ids, model.vocab_size is {vocab_size}")
