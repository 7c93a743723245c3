"""`make bench-web`: print the tables of docs/performance.md, "In a browser"."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import click

from molkv_export import GraphOptions, add_profile
from molkv_export.commands.options import PATH


@click.command()
@click.option("--folder", type=PATH, required=True, help="Folder with the models of make bench-js.")
@click.option("--build", type=PATH, required=True, help="Folder with the built programs, such as runtimes/js/.build.")
@click.option("--only", default="", help="One table: steps, first-token or fetch.")
@click.option("--rounds", default=3, show_default=True, help="Number of visits of each measurement.")
def main(folder: Path, build: Path, only: str, rounds: int) -> None:
    """Measure the JavaScript driver in headless Chromium."""
    bundle = folder / "float16"
    if not bundle.exists():
        incomplete = folder / "incomplete"
        shutil.rmtree(incomplete, ignore_errors=True)
        shutil.copytree(folder / "float32", incomplete, copy_function=os.link)
        add_profile(folder / "checkpoint", incomplete, "cpu", graph=GraphOptions("float16"), force=True)
        incomplete.rename(bundle)
    command: list[str | Path] = ["node", build / "browser.mjs", "--bundles", folder, "--rounds", str(rounds)]
    subprocess.run([*command, *(["--only", only] if only else [])], check=True)


main()
