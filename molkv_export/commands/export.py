"""`molkv-export export`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import get_args

import click
from click.core import ParameterSource

import molkv_export
from molkv_bundle import PROFILES, ROW_FORMATS, DenseDtype, GraphInfo, KVDtype, Manifest, RowDtype, WindowDtype
from molkv_export import terminal
from molkv_export.commands.options import PATH, byte_size, counts
from molkv_export.graph.choices import CHUNK_LENGTHS, CONTEXT_LENGTH, DEFAULT_BLOCK_SIZE


@click.command("export")
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@click.option(
    "--profile",
    "profiles",
    type=click.Choice(PROFILES),
    multiple=True,
    default=["cpu"],
    help="Graphs to make; can be repeated. cpu: any batch and length. coreml, nnapi: fixed shapes, for phones. "
    "[default: cpu]",
)
@click.option(
    "--add-profile",
    type=click.Choice(PROFILES),
    help="Add graphs to BUNDLE, which exists, instead of making it. The store stays as it is.",
)
@click.option(
    "--dense-dtype",
    type=click.Choice(get_args(DenseDtype)),
    default="float32",
    show_default=True,
    help="Of the dense graph's large weights. int8 is good at prefill and decode, int4 smaller and faster at decode. "
    "coreml: float32 or float16; nnapi: float32 or qdq-int8.",
)
@click.option(
    "--block-size",
    type=int,
    default=DEFAULT_BLOCK_SIZE,
    show_default=True,
    help="Weights that share a scale in int4: 16, 32, 64, 128 or 256. Smaller is more precise and slower.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="Of the KV cache. int8 takes a quarter of the memory and makes long contexts faster, but prefill slower.",
)
@click.option(
    "--window-dtype",
    type=click.Choice(get_args(WindowDtype)),
    default="float32",
    show_default=True,
    help="Of the values in the expert window, MoLKV and profile cpu only. int8 is faster and takes a quarter of the "
    "memory; what it reads of an int8 store is exact, probabilities are rounded.",
)
@click.option(
    "--chunk-lengths",
    type=counts,
    metavar="NUMBERS",
    help="Positions of a call, of static graphs: one graph each; 1 is always there. "
    f"[default: {','.join(map(str, CHUNK_LENGTHS))}]",
)
@click.option(
    "--context-length",
    type=int,
    help=f"Longest sequence, of static graphs. [default: the model's, at most {CONTEXT_LENGTH}]",
)
@click.option(
    "--expert-window",
    type=int,
    help="W, of static graphs. A shorter one than the model's is another model. [default: the model's]",
)
@click.option(
    "--experts-dtype",
    type=click.Choice(list(ROW_FORMATS)),
    default="float16",
    show_default=True,
    help="Of the experts' values. Embeddings and keys are float16, unless this is float32.",
)
@click.option(
    "--shard-size",
    type=byte_size,
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="Largest size of one file of the store.",
)
@click.option(
    "--max-memory",
    type=byte_size,
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="RAM for writing the store, beyond the libraries. The bundle does not depend on it.",
)
@click.option("--force", is_flag=True, help="Replace BUNDLE if it exists; the old one stays until the new is complete.")
@click.pass_context
def export_command(
    context: click.Context,
    checkpoint: Path,
    bundle: Path,
    profiles: tuple[str, ...],
    add_profile: str | None,
    dense_dtype: DenseDtype,
    block_size: int,
    kv_dtype: KVDtype,
    window_dtype: WindowDtype,
    chunk_lengths: tuple[int, ...] | None,
    context_length: int | None,
    expert_window: int | None,
    experts_dtype: RowDtype,
    shard_size: int,
    max_memory: int,
    force: bool,
) -> None:
    """Write a trained CHECKPOINT as a BUNDLE.

    CHECKPOINT is a folder with config.json and weights (and tokenizer files, if it has them): ours, in training form or
    lookup form, or a MoLE as published, in training form or re-parameterized. Weights are model.safetensors,
    pytorch_model.bin, or several files with an index. BUNDLE appears when it is complete, or not at all. An export
    that was cut short is resumed by the same command.

    \b
    Examples:
      molkv-export export examples/stdlib-mini stdlib-mini.bundle
      molkv-export export examples/stdlib-mini small.bundle --dense-dtype int4 --experts-dtype int8
      molkv-export export MoLE-160M-4E mole.bundle
      molkv-export export my-model my-model.bundle --experts-dtype float32 --shard-size 512MiB
      molkv-export export my-model phone.bundle --profile coreml --dense-dtype float16 --context-length 512
      molkv-export export my-model my-model.bundle --add-profile nnapi
    """
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    graph = molkv_export.GraphOptions(
        dense_dtype, block_size, kv_dtype, chunk_lengths, context_length, expert_window, window_dtype
    )
    console = terminal.console(stderr=True)
    if add_profile is None:
        manifest = molkv_export.export(
            checkpoint,
            bundle,
            profiles=profiles,
            graph=graph,
            experts_dtype=experts_dtype,
            shard_size=shard_size,
            max_memory=max_memory,
            force=force,
            command=command,
            console=console,
        )
    else:
        _refuse_options_of_the_store(context)
        manifest = molkv_export.add_profile(
            checkpoint, bundle, add_profile, graph=graph, force=force, command=command, console=console
        )
    _print_result(bundle, manifest, is_new=add_profile is None)


def _refuse_options_of_the_store(context: click.Context) -> None:
    """Refuse options that say nothing of a profile's graphs."""
    for name in ("profiles", "experts_dtype", "shard_size"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.removesuffix('s').replace('_', '-')} makes no sense with --add-profile")


def _dtypes(graph: GraphInfo) -> str:
    """Name the dtypes of a graph that are not float32 beside that of its weights."""
    others = {"KV cache": graph.kv_dtype, "expert window": graph.window_dtype}
    return ", ".join([graph.dense_dtype, *(f"{name} {dtype}" for name, dtype in others.items() if dtype != "float32")])


def _print_result(bundle: Path, manifest: Manifest, *, is_new: bool) -> None:
    from molkv_export.families import FAMILIES  # needs PyTorch, which the help does not

    note = FAMILIES[manifest.model.model_type].note
    total = sum(info.size for info in manifest.files.values())
    graphs = ", ".join(f"{name} ({_dtypes(info)})" for name, info in manifest.graphs.items())
    click.echo(
        f"{bundle}: {len(manifest.files) + 1} files, {terminal.human_bytes(total)}, graphs {graphs}, "
        f"experts {manifest.experts.dtype}"
    )
    if is_new and note and manifest.model.layers_with_experts:
        command = f"molkv-export validate {shlex.quote(str(bundle))} --expected FILE"
        click.echo(f"{note}: {command} (docs/parity.md)", err=True)
