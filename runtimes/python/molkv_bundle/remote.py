"""Folders on the Hugging Face Hub and in object storage, read by ranges and written file by file.

A folder is `hf://owner/name[@revision]`, `s3://bucket/path`, `gs://bucket/path` or `file:///path`. Addresses and
credentials are those of the libraries: huggingface_hub (HF_TOKEN, HF_ENDPOINT, `hf auth login`) and obstore
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS and so on).
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from molkv_bundle.errors import MissingExtraError, MolkvError, RequestError, one_line
from molkv_bundle.files import file_sha256

_LOCAL = "file://"
_SCHEME = re.compile(r"(hf|s3|gs|file)://")
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@]+))?")
_PATH = re.compile(r"""[^\s<>"']*/[^\s<>"']*""")  # a path or URL in a message, or the end of a tag of XML
_REFUSAL = re.compile(
    r"status code: 40[13]\b|\b40[13] (Client Error|Forbidden|Unauthorized)"
    r"|PermissionDenied|Unauthenticated|AccessDenied"
)
_SILENCE = re.compile(r"connect|resolve|timed? ?out|dns", re.IGNORECASE)
URL_EXTRAS = {"hf": "hub", "s3": "s3", "gs": "gs", "file": "hub"}
"""The extra of our package that each kind of URL needs."""

_PIECE = 8 * 1024 * 1024  # bytes of one request of a download
LARGEST_WHOLE = 256 * 1024 * 1024  # bytes; the largest tokenizers have some tens of MB
_REQUESTS = 8  # requests of a download at the same time
# A server that does not answer is an error after a minute at most, not after obstore's three minutes.
# Plain http is for servers on the user's own network; a server on the internet has an https address.
_CLIENT: Any = {"connect_timeout": "5s", "timeout": "60s", "allow_http": True}
_RETRIES: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
_SHA256 = "sha256"  # name of the attribute of an object in which `upload` stores the hash


class RemoteFile(NamedTuple):
    """A file of a remote folder."""

    size: int  # bytes
    version: str  # a text that changes with the content: an ETag, or the Hub's id
    sha256: str  # "" if the server does not know it


def is_remote(location: str | Path) -> bool:
    """Return whether a location is the URL of a remote folder, not a path."""
    return _SCHEME.match(str(location)) is not None


def resolve_location(place: str | Path) -> str | Path:
    """Return the URL of a folder on another machine as it is, and every other place as a path, also file:///PATH."""
    text = str(place)
    if text.startswith(_LOCAL):
        return Path(text.removeprefix(_LOCAL))
    return text if is_remote(text) else Path(place)


def local_folder(place: str | Path, what: str) -> Path:
    """Return the path of a folder on this machine, which may be given as file:///path.

    Args:
        place: A path or a URL.
        what: The beginning of a sentence, such as "package reads every file", for the error.

    Raises:
        RequestError: The location is on another machine. The message says how to download the folder.
    """
    found = resolve_location(place)
    if isinstance(found, Path):
        return found
    command = download_command(found, "FOLDER")
    raise RequestError(f"{found}: {what}; download it first, for example with: {command}")


def hub_repository(url: str, error: type[MolkvError]) -> tuple[str, str | None]:
    """Return the repository and the revision of a URL of the Hub.

    Raises:
        error: The URL is malformed.
    """
    match = _HUB.fullmatch(url.rstrip("/"))
    if match is None:
        raise error(f"{url}: is not the URL of a repository, expected hf://OWNER/NAME[@REVISION]")
    return match["repo"], match["revision"]


def download_command(url: str, folder: str) -> str:
    """Return a command of the usual tools that copies a remote folder to a folder on this machine."""
    scheme, _, path = url.partition("://")
    repo, _, revision = path.partition("@")
    return {
        "hf": f"hf download {repo}{f' --revision {revision}' if revision else ''} --local-dir {folder}",
        "s3": f"aws s3 cp --recursive {url} {folder}",
        "gs": f"gcloud storage cp --recursive {url} {folder}",
        "file": f"cp -r {path} {folder}",
    }[scheme]


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
        self.url = f"{url.partition('://')[0]}://{url.partition('://')[2].rstrip('/')}"
        self._error = error
        with self._errors(self.url):
            self._files_in, self._root = self._connect()
        self.files: Mapping[str, RemoteFile] = self.list()

    def _connect(self) -> tuple[Any, str]:
        """Return the file system, and the folder's path in it."""
        scheme, _, path = self.url.partition("://")
        try:
            if scheme == "hf":
                return self._connect_hub()
            if scheme == "file":
                from fsspec.implementations.local import LocalFileSystem

                return LocalFileSystem(), path
            import obstore.store  # noqa: F401
        except ModuleNotFoundError as missing:
            raise MissingExtraError(
                f"{self.url}: the package {str(missing.name).partition('.')[0]} is not installed; "
                f"install it with: pip install 'molkv-export[{URL_EXTRAS[scheme]}]'"
            ) from missing
        if not path.partition("/")[0]:
            raise self._error(f"{self.url}: names no bucket, expected {scheme}://BUCKET/PATH")
        return _ObjectStorage(scheme, path.partition("/")[0]), path

    def _connect_hub(self) -> tuple[Any, str]:
        from huggingface_hub import HfApi, HfFileSystem
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

        repo, revision = hub_repository(self.url, self._error)
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

    def read_whole(self, name: str) -> bytes:
        """Return the content of a small file, such as JSON or a model card.

        Raises:
            error: The file is too large for this, or cannot be read.
        """
        size = self.files[name].size
        if size > LARGEST_WHOLE:
            raise self._error(
                f"{self.url}/{name}: has {size} bytes, expected at most {LARGEST_WHOLE}, since it is read as a whole; "
                "is it another kind of file?"
            )
        return b"".join(self.pieces(name))

    def pieces(self, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield a file from byte `start` on in pieces, which several requests at a time read.

        Raises:
            error: The file cannot be read.
        """
        size = self.files[name].size
        with ThreadPoolExecutor(_REQUESTS, "download") as pool:
            waiting = deque[Future[bytes]]()  # at most _REQUESTS pieces are in memory
            for first in range(start, size, _PIECE):
                waiting.append(pool.submit(self.read, name, first, min(size, first + _PIECE)))
                if len(waiting) == _REQUESTS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def download(
        self, name: str, path: Path, advance: Callable[[int], object] = lambda _: None, *, start: int = 0
    ) -> None:
        """Copy a file to a path, with several requests at a time.

        Args:
            name: The file.
            path: The new file. It is incomplete after an error.
            advance: Called in the order of the file with the number of bytes of each piece.
            start: The number of bytes of the file that `path` already has.

        Raises:
            error: The file cannot be read.
            OSError: The new file cannot be written.
        """
        with path.open("ab" if start else "wb") as file:
            for data in self.pieces(name, start):
                file.write(data)
                file.flush()  # what has arrived stays, also if the process is killed
                advance(len(data))

    def upload(self, path: Path, name: str, sha256: str = "") -> None:
        """Write a file of the folder from the file at `path`; not for the Hub.

        Args:
            path: The file to read.
            name: The name of the new file.
            sha256: The hash of the file, which object storage keeps for the method `holds`.

        Raises:
            error: The file cannot be written.
            OSError: The file at `path` cannot be read.
        """
        with path.open("rb"), self._errors(f"{self.url}/{name}"):  # an error of the first is not the server's
            if self.url.startswith(_LOCAL):
                self._files_in.makedirs(self._root, exist_ok=True)
                self._files_in.put_file(str(path), f"{self._root}/{name}")
            else:
                self._files_in.put(f"{self._root}/{name}", path, sha256)

    def holds(self, name: str, path: Path, sha256: str) -> bool:
        """Return whether a file of the folder has the content of the file at `path`, whose hash is `sha256`.

        In object storage, only the hashes of files that `upload` wrote with a hash are known.

        Raises:
            error: The file cannot be read.
            OSError: The file at `path` cannot be read.
        """
        found = self.files.get(name)
        if found is None or found.size != path.stat().st_size:
            return False
        if self.url.startswith("hf://"):
            # The Hub has the SHA-256 of large files, and only git's id of small ones.
            return found.sha256 == sha256 if found.sha256 else found.version == _git_id(path.read_bytes())
        with self._errors(f"{self.url}/{name}"):
            if self.url.startswith(_LOCAL):
                return file_sha256(Path(self._root, name)) == sha256
            return bool(self._files_in.sha256(f"{self._root}/{name}") == sha256)

    def remove(self, name: str) -> None:
        """Remove a file of the folder; for object storage only.

        Raises:
            error: The file cannot be removed.
        """
        with self._errors(f"{self.url}/{name}"):
            self._files_in.rm_file(f"{self._root}/{name}")

    def _errors(self, url: str) -> AbstractContextManager[None]:
        return remote_errors(url, self._error)


class _ObjectStorage:
    """A bucket, with the methods of fsspec that this module uses. A path begins with the name of the bucket.

    obstore's own adapter for fsspec needs an event loop in a thread, which can crash the process when it ends.
    """

    def __init__(self, scheme: str, bucket: str) -> None:
        from obstore.store import from_url

        # In a URL, the store would decode "%20" and cut "#" and "?" with what follows; a key stays as it is.
        self._store: Any = from_url(f"{scheme}://{bucket}", client_options=_CLIENT, retry_config=_RETRIES)
        self._bucket = bucket

    def _key(self, path: str) -> str:
        return path.removeprefix(self._bucket).removeprefix("/")

    def ls(self, path: str, **_: object) -> list[dict[str, Any]]:
        """Return the files of a folder."""
        key = self._key(path)
        found = self._store.list_with_delimiter(f"{key}/" if key else None)["objects"]
        return [{"name": file["path"], "type": "file", "size": file["size"], "e_tag": file["e_tag"]} for file in found]

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        """Return bytes start to end of a file."""
        return bytes(self._store.get_range(self._key(path), start=start, end=end)) if start < end else b""

    def put(self, path: str, source: Path, sha256: str) -> None:
        """Write a file, with its hash as an attribute unless it is empty."""
        self._store.put(self._key(path), source, attributes={_SHA256: sha256} if sha256 else None)

    def sha256(self, path: str) -> str | None:
        """Return the hash that `put` stored."""
        found: str | None = self._store.get(self._key(path), options={"head": True}).attributes.get(_SHA256)
        return found

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        self._store.delete(self._key(path))


@contextmanager
def remote_errors(url: str, error: type[MolkvError]) -> Iterator[None]:
    """Raise errors of the libraries for remote folders as `error`, with one line that begins with a URL."""
    try:
        yield
    except Exception as cause:
        if not _is_of_a_server(cause):
            raise
        raise error(f"{url}: {_meaning(cause)}") from cause


def _is_of_a_server(error: Exception) -> bool:
    """Return whether an exception is an error of a server or of the network.

    The libraries have no common base class for these errors, and may not be installed.
    """
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & {"obstore.BaseError", "httpx.HTTPError", "httpx2.HTTPError"})


def _meaning(error: Exception) -> str:
    """Return what an error of a library means, and what to do."""
    # Names of folders and files may hold any words and numbers.
    text = _PATH.sub("", f"{type(error).__name__} {error}")
    if "NoSuchBucket" in text or "bucket does not exist" in text:
        return "there is no such bucket; check its name, or create it first"
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if _REFUSAL.search(text):
        return f"access denied; check your credentials and their permissions ({one_line(error)})"
    if _SILENCE.search(text):
        return f"the server does not answer; check the address and the network ({one_line(error)})"
    return f"cannot be reached or read ({one_line(error)})"


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _version(entry: Mapping[str, Any]) -> str:
    return str(entry.get("e_tag") or entry.get("blob_id") or entry.get("mtime") or "")


def _sha256(entry: Mapping[str, Any]) -> str:
    lfs = entry.get("lfs")
    return str(lfs["sha256"]) if lfs else ""
