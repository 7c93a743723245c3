"""Checkpoints on the Hugging Face Hub and in object storage.

A `Mirror` is a local folder with the files of the remote one. It has the small files in full. Each file of weights has
its full size but takes no space on the disk; its blocks are fetched when they are read for the first time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Lock

from molkv_bundle import CheckpointError, MolkvError, RemoteFile, RemoteFolder, TensorFile, file_sha256, is_plain_name
from molkv_export.checkpoints.files import CONFIG, changed
from molkv_export.checkpoints.weights import open_file
from molkv_export.temporary_folder import temporary_folder
from molkv_export.terminal import human_bytes

SMALL_FILES = (
    CONFIG,
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""The files beside the weights whose content the exporter reads."""

BLOCK = 4 * 1024 * 1024
"""Bytes of one request."""

_REQUESTS = 8  # at the same time


class RemoteError(CheckpointError):
    """A remote checkpoint cannot be read, for example because the network fails. What was read before is right."""


class Mirror:
    """A local folder with the files of a remote checkpoint."""

    def __init__(self, url: str) -> None:
        """Connect, and make the folder with the small files.

        Raises:
            CheckpointError: The remote folder cannot be read or holds no files; the local folder cannot be written.
            MissingExtraError: The packages for this kind of URL are not installed.
        """
        self._remote = RemoteFolder(url, RemoteError)
        self.url = self._remote.url
        if not self._remote.files:
            raise CheckpointError(
                f"{self.url}: holds no files, expected a checkpoint with config.json and weights; check the address"
            )
        self._opened: dict[str, _Blocks] = {}
        self._needed = 0  # bytes of the opened files that will be fetched as a whole
        with ExitStack() as stack:
            try:
                self.folder = stack.enter_context(temporary_folder("checkpoints"))
                self._make_files()
            except OSError as error:
                raise CheckpointError(
                    f"{self.url}: cannot be copied to {error.filename} ({error.strerror}); set MOLKV_CACHE to a "
                    "folder that you can write"
                ) from error
            self._pool = stack.enter_context(ThreadPoolExecutor(_REQUESTS, "fetch"))
            self._stack = stack.pop_all()

    def _make_files(self) -> None:
        for name, file in self._remote.files.items():
            if not is_plain_name(name):
                continue  # the exporter reads no such file
            if name in SMALL_FILES:
                (self.folder / name).write_bytes(self._remote.read_whole(name))
            else:
                with (self.folder / name).open("wb") as empty:
                    empty.truncate(file.size)

    def open_file(self, path: Path) -> TensorFile:
        """Open a file of weights in the folder.

        Raises:
            CheckpointError: The file is missing, damaged or unsafe, or there is no space for it on the disk.
        """
        if path.name not in self._remote.files:
            return open_file(path)  # which says that it is missing
        blocks = _Blocks(self._remote, path, self._pool)
        is_whole = path.suffix == ".bin"
        if is_whole or not blocks.remote.sha256:
            self._check_space(blocks.remote.size, later=not is_whole)
        blocks.fetch(0, blocks.remote.size if is_whole else 1)
        blocks.verify()
        self._opened[path.name] = blocks
        return open_file(path, lambda path: _MirroredFile(path, blocks))

    def _check_space(self, size: int, *, later: bool) -> None:
        needed, free = self._needed + size, shutil.disk_usage(self.folder).free
        if later:
            self._needed = needed
        if needed > free:
            raise CheckpointError(
                f"{self.url}: needs {human_bytes(needed)} of disk space for a copy in {self.folder.parent}, but "
                f"{human_bytes(free)} are free; free some space, or set MOLKV_CACHE to a folder on a larger disk"
            )

    def check(self) -> None:
        """Check that the remote files are those that were opened.

        If a whole file was fetched, its hash is compared with the Hub's.

        Raises:
            CheckpointError: A file has changed, or was damaged on its way.
        """
        for blocks in self._opened.values():
            blocks.verify()
        if self.url.startswith("hf://"):
            return  # the URL names a commit, which never changes
        then, now = self._remote.files, self._remote.list()
        for name in (*SMALL_FILES, *self._opened):
            if then.get(name) != now.get(name):
                raise changed(f"{self.url}/{name}")

    @property
    def versions(self) -> dict[str, RemoteFile]:
        """The remote files that determine the model, by name."""
        return {name: file for name, file in self._remote.files.items() if name == CONFIG or name in self._opened}

    def named(self, text: str) -> str:
        """Return a message in which the local folder is replaced by the URL."""
        return text.replace(str(self.folder), self.url)

    def rename_in(self, error: BaseException | None) -> None:
        """Replace the local folder by the URL in the message of an error."""
        if isinstance(error, MolkvError):
            error.args = tuple(self.named(str(part)) for part in error.args)

    def close(self) -> None:
        """Remove the folder."""
        self._stack.close()


