"""`make bench-js`: print the tables of docs/performance.md, "The JavaScript driver"."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.drivers import Contender, compare
from molkv_export.commands.options import PATH


@click.command()
@click.option("--folder", type=PATH, required=True, help="Folder for the models, which need 7 GB.")
@click.option("--build", type=PATH, required=True, help="Folder with the built programs, such as runtimes/js/.build.")
@click.option("--runs", default=15, show_default=True, help="Number of runs of each measurement.")
@click.option("--threads", default=2, show_default=True, help="Threads of ONNX Runtime for the 160M class.")
def main(folder: Path, build: Path, runs: int, threads: int) -> None:
    """Compare the JavaScript driver in Node with the Python driver."""
    node = Contender(
        "Node",
        lambda bundle, threads: ("node", build / "contender.mjs", bundle, str(threads)),
        lambda bundle, ids, count: ("node", build / "continue.mjs", bundle, ids, str(count)),
    )
    compare(node, folder, runs, threads)


main()
