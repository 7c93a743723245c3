"""Where a bundle or a part of its store is written: a folder on this machine, or a folder of object storage."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from molkv_bundle import (
    MANIFEST,
    Bundle,
    BundleError,
    FileInfo,
    Ids,
    Manifest,
    OutputError,
    Records,
    RemoteFolder,
    Shard,
    Table,
    cache_folder,
    read_manifest,
    shard_header,
)
from molkv_export.atomic_folder import atomic_folder, check_output, locked_folder, parts_of
from molkv_export.cache_folder import temporary_folder
from molkv_export.locations import location
from molkv_export.tables.plan import shard_bytes
from molkv_export.tables.resume import JOURNAL, Journal, is_undamaged, read_journal
from molkv_runtime import ExpertStore

_SHARD = re.compile(r"experts-\d{5}-of-\d{5}\.safetensors")
_PART = re.compile(r"(\d+)-of-(\d+)")
_JOURNAL = re.compile(rf"{Path(JOURNAL).stem}(-(?P<part>{_PART.pattern}))?\.json")  # in a remote folder
_NAME = re.compile(r"[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*")
_REQUESTS = 8  # at the same time


def never_ours(_folder: Path) -> bool:
    """Return false: a part does not replace a bundle."""
    return False


class LocalOutput:
    """A folder on this machine. It appears when the bundle is complete."""

    def __init__(self, path: Path, is_ours: Callable[[Path], bool], part: str = "") -> None:
        """Take the place.

        Args:
            path: The bundle's folder.
            is_ours: Function that returns whether a folder holds nothing but a bundle.
            part: The part of the store to write, such as "3-of-8"; empty for the bundle.
        """
        self.name = str(path)
        self._path, self._is_ours, self._part = path, is_ours, part

    def check(self, *, force: bool) -> None:
        """Check, before any other work, that the bundle may be written.

        Raises:
            OutputError: There is one already and `force` is false, or the place cannot be written.
        """
        check_output(self._path, is_ours=self._is_ours, force=force)

    def folder(self, *, force: bool) -> AbstractContextManager[Path]:
        """Return a context manager that makes the folder in which the files are written.

        Raises:
            OutputError: As in `check`; another process writes this bundle; the disk is full.
        """
        if self._part:
            return locked_folder(parts_of(self._path) / self._part, self._path)
        return atomic_folder(self._path, is_ours=self._is_ours, force=force, journal=JOURNAL)

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
        found = {str(folder / name): read_journal(folder / name) for name in _in_order(names)}
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

    def remove_manifest(self) -> None:
        """Do nothing: a local bundle stays until the new one is complete."""

    def finish_shards(self, folder: Path, journal: Journal, table: Table) -> None:  # noqa: ARG002
        """Save the journal, and prepare the folder for `open_store`, when all shards are finished."""
        journal.save(folder)

    def open_store(self, bundle: Bundle) -> ExpertStore:
        """Open the store of the unfinished bundle."""
        return ExpertStore(bundle)

    def complete(self, folder: Path, manifest: Manifest) -> None:
        """Write what is not in its place yet, when all files are in the folder."""


class RemoteOutput(LocalOutput):
    """A folder of object storage.

    Files are made in a working folder below the cache folder. A shard is uploaded when it is finished, and removed from
    the disk. After each shard, the journal is uploaded; so the export can be resumed, also on another machine. The
    manifest is uploaded last.
    """

    def __init__(self, url: str, is_ours: Callable[[Path], bool], part: str = "") -> None:
        """Connect, and list the files; for the arguments see `LocalOutput`.

        Raises:
            OutputError: The URL is not one of object storage, or the folder cannot be listed.
            MissingExtraError: The packages for this kind of URL are not installed.
        """
        if url.startswith("hf://"):
            raise OutputError(
                f"{url}: export does not write to the Hub; export to a folder on this machine, then run: "
                f"molkv-export push FOLDER {url}"
            )
        self._remote = RemoteFolder(url, OutputError)
        self.name = self._remote.url
        self._is_ours, self._part = is_ours, part
        self._journal = f"{Path(JOURNAL).stem}-{part}.json" if part else JOURNAL
        self._mine: set[str] = set()  # shards that this export or part has uploaded, also in earlier attempts
        self._old: set[str] = set()  # files of the bundle that is replaced
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self._folder = cache_folder() / "exports" / (f"{digest}-{part}" if part else digest)
        self._uploading: Future[None] | None = None

    def check(self, *, force: bool) -> None:
        """See `LocalOutput`. A folder that has a journal but no manifest is an unfinished export, which goes on."""
        files = self._remote.files
        if not files or (MANIFEST not in files and any(map(_JOURNAL.fullmatch, files))):
            return
        if MANIFEST in files and not force:
            hint = "remove it first, or write parts of another bundle" if self._part else "pass --force to replace it"
            raise OutputError(f"{self.name}: exists already; {hint}")
        if MANIFEST not in files or not self._is_bundle():
            raise OutputError(
                f"{self.name}: holds files that molkv-export did not write, so it is not replaced; remove them or "
                "choose another folder"
            )

    def _is_bundle(self) -> bool:
        """Return whether the folder holds nothing but a bundle; note the names of its files."""
        names = {name for name in self._remote.files if not _JOURNAL.fullmatch(name)}
        if not all(map(_NAME.fullmatch, names)):
            return False
        with temporary_folder("manifests") as folder:
            for name in names:
                (folder / name).touch()
            self._remote.download(MANIFEST, folder / MANIFEST)
            if not self._is_ours(folder):
                return False
            self._old = {MANIFEST}
            with suppress(BundleError):  # an earlier version of the format
                self._old |= read_manifest(folder).files.keys()
        return True

    @contextmanager
    def folder(self, *, force: bool) -> Iterator[Path]:  # noqa: ARG002 - `check` has used it
        """Make the working folder. First upload the journal, which shows whether the bucket can be written."""
        with locked_folder(self._folder, self._folder, self.name):
            path = self._folder / JOURNAL
            if self._journal in self._remote.files:
                self._remote.download(self._journal, path)
            else:  # a journal on this disk could list shards that somebody has removed
                Journal({}).save(self._folder)
                self._remote.upload(path, self._journal)
            self._mine = set((read_journal(self._folder) or Journal({})).shards)
            with ThreadPoolExecutor(1, "upload") as self._pool:
                try:
                    yield self._folder
                except BaseException:
                    self._pool.shutdown()  # the last shard may still arrive
                    if not (journal := read_journal(self._folder)) or not journal.shards:
                        self._give_up()
                    raise
        shutil.rmtree(self._folder, ignore_errors=True)

    def _give_up(self) -> None:
        """Remove what was uploaded, when nothing of it can be used."""
        with suppress(OutputError):  # the first error matters more
            files = self._remote.list()
            for name in self._mine & files.keys() if MANIFEST not in files else ():
                self._remote.remove(name)
            self._remote.remove(self._journal)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def parts_name(self) -> str:
        """The place of the parts."""
        return self.name

    @property
    def part_name(self) -> str:
        """The place of this part."""
        return self.name

    def parts(self) -> dict[str, Journal]:
        """Return the journals of all parts by their URLs; see `LocalOutput`."""
        found, names = {}, [match["part"] for match in map(_JOURNAL.fullmatch, self._remote.files) if match]
        with temporary_folder("manifests") as folder:
            for part in _in_order([name for name in names if name]):
                name = f"{Path(JOURNAL).stem}-{part}.json"
                self._remote.download(name, folder / JOURNAL)
                if journal := read_journal(folder):
                    found[f"{self.name}/{name}"] = journal
        return found

    def size_in_part(self, place: str, name: str) -> int | None:  # noqa: ARG002 - all parts are in one folder
        """Return the size of a shard; see `LocalOutput`."""
        return self._remote.files[name].size if name in self._remote.files else None

    def take(self, place: str, name: str, folder: Path) -> None:
        """Do nothing: the shards of parts are where those of the bundle are."""

    def remove_parts(self) -> None:
        """Do nothing: `complete` has removed the journals."""

    def is_finished(self, shard: Path, info: FileInfo) -> bool:
        """Return whether the remote folder has a shard of this size."""
        found = self._remote.files.get(shard.name)
        return found is not None and found.size == info.size

    def on_disk(self, shards: Sequence[Shard]) -> Sequence[Shard]:
        """Return two shards: while one is uploaded, the next one is written."""
        return shards[:2]

    @property
    def upload_to(self) -> str:
        """The URL of the folder."""
        return self._remote.url

    def finish(
        self, folder: Path, journal: Journal, check: Callable[[], None], name: str, info: FileInfo, by: str = ""
    ) -> None:
        """Start to upload a new shard, when the shard before it has arrived. A task may have uploaded it already."""
        self._wait()  # first, since a failed check may remove the journal, which an upload saves
        check()
        self._uploading = self._pool.submit(self._upload, folder, journal, name, info, by)

    def _wait(self) -> None:
        if self._uploading is not None:
            self._uploading.result()

    def remove_manifest(self) -> None:
        """Remove the manifest of a bundle that is replaced, before its first shard is."""
        if MANIFEST in self._old:
            self._remote.remove(MANIFEST)
            self._old.remove(MANIFEST)

    def _upload(self, folder: Path, journal: Journal, name: str, info: FileInfo, by: str) -> None:
        self._mine.add(name)
        if (folder / name).exists():
            self.remove_manifest()
            self._remote.upload(folder / name, name, info.sha256)
        journal.finish(folder, lambda: None, name, info, by)
        self._remote.upload(folder / JOURNAL, self._journal)
        (folder / name).unlink(missing_ok=True)

    def finish_shards(self, folder: Path, journal: Journal, table: Table) -> None:
        """Wait for the last upload; make files with the headers and sizes of the shards, which take almost no space."""
        self._wait()
        journal.save(folder)
        self._remote.upload(folder / JOURNAL, self._journal)
        if self._part:
            return
        for shard in table.shards:
            with (folder / shard.file).open("wb") as file:
                file.write(shard_header(shard, table))
                file.truncate(shard_bytes(shard, table))

    def open_store(self, bundle: Bundle) -> ExpertStore:
        """Open a store that fetches records when they are first read."""
        return _UploadedStore(bundle, self._remote)

    def complete(self, folder: Path, manifest: Manifest) -> None:
        """Upload the other files, and then the manifest.

        Raises:
            OutputError: A file cannot be uploaded, or a shard is not as it was uploaded.
        """
        for name, info in manifest.files.items():
            if not _SHARD.fullmatch(name):
                self._remote.upload(folder / name, name, info.sha256)
        there = self._remote.list()
        for name, info in manifest.files.items():
            found = there[name].size if name in there else 0
            if found != info.size:
                raise OutputError(
                    f"{self.name}/{name}: has {found} bytes, expected {info.size}; was it changed by another program? "
                    "Run the command again"
                )
        for name in there.keys() - manifest.files.keys() - {MANIFEST, JOURNAL}:
            if name in self._old or _SHARD.fullmatch(name) or _JOURNAL.fullmatch(name):
                self._remote.remove(name)
        self._remote.upload(folder / MANIFEST, MANIFEST)
        self._remote.remove(JOURNAL)


class _UploadedStore(ExpertStore):
    """The store of a bundle whose shards are in a remote folder. The local shards have only their headers."""

    def __init__(self, bundle: Bundle, remote: RemoteFolder) -> None:
        super().__init__(bundle)
        self._folder, self._table, self._remote = bundle.path, bundle.manifest.experts, remote
        self._remote_pool = ThreadPoolExecutor(_REQUESTS, "fetch")
        self._here: set[int] = set()  # rows that the local shards have

    def gather(self, ids: Ids, out: Records | None = None) -> Records:
        """Fetch the records that are not here yet; then do the same as in `ExpertStore`."""
        self.check_ids(ids)
        missing = sorted({int(row) for row in ids} - self._here)
        for row in self._remote_pool.map(self._fetch, missing):
            self._here.add(row)
        return super().gather(ids, out)

    def _fetch(self, row: int) -> int:
        shard = next(shard for shard in self._table.shards if row < shard.first_row + shard.count)
        start = shard.data_offset + (row - shard.first_row) * self._table.stride
        data = self._remote.read(shard.file, start, start + self._table.stride)
        with (self._folder / shard.file).open("r+b") as file:
            file.seek(start)
            file.write(data)
        return row

    def close(self) -> None:
        """Close the shards."""
        self._remote_pool.shutdown()
        super().close()


def _in_order(names: Iterable[str]) -> list[str]:
    """Return those names that parts have, such as "3-of-8", in the order of the parts."""
    matches = [match for match in map(_PART.fullmatch, names) if match]
    return [match[0] for match in sorted(matches, key=lambda match: (int(match[2]), int(match[1])))]


def open_output(bundle: str | Path, is_ours: Callable[[Path], bool] = never_ours, part: str = "") -> LocalOutput:
    """Return the output for a path or a URL; for the other arguments see `LocalOutput`.

    Raises:
        OutputError: The URL cannot be written by an export, or the remote folder cannot be listed.
        MissingExtraError: The packages for this kind of URL are not installed.
    """
    place = location(bundle)
    return LocalOutput(place, is_ours, part) if isinstance(place, Path) else RemoteOutput(place, is_ours, part)
