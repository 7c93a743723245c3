"""The manifest (`manifest.json`), which describes all parts of a bundle. Its schema is in `docs/bundle-format.md`."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec

from molkv_bundle.config import ModelConfig, TensorInfo, WindowDtype
from molkv_bundle.errors import BundleError
from molkv_bundle.families import family_of
from molkv_bundle.files import decode_json, is_plain_name, read_bytes, shown
from molkv_bundle.generation import Generation
from molkv_bundle.row_formats import RowDtype

DenseDtype = Literal["float32", "float16", "int8", "int4", "qdq-int8"]
KVDtype = Literal["float32", "float16", "int8"]

SCHEMA_VERSION = 4
MANIFEST = "manifest.json"
PROFILES = ("cpu", "coreml", "nnapi")
EXPERTS = "experts"  # name of the only table of a bundle

NO_DIGEST = "0" * 64

_Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,5}(\.[0-9]{1,5}){2}\Z")]
_TableId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]  # also a name in the cache of downloads


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the manifest. Unknown fields are errors: a reader that ignores a field could compute wrong results."""


class GraphFile(_Part, frozen=True):
    """One ONNX file of a dense graph."""

    file: str
    length: int  # number of positions of a call; 0: any number
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class GraphInfo(_Part, frozen=True):
    """The dense graph of one profile: one file for any number of positions, or one file for each supported number."""

    files: tuple[GraphFile, ...]  # ordered by length
    data: str  # name of the file with the weights of all these files
    golden: str  # name of the file with the golden vectors for the weights, context and window of this graph
    dense_dtype: DenseDtype  # dtype of large weights; norms and the smallest matrices are float32
    kv_dtype: KVDtype  # dtype of the KV cache; if float16, the graph computes everything in float16
    window_dtype: WindowDtype  # dtype of the values in the expert window
    block_size: int  # number of weights that share a scale, if the dtype has blocks; else 0
    context_length: int  # in tokens
    expert_window: int  # W; has an effect only in MoLKV models
    min_onnxruntime: _Version  # the oldest version of ONNX Runtime that ran such a graph

    @property
    def is_static(self) -> bool:
        """Whether the shapes of the graph are fixed."""
        return self.files[0].length > 0

    @property
    def lengths(self) -> list[int]:
        """The supported numbers of positions of a call, ascending; [0]: any number."""
        return [file.length for file in self.files]

    def restrict(self, model: ModelConfig) -> ModelConfig:
        """Return the configuration with the context length and the expert window of this graph."""
        return model.restricted(self.context_length, self.expert_window)


class Field(_Part, frozen=True):
    """One array inside a record."""

    name: str  # "embedding", or "expert_{name of a vector or of its scales}.{layer}"
    dtype: RowDtype
    shape: tuple[int, ...]
    offset: int  # in bytes, from the start of the record


class Shard(_Part, frozen=True):
    """One file of a table: rows first_row to first_row + count - 1."""

    file: str
    first_row: int
    count: int
    data_offset: int  # position of the first record, in bytes from the start of the file


class Table(_Part, frozen=True):
    """A table of records: the meaning of row numbers, the layout of records, and the files that hold the records."""

    index: Literal["token_id"]  # row i belongs to token id i
    rows: int
    id: _TableId  # derived from the checkpoint, the layout and the versions of exporter and torch
    dtype: RowDtype  # dtype of expert values; embedding and keys are float32 if this is float32, else float16
    stride: int  # bytes from one record to the next
    fields: tuple[Field, ...]
    shards: tuple[Shard, ...]


class FileInfo(_Part, frozen=True):
    """Size and hash of a file of the bundle."""

    size: int  # bytes
    sha256: _Sha256


class Provenance(_Part, frozen=True):
    """The origin of a bundle."""

    command: str  # the command that made the bundle; several commands are separated by "; "
    tools: dict[str, str]  # package -> version
    source: dict[str, str]  # file of the checkpoint -> sha256

    def followed_by(self, command: str) -> Provenance:
        """Return the origin after one more command has changed the bundle."""
        return msgspec.structs.replace(self, command=f"{self.command}; {command}")


