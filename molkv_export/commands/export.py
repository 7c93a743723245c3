"""`molkv-export export`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import get_args

import click
from rich.console import Console

from molkv_export.commands.options import PATH, ByteSize
from molkv_runtime.manifest import DenseDtype, KVDtype
from molkv_runtime.row_formats import ROW_FORMATS, RowDtype


@click.command("export")
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@click.option(
    "--dense-dtype",
    type=click.Choice(get_args(DenseDtype)),
    default="float32",
    show_default=True,
    help="Of the dense graph's large weights. int8 is good at prefill and decode, int4 smaller and faster at decode.",
)
@click.option(
    "--block-size",
    type=int,
    default=128,
    show_default=True,
    help="Weights that share a scale in int4: 16, 32, 64, 128 or 256. Smaller is more precise and slower.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(get_args(KVDtype)),
    default="float32",
    show_default=True,
    help="Of the KV cache. int8 takes a quarter of the memory and makes long contexts faster, but prefill slower.",
)
@click.option(
    "--experts-dtype",
    type=click.Choice(list(ROW_FORMATS)),
    default="float16",
    show_default=True,
    help="Of the experts' values. Embeddings and keys are float16, unless this is float32.",
)
@click.option(
    "--shard-size", type=ByteSize(), default="1GiB", show_default=True, help="Largest size of one file of the store."
)
@click.option(
    "--max-memory",
    type=ByteSize(),
    default="1GiB",
    show_default=True,
    help="RAM for writing the store, beyond the libraries. The bundle does not depend on it.",
)
@click.option("--force", is_flag=True, help="Replace BUNDLE if it exists; the old one stays until the new is complete.")
def export_command(
    checkpoint: Path,
    bundle: Path,
    dense_dtype: DenseDtype,
    block_size: int,
    kv_dtype: KVDtype,
    experts_dtype: RowDtype,
    shard_size: int,
    max_memory: int,
    force: bool,
) -> None:
    r"""Write a trained CHECKPOINT as a BUNDLE.

    CHECKPOINT is a folder with config.json and model.safetensors (and tokenizer files, if it has them), in training
    form or lookup form. BUNDLE appears when it is complete, or not at all. An export that was cut short is taken up by
    the same command.

    \b
    Examples:
      molkv-export export examples/stdlib-mini stdlib-mini.bundle
      molkv-export export examples/stdlib-mini small.bundle --dense-dtype int4 --experts-dtype int8
      molkv-export export my-model my-model.bundle --experts-dtype float32 --shard-size 512MiB
    """
    from molkv_export.export import export
    from molkv_export.terminal import human_bytes

    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    manifest = export(
        checkpoint,
        bundle,
        dense_dtype=dense_dtype,
        block_size=block_size,
        kv_dtype=kv_dtype,
        experts_dtype=experts_dtype,
        shard_size=shard_size,
        max_memory=max_memory,
        force=force,
        command=command,
        console=Console(stderr=True),
    )
    total = sum(info.size for info in manifest.files.values())
    click.echo(
        f"{bundle}: {len(manifest.files) + 1} files, {human_bytes(total)}, dense {dense_dtype}, experts {experts_dtype}"
    )
