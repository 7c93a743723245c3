"""Make a package for an app from a bundle."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import msgspec
from rich.console import Console

from molkv_bundle import TOKENIZER, ArgumentError, Bundle, Manifest, RequestError, local_folder, printable
from molkv_export.atomic_folder import atomic_folder, check_output, sync
from molkv_export.packaging.content import Content, total_bytes
from molkv_export.packaging.layout import (
    DATA,
    LIMITS,
    README,
    WEB_BUNDLE,
    AppFolder,
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
from molkv_export.packaging.programs import asset_pack_build_file, copy_programs
from molkv_export.packaging.readme import readme
from molkv_export.packaging.tokenizer_support import unsupported_part
from molkv_export.packaging.web import check_page, copy_page
from molkv_export.terminal import byte_progress, timed
from molkv_runtime import ExpertStore

_PROFILES: dict[Platform, tuple[str, ...]] = {  # best first
    "android": ("nnapi", "cpu", "coreml"),
    "ios": ("coreml", "cpu", "nnapi"),
    "native": ("cpu", "nnapi", "coreml"),
    "web": ("cpu",),
}
_FAMILIES = ("mole", "molkv", "gemma4_text")  # types of the models that the drivers in C++ and JavaScript run
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
        target: Platform of the app. "native" is any system with a compiler for C++. "web" is a static site.
        profile: Profile of the bundle. By default nnapi for android, coreml for ios, and cpu for native and web; if the
            bundle lacks this profile, the best one that it has for the target. Target web has profile cpu only.
        graph_format: "onnx", or "ort" for ONNX Runtime's own format, which is for android and ios. Each "ort" graph
            file holds all its weights, so weights are stored once for each graph.
        force: Replace the folder if it exists and is a package.
        limits: Size limits; by default, those of the platform's app store, and none for native and web.
        console: Console that shows progress; by default, none.

    Raises:
        BundleError: The bundle is not complete, is damaged, or lacks the profile.
        OutputError: The folder exists, is being written by another process, or cannot be written.
        ProviderError: ONNX Runtime cannot convert a graph.
        RequestError: The model, the profile or the graph format is not for this target, a size is above the limit of
            the app store, or the web page was not built.
    """
    bundle, out = local_folder(bundle, "package reads every file of the bundle"), Path(out)
    check_output(out, is_ours=is_package, force=force)
    limits = limits or LIMITS[target]
    if target == "web":
        check_page()
        if profile not in ("", "cpu"):
            raise ArgumentError("profile", profile, "cpu for target web")
    opened = Bundle(bundle, profiles=_PROFILES[target], profile=profile)
    _check_family(opened, target)
    _check_graphs(opened, target, graph_format)
    _check_contents(opened)
    notes = _notes(opened, target, profile)
    check_total(bundle, total_bytes(opened), limits)
    with atomic_folder(out, is_ours=is_package, force=force) as folder:
        content = folder / _CONTENT
        content.mkdir()
        manifest = _write_content(opened, content, target, limits, graph_format, console)
        sizes = sizes_in_order(manifest, content)
        parts = _parts(target, sizes, limits)
        check_folders(bundle, parts, limits)
        info = PackageInfo(
            target=target,
            profile=opened.profile,
            graph_format=graph_format,
            graphs=_graphs(manifest, opened.profile),
            parts=parts,
            programs=copy_page(folder) if target == "web" else copy_programs(target, folder),
            others=[README, DATA, *([OPERATORS] if graph_format == "ort" else [])],
            notes=notes,
        )
        move_files(info.parts, content, folder)
        _write_texts(info, opened, folder)
        for path in folder.rglob("*"):  # before the folder gets its final name
            sync(path)
    for note in notes:
        _LOG.warning("%s: %s", bundle, note)
    return info


def _parts(target: Platform, sizes: dict[str, int], limits: Limits) -> list[AppFolder]:
    if target == "android":
        return asset_packs(sizes, limits)
    return one_folder(sizes, WEB_BUNDLE) if target == "web" else one_folder(sizes)


def _driver(target: Platform) -> str:
    return "the driver in JavaScript" if target == "web" else "the driver in C++"


def _graphs(manifest: Manifest, profile: str) -> list[PackagedGraph]:
    return [
        PackagedGraph(file=file.file, length=file.length, size=manifest.files[file.file].size)
        for file in manifest.graphs[profile].files
    ]


def _check_family(bundle: Bundle, target: Platform) -> None:
    if bundle.manifest.model.model_type not in _FAMILIES:
        raise RequestError(
            f"{bundle.path}: has a model of type {bundle.manifest.model.model_type}, expected "
            f"{', '.join(_FAMILIES[:-1])} or {_FAMILIES[-1]}, because {_driver(target)} runs no other model"
        )


def _check_graphs(bundle: Bundle, target: Platform, graph_format: GraphFormat) -> None:
    if graph_format == "ort" and target in ("native", "web"):
        raise ArgumentError("graph_format", graph_format, f"onnx for target {target}")
    if target == "web":
        check_page(bundle.graph())
    if bundle.graph().kv_dtype != "float16":
        return
    where = f"{bundle.path}: profile {bundle.profile} computes in float16"
    if target == "android":
        raise RequestError(
            f"{where}, expected float32 for android, because its providers convert to lower precision themselves; use "
            "profile nnapi or cpu"
        )
    if graph_format == "ort":
        raise RequestError(
            f"{where}, expected float32 for graph format ort, because the conversion adds casts to float32 around "
            "every node, for ONNX Runtime's CPU provider; use graph format onnx"
        )


def _check_contents(bundle: Bundle) -> None:
    """Check the graphs and the store before anything is written. Other files are checked when they are copied."""
    bundle.graph_paths()
    ExpertStore(bundle).close()


def _write_texts(info: PackageInfo, bundle: Bundle, folder: Path) -> None:
    for part in info.parts if info.target == "android" else ():
        (folder / part.build_file).write_text(asset_pack_build_file(part.delivery), encoding="utf-8")
    (folder / README).write_text(readme(info, bundle.graph()), encoding="utf-8")
    (folder / DATA).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=1) + b"\n")


def _notes(bundle: Bundle, target: Platform, profile: str) -> list[str]:
    """Return what the app cannot do with this bundle, and the profile if it is neither the default nor chosen."""
    found = []
    usual = _PROFILES[target][0]
    if not profile and bundle.profile != usual:
        found.append(f"the bundle has no profile {usual}, so the package has profile {bundle.profile}")
    ids = "so prompts must be token ids" + ("" if target == "web" else ", and the example stops with an error")
    if TOKENIZER not in bundle.manifest.files:
        found.append(f"the bundle has no tokenizer, {ids}")
    elif part := unsupported_part(bundle.file(TOKENIZER).read_bytes()):
        found.append(f"{_driver(target)} does not support the tokenizer ({printable(part)}), {ids}")
    return found


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
