"""`make bench-native`: print the tables of docs/performance.md, "The native driver"."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.drivers import LIBRARY, Contender, compare
from molkv_export.commands.options import PATH

OPTIONS = ("--temperature", "0", "--json", "--onnxruntime", LIBRARY)


@click.command()
@click.option("--folder", type=PATH, required=True, help="Folder for the models, which need 7 GB.")
@click.option("--build", type=PATH, required=True, help="Folder with the built driver.")
@click.option("--runs", default=15, show_default=True, help="Number of runs of each measurement.")
@click.option("--threads", default=2, show_default=True, help="Threads of ONNX Runtime for the 160M class.")
def main(folder: Path, build: Path, runs: int, threads: int) -> None:
    """Compare the native driver with the Python driver."""
    # The prompt is token ids, since the models of random weights have no tokenizer.
    native = Contender(
        "native",
        lambda bundle, threads: (build / "contender", LIBRARY, bundle, str(threads)),
        lambda bundle, ids, count: (
            *(build / "molkv", "run", bundle, "--prompt-ids", ids, "--max-new-tokens", str(count)),
            *OPTIONS,
        ),
    )
    compare(native, folder, runs, threads)


main()
