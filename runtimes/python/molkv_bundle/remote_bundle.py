"""A bundle on the Hub or in object storage, whose files are downloaded into a cache when they are needed.

    CACHE/files/SHA256              the content of a file, for all bundles that have it
    CACHE/files/SHA256.part         a download that is not complete; a later download continues it
    CACHE/bundles/SHA256/NAME       links to the files of a bundle under their names; SHA256 is the manifest's
    CACHE/records/ID.sqlite         records of a store (`molkv_runtime.record_cache`)

CACHE is the folder in the environment variable MOLKV_CACHE, else `molkv-export` in the user's folder for caches.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from molkv_bundle.errors import BundleError, OutputError
from molkv_bundle.files import file_sha256
from molkv_bundle.manifest import MANIFEST, FileInfo, decode_manifest
from molkv_bundle.remote import RemoteFolder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LARGEST_MANIFEST = 64 * 1024**2  # bytes; the size is checked before memory is allocated
_LOG = logging.getLogger(__name__)

Advance = Callable[[str, int, int], object]


def cache_folder() -> Path:
    """Return the folder for downloads. It may not exist yet."""
    if chosen := os.environ.get("MOLKV_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "molkv-export"


class RemoteBundle:
    """A complete bundle in a remote folder. Its manifest is valid; its files have the sizes of the manifest."""

    def __init__(self, url: str, advance: Advance) -> None:
        """Open the folder, read the manifest, and compare the sizes of the files.

        Args:
            url: The folder, such as hf://owner/name@revision.
            advance: Called after each piece of a download with the file's name, the piece's bytes and the file's size.

        Raises:
            BundleError: The folder cannot be read, holds no bundle, or holds a bundle that is not complete.
            MissingExtraError: The packages for this kind of URL are not installed.
        """
        self.folder = RemoteFolder(url, BundleError)
        self.manifest = decode_manifest(self._read_manifest(), self.folder.url)
        self.path = cache_folder() / "bundles" / self.manifest.sha256
        self._advance = advance
        for name, info in self.manifest.files.items():
            self._check_size(name, info.size)

    def _read_manifest(self) -> bytes:
        files = self.folder.files
        if MANIFEST in files:
            if files[MANIFEST].size > _LARGEST_MANIFEST:
                raise BundleError(f"{self.folder.url}/{MANIFEST}: has {files[MANIFEST].size} bytes, which is too large")
            return self.folder.read(MANIFEST, 0, files[MANIFEST].size)
        if any(name.endswith((".onnx", ".safetensors")) for name in files):
            raise BundleError(
                f"{self.folder.url}: has {len(files)} files but no {MANIFEST}, which is uploaded last: the upload is "
                "not complete; repeat the command that uploads it (molkv-export push or export)"
            )
        raise BundleError(f"{self.folder.url}: has no {MANIFEST}; expected the files of a bundle in this folder")

    def _check_size(self, name: str, size: int) -> None:
        found = self.folder.files.get(name)
        if found is None or found.size != size:
            what = "is missing" if found is None else f"has {found.size} bytes"
            raise BundleError(
                f"{self.folder.url}/{name}: {what}, the manifest says {size} bytes: the upload is not complete; repeat "
                "the command that uploads it (molkv-export push or export)"
            )

    def file(self, name: str) -> Path:
        """Return the path of an undamaged copy of a file, which is downloaded if the cache does not have it.

        Raises:
            BundleError: The file cannot be read, or the server's file is not the file of the manifest.
            OutputError: The cache cannot be written.
        """
        info, path = self.manifest.files[name], self.path / name
        try:
            if _is_sound(path, info):
                return path
            kept = cache_folder() / "files" / info.sha256
            for folder in (kept.parent, path.parent):
                folder.mkdir(parents=True, exist_ok=True)
            if not _is_sound(kept, info):
                self._download(name, info, kept)
            _link(kept, path)
        except OSError as error:
            raise OutputError(
                f"{error.filename or path}: cannot be written ({error.strerror}); MOLKV_CACHE chooses another folder "
                "for the cache"
            ) from error
        return path

    def _download(self, name: str, info: FileInfo, kept: Path) -> None:
        part = kept.with_name(f"{kept.name}.part")
        with _locked(part):
            if _is_sound(kept, info):  # another process or thread has downloaded it
                part.unlink()
                return
            # What an earlier download left may be damaged: then it is downloaded again.
            for start in dict.fromkeys((_size(part) if _size(part) <= info.size else 0, 0)):
                _LOG.info("%s/%s: downloading %d bytes", self.folder.url, name, info.size - start)
                self._advance(name, start, info.size)
                self.folder.download(name, part, lambda count: self._advance(name, count, info.size), start=start)
                if (found := file_sha256(part)) == info.sha256:
                    part.replace(kept)
                    return
            os.truncate(part, 0)
        raise BundleError(
            f"{self.folder.url}/{name}: has sha256 {found[:12]}..., the manifest says {info.sha256[:12]}...; the file "
            "was damaged or replaced after the upload, push the bundle again"
        )


def _size(path: Path) -> int:
    return path.stat().st_size


def _is_sound(path: Path, info: FileInfo) -> bool:
    """Return whether a file is there and undamaged."""
    with suppress(FileNotFoundError):
        return _size(path) == info.size and file_sha256(path) == info.sha256
    return False


def _link(kept: Path, path: Path) -> None:
    """Make `path` a link to a file, also if it exists and another process or thread does the same."""
    new = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    # ONNX refuses weights with several hard links.
    new.symlink_to(os.path.relpath(kept, path.parent))
    new.replace(path)


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Return whether an open file still has this path. Who held its lock may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Make a file if there is none, and wait until no other process or thread has locked it.

    On systems and disks without locks, two may write the file at once; then its hash is wrong.
    """
    while True:
        with path.open("ab") as file:
            with suppress(OSError):
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):
                yield
                return
