"""Saved sessions: reading and writing the files that docs/bundle-format.md, "Sessions", describes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from molkv_bundle.bundle import Bundle
from molkv_bundle.errors import OutputError, RequestError, SessionError
from molkv_bundle.files import decode_json, is_unicode, shown
from molkv_bundle.interface import Arrays
from molkv_bundle.manifest import EXPERTS, NO_DIGEST
from molkv_bundle.record import Ids
from molkv_bundle.safetensors_file import TensorFile

_VERSION: Final = "1"
_DTYPES = {"float32": "F32", "float16": "F16", "int8": "I8"}
_IDS, _CACHE = "input_ids", "past_key_values."
_CHUNK_BYTES = 4 * 1024 * 1024

_Value = TypeVar("_Value")


def graph_identity(bundle: Bundle) -> str:
    """Return the SHA-256 that identifies the graphs of the bundle's profile: of their files' hashes in the manifest."""
    graph = bundle.graph()
    names = [*(file.file for file in graph.files), graph.data]
    return hashlib.sha256("".join(bundle.manifest.files[name].sha256 for name in names).encode()).hexdigest()


def write_session(
    path: Path, bundle: Bundle, ids: Ids, caches: Arrays, messages: Sequence[Mapping[str, str]] | None = None
) -> None:
    """Write a session. The file appears when it is complete.

    Args:
        path: The file to write. Only a saved session of this name is replaced.
        bundle: The bundle that computed the session.
        ids: Token ids [n].
        caches: The KV cache of the first m of these tokens, by names such as "3.key": [Hkv, m, head_dim].
        messages: The messages of a chat.

    Raises:
        RequestError: A message is not an object of Unicode texts.
        OutputError: The file cannot be written.
    """
    tensors = {_IDS: ids.astype("<i4"), **{f"{_CACHE}{name}": array for name, array in caches.items()}}
    metadata = {**_identity(bundle), "session_version": _VERSION, "sha256": NO_DIGEST}
    if messages is not None:
        metadata["messages"] = _messages_text(messages)
    data = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in tensors.values()]
    digest = hashlib.sha256(_header(tensors, metadata))
    for part in data:
        digest.update(part)
    header = _header(tensors, {**metadata, "sha256": digest.hexdigest()})
    try:
        _check_replaceable(path)
        _write(path.resolve(), [memoryview(header), *data])
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def _messages_text(messages: Sequence[Mapping[str, str]]) -> str:
    listed = [dict(message) for message in messages]
    for value in (value for message in listed for pair in message.items() for value in pair):
        if not isinstance(value, str) or not is_unicode(value):
            raise RequestError(f"messages: found {value!r:.80}, expected Unicode text")
    return json.dumps(listed, ensure_ascii=False)


def _identity(bundle: Bundle) -> dict[str, str]:
    return {"tables": json.dumps({EXPERTS: bundle.manifest.experts.id}), "graph": graph_identity(bundle)}


def _header(tensors: Arrays, metadata: Mapping[str, str]) -> bytes:
    """Return the header of a safetensors file, with its length."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in tensors.items():
        kind = "I32" if name == _IDS else _DTYPES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_replaceable(path: Path) -> None:
    """Check that a path is free, or is a saved session.

    Raises:
        OutputError: The path is something else, which is not replaced.
    """
    if not path.exists():
        return
    with suppress(OutputError):
        file = TensorFile(path, OutputError)
        file.close()
        if "session_version" in file.metadata:
            return
    raise OutputError(f"{path}: exists and is not a saved session, so it is not replaced; choose another name")


