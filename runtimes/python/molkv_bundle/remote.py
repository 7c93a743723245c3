"""Folders on the Hugging Face Hub and in object storage, read by ranges and written file by file.

A folder is `hf://owner/name[@revision]`, `s3://bucket/path`, `gs://bucket/path` or `file:///path`. Addresses and
credentials are those of the libraries: huggingface_hub (HF_TOKEN, HF_ENDPOINT, `hf auth login`) and obstore
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS and so on).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from molkv_bundle.errors import MissingExtraError, MolkvError, one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_SCHEME = re.compile(r"(hf|s3|gs|file)://")
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@]+))?")
_EXTRAS = {"hf": "hub", "s3": "s3", "gs": "gs", "file": "hub"}
_PIECE = 8 * 1024 * 1024  # bytes of one request of a download
_REQUESTS = 8  # requests of a download at the same time
# A server that does not answer is an error after a minute at most, not after obstore's three minutes.
_CLIENT = {"connect_timeout": "5s", "timeout": "60s"}
_RETRIES = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}


class RemoteFile(NamedTuple):
    """A file of a remote folder."""

    size: int  # bytes
    version: str  # a text that changes with the content: an ETag, or the Hub's id
    sha256: str  # "" if the server does not know it


def is_remote(location: str | Path) -> bool:
    """Return whether a location is the URL of a remote folder, not a path."""
    return _SCHEME.match(str(location)) is not None


class RemoteFolder:
    """An open remote folder. Only its files count, not the folders in it."""

    def __init__(self, url: str, error: type[MolkvError]) -> None:
        """Connect, pin the revision of a Hub repository, and list the files.

        Args:
            url: The folder's URL. A folder of object storage without files is empty, not missing.
            error: The exception to raise, also later, if the folder cannot be listed, read or written.

        Raises:
            error: The URL is malformed; the server does not answer, or refuses; a repository or revision is missing.
            MissingExtraError: The packages for this kind of URL are not installed.
        """
        self.url = url.rstrip("/")
        self._error = error
        with self._errors(self.url):
            self._files_in, self._root = self._connect()
        self.files: Mapping[str, RemoteFile] = self.list()

    def _connect(self) -> tuple[AbstractFileSystem, str]:
        """Return the file system, and the folder's path in it."""
        scheme, _, path = self.url.partition("://")
        try:
            if scheme == "hf":
                return self._connect_hub()
            if scheme == "file":
                from fsspec.implementations.local import LocalFileSystem

                return LocalFileSystem(), path
            import obstore.fsspec
        except ModuleNotFoundError as missing:
            raise MissingExtraError(
                f"{self.url}: the package {missing.name} is not installed; "
                f"install it with: pip install 'molkv-export[{_EXTRAS[scheme]}]'"
            ) from missing
        if not path.partition("/")[0]:
            raise self._error(f"{self.url}: names no bucket, expected {scheme}://BUCKET/PATH")
        # Plain http is for servers on the user's own network; a server on the internet has an https address.
        client = {**_CLIENT, "allow_http": True}
        store: Any = obstore.fsspec.FsspecStore  # its overloads do not take a scheme that is a variable
        return store(scheme, client_options=client, retry_config=_RETRIES, skip_instance_cache=True), path

    def _connect_hub(self) -> tuple[AbstractFileSystem, str]:
        from huggingface_hub import HfApi, HfFileSystem
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

        match = _HUB.fullmatch(self.url)
        if match is None:
            raise self._error(f"{self.url}: is not the URL of a repository, expected hf://OWNER/NAME[@REVISION]")
        repo, revision = match["repo"], match["revision"]
        try:
            commit = HfApi().repo_info(repo, revision=revision).sha
        except RevisionNotFoundError as cause:
            raise self._error(f"{self.url}: the Hub has no revision {revision!r} of {repo}") from cause
        except (RepositoryNotFoundError, HFValidationError) as cause:
            raise self._error(
                f"{self.url}: the Hub has no repository {repo}, or it is private; check the name, and log in with "
                "`hf auth login` if it is private"
            ) from cause
        # Later reads must come from the same commit, even if somebody pushes in the meantime.
        self.url = f"hf://{repo}@{commit}"
        return HfFileSystem(skip_instance_cache=True), f"{repo}@{commit}"

    def list(self) -> dict[str, RemoteFile]:
        """Return the files that are in the folder now, by name.

        Raises:
            error: The folder cannot be listed.
        """
        with self._errors(self.url):
            try:
                entries = self._files_in.ls(self._root, detail=True, refresh=True)
            except FileNotFoundError:
                entries = []
        return {
            entry["name"].rsplit("/", 1)[-1]: RemoteFile(entry["size"], _version(entry), _sha256(entry))
            for entry in entries
            if entry["type"] == "file"
        }

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return bytes start to stop of a file.

        Raises:
            error: The file is missing, shorter, or cannot be read.
        """
        url = f"{self.url}/{name}"
        with self._errors(url):
            if self.url.startswith("hf://"):  # its `cat_file` would read ahead
                with self._files_in.open(f"{self._root}/{name}", "rb", cache_type="none") as file:
                    file.seek(start)
                    data: bytes = file.read(stop - start)
            else:
                data = self._files_in.cat_file(f"{self._root}/{name}", start=start, end=stop)
        if len(data) != stop - start:
            raise self._error(f"{url}: gave {len(data)} bytes for the range {start} to {stop}; is it truncated?")
        return data

    def download(self, name: str, path: Path, advance: Callable[[int], object] = lambda _: None) -> None:
        """Copy a file to a path, with several requests at a time.

        Args:
            name: The file.
            path: The new file. It is incomplete after an error.
            advance: Called in the order of the file with the number of bytes of each piece.

        Raises:
            error: The file cannot be read.
            OSError: The new file cannot be written.
        """
        size = self.files[name].size
        pieces = [(start, min(size, start + _PIECE)) for start in range(0, size, _PIECE)]
        with path.open("wb") as file, ThreadPoolExecutor(_REQUESTS, "download") as pool:
            for first in range(0, len(pieces), _REQUESTS):  # so at most _REQUESTS pieces are in memory
                some = pieces[first : first + _REQUESTS]
                for data in pool.map(lambda piece: self.read(name, *piece), some):
                    file.write(data)
                    advance(len(data))

    def upload(self, path: Path, name: str) -> None:
        """Write a file of the folder from the file at `path`; for object storage only.

        Raises:
            error: The file cannot be written.
        """
        with self._errors(f"{self.url}/{name}"):
            self._files_in.makedirs(self._root, exist_ok=True)
            self._files_in.put_file(str(path), f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file of the folder; for object storage only.

        Raises:
            error: The file cannot be removed.
        """
        with self._errors(f"{self.url}/{name}"):
            self._files_in.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        """Raise errors of the libraries as `error`, with one line."""
        try:
            yield
        except FileNotFoundError as cause:
            raise self._error(f"{url}: does not exist") from cause
        except Exception as cause:
            if not _is_of_a_server(cause):
                raise
            raise self._error(f"{url}: {_meaning(cause)}") from cause


def _is_of_a_server(error: Exception) -> bool:
    """Return whether an exception is an error of a server or of the network.

    The libraries have no common base class for these errors, and may not be installed.
    """
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & {"obstore.BaseError", "httpx.HTTPError", "httpx2.HTTPError"})


def _meaning(error: Exception) -> str:
    """Return what an error of a library means, and what to do."""
    text = f"{type(error).__name__} {error}"
    if re.search(r"\b(401|403)\b|PermissionDenied|Unauthenticated|AccessDenied|Forbidden", text):
        return f"access denied; check your credentials and their permissions ({one_line(error)})"
    if re.search(r"Connect|connection|resolve|timed? ?out|dns", text, re.IGNORECASE):
        return f"the server does not answer; check the address and the network ({one_line(error)})"
    return f"cannot be reached or read ({one_line(error)})"


def _version(entry: Mapping[str, Any]) -> str:
    return str(entry.get("e_tag") or entry.get("blob_id") or entry.get("mtime") or "")


def _sha256(entry: Mapping[str, Any]) -> str:
    lfs = entry.get("lfs")
    return str(lfs["sha256"]) if lfs else ""
