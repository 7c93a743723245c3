"""`molkv-export export`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from molkv_export.commands.options import PATH, ByteSize


@click.command("export")
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@click.option(
    "--experts-dtype",
    type=click.Choice(["float32", "float16"]),
    default="float16",
    show_default=True,
    help="Of embeddings, keys and values in the store.",
)
@click.option(
    "--shard-size", type=ByteSize(), default="1GiB", show_default=True, help="Largest size of one file of the store."
)
@click.option("--force", is_flag=True, help="Replace BUNDLE if it exists; the old one stays until the new is complete.")
def export_command(
    checkpoint: Path, bundle: Path, experts_dtype: Literal["float32", "float16"], shard_size: int, force: bool
) -> None:
    r"""Write a trained CHECKPOINT as a BUNDLE.

    CHECKPOINT is a folder with config.json and model.safetensors (and tokenizer files, if it has them), in training
    form or lookup form. BUNDLE appears when it is complete, or not at all.

    \b
    Examples:
      molkv-export export examples/stdlib-mini stdlib-mini.bundle
      molkv-export export my-model my-model.bundle --experts-dtype float32 --shard-size 512MiB
    """
    from molkv_export.export import export
    from molkv_export.inspect import human_bytes

    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    manifest = export(
        checkpoint,
        bundle,
        experts_dtype=experts_dtype,
        shard_size=shard_size,
        force=force,
        command=command,
        console=Console(stderr=True),
    )
    total = sum(info.size for info in manifest.files.values())
    click.echo(f"{bundle}: {len(manifest.files) + 1} files, {human_bytes(total)}, experts {experts_dtype}")
