"""`molkv-export package`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from rich.console import Console

from molkv_bundle import PROFILES
from molkv_export.commands.options import LOCATION, PATH, common_options, json_option, print_json
from molkv_export.packaging.layout import README, GraphFormat, PackageInfo, Platform
from molkv_export.terminal import human_bytes


@click.command("package")
@click.argument("bundle", type=LOCATION)
@click.argument("out", type=PATH)
@click.option("--target", type=click.Choice(get_args(Platform)), required=True, help="Platform of the app.")
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    help="Profile of the graphs to pack. [default: nnapi for android, coreml for ios, cpu for native and web; if "
    "BUNDLE lacks it, the best one that BUNDLE has]",
)
@click.option(
    "--graph-format",
    type=click.Choice(get_args(GraphFormat)),
    default="onnx",
    show_default=True,
    help="Format of the graphs. ort is for NNAPI and for minimal builds of ONNX Runtime on a phone; each of its graph "
    "files holds its own copy of the weights.",
)
@click.option(
    "--force", is_flag=True, help="Replace OUT if it is a package. The old package stays until the new one is complete."
)
@json_option
@common_options
def package_command(
    bundle: Path | str,
    out: Path,
    target: Platform,
    profile: str | None,
    graph_format: GraphFormat,
    force: bool,
    as_json: bool,
    notes: Console,
) -> None:
    """Write the files that an app needs to run BUNDLE into the folder OUT.

    OUT gets the bundle, within the size limits of the app store (android: as asset packs); the driver in C++ and its
    library for Kotlin (android) or Swift (ios); and an example that uses them. With target web, OUT is a static site: a
    page that runs the bundle in the browser. The README in OUT lists the steps. The command does not need PyTorch. If
    it fails, OUT does not change.

    \b
    Examples:
      molkv-export package phone.bundle --target android stdlib-mini-android
      molkv-export package phone.bundle --target ios stdlib-mini-ios
      molkv-export package phone.bundle --target android --graph-format ort stdlib-mini-android
      molkv-export package my.bundle --target native stdlib-mini-native
      molkv-export package my.bundle --target web stdlib-mini-web
    """
    from molkv_export import package

    info = package(
        bundle, out, target=target, profile=profile or "", graph_format=graph_format, force=force, console=notes
    )
    if as_json:
        print_json(info)
        return
    click.echo(f"{out}: {human_bytes(info.size)} for {target}, profile {info.profile}; {README} has the next steps")
    for line in _lines(info):
        click.echo(f"  {line}")


def _lines(info: PackageInfo) -> list[str]:
    lines = [
        ", ".join(filter(None, (f"{part.name}: {len(part.files)} files", human_bytes(part.size), part.delivery)))
        for part in info.parts
    ]
    if info.graph_format == "ort":
        sizes = ", ".join(f"{graph.file} {human_bytes(graph.size)}" for graph in info.graphs)
        lines.append(f"each graph file holds its own copy of the weights: {sizes}")
    return lines
