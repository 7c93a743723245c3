"""From a checkpoint to a bundle."""

from __future__ import annotations

import datetime
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import msgspec
import onnx_ir as ir
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from molkv_export.atomic_folder import atomic_folder
from molkv_export.checkpoints import Checkpoint, open_checkpoint
from molkv_export.graph.build import build_graph
from molkv_export.graph.weights import attach_weights
from molkv_export.tables.store_writer import plan_store, write_store
from molkv_runtime.bundle import TOKENIZER
from molkv_runtime.errors import BundleError, CheckpointError
from molkv_runtime.generator import GENERATION_CONFIG
from molkv_runtime.json_file import read_bytes
from molkv_runtime.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    FileInfo,
    GraphInfo,
    Manifest,
    Provenance,
    RowDtype,
    read_manifest,
)

DEFAULT_SHARD_SIZE = 1024**3
COMPANIONS = (TOKENIZER, "tokenizer_config.json", GENERATION_CONFIG)

_GRAPH = "model.onnx"
_GRAPH_DATA = "model.onnx.data"


def export(
    checkpoint: Path,
    bundle: Path,
    *,
    experts_dtype: RowDtype = "float16",
    shard_size: int = DEFAULT_SHARD_SIZE,
    force: bool = False,
    command: str = "molkv_export.export()",
    console: Console | None = None,
) -> Manifest:
    """Write a checkpoint as a bundle: dense graph, expert store, manifest and tokenizer files.

    Peak RAM is that of the expert networks (in training form), the largest dense weight and a chunk of records; it
    does not grow with the number of token ids beyond the LM head.

    Args:
        checkpoint: Folder with config.json and model.safetensors, in training or lookup form.
        bundle: Folder to write. It appears when it is complete, or not at all.
        experts_dtype: Of the store's embedding, keys and values.
        shard_size: Largest size of a store file in bytes.
        force: Replace the folder if it exists; the old one stays until the new one is complete.
        command: What to note as the command that made the bundle.
        console: Where progress is shown; default nowhere.

    Raises:
        ConfigError, CheckpointError: The checkpoint is not sound.
        OutputError: The folder exists, or cannot be written.
        RequestError: shard_size is too small.
    """
    with open_checkpoint(checkpoint) as source, atomic_folder(bundle, is_ours=_is_bundle, force=force) as folder:
        plan = plan_store(source, experts_dtype, shard_size)
        files: dict[str, FileInfo] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console or Console(quiet=True)) as progress:
            graph = _write_graph(source, folder, progress)
            task = progress.add_task("expert store (token ids)", total=source.config.vocab_size)
            files |= write_store(source, plan, folder, lambda count: progress.advance(task, count))
        _copy_companions(checkpoint, folder, source.config.vocab_size)
        for path in sorted(folder.iterdir()):
            if path.name not in files:
                files[path.name] = _describe(path)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            model=source.config,
            graphs={"cpu": graph},
            store=plan,
            files=files,
            provenance=_provenance(source, command),
        )
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        (folder / MANIFEST).write_bytes(text + b"\n")
    return manifest


def _is_bundle(folder: Path) -> bool:
    try:
        known = {MANIFEST, *read_manifest(folder).files}
    except BundleError:
        return False
    return {path.name for path in folder.iterdir()} <= known


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


def _write_graph(source: Checkpoint, folder: Path, progress: Progress) -> GraphInfo:
    graph = build_graph(source.config)
    attach_weights(graph.model, source)
    task = progress.add_task("dense graph (tensors)", total=None)

    def report(_tensor: object, info: ir.external_data.CallbackInfo) -> None:
        progress.update(task, total=info.total, completed=info.index + 1)

    path = folder / _GRAPH
    try:
        ir.save(graph.model, path, external_data=_GRAPH_DATA, callback=report)
    except ir.serde.SerdeError as error:
        raise _root_cause(error) from None
    for name in (_GRAPH, _GRAPH_DATA):
        (folder / name).chmod(0o644)  # external data is written as 0600
    return GraphInfo(file=_GRAPH, data=_GRAPH_DATA, dense_dtype="float32", inputs=graph.inputs, outputs=graph.outputs)


def _root_cause(error: BaseException) -> BaseException:
    """Find what onnx_ir wrapped: small tensors are read while it serializes, and reading can fail."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _describe(path: Path) -> FileInfo:
    with path.open("rb") as file:
        return FileInfo(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _provenance(source: Checkpoint, command: str) -> Provenance:
    packages = ("molkv-export", "torch", "onnx_ir", "onnxscript", "onnxruntime", "numpy")
    return Provenance(
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tools={"python": platform.python_version(), **{name: version(name) for name in packages}},
        source=source.sha256(),
    )
