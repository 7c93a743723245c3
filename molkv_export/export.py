"""From a checkpoint to a bundle."""

from __future__ import annotations

import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer

from molkv_export.atomic_folder import atomic_folder
from molkv_export.calibration import kv_scales
from molkv_export.checkpoints import Checkpoint, open_checkpoint
from molkv_export.golden import calibration_texts, golden_ram, write_golden
from molkv_export.graph.build import DenseGraph, build_graph
from molkv_export.graph.linear import BLOCK_SIZES, DEFAULT_BLOCK_SIZE, FLOAT32, DenseFormat
from molkv_export.graph.weights import attach_weights
from molkv_export.needs import estimate
from molkv_export.tables.plan import plan_memory, plan_store
from molkv_export.tables.resume import JOURNAL, Journal, take_up
from molkv_export.tables.rows import RowSource, row_source
from molkv_export.tables.store_writer import write_store
from molkv_export.terminal import byte_progress
from molkv_runtime.bundle import TOKENIZER, Bundle
from molkv_runtime.errors import BundleError, CheckpointError, RequestError
from molkv_runtime.generator import GENERATION_CONFIG
from molkv_runtime.hashing import file_sha256
from molkv_runtime.json_file import decode_json, read_bytes
from molkv_runtime.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    DenseDtype,
    FileInfo,
    GraphInfo,
    KVDtype,
    Manifest,
    Provenance,
    StoreInfo,
    read_manifest,
    write_manifest,
)
from molkv_runtime.row_formats import RowDtype

DEFAULT_SHARD_SIZE = 1024**3
DEFAULT_MAX_MEMORY = 1024**3
COMPANIONS = (TOKENIZER, "tokenizer_config.json", GENERATION_CONFIG)

_GRAPH = "model.onnx"
_GRAPH_DATA = "model.onnx.data"


def export(
    checkpoint: Path,
    bundle: Path,
    *,
    dense_dtype: DenseDtype = "float32",
    block_size: int = DEFAULT_BLOCK_SIZE,
    kv_dtype: KVDtype = "float32",
    experts_dtype: RowDtype = "float16",
    shard_size: int = DEFAULT_SHARD_SIZE,
    max_memory: int = DEFAULT_MAX_MEMORY,
    force: bool = False,
    command: str = "molkv_export.export()",
    console: Console | None = None,
) -> Manifest:
    """Write a checkpoint as a bundle: dense graph, expert store, manifest and tokenizer files.

    An export that was cut short, even by SIGKILL, is taken up by the next one with the same arguments: shards that
    were finished are checked by their hashes and kept, and the bundle becomes the same, byte for byte.

    Args:
        checkpoint: Folder with config.json and model.safetensors, in training or lookup form.
        bundle: Folder to write. It appears when it is complete, or not at all.
        dense_dtype: Of the dense graph's large weights, see `graph.linear.DenseFormat`.
        block_size: Weights that share a scale in int4.
        kv_dtype: Of the KV cache.
        experts_dtype: Of the values in the store; embeddings and keys are float16, unless it is float32.
        shard_size: Largest size of a store file in bytes.
        max_memory: RAM in bytes for writing the store, beyond the libraries and the largest dense weight. More memory
            loads the expert networks less often. It does not change the bundle.
        force: Replace the folder if it exists; the old one stays until the new one is complete.
        command: What to note as the command that made the bundle.
        console: Where progress is shown; default nowhere.

    Raises:
        ConfigError, CheckpointError: The checkpoint is not sound.
        OutputError: The folder exists, is being written by another process, or cannot be written.
        RequestError: shard_size or max_memory is too small, there is no such block_size, or the model cannot be
            stored in these dtypes.
    """
    dense = _dense_format(dense_dtype, block_size, kv_dtype)
    with open_checkpoint(checkpoint) as source:
        rows = row_source(source)
        store = plan_store(source.config, experts_dtype, shard_size)
        memory = plan_memory(rows, store, max_memory)
        with atomic_folder(bundle, is_ours=_is_bundle, force=force, journal=JOURNAL) as folder:
            with byte_progress(console) as progress:
                hashes = _hash_checkpoint(source, progress)
                journal, message = take_up(folder, _arguments(hashes, experts_dtype, shard_size))
                if message:
                    progress.console.print(f"{bundle}: {message}", highlight=False, soft_wrap=True)
                _copy_companions(checkpoint, folder, source.config.vocab_size)
                graph = build_graph(source.config, dense)
                weights = [4 * math.prod(linear.shape) for linear in graph.linears.values()]
                needs = estimate(
                    rows,
                    store,
                    memory,
                    folder,
                    bundle,
                    finished=set(journal.shards),
                    dense=graph.nbytes,
                    weight=max(weights) * (1 if dense == FLOAT32 else 2),
                    golden=golden_ram(source.config, sum(weights)),
                )
                progress.console.print(str(needs), highlight=False, soft_wrap=True)
                info = _write_graph(graph, source, folder, progress, dense)
                _write_store(rows, store, memory.slab_ids, folder, journal, progress, needs.store)
            manifest = Manifest(
                schema_version=SCHEMA_VERSION,
                model=source.config,
                graphs={"cpu": info},
                store=store,
                files=_file_infos(folder, journal.shards),
                provenance=_provenance(hashes, command),
            )
            if console is not None:
                console.print("golden vectors: the source model runs in PyTorch", highlight=False)
            write_golden(source, Bundle(folder, manifest))
            manifest = msgspec.structs.replace(manifest, files=_file_infos(folder, manifest.files))
            write_manifest(manifest, folder)
    return manifest