class _Blocks:
    """The blocks of a remote file. Each is fetched once, into a local file of the full size."""

    def __init__(self, remote: RemoteFolder, path: Path, pool: ThreadPoolExecutor) -> None:
        self.remote: RemoteFile = remote.files[path.name]
        self._folder, self._path, self._pool = remote, path, pool
        self._is_here = bytearray(-(-self.remote.size // BLOCK))
        self._lock = Lock()
        self._is_verified = False

    def fetch(self, start: int, stop: int) -> None:
        """Fetch the blocks with bytes start to stop that are not here yet.

        A program that reads a file from start to end gets more blocks than it asks for, so that several requests run at
        the same time.

        Raises:
            CheckpointError: The file cannot be read, or there is no space on the disk.
        """
        first, last = start // BLOCK, min(-(-stop // BLOCK), len(self._is_here))
        with self._lock:
            first = self._is_here.find(0, first, last)
            if first < 0:
                return
            if first and self._is_here[first - 1]:
                last = min(max(last, first + _REQUESTS), len(self._is_here))
            missing = [block for block in range(first, last) if not self._is_here[block]]
            for _ in self._pool.map(self._fetch, missing):
                pass

    def _fetch(self, block: int) -> None:
        start = block * BLOCK
        data = self._folder.read(self._path.name, start, min(start + BLOCK, self.remote.size))
        try:
            with self._path.open("r+b") as file:
                file.seek(start)
                file.write(data)
        except OSError as error:
            raise RemoteError(
                f"{self._path}: cannot be copied to {self._path.parent.parent} ({error.strerror}); free some space, or "
                "set MOLKV_CACHE to a folder on a larger disk"
            ) from error
        self._is_here[block] = 1

    def verify(self) -> None:
        """Compare the hash of the file with the Hub's, once, when all blocks are here.

        Raises:
            CheckpointError: The hashes differ.
        """
        expected = self.remote.sha256
        if self._is_verified or not expected or not all(self._is_here):
            return
        found = file_sha256(self._path)
        if found != expected:
            raise CheckpointError(
                f"{self._path}: arrived with the sha256 {found[:12]}..., but the Hub says {expected[:12]}...; run the "
                "command again"
            )
        self._is_verified = True


class _MirroredFile(TensorFile):
    """An open safetensors file of a `Mirror`."""

    def __init__(self, path: Path, blocks: _Blocks) -> None:
        self._blocks = blocks
        super().__init__(path, CheckpointError)

    def read_into(self, buffers: list[memoryview], offset: int) -> None:
        """Fetch the bytes that are not here yet; then do the same as in `TensorFile`."""
        self._blocks.fetch(offset, offset + sum(map(len, buffers)))
        super().read_into(buffers, offset)

    def sha256(self, advance: Callable[[int], object] = lambda _: None) -> str:
        """Return the Hub's SHA-256 of the file; if there is none, fetch and hash the file from start to end."""
        size = self._blocks.remote.size
        if self._blocks.remote.sha256:
            advance(size)
            return self._blocks.remote.sha256
        digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
        for start in range(0, size, BLOCK):
            piece = buffer[: size - start]
            self.read_into([piece], start)
            digest.update(piece)
            advance(len(piece))
        return digest.hexdigest()
