"""`molkv-export package`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from molkv_bundle import PROFILES
from molkv_export.commands.options import PATH
from molkv_export.packaging.layout import README, GraphFormat, PackageInfo, Platform
from molkv_export.terminal import console, human_bytes


@click.command("package")
@click.argument("bundle", type=PATH)
@click.argument("out", type=PATH)
@click.option("--target", type=click.Choice(get_args(Platform)), required=True, help="The kind of phone.")
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    help="Which graphs of BUNDLE; they have to have fixed shapes. [default: nnapi for android, coreml for ios]",
)
@click.option(
    "--graph-format",
    type=click.Choice(get_args(GraphFormat)),
    default="onnx",
    show_default=True,
    help="ort is for minimal builds of ONNX Runtime; its files hold the weights once for each length of a call.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it is a package; the old one stays until then.")
def package_command(
    bundle: Path, out: Path, target: Platform, profile: str | None, graph_format: GraphFormat, force: bool
) -> None:
    """Lay out BUNDLE for an app in the folder OUT, within the limits of the app's store.

    OUT gets asset packs (android) or a folder for the app (ios), and a README with the calls that run this model. Needs
    no PyTorch. OUT appears when it is complete, or not at all.

    \b
    Examples:
      molkv-export package phone.bundle --target android stdlib-mini-android
      molkv-export package phone.bundle --target ios stdlib-mini-ios
      molkv-export package phone.bundle --target android --graph-format ort stdlib-mini-android
    """
    from molkv_export import package

    info = package(
        bundle,
        out,
        target=target,
        profile=profile or "",
        graph_format=graph_format,
        force=force,
        console=console(stderr=True),
    )
    click.echo(f"{out}: {human_bytes(info.size)} for {target}, profile {info.profile}; {README} says how to run it")
    for line in _lines(info):
        click.echo(f"  {line}")


def _lines(info: PackageInfo) -> list[str]:
    lines = [
        ", ".join(filter(None, (f"{part.name}: {len(part.files)} files", human_bytes(part.size), part.delivery)))
        for part in info.parts
    ]
    if info.graph_format == "ort":
        sizes = ", ".join(f"{graph.file} {human_bytes(graph.size)}" for graph in info.graphs)
        lines.append(f"each graph holds its weights: {sizes}")
    return lines