def _write_store(
    rows: RowSource, store: StoreInfo, slab_ids: int, folder: Path, journal: Journal, progress: Progress, total: int
) -> None:
    task = progress.add_task("expert store", total=total)

    def finish(name: str, info: FileInfo) -> None:
        journal.shards[name] = info
        journal.save(folder)

    write_store(
        rows,
        store,
        slab_ids,
        folder,
        finished=dict(journal.shards),
        finish=finish,
        advance=lambda count: progress.advance(task, count),
    )


def _dense_format(dtype: DenseDtype, block_size: int, kv_dtype: KVDtype) -> DenseFormat:
    if block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise RequestError(
            f"block_size is {block_size}, expected one of {sizes} (ONNX Runtime's quantizer has no others)"
        )
    return DenseFormat(dtype, block_size, kv_dtype)


def _file_infos(folder: Path, known: dict[str, FileInfo]) -> dict[str, FileInfo]:
    """Describe the files of a bundle, hashing those that are not known yet."""
    infos = dict(known)
    for path in folder.iterdir():
        if path.name not in (JOURNAL, *known):
            infos[path.name] = FileInfo(size=path.stat().st_size, sha256=file_sha256(path))
    return dict(sorted(infos.items()))


def _hash_checkpoint(source: Checkpoint, progress: Progress) -> dict[str, str]:
    task = progress.add_task("checkpoint's hash", total=sum(path.stat().st_size for path in source.files))
    return source.sha256(lambda count: progress.advance(task, count))


def _arguments(hashes: dict[str, str], experts_dtype: RowDtype, shard_size: int) -> dict[str, str]:
    """Name all that decides on the bytes of the store, in the words of the command line."""
    versions = {name: version(name) for name in ("molkv-export", "torch")}
    return {**hashes, "--experts-dtype": experts_dtype, "--shard-size": str(shard_size), **versions}


def _is_bundle(folder: Path) -> bool:
    """Tell whether a folder holds a bundle, of this version or an earlier one, and nothing else."""
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
    return {path.name for path in folder.iterdir()} <= {MANIFEST, *known}


def _copy_companions(checkpoint: Path, folder: Path, vocab_size: int) -> None:
    for name in COMPANIONS:
        path = checkpoint / name
        if not path.is_file():
            continue
        content = read_bytes(path, CheckpointError, "expected a readable file")
        if name == TOKENIZER:
            try:
                size = Tokenizer.from_buffer(content).get_vocab_size()
            except Exception as error:  # the library raises nothing more precise
                raise CheckpointError(f"{path}: is not a tokenizer ({error})") from error
            if size > vocab_size:
                raise CheckpointError(
                    f"{path}: has {size} tokens, expected at most the model's vocab_size {vocab_size}"
                )
        (folder / name).write_bytes(content)


def _write_graph(
    graph: DenseGraph, source: Checkpoint, folder: Path, progress: Progress, dense: DenseFormat
) -> GraphInfo:
    scales = kv_scales(source, calibration_texts(source.config, folder)) if dense.kv_dtype == "int8" else None
    attach_weights(graph, source, scales)
    task = progress.add_task("dense graph", total=graph.nbytes)

    def report(tensor: ir.TensorProtocol, _info: ir.external_data.CallbackInfo) -> None:
        progress.advance(task, tensor.nbytes)

    path = folder / _GRAPH
    try:
        ir.save(graph.model, path, external_data=_GRAPH_DATA, callback=report)
    except ir.serde.SerdeError as error:
        raise _root_cause(error) from None
    for name in (_GRAPH, _GRAPH_DATA):
        (folder / name).chmod(0o644)  # external data is written as 0600
    progress.update(task, completed=graph.nbytes)  # small tensors are not reported
    return GraphInfo(
        file=_GRAPH,
        data=_GRAPH_DATA,
        dense_dtype=dense.dtype,
        kv_dtype=dense.kv_dtype,
        block_size=dense.block_size if dense.dtype == "int4" else 0,
        inputs=graph.inputs,
        outputs=graph.outputs,
    )


def _root_cause(error: BaseException) -> BaseException:
    """Find what onnx_ir wrapped: small tensors are read while it serializes, and reading can fail."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _provenance(hashes: dict[str, str], command: str) -> Provenance:
    packages = ("molkv-export", "torch", "onnx_ir", "onnxscript", "onnxruntime", "numpy")
    return Provenance(
        command=command,
        tools={"python": platform.python_version(), **{name: version(name) for name in packages}},
        source=hashes,
    )
