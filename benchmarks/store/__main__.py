"""`make bench-store`: print the tables about the expert store in docs/store-performance.md."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import click
from rich.console import Console

from benchmarks.store.drive import drive_benchmark
from benchmarks.store.model import model_config, write_checkpoint
from benchmarks.store.read import read_benchmark
from benchmarks.store.write import write_benchmark
from molkv_export import export
from molkv_export.commands.options import PATH, byte_size


@click.command()
@click.option(
    "--folder", type=PATH, required=True, help="Folder for the files, which need three times the size of the store."
)
@click.option("--size", type=byte_size, metavar="SIZE", default="8GiB", show_default=True, help="Size of the store.")
@click.option("--runs", default=3, show_default=True, help="Number of runs of each measurement.")
@click.option("--keep", is_flag=True, help="Keep the checkpoint and the bundle for the next time.")
def main(folder: Path, size: int, runs: int, keep: bool) -> None:
    """Measure writing and reading an expert store, and running a model with it."""
    cores, system = os.cpu_count(), platform.release()
    click.echo(f"{cores} cores, Linux {system}, Python {platform.python_version()}\n", nl=True)
    folder.mkdir(parents=True, exist_ok=True)
    click.echo("### Writing\n")
    click.echo(write_benchmark(folder / "written", size, runs) + "\n")
    bundle = folder / "bundle"
    if not bundle.exists():
        checkpoint = write_checkpoint(model_config(size), folder / "checkpoint")
        export(checkpoint, bundle, console=Console(stderr=True))
    click.echo("### Reading\n")
    click.echo(read_benchmark(bundle, runs) + "\n")
    click.echo("### The whole driver under a memory cap\n")
    click.echo(drive_benchmark(bundle, 3 * runs))
    if not keep:
        shutil.rmtree(folder)


main()
