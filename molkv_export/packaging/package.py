"""Make a package for an app from a bundle."""

from __future__ import annotations

import logging
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
from molkv_export.terminal import byte_progress, timed
from molkv_runtime import ExpertStore

_PROFILES: dict[Platform, str] = {"android": "nnapi", "ios": "coreml"}
_DYNAMIC = "cpu"
_LOG = logging.getLogger(__name__)
_CONTENT = "content"  # temporary folder of the bundle, until its files are moved


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
    """Package a bundle for an app.

    Args:
        bundle: Folder of the bundle.
        out: Folder to write. The folder appears only when the package is complete.
        target: Platform of the app.
        profile: Static profile of the bundle; by default, nnapi for android and coreml for ios.
        graph_format: "onnx", or "ort" for ONNX Runtime's own format. Each "ort" graph file holds all its weights, so
            weights are stored once for each graph.
        force: Replace the folder if it exists and is a package.
        limits: Size limits; by default, those of the platform's app store.
        console: Console that shows progress; by default, none.

    Raises:
        BundleError: The bundle is not complete, is damaged, or lacks the profile.
        OutputError: The folder exists, is being written by another process, or cannot be written.
        ProviderError: ONNX Runtime cannot convert a graph.
        RequestError: The profile is not for this target, or a size is above the limit of the app store.
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
        for path in folder.rglob("*"):  # before the folder gets its final name
            sync(path)
    return info


def _open(bundle: Path, target: Platform, profile: str) -> Bundle:
    if profile != _DYNAMIC:
        opened = Bundle(bundle, profile=profile)
        if opened.graph().is_static:
            return opened
    raise RequestError(
        f"{bundle}: profile {profile} has dynamic shapes; expected a profile with fixed shapes for {target}, such as "
        f"{_PROFILES[target]}"
    )


def _check_numbers(bundle: Bundle, target: Platform, graph_format: GraphFormat) -> None:
    if bundle.graph().kv_dtype != "float16":
        return
    where = f"{bundle.path}: profile {bundle.profile} computes in float16"
    if target == "android":
        raise RequestError(
            f"{where}, expected float32 for android, because its providers convert to lower precision themselves; use "
            "profile nnapi"
        )
    if graph_format == "ort":
        raise RequestError(
            f"{where}, expected float32 for graph format ort, because the conversion adds casts to float32 around "
            "every node, for ONNX Runtime's CPU provider; use graph format onnx"
        )


def _check_contents(bundle: Bundle) -> None:
    """Check the graphs and the store, which the README describes. Other files are checked when they are copied."""
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
    """Describe the contents of a package.

    Args:
        bundle: Source bundle, open for the profile of the package.
        manifest: Manifest of the bundle in the package.
        sizes: Bytes of the files that go into the app, in the order in which they fill asset packs.
        target: Platform of the app.
        limits: Size limits of the app store.
        graph_format: Format of the graph files.
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
    name = re.sub(r"[^A-Za-z0-9._-]", "-", bundle.resolve().name)  # the name becomes part of program text
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
    with byte_progress(console) as progress, timed(_LOG, "files of the package"):
        task = progress.add_task("files of the package", total=total)
        content = Content(bundle, folder, limits, lambda count: progress.advance(task, count))
        if graph_format == "onnx":
            content.add_graphs()
        else:
            content.add_ort_graphs(folder.parent / OPERATORS)
        content.add_companions()
        content.add_store()
        progress.update(task, completed=total)
    # The command has only the bundle's own name, without parent folders, because the manifest becomes part of an app.
    command = ["molkv-export", "package", bundle.path.resolve().name, "--target", target, "--profile", bundle.profile]
    return content.finish(shlex.join([*command, "--graph-format", graph_format]))
