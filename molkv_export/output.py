"""A folder on this machine in which a bundle or a part of its store is written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from molkv_bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    Bundle,
    BundleError,
    FileInfo,
    Manifest,
    Shard,
    Table,
    contents,
    decode_json,
    read_bytes,
    read_manifest,
)
from molkv_export.atomic_folder import atomic_folder, check_output, locked_folder, parts_of
from molkv_export.tables.resume import JOURNAL, Journal, is_undamaged, read_journal
from molkv_runtime import ExpertStore

PART = re.compile(r"(\d+)-of-(\d+)")
"""The name of a part, such as 3-of-8."""


def is_bundle(folder: Path) -> bool:
    """Return whether a folder holds only a bundle, of this version of the format or an earlier one."""
    try:
        path = folder / MANIFEST
        manifest = decode_json(read_bytes(path, BundleError, ""), dict[str, Any], path, BundleError)
        version, files = manifest.get("schema_version"), manifest.get("files")
        if isinstance(files, dict) and isinstance(version, int) and 0 < version < SCHEMA_VERSION:
            known = set(files)
        else:
            known = set(read_manifest(folder).files)
    except BundleError:
        return False
    return {path.name for path in contents(folder)} <= {MANIFEST, *known}


class LocalOutput:
    """A folder on this machine. It appears when the bundle is complete."""

    def __init__(self, path: Path, part: str = "") -> None:
        """Take the place.

        Args:
            path: The bundle's folder.
            part: The part of the store to write, such as "3-of-8"; empty for the bundle.
        """
        self.name = str(path)
        self._path, self._part = path, part

    def check(self, *, force: bool) -> None:
        """Check, before any other work, that the bundle may be written.

        Raises:
            OutputError: There is one already and `force` is false, or the place cannot be written.
        """
        check_output(self._path, is_ours=is_bundle, force=force)

    def folder(self, *, force: bool) -> AbstractContextManager[Path]:
        """Return a context manager that makes the folder in which the files are written.

        Raises:
            OutputError: As in `check`; another process writes this bundle; the disk is full.
        """
        if self._part:
            return locked_folder(parts_of(self._path) / self._part, self._path)
        return atomic_folder(self._path, is_ours=is_bundle, force=force, journal=JOURNAL)

    @property
    def parts_name(self) -> str:
        """The place of the parts."""
        return str(parts_of(self._path))

    @property
    def part_name(self) -> str:
        """The place of this part."""
        return str(parts_of(self._path) / self._part)

    def parts(self) -> dict[str, Journal]:
        """Return the journals of all parts that have a finished shard, by the places of the parts, in their order."""
        folder = parts_of(self._path)
        names = [path.name for path in (folder.iterdir() if folder.is_dir() else ())]
        found = {str(folder / name): read_journal(folder / name) for name in in_order(names)}
        return {place: journal for place, journal in found.items() if journal is not None}

    def size_in_part(self, place: str, name: str) -> int | None:
        """Return the size of a shard of a part, in bytes; None if it is not there."""
        path = Path(place, name)
        return path.stat().st_size if path.exists() else None

    def take(self, place: str, name: str, folder: Path) -> None:
        """Move a shard of a part into the folder of the bundle."""
        Path(place, name).rename(folder / name)

    def remove_parts(self) -> None:
        """Remove all parts, after their shards have become a bundle."""
        shutil.rmtree(parts_of(self._path), ignore_errors=True)

    def is_finished(self, shard: Path, info: FileInfo) -> bool:
        """Return whether a shard in the journal needs not be written again."""
        return is_undamaged(shard, info)

    def on_disk(self, shards: Sequence[Shard]) -> Sequence[Shard]:
        """Return which of the shards that will be written take space on this machine's disk at the same time."""
        return shards

    @property
    def upload_to(self) -> str:
        """The URL to which tasks on other machines upload shards; empty if they write into the folder."""
        return ""

    def finish(
        self, folder: Path, journal: Journal, check: Callable[[], None], name: str, info: FileInfo, by: str = ""
    ) -> None:
        """Keep a new shard, after `check` has found that the checkpoint is still the one that was hashed.

        `by` is the kind of CPU that wrote the shard; default: the one of this machine.
        """
        journal.finish(folder, check, name, info, by)

    def begin(self) -> None:
        """Prepare for the first shard. A local bundle that is replaced stays until the new one is complete."""

    def finish_shards(self, folder: Path, journal: Journal, table: Table) -> None:  # noqa: ARG002
        """Save the journal, and prepare the folder for `open_store`, when all shards are finished."""
        journal.save(folder)

    def open_store(self, bundle: Bundle) -> ExpertStore:
        """Open the store of the unfinished bundle."""
        return ExpertStore(bundle)

    def complete(self, folder: Path, manifest: Manifest) -> None:
        """Write what is not in its place yet, when all files are in the folder."""


def in_order(names: Iterable[str]) -> list[str]:
    """Return those names that parts have, such as "3-of-8", in the order of the parts."""
    matches = [match for match in map(PART.fullmatch, names) if match]
    return [match[0] for match in sorted(matches, key=lambda match: (int(match[2]), int(match[1])))]
