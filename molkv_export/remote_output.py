"""A folder of object storage in which a bundle or a part of its store is written."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from molkv_bundle import (
    BESIDE_BUNDLES,
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
    hub_repository,
    is_plain_name,
    read_manifest,
    resolve_location,
    shard_header,
)
from molkv_export.atomic_folder import locked_folder
from molkv_export.output import PART, LocalOutput, in_order, is_bundle
from molkv_export.tables.plan import shard_bytes
from molkv_export.tables.resume import JOURNAL, Journal, read_journal
from molkv_export.temporary_folder import temporary_folder
from molkv_runtime import ExpertStore

_SHARD = re.compile(r"experts-\d{5}-of-\d{5}\.safetensors")
_JOURNAL = re.compile(rf"{Path(JOURNAL).stem}(-(?P<part>{PART.pattern}))?\.json")  # in a remote folder
_REQUESTS = 8  # at the same time


class RemoteOutput(LocalOutput):
    """A folder of object storage.

    Files are made in a working folder below the cache folder. A shard is uploaded when it is finished, and removed from
    the disk. After each shard, the journal is uploaded; so the export can be resumed, also on another machine. The
    manifest is uploaded last.
    """

    def __init__(self, url: str, part: str = "") -> None:
        """Connect, and list the files; for the arguments see `LocalOutput`.

        Raises:
            OutputError: The URL is not one of object storage, or the folder cannot be listed.
            MissingExtraError: The packages for this kind of URL are not installed.
        """
        if url.startswith("hf://"):
            hub_repository(url, OutputError)
            raise OutputError(
                f"{url}: export does not write to the Hub; export to a folder on this machine, then run: "
                f"molkv-export push FOLDER {url}"
            )
        self._remote = RemoteFolder(url, OutputError)
        self.name = self._remote.url
        self._part = part
        self._journal = f"{Path(JOURNAL).stem}-{part}.json" if part else JOURNAL
        self._mine: set[str] = set()  # shards that this export or part has uploaded, also in earlier attempts
        self._old: set[str] = set()  # files of the bundle that is replaced
        self._has_old_manifest = MANIFEST in self._remote.files
        self._has_tasks = False  # whether tasks of other processes may upload shards
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
        names = {name for name in self._remote.files if not _JOURNAL.fullmatch(name)} - BESIDE_BUNDLES
        if not all(map(is_plain_name, names)):
            return False
        with temporary_folder("manifests") as folder:
            for name in names:
                (folder / name).touch()
            (folder / MANIFEST).write_bytes(self._remote.read_whole(MANIFEST))
            if not is_bundle(folder):
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
                path.write_bytes(self._remote.read_whole(self._journal))
            else:  # a journal on this disk could list shards that somebody has removed
                Journal({}).save(self._folder)
                self._remote.upload(path, self._journal)
            found = read_journal(self._folder) or Journal({})
            self._mine, self._old = set(found.shards), self._old | set(found.replaces)
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
        """Remove what was uploaded, when nothing of it can be used.

        If tasks may still upload shards, or files of a bundle that is replaced are there, an empty journal stays, which
        shows that they are ours.
        """
        with suppress(OutputError):  # the first error matters more
            files = self._remote.list()
            for name in self._mine & files.keys() if MANIFEST not in files else ():
                self._remote.remove(name)
            if self._has_tasks or self._old:
                Journal({}, replaces=sorted(self._old)).save(self._folder)
                self._remote.upload(self._folder / JOURNAL, self._journal)
            else:
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
            for part in in_order([name for name in names if name]):
                name = f"{Path(JOURNAL).stem}-{part}.json"
                (folder / JOURNAL).write_bytes(self._remote.read_whole(name))
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

    def begin(self) -> None:
        """Prepare for shards that tasks upload."""
        self._has_tasks = True
        self._remove_manifest()

    def _remove_manifest(self) -> None:
        """Remove the manifest of a bundle that is replaced: from the first shard on, that bundle is not complete."""
        if self._has_old_manifest:
            journal = read_journal(self._folder) or Journal({})
            journal.replaces = sorted(self._old)  # first, so that no attempt forgets the files of that bundle
            journal.save(self._folder)
            self._remote.upload(self._folder / JOURNAL, self._journal)
            self._remote.remove(MANIFEST)
            self._has_old_manifest = False

    def _upload(self, folder: Path, journal: Journal, name: str, info: FileInfo, by: str) -> None:
        self._mine.add(name)
        if (folder / name).exists():
            self._remove_manifest()
            self._remote.upload(folder / name, name, info.sha256)
        journal.replaces = sorted(self._old)
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


def open_output(bundle: str | Path, part: str = "") -> LocalOutput:
    """Return the output for a path or a URL; for the other arguments see `LocalOutput`.

    Raises:
        OutputError: The URL cannot be written by an export, or the remote folder cannot be listed.
        MissingExtraError: The packages for this kind of URL are not installed.
    """
    place = resolve_location(bundle)
    return LocalOutput(place, part) if isinstance(place, Path) else RemoteOutput(place, part)