class Manifest(_Part, frozen=True):
    """The whole manifest."""

    schema_version: int
    model: ModelConfig
    graphs: dict[str, GraphInfo]  # by profile
    tables: dict[str, Table]
    generation: Generation
    files: dict[str, FileInfo]  # every file of the bundle except the manifest
    provenance: Provenance
    sha256: str = NO_DIGEST  # hash of the manifest file, computed with zeros in place of these 64 digits

    @property
    def experts(self) -> Table:
        """The table of the records of token ids: input embedding and experts."""
        return self.tables[EXPERTS]


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle folder. This function reads no other file.

    Raises:
        BundleError: The manifest is missing or invalid, or contradicts itself.
    """
    path = folder / MANIFEST
    return decode_manifest(
        read_bytes(path, BundleError, "expected a folder made by `molkv-export export`"), str(folder)
    )


def decode_manifest(data: bytes, folder: str) -> Manifest:
    """Decode and check the content of a manifest.

    Args:
        data: The content of the file.
        folder: The path or URL of the bundle, for messages.

    Raises:
        BundleError: The manifest is invalid, or contradicts itself.
    """
    path = f"{folder}/{MANIFEST}"
    found = decode_json(data, dict[str, Any], path, BundleError)
    version = found.get("schema_version", "none")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema_version: found {str(version)[:20]}, expected {SCHEMA_VERSION}; {_renewal(folder, found)}"
        )
    model = found.get("model")
    if not isinstance(model, dict):
        raise BundleError(f"{path}: model: found {shown(model)[:40]}, expected the configuration of a model")
    family = family_of(model, f"{path}: model", BundleError)
    decoded = decode_json(data, _manifest_of(family), path, BundleError)
    manifest = Manifest(**{name: getattr(decoded, name) for name in Manifest.__struct_fields__})
    digest = manifest.sha256.encode()
    if len(digest) != len(NO_DIGEST) or _digest(data.replace(digest, NO_DIGEST.encode())) != manifest.sha256:
        raise BundleError(f"{path}: its sha256 does not match its contents; the file was changed after the export")
    _check_names(manifest, path)
    _check_experts(manifest, f"{path}: tables.{EXPERTS}")
    _check_generation(manifest, f"{path}: generation")
    _check_graphs(manifest, path)
    return manifest


def _renewal(folder: str, found: dict[str, Any]) -> str:
    """Return the part of the message that says how to replace a bundle of another version."""
    version, provenance = found.get("schema_version"), found.get("provenance")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        return "a newer molkv-export made it: update molkv-export"
    command = provenance.get("command") if isinstance(provenance, dict) else None
    made = f" (it was made by: {shown(command)})" if isinstance(command, str) else ""
    return f"export it again with: molkv-export export CHECKPOINT {folder} --force{made}"


@cache
def _manifest_of(family: type[ModelConfig]) -> type[Manifest]:
    """Return a type of manifest whose field `model` has the configuration class of a family."""
    kind = msgspec.defstruct("Manifest", [("model", family)], bases=(Manifest,), frozen=True, kw_only=True)
    return cast(type[Manifest], kind)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest, with its own hash, into a bundle folder."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    (folder / MANIFEST).write_bytes(text.replace(NO_DIGEST.encode(), _digest(text).encode()))


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _check_names(manifest: Manifest, path: str) -> None:
    for name in manifest.files:
        if not is_plain_name(name) or name == MANIFEST:
            raise BundleError(
                f"{path}: files: found the name {name!r}, expected plain names of files inside the bundle"
            )
    if list(manifest.tables) != [EXPERTS]:
        raise BundleError(f"{path}: tables: found {', '.join(manifest.tables) or 'nothing'}, expected only {EXPERTS}")
    named = [shard.file for shard in manifest.experts.shards]
    if manifest.generation.chat_template:
        named.append(manifest.generation.chat_template)
    for graph in manifest.graphs.values():
        named += [graph.data, graph.golden, *(file.file for file in graph.files)]
    for name in named:
        if name not in manifest.files:
            raise BundleError(f"{path}: files: {name!r} is missing, but another field of the manifest names it")


def _check_experts(manifest: Manifest, where: str) -> None:
    """Check that the shards hold the record of every token id exactly once, and that each file has the right size."""
    table, vocab_size, next_row = manifest.experts, manifest.model.vocab_size, 0
    for shard in table.shards:
        if shard.count < 1:
            raise BundleError(f"{where}: shard {shard.file} holds {shard.count} rows, expected 1 or more")
        if shard.first_row != next_row:
            raise BundleError(
                f"{where}: shard {shard.file} starts at row {shard.first_row}, expected {next_row}: the shards "
                f"before it hold {next_row} rows"
            )
        size, expected = manifest.files[shard.file].size, shard.data_offset + shard.count * table.stride
        if shard.data_offset < 8 or size != expected:
            raise BundleError(
                f"{where}: shard {shard.file} has {size} bytes, expected {expected}: {shard.count} records of "
                f"{table.stride} bytes from byte {shard.data_offset} on"
            )
        next_row += shard.count
    if not next_row == table.rows == vocab_size:
        raise BundleError(
            f"{where}.rows: found {table.rows}, and {next_row} rows in the shards, expected {vocab_size} (the model's "
            "vocab_size)"
        )


def _check_generation(manifest: Manifest, where: str) -> None:
    vocab_size = manifest.model.vocab_size
    if wrong := [token for token in manifest.generation.eos_token_ids if not 0 <= token < vocab_size]:
        raise BundleError(
            f"{where}.eos_token_ids: found {wrong[0]}, expected token ids from 0 to {vocab_size - 1}; export the model "
            "again"
        )


def _check_graphs(manifest: Manifest, path: str) -> None:
    if not manifest.graphs:
        raise BundleError(f"{path}: graphs: found no profile, expected at least one")
    for profile, graph in manifest.graphs.items():
        lengths = graph.lengths
        if profile not in manifest.model.profiles:
            raise BundleError(
                f"{path}: graphs: found profile {profile!r}, expected {' or '.join(manifest.model.profiles)} for "
                f"models of type {manifest.model.model_type}"
            )
        if profile == "cpu":
            sound, expected = lengths == [0], "[0] (one file for any number of positions)"
        else:
            sound = lengths[:1] == [1] and lengths == sorted(set(lengths)) and lengths[-1] <= graph.context_length
            expected = f"ascending lengths, the first 1, the last at most {graph.context_length} (its context_length)"
        if not sound:
            raise BundleError(f"{path}: graphs.{profile}.files: found lengths {lengths[:9]}, expected {expected}")
        _check_limits(manifest.model, graph, f"{path}: graphs.{profile}")


def _check_limits(model: ModelConfig, graph: GraphInfo, where: str) -> None:
    limits = {"context_length": model.max_position_embeddings, "expert_window": model.expert_window}
    for name, limit in limits.items():
        found, least = getattr(graph, name), 1 if limit else 0
        if not least <= found <= limit:
            raise BundleError(f"{where}.{name}: found {found}, expected {least} to {limit} (as in the model)")
    if graph.expert_window != model.expert_window and not graph.is_static:
        raise BundleError(
            f"{where}.expert_window: found {graph.expert_window}, expected {model.expert_window} (as in the model), or "
            "less in a static graph"
        )
    kinds = {"dense_dtype": (graph.dense_dtype, "qdq-int8"), "kv_dtype": (graph.kv_dtype, "float16")}
    for name, (dtype, static_only) in kinds.items():
        if dtype == static_only and not graph.is_static:
            raise BundleError(
                f"{where}.{name}: found {dtype}, expected another dtype, since only static graphs may have {dtype}"
            )
    if graph.window_dtype not in (("float32",) if graph.is_static else model.window_dtypes):
        raise BundleError(
            f"{where}.window_dtype: found {graph.window_dtype}, expected float32, as in all static graphs and all "
            "models without an expert window"
        )
    if graph.is_static and (graph.dense_dtype in ("int8", "int4") or graph.kv_dtype == "int8"):
        raise BundleError(
            f"{where}: found dense_dtype {graph.dense_dtype} and kv_dtype {graph.kv_dtype}, expected neither int8 nor "
            "int4 in a static graph"
        )
