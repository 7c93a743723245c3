"""Write the files of a package: a bundle reduced to one profile."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from molkv_bundle import (
    EXPERTS,
    NO_DIGEST,
    Bundle,
    BundleError,
    FileInfo,
    Manifest,
    RequestError,
    Table,
    file_sha256,
    read_manifest,
    record_bytes,
    shard_header,
    write_manifest,
)
from molkv_export.atomic_folder import copy_file
from molkv_export.packaging.layout import Limits
from molkv_export.packaging.ort_format import convert_graphs
from molkv_export.tables.plan import plan_shards
from molkv_export.terminal import human_bytes
from molkv_runtime import ExpertStore

BYTES_AT_ONCE = 8 * 1024**2  # size of the buffer for records

# File names become names of Android's assets, and build tools read them. A bundle is untrusted, so a name that does not
# match this pattern is refused.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Content:
    """Writer of the files of a package. Each method `add_...` adds one kind of file."""

    def __init__(self, bundle: Bundle, folder: Path, limits: Limits, advance: Callable[[int], object]) -> None:
        """Prepare to write the files.

        Args:
            bundle: Source of the files, open for the profile of the package.
            folder: Folder to write to.
            limits: Size limits of the app store.
            advance: Called after each written piece with its number of bytes.
        """
        self._bundle, self._folder, self._limits, self._advance = bundle, folder, limits, advance
        self._files: dict[str, FileInfo] = {}
        self._graph, self._table = bundle.graph(), bundle.manifest.experts

    def add_companions(self) -> None:
        """Add the files that belong neither to a graph nor to the store, and the golden vectors of the profile."""
        manifest = self._bundle.manifest
        others = {shard.file for shard in manifest.experts.shards}
        for graph in manifest.graphs.values():
            others |= {graph.data, graph.golden, *(file.file for file in graph.files)}
        for name in sorted((manifest.files.keys() - others) | {self._graph.golden}):
            self._add(name)

    def add_graphs(self) -> None:
        """Add the profile's graphs and their weights."""
        for path in self._graph_files():
            self._add(path.name)
        self._add(self._graph.data)

    def add_ort_graphs(self, operators: Path) -> None:
        """Add the graphs of the profile in ORT format, each with its weights; write a list of operators, too."""
        self._bundle.file(self._graph.data)  # checks the file
        sources = self._graph_files()
        targets = [self._folder / f"{source.stem}.ort" for source in sources]
        convert_graphs(dict(zip(sources, targets, strict=True)), operators)
        files = []
        for file, target in zip(self._graph.files, targets, strict=True):
            self._files[target.name] = FileInfo(size=target.stat().st_size, sha256=file_sha256(target))
            self._check(target.name)
            files.append(msgspec.structs.replace(file, file=target.name))
        # ORT files hold their weights. The field `data` must name a file of the bundle, so it names the first graph.
        self._graph = msgspec.structs.replace(self._graph, files=tuple(files), data=files[0].file)

    def add_store(self) -> None:
        """Add the expert store: copy the shards if they are small enough, else write smaller shards."""
        sizes = {shard.file: self._bundle.manifest.files[shard.file].size for shard in self._table.shards}
        if max(sizes.values()) <= min(self._limits.file, self._limits.pack):
            for name in sizes:
                self._add(name)
            return
        self._table = plan_shards(self._table, self._limits.shard, "limits.shard")
        self._files |= write_shards(self._bundle, self._table, self._folder, self._advance)

    def finish(self, command: str) -> Manifest:
        """Write the manifest and return it; the bundle is then complete."""
        old = self._bundle.manifest
        manifest = msgspec.structs.replace(
            old,
            graphs={self._bundle.profile: self._graph},
            tables={EXPERTS: self._table},
            files=dict(sorted(self._files.items())),
            provenance=old.provenance.followed_by(command),
            sha256=NO_DIGEST,
        )
        write_manifest(manifest, self._folder)
        return read_manifest(self._folder)

    def _graph_files(self) -> list[Path]:
        """Check the ONNX files and return their paths. An unchecked graph could make its loader read other files."""
        return list(self._bundle.graph_paths().values())

    def _add(self, name: str) -> None:
        self._files[name] = self._bundle.manifest.files[name]
        self._check(name)
        copy_file(self._bundle.file(name), self._folder / name)
        self._advance(self._files[name].size)

    def _check(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise BundleError(
                f"{self._bundle.path}: has a file named {name!r}, expected letters, digits, dots, - and _ only"
            )
        size, limit = self._files[name].size, min(self._limits.file, self._limits.pack)
        if size > limit:
            raise RequestError(
                f"{self._bundle.path}: {name} has {size} bytes ({human_bytes(size)}), expected at most {limit} in a "
                "package for this target; add the profile again with a smaller --dense-dtype"
            )


def total_bytes(bundle: Bundle) -> int:
    """Return approximately the number of bytes that `Content` will write."""
    manifest, graph = bundle.manifest, bundle.graph()
    names = {graph.data, graph.golden, *(file.file for file in graph.files)}
    names |= {shard.file for shard in manifest.experts.shards}
    return sum(manifest.files[name].size for name in names)


def write_shards(bundle: Bundle, table: Table, folder: Path, advance: Callable[[int], object]) -> dict[str, FileInfo]:
    """Write the records of a bundle into other shards, a few at a time. The checksum of each record is checked.

    Args:
        bundle: Source of the records.
        table: Shards to write, from `plan_shards`.
        folder: Folder to write to.
        advance: Called after each written piece with its number of bytes.

    Returns:
        Size and SHA-256 of each shard, by file name.

    Raises:
        BundleError: A record is damaged.
        OSError: The disk is full, or writing fails.
    """
    with ExpertStore(bundle) as source:
        buffer = source.buffer(max(1, BYTES_AT_ONCE // table.stride))
        infos = {}
        for shard in table.shards:
            digest = hashlib.sha256()
            with (folder / shard.file).open("xb") as file:
                header = shard_header(shard, table)
                digest.update(header)
                file.write(header)
                stop = shard.first_row + shard.count
                for first in range(shard.first_row, stop, len(buffer)):
                    ids = np.arange(first, min(first + len(buffer), stop))
                    records = record_bytes(source.gather(ids, buffer))
                    digest.update(records)
                    file.write(records)
                    advance(len(records))
                infos[shard.file] = FileInfo(size=file.tell(), sha256=digest.hexdigest())
    return infos
