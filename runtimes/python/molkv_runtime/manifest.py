"""`manifest.json`: what ties a bundle together. Its schema is described in `docs/bundle-format.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from molkv_runtime.config import ModelConfig
from molkv_runtime.errors import BundleError
from molkv_runtime.json_file import decode_json, read_bytes

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

RowDtype = Literal["float32", "float16"]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the manifest: unknown fields are errors, since a reader that ignores them could be wrong."""


class TensorInfo(_Part, frozen=True):
    """An input or output of a graph; dimensions are numbers or names."""

    name: str
    dtype: Literal["float32", "int64", "int32"]
    shape: tuple[int | str, ...]


class GraphInfo(_Part, frozen=True):
    """The dense graph of one profile."""

    file: str
    data: str  # the weights, which `file` refers to
    dense_dtype: Literal["float32"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class Field(_Part, frozen=True):
    """One array inside a record."""

    name: str  # "embedding", "expert_key.{layer}" or "expert_value.{layer}"
    dtype: RowDtype
    shape: tuple[int, ...]
    offset: int  # in bytes, from the start of the record


class Shard(_Part, frozen=True):
    """One file of the store: the records of token ids first_id to first_id + count - 1."""

    file: str
    first_id: int
    count: int


class StoreInfo(_Part, frozen=True):
    """How records look and in which files they stand."""

    dtype: RowDtype
    stride: int  # bytes from one record to the next
    fields: tuple[Field, ...]
    shards: tuple[Shard, ...]


class FileInfo(_Part, frozen=True):
    """What a file of the bundle must be."""

    size: int  # bytes
    sha256: str


class Provenance(_Part, frozen=True):
    """Where a bundle comes from."""

    command: str
    created: str  # ISO 8601, UTC
    tools: dict[str, str]  # package: version
    source: dict[str, str]  # file of the checkpoint: sha256


class Manifest(_Part, frozen=True):
    """The whole manifest."""

    schema_version: int
    model: ModelConfig
    graphs: dict[str, GraphInfo]  # by profile
    store: StoreInfo
    files: dict[str, FileInfo]  # every file of the bundle but the manifest itself
    provenance: Provenance


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle folder; other files are not touched.

    Raises:
        BundleError: There is none, or it contradicts itself.
    """
    path = folder / MANIFEST
    data = read_bytes(path, BundleError, "expected a folder made by `molkv-export export`")
    found = decode_json(data, dict[str, msgspec.Raw], path, BundleError)
    version = bytes(found.get("schema_version", b"none")).decode(errors="replace")[:20]
    if version != str(SCHEMA_VERSION):
        raise BundleError(
            f"{path}: schema_version is {version}, expected {SCHEMA_VERSION}; "
            "export the model again or use the molkv version that wrote this bundle"
        )
    manifest = decode_json(data, Manifest, path, BundleError)
    _check_names(manifest, path)
    return manifest


def _check_names(manifest: Manifest, path: Path) -> None:
    for name in manifest.files:
        if not name or name != Path(name).name or name in (".", "..", MANIFEST) or "\\" in name or "\0" in name:
            raise BundleError(f"{path}: files names {name!r}, expected plain names of files inside the bundle")
    named = [shard.file for shard in manifest.store.shards]
    named += [name for graph in manifest.graphs.values() for name in (graph.file, graph.data)]
    for name in named:
        if name not in manifest.files:
            raise BundleError(f"{path}: {name!r} is used but not listed under files")
