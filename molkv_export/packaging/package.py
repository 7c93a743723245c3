"""From a bundle to what goes into an app."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
from rich.console import Console

from molkv_bundle import Bundle, Manifest, RequestError, read_golden
from molkv_export.atomic_folder import atomic_folder, check_output, sync
from molkv_export.packaging.content import Content, total_bytes
from molkv_export.packaging.layout import (
    DATA,
    LIMITS,
    README,
    GraphFormat,
    Limits,
    PackagedGraph,
    PackageInfo,
    Platform,
    asset_packs,
    check_folders,
    check_total,
    is_package,
    move_files,
    one_folder,
    sizes_in_order,
)
from molkv_export.packaging.ort_format import OPERATORS
from molkv_export.packaging.readme import build_file, readme
from molkv_export.terminal import byte_progress
from molkv_runtime import ExpertStore

_PROFILES: dict[Platform, str] = {"android": "nnapi", "ios": "coreml"}
_DYNAMIC = "cpu"
_CONTENT = "content"  # the bundle, until its files are moved to where they belong


def package(
    bundle: str | Path,
    out: str | Path,
    *,
    target: Platform,
    profile: str = "",
    graph_format: GraphFormat = "onnx",
    force: bool = False,
    limits: Limits | None = None,
    console: Console | None = None,
) -> PackageInfo:
    """Lay out a bundle for an app.

    Args:
        bundle: Its folder.
        out: Folder to write. It appears when it is complete, or not at all.
        target: The kind of phone.
        profile: Which of the bundle's static graphs; default nnapi for android, coreml for ios.
        graph_format: "onnx", or ONNX Runtime's own, whose files hold the weights once for each length of a call.
        force: Replace the folder if it exists and is a package.
        limits: What the app's store takes; default what it is known to take.
        console: Where progress is shown; default nowhere.

    Raises:
        BundleError: The bundle is not complete, is damaged, or lacks the profile.
        OutputError: The folder exists, is being written by another process, or cannot be written.
        ProviderError: ONNX Runtime cannot convert a graph.
        RequestError: The profile is not for this target, or something is larger than the app's store takes.
    """
    bundle, out = Path(bundle), Path(out)
    check_output(out, is_ours=is_package, force=force)
    limits = limits or LIMITS[target]
    opened = _open(bundle, target, profile or _PROFILES[target])
    _check_numbers(opened, target, graph_format)
    _check_contents(opened)
    check_total(bundle, total_bytes(opened), limits)
    with atomic_folder(out, is_ours=is_package, force=force) as folder:
        content = folder / _CONTENT
        content.mkdir()
        manifest = _write_content(opened, content, target, limits, graph_format, console)
        info = _describe(opened, manifest, sizes_in_order(manifest, content), target, limits, graph_format)
        check_folders(bundle, info.parts, limits)
        move_files(info.parts, content, folder)
        for part in info.parts if target == "android" else ():
            (folder / part.build_file).write_text(build_file(part), encoding="utf-8")
        (folder / README).write_text(readme(manifest, info, limits, read_golden(opened)), encoding="utf-8")
        (folder / DATA).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=1) + b"\n")
        for path in folder.rglob("*"):  # before it gets its name
            sync(path)
    return info


def _open(bundle: Path, target: Platform, profile: str) -> Bundle:
    if profile != _DYNAMIC:
        opened = Bundle(bundle, profile=profile)
        if opened.graph().is_static:
            return opened
    raise RequestError(
        f"{bundle}: profile {profile} has dynamic shapes; expected one with fixed shapes for {target}, such as "
        f"{_PROFILES[target]}"
    )


def _check_numbers(bundle: Bundle, target: Platform, graph_format: GraphFormat) -> None:
    if bundle.graph().kv_dtype != "float16":
        return
    where = f"{bundle.path}: profile {bundle.profile} computes in float16"
    if target == "android":
        raise RequestError(
            f"{where}, expected float32 for android, whose providers lower the precision themselves; take profile nnapi"
        )
    if graph_format == "ort":
        raise RequestError(
            f"{where}, expected float32 for graph format ort: ONNX Runtime converts for its CPU provider, with casts "
            "to float32 around every node; take graph format onnx"
        )


def _check_contents(bundle: Bundle) -> None:
    """Check what the README says of graphs and records; files are checked when they are copied."""
    bundle.graph_paths()
    ExpertStore(bundle).close()


def _describe(
    bundle: Bundle,
    manifest: Manifest,
    sizes: dict[str, int],
    target: Platform,
    limits: Limits,
    graph_format: GraphFormat,
) -> PackageInfo:
    """Say what the package of a bundle holds.

    Args:
        bundle: Open for the profile of the package.
        manifest: Of what goes into the app.
        sizes: Bytes of the files that go into the app, in the order in which they fill asset packs.
        target: The kind of phone.
        limits: What the app's store takes.
        graph_format: What the graphs' files are.
    """
    return PackageInfo(
        target=target,
        profile=bundle.profile,
        graph_format=graph_format,
        half=bundle.graph().kv_dtype == "float16",
        graphs=[
            PackagedGraph(file=file.file, length=file.length, size=sizes[file.file])
            for file in manifest.graphs[bundle.profile].files
        ],
        parts=asset_packs(sizes, limits) if target == "android" else one_folder(_folder_name(bundle.path), sizes),
        others=[README, DATA, *([OPERATORS] if graph_format == "ort" else [])],
    )


def _folder_name(bundle: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", bundle.resolve().name)  # it becomes part of program text
    return f"{name.removesuffix('.bundle')}.bundle"


def _write_content(
    bundle: Bundle,
    folder: Path,
    target: Platform,
    limits: Limits,
    graph_format: GraphFormat,
    console: Console | None,
) -> Manifest:
    total = total_bytes(bundle)
    with byte_progress(console) as progress:
        task = progress.add_task("files of the package", total=total)
        content = Content(bundle, folder, limits, lambda count: progress.advance(task, count))
        if graph_format == "onnx":
            content.add_graphs()
        else:
            content.add_ort_graphs(folder.parent / OPERATORS)
        content.add_companions()
        content.add_store()
        progress.update(task, completed=total)
    # Without the names of folders around it: this goes into an app.
    command = ["molkv-export", "package", bundle.path.resolve().name, "--target", target, "--profile", bundle.profile]
    return content.finish(shlex.join([*command, "--graph-format", graph_format]))