def _write(path: Path, parts: Sequence[memoryview]) -> None:
    """Write a file that appears under its name when it is complete. Only the user can read it, since it holds texts."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


class SessionFile:
    """A saved session that belongs to a bundle and is undamaged."""

    def __init__(self, path: Path, bundle: Bundle) -> None:
        """Open a file, and check all of it except the numbers of the KV cache.

        Raises:
            SessionError: The file is missing or damaged, or belongs to another bundle, another graph or another KV
                dtype.
        """
        try:
            self._file, self._path = TensorFile(path, SessionError), path
        except SessionError as error:
            raise SessionError(f"{error}; expected a file with a saved session") from error
        metadata, known = self._file.metadata, _identity(bundle)
        if (version := metadata.get("session_version")) != _VERSION:
            raise SessionError(
                f"{path}: session_version: found {shown(version)}, expected {shown(_VERSION)}; is this a session?"
            )
        self._check_hash(metadata.get("sha256", ""))
        tables = self._decoded("tables", dict[str, str])
        if tables != {EXPERTS: bundle.manifest.experts.id}:
            raise SessionError(
                f"{path}: belongs to another bundle (tables: found {shown(tables)}, expected {known['tables']})"
            )
        self.ids: Ids = self._checked_ids(bundle)
        """The token ids of the text, int64 [n]."""
        self.length = self._checked_length(bundle)
        """The number of first tokens whose keys and values are in the KV cache."""
        if metadata.get("graph") != known["graph"]:
            raise SessionError(
                f"{path}: belongs to another graph than that of the bundle's profile {bundle.profile} (graph: found "
                f"{shown(metadata.get('graph'))}, expected {shown(known['graph'])})"
            )
        self.messages = self._decoded("messages", list[dict[str, str]]) if "messages" in metadata else None
        """The messages of a chat; None if the session is not a chat."""

    def _decoded(self, name: str, kind: type[_Value]) -> _Value:
        """Return the value of a field of the metadata, which is JSON."""
        text = self._file.metadata.get(name, "")
        where = Path(f"{self._path}: {name}")
        return decode_json(text.encode(errors="surrogatepass"), kind, where, SessionError)

    def _check_hash(self, expected: str) -> None:
        if not re.fullmatch("[0-9a-f]{64}", expected):
            raise SessionError(f"{self._path}: sha256: found {shown(expected)}, expected 64 digits from 0 to f")
        end = min((entry.start for entry in self._file.entries.values()), default=self._file.size())
        digest, at = hashlib.sha256(), end
        header = bytearray(end)
        self._file.read_into([memoryview(header)], 0)
        digest.update(bytes(header).replace(expected.encode(), NO_DIGEST.encode()))
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while part := buffer[: self._file.size() - at]:
            self._file.read_into([part], at)
            digest.update(part)
            at += len(part)
        if digest.hexdigest() != expected:
            raise SessionError(f"{self._path}: its sha256 does not match its contents; the file is damaged")

    def _checked_ids(self, bundle: Bundle) -> Ids:
        config, entry = bundle.config, self._file.entries.get(_IDS)
        most = config.max_position_embeddings + 1
        # Check the shape before the ids are read: it determines the memory.
        if entry is None or entry.dtype != "I32" or len(entry.shape) != 1 or not 0 < entry.shape[0] <= most:
            found = f"{entry.dtype} {list(entry.shape)}" if entry else "no tensor"
            raise SessionError(f"{self._path}: {_IDS}: found {found}, expected I32 [1 to {most}]")
        ids: Ids = self._file.read_rows(_IDS).view("<i4").astype(np.int64)
        if ((ids < 0) | (ids >= config.vocab_size)).any():
            raise SessionError(
                f"{self._path}: {_IDS}: found ids from {ids.min()} to {ids.max()}, expected 0 to "
                f"{config.vocab_size - 1} (the vocabulary)"
            )
        return ids

    def _checked_length(self, bundle: Bundle) -> int:
        """Check the tensors, and return the number of tokens in the KV cache."""
        config, dtype = bundle.config, _DTYPES[bundle.graph().kv_dtype]
        wanted = {
            f"{_CACHE}{layer}.{kind}": (heads, head_dim)
            for layer, heads, head_dim in config.kv_caches()
            for kind in ("key", "value")
        }
        found = {name: entry for name, entry in self._file.entries.items() if name != _IDS}
        lengths = {entry.shape[1] for entry in found.values() if len(entry.shape) == 3}
        length = lengths.pop() if len(lengths) == 1 else -1
        most = min(len(self.ids), config.max_position_embeddings)
        if found.keys() != wanted.keys() or not 0 <= length <= most:
            raise SessionError(f"{self._path}: its tensors are not the KV cache of this model; the file is damaged")
        for name, (heads, head_dim) in wanted.items():
            shape = (heads, length, head_dim)
            if (found[name].dtype, found[name].shape) != (dtype, shape):
                raise SessionError(
                    f"{self._path}: belongs to a graph with another KV cache ({name}: found {found[name].dtype} "
                    f"{list(found[name].shape)}, expected {dtype} {list(shape)})"
                )
        return length

    def read_into(self, caches: Arrays) -> None:
        """Read the KV cache into arrays [Hkv, length, head_dim], by names such as "3.key".

        Raises:
            SessionError: The file cannot be read, or a number is NaN or infinite.
        """
        for name, array in caches.items():
            numbers = self._file.read_rows(f"{_CACHE}{name}").view(array.dtype).reshape(array.shape)
            if not np.isfinite(numbers).all():
                raise SessionError(f"{self._path}: {_CACHE}{name}: found NaN or infinity, expected finite numbers")
            array[...] = numbers
