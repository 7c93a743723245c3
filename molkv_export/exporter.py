"""Export a checkpoint as a bundle, or add a profile to a bundle."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir
import onnxruntime
import onnxscript
import torch
from rich.console import Console
from rich.progress import Progress

from molkv_bundle import (
    EXPERTS,
    NO_DIGEST,
    SCHEMA_VERSION,
    ArgumentError,
    Bundle,
    CheckpointError,
    FileInfo,
    GraphInfo,
    Manifest,
    OutputError,
    Provenance,
    RowDtype,
    Table,
    contents,
    file_sha256,
    local_folder,
    read_manifest,
    write_manifest,
)
from molkv_export import __version__
from molkv_export.atomic_folder import atomic_folder, check_output, link_or_copy
from molkv_export.calibration import activation_scales, kv_scales
from molkv_export.checkpoints import Checkpoint
from molkv_export.checkpoints.remote import RemoteError
from molkv_export.companions import Companions
from molkv_export.disk_and_ram import estimate_disk_and_ram
from molkv_export.families import FAMILIES, open_checkpoint
from molkv_export.golden import calibration_texts, write_golden
from molkv_export.graph.build import GraphPlan
from molkv_export.graph.files import save_graphs
from molkv_export.output import LocalOutput, is_bundle
from molkv_export.parts import collect_parts, store_arguments
from molkv_export.profiles import GraphOptions, plan_graphs, with_block_size
from molkv_export.remote_output import open_output
from molkv_export.source.hashes import HashedSource, check_source, hash_checkpoint
from molkv_export.tables.cluster import Job, check_cluster, write_table_on_ray
from molkv_export.tables.plan import (
    DEFAULT_MAX_MEMORY,
    DEFAULT_SHARD_SIZE,
    Memory,
    plan_memory,
    plan_table,
    shard_bytes,
    with_id,
)
from molkv_export.tables.resume import JOURNAL, Journal, check_nothing_unfinished, origin_of, resume_export
from molkv_export.tables.rows import RowSource, row_source
from molkv_export.tables.table_writer import write_table
from molkv_export.terminal import byte_progress, print_line, timed
from molkv_runtime import ExpertStore

Engine = Literal["ray"]
DEFAULT_GRAPH = GraphOptions()
_LOG = logging.getLogger(__name__)


def export(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    profiles: Sequence[str] = ("cpu",),
    graph: GraphOptions = DEFAULT_GRAPH,
    experts_dtype: RowDtype = "float16",
    shard_size: int = DEFAULT_SHARD_SIZE,
    max_memory: int = DEFAULT_MAX_MEMORY,
    assemble: bool = False,
    engine: Engine | None = None,
    address: str | None = None,
    force: bool = False,
    command: str = "molkv_export.export()",
    console: Console | None = None,
) -> Manifest:
    """Write a checkpoint as a bundle: dense graphs, expert store, manifest and tokenizer files.

    If an export is interrupted, even by SIGKILL, the next export with the same arguments resumes it. Finished shards
    are checked by their hashes and kept. The bundle is the same, byte for byte, as without the interruption.

    Args:
        checkpoint: Folder or URL with config.json and weights, in training or lookup form; see docs/checkpoints.md.
        bundle: Folder to write, which appears only when the bundle is complete; or the URL of a folder of object
            storage, whose manifest is written last.
        profiles: Profiles of the bundle, from `molkv_bundle.PROFILES`; the first one is the bundle's default.
        graph: Options for the graphs of all profiles. `add_profile` can add a profile with other options.
        experts_dtype: Dtype of the values in the store. If it is float32, embeddings and keys are float32, too;
            otherwise they are float16.
        shard_size: Largest size of a shard, in bytes.
        max_memory: RAM in bytes for writing the store, in addition to the RAM of the libraries and of the largest dense
            weight. With more memory, expert networks are loaded less often. The bundle's content stays the same.
        assemble: Take the expert store from the parts that `write_part` has written, and remove them at the end.
        engine: "ray": each shard is a task of a Ray cluster, whose nodes all see the checkpoint and the folder; each
            task may take `max_memory`. None: this process writes all shards.
        address: "HOST:PORT" of the Ray cluster's head; None for the cluster that RAY_ADDRESS names or that runs on this
            machine. If there is none, one starts on this machine for the time of the export.
        force: Replace the folder if it exists; the old folder stays until the new folder is complete.
        command: Text that the manifest records as the command that made the bundle.
        console: Console for progress bars and messages; None for no output.

    Raises:
        ConfigError, CheckpointError: The checkpoint is missing, damaged or unsupported, or changes while it is read.
        OutputError: The folder exists, is being written by another process, or cannot be written; a part is missing, or
            was written from another checkpoint or with other options or versions; a node of the cluster has other
            versions, or cannot write a shard.
        RequestError: A profile does not support the model or the options, shard_size or max_memory is too small, or a
            dtype cannot hold the model; the Ray cluster does not answer, or its nodes are too small.
        MissingExtraError: Ray is not installed.
    """
    if engine not in (None, *get_args(Engine)):
        raise ArgumentError("engine", engine, f"one of {', '.join(get_args(Engine))}")
    if engine is not None:
        check_cluster(address)
    output = open_output(bundle)
    output.check(force=force)
    with open_checkpoint(checkpoint) as source:
        cores = 1 if engine else torch.get_num_threads()
        plan = _plan(source, profiles, graph, experts_dtype, shard_size, max_memory, cores)
        with output.folder(force=force) as folder:
            with byte_progress(console) as progress:
                hashed = hash_checkpoint(source, progress)
                check = partial(_check_unchanged, hashed, plan.companions, folder)
                origin = origin_of(hashed.hashes)
                plan = plan._replace(table=with_id(plan.table, origin))
                journal = _start(
                    plan, folder, output, store_arguments(origin, experts_dtype, shard_size), assemble, progress
                )
                graphs = {g.profile: _write_graphs(g, source, folder, hashed.hashes, progress) for g in plan.graphs}
                write = write_table if engine is None else partial(_write_on_cluster, hashed, output, address)
                _write_table(plan, folder, output, journal, check, progress, write)
            files = _file_infos(folder, journal.shards)
            manifest = _new_manifest(plan, graphs, files, hashed.hashes, journal.machines, command)
            manifest = _finish(source, folder, manifest, list(graphs), console, output.open_store)
            check()
            output.complete(folder, manifest)
    if assemble:
        output.remove_parts()
    return manifest


def add_profile(
    checkpoint: str | Path,
    bundle: str | Path,
    profile: str,
    *,
    graph: GraphOptions = DEFAULT_GRAPH,
    force: bool = False,
    command: str = "molkv_export.add_profile()",
    console: Console | None = None,
) -> Manifest:
    """Add the graphs of one more profile to a bundle; the expert store does not change.

    Args:
        checkpoint: The checkpoint that the bundle was exported from.
        bundle: Folder of the bundle. The folder is replaced when the new bundle is complete.
        profile: The profile, one of `molkv_bundle.PROFILES`.
        graph: Options for the graphs.
        force: Replace the graphs if the bundle already has the profile.
        command: Text that the manifest records as the command that added the profile.
        console: Console for progress bars and messages; None for no output.

    Raises:
        ConfigError, CheckpointError: The bundle was made from another checkpoint, or the checkpoint is damaged or
            changes while it is read.
        BundleError: The bundle is not complete.
        OutputError: The bundle already has the profile, or cannot be written.
        RequestError: The profile does not support the model or the options.
    """
    bundle = local_folder(bundle, "a profile is added to a folder on this machine")
    old = Bundle(bundle)
    check_output(bundle, is_ours=is_bundle, force=True)
    if profile in old.manifest.graphs and not force:
        raise OutputError(f"{bundle}: already has profile {profile!r}; pass --force to replace it")
    check_nothing_unfinished(bundle)
    with open_checkpoint(checkpoint) as source:
        [plan] = plan_graphs(source.config, [profile], with_block_size(graph, source), old.manifest.experts.dtype)
        with byte_progress(console) as progress:
            hashed = hash_checkpoint(source, progress)
        check_source(old, source, hashed.hashes)
        with atomic_folder(bundle, is_ours=is_bundle, force=True) as folder:
            if read_manifest(bundle).sha256 != old.manifest.sha256:  # replaced before this process had the lock
                raise OutputError(
                    f"{bundle}: was changed by another process while this command was running; run the command again"
                )
            known = old.manifest.files.keys() - _files_of(old.manifest.graphs.get(profile))
            for name in known:
                link_or_copy(bundle / name, folder / name)
            with byte_progress(console) as progress:
                info = _write_graphs(plan, source, folder, old.manifest.provenance.source, progress)
            manifest = msgspec.structs.replace(
                old.manifest,
                graphs={**old.manifest.graphs, profile: info},
                files=_file_infos(folder, {name: old.manifest.files[name] for name in known}),
                provenance=old.manifest.provenance.followed_by(command),
                sha256=NO_DIGEST,
            )
            manifest = _finish(source, folder, manifest, [profile], console)
            hashed.check()
            return manifest


class _Plan(NamedTuple):
    """The plan of an export, made before anything is written."""

    source: Checkpoint
    companions: Companions
    graphs: list[GraphPlan]
    rows: RowSource
    table: Table
    memory: Memory


def _plan(
    source: Checkpoint,
    profiles: Sequence[str],
    graph: GraphOptions,
    experts_dtype: RowDtype,
    shard_size: int,
    max_memory: int,
    cores: int,
) -> _Plan:
    companions = Companions(source, FAMILIES[source.config.model_type].begins_with_bos)
    graphs = plan_graphs(source.config, profiles, with_block_size(graph, source), experts_dtype)
    rows = row_source(source)
    table = plan_table(source.config, experts_dtype, shard_size)
    return _Plan(source, companions, graphs, rows, table, plan_memory(rows, table, max_memory, cores))


def _start(
    plan: _Plan, folder: Path, output: LocalOutput, arguments: dict[str, str], assemble: bool, progress: Progress
) -> Journal:
    """Keep the finished shards of an unfinished export; write the companions; print the needed disk space and RAM."""
    journal, message = resume_export(folder, arguments, output.is_finished)
    if message:
        print_line(progress.console, f"{output.name}: {message}")
    if assemble:
        collect_parts(output, plan.table, journal, folder)
    for warning in plan.companions.warnings:
        print_line(progress.console, f"warning: {warning}")
    plan.companions.write(folder)
    missing = output.on_disk([shard for shard in plan.table.shards if shard.file not in journal.shards])
    finished = {shard.file for shard in plan.table.shards} - {shard.file for shard in missing}
    needs = estimate_disk_and_ram(
        plan.source, plan.graphs, plan.table, plan.memory, finished=finished, folder=folder, out=output.name
    )
    print_line(progress.console, str(needs))
    return journal


def _files_of(graph: GraphInfo | None) -> set[str]:
    return set() if graph is None else {graph.data, graph.golden, *(file.file for file in graph.files)}


def _finish(
    source: Checkpoint,
    folder: Path,
    manifest: Manifest,
    profiles: list[str],
    console: Console | None,
    open_store: Callable[[Bundle], ExpertStore] = ExpertStore,
) -> Manifest:
    """Write the golden vectors of some profiles, then the manifest; return the manifest."""
    if console is not None:
        print_line(console, "golden vectors: the source model runs in PyTorch")
    with timed(_LOG, "golden vectors"):
        for profile in profiles:
            write_golden(source, Bundle(folder, manifest, profile=profile), open_store)
    manifest = msgspec.structs.replace(manifest, files=_file_infos(folder, manifest.files))
    write_manifest(manifest, folder)
    return manifest


def _write_graphs(
    plan: GraphPlan, source: Checkpoint, folder: Path, hashes: dict[str, str], progress: Progress
) -> GraphInfo:
    scales: dict[str, npt.NDArray[Any]] = {}
    if plan.dense.kv_dtype == "int8":
        scales |= kv_scales(source, calibration_texts(source.config, folder))
    if plan.dense.dtype == "qdq-int8":
        scales |= activation_scales(source, plan.graphs[1], calibration_texts(source.config, folder))
    task = progress.add_task(f"dense graph, {plan.profile}", total=plan.nbytes)
    with timed(_LOG, f"dense graph, {plan.profile}"):
        info = save_graphs(
            plan, source, folder, scales=scales, hashes=hashes, advance=lambda count: progress.advance(task, count)
        )
    progress.update(task, completed=plan.nbytes)  # `save_graphs` does not report small tensors
    return info


def _write_table(
    plan: _Plan,
    folder: Path,
    output: LocalOutput,
    journal: Journal,
    check: Callable[[], None],
    progress: Progress,
    write: Callable[..., None],
) -> None:
    missing = [shard for shard in plan.table.shards if shard.file not in journal.shards]
    total = sum(shard_bytes(shard, plan.table) for shard in missing)
    task = progress.add_task("expert store", total=total, visible=total > 0)
    with timed(_LOG, "expert store"):
        write(
            plan.rows,
            plan.table,
            plan.memory,
            folder,
            shards=missing,
            finish=partial(output.finish, folder, journal, check),
            advance=lambda count: progress.advance(task, count),
        )
        output.finish_shards(folder, journal, plan.table)


def _write_on_cluster(
    hashed: HashedSource,
    output: LocalOutput,
    address: str | None,
    rows: RowSource,  # noqa: ARG001 - each task opens the checkpoint itself
    table: Table,
    memory: Memory,
    folder: Path,
    **options: Any,
) -> None:
    """Write shards as `write_table` does, by a Ray cluster."""
    if options["shards"]:
        source, to = hashed.checkpoint, output.upload_to
        job = Job(source.place, source.versions, hashed.hashes, table, memory, str(folder), to)
        write_table_on_ray(job, address, output.begin, **options)


def _file_infos(folder: Path, known: dict[str, FileInfo]) -> dict[str, FileInfo]:
    """Return size and hash of each file of a bundle by name; files in `known` are not hashed again."""
    infos = dict(known)
    for path in contents(folder):
        if path.name not in (JOURNAL, *known):
            infos[path.name] = FileInfo(size=path.stat().st_size, sha256=file_sha256(path))
    return dict(sorted(infos.items()))


def _check_unchanged(hashed: HashedSource, companions: Companions, folder: Path) -> None:
    """Check that the checkpoint has not changed since the start; if it has, remove the journal, so no shard is kept."""
    try:
        hashed.check()
        companions.check()
    except RemoteError:
        raise  # the checkpoint may well be unchanged
    except CheckpointError:
        (folder / JOURNAL).unlink(missing_ok=True)
        raise


def _new_manifest(
    plan: _Plan,
    graphs: dict[str, GraphInfo],
    files: dict[str, FileInfo],
    hashes: dict[str, str],
    machines: list[str],
    command: str,
) -> Manifest:
    packages = (torch, onnx_ir, onnxscript, onnxruntime, np)
    versions = {package.__name__: str(package.__version__) for package in packages}
    cpus = {"cpus": "; ".join(machines)} if len(machines) > 1 else {}  # several kinds may round differently
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=plan.source.config,
        graphs=graphs,
        tables={EXPERTS: plan.table},
        generation=plan.companions.generation,
        files=files,
        provenance=Provenance(
            command=command,
            tools={"python": platform.python_version(), **cpus, "molkv-export": __version__, **versions},
            source=hashes,
        ),
    )
