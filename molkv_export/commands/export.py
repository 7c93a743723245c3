"""`molkv-export export`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import click
from click.core import ParameterSource
from rich.console import Console

import molkv_export
from molkv_bundle import (
    MANIFEST,
    PROFILES,
    ROW_FORMATS,
    DenseDtype,
    GraphInfo,
    KVDtype,
    Manifest,
    OutputError,
    RemoteFolder,
    RowDtype,
    WindowDtype,
    resolve_location,
)
from molkv_export.commands.options import (
    LOCATION,
    byte_size,
    common_options,
    counts,
    json_option,
    print_json,
    renamed,
)
from molkv_export.graph.choices import (
    CHUNK_LENGTHS,
    CONTEXT_LENGTH,
    DEFAULT_BLOCK_SIZE,
    DEFAULT_LM_HEAD_DTYPE,
    LM_HEAD_DTYPES,
    LmHeadDtype,
)
from molkv_export.terminal import human_bytes, print_line

_TYPED = ParameterSource.COMMANDLINE
_OF_STORE = ("experts_dtype", "shard_size", "max_memory")
_OF_A_PART = ("checkpoint", "bundle", *_OF_STORE, "shards", "as_json", "quiet", "verbose")


def _part(text: str) -> tuple[int, int]:
    """Read a part such as 3/8.

    Raises:
        click.BadParameter: The text is not of this form.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"found {text!r}, expected I/N such as 3/8, with I from 1 to N")
    return int(number), int(count)


@click.command("export")
@click.argument("checkpoint", type=LOCATION)
@click.argument("bundle", type=LOCATION)
@click.option(
    "--profile",
    "profiles",
    type=click.Choice(PROFILES),
    multiple=True,
    default=["cpu"],
    help="Profile of the graphs to make; the option can be repeated. cpu: any batch size and length; coreml, nnapi: "
    "fixed shapes, for phones. "
    "[default: cpu]",
)
@click.option(
    "--add-profile",
    type=click.Choice(PROFILES),
    help="Add the graphs of this profile to the existing BUNDLE. The expert store does not change.",
)
@click.option(
    "--dense-dtype",
    type=click.Choice(get_args(DenseDtype)),
    default="float32",
    show_default=True,
    help="Dtype of the large weights in the dense graph. int8 is fast at prefill and decode; int4 is smaller, and "
    "faster at decode. Profile coreml allows float32 and float16, and nnapi allows float32 and qdq-int8.",
)
@click.option(
    "--block-size",
    type=int,
    help="Number of weights that share one int4 scale: 16, 32, 64, 128 or 256. Smaller blocks are more precise and "
    f"slower. The option needs --dense-dtype int4. [default: {DEFAULT_BLOCK_SIZE}; 32 for a checkpoint of "
    "quantization-aware training, whose weights are rounded to 4 bits in blocks of 32]",
)
@click.option(
    "--lm-head-dtype",
    type=click.Choice(LM_HEAD_DTYPES),
    default=DEFAULT_LM_HEAD_DTYPE,
    show_default=True,
    help="Dtype of the LM head. int4 is smaller, and faster at decode; int8 is more precise. The option needs "
    "--dense-dtype int4.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="Dtype of the KV cache. int8 takes a quarter of the memory. Long contexts are faster, but prefill is slower.",
)
@click.option(
    "--window-dtype",
    type=click.Choice(get_args(WindowDtype)),
    help="Dtype of the values in the expert window. int8 is for MoLKV with profile cpu only; it is faster and takes a "
    "quarter of the memory. Values of an int8 store stay exact; probabilities are rounded. [default: int8 with "
    "--experts-dtype int8 and --dense-dtype int8 or int4, else float32]",
)
@click.option(
    "--chunk-lengths",
    type=counts,
    metavar="NUMBERS",
    help="Numbers of positions in one call of a static graph. Each length gets its own graph; 1 is always included. "
    f"[default: {','.join(map(str, CHUNK_LENGTHS))}]",
)
@click.option(
    "--context-length",
    type=int,
    help="Longest sequence of the graphs, in tokens. The KV cache and the tables of cos and sin grow with it. "
    f"[default: the model's, but at most {CONTEXT_LENGTH} in static graphs and the family's default in profile cpu]",
)
@click.option(
    "--expert-window",
    type=int,
    help="Expert window W of static graphs. A window shorter than the model's changes the results. "
    "[default: the model's]",
)
@click.option(
    "--experts-dtype",
    type=click.Choice(list(ROW_FORMATS)),
    default="float16",
    show_default=True,
    help="Dtype of the experts' values. Embeddings and keys are float16, or float32 if this option is float32.",
)
@click.option(
    "--shard-size",
    type=byte_size,
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="Largest size of a file of the expert store.",
)
@click.option(
    "--max-memory",
    type=byte_size,
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="RAM for writing the expert store, without the RAM of libraries. It does not change the bundle.",
)
@click.option(
    "--shards",
    type=_part,
    metavar="I/N",
    help="Write only part I of N parts of the expert store, beside BUNDLE. Several machines can write parts into one "
    "shared folder, or into object storage; --assemble then makes BUNDLE of them.",
)
@click.option(
    "--assemble", is_flag=True, help="Take the expert store from the parts that --shards has written, and remove them."
)
@click.option(
    "--engine",
    type=click.Choice(["ray"]),
    help="Write the shards as tasks of a Ray cluster. All nodes must see CHECKPOINT and BUNDLE. Each task takes one "
    "core and --max-memory.",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Head of the Ray cluster. The option needs --engine. [default: RAY_ADDRESS, or the cluster on this machine; "
    "if there is none, one is started for this export]",
)
@click.option(
    "--force", is_flag=True, help="Replace BUNDLE if it exists. The old bundle stays until the new one is complete."
)
@json_option
@common_options
def export_command(
    checkpoint: Path | str,
    bundle: Path | str,
    profiles: tuple[str, ...],
    add_profile: str | None,
    dense_dtype: DenseDtype,
    block_size: int | None,
    lm_head_dtype: LmHeadDtype,
    kv_dtype: KVDtype,
    window_dtype: WindowDtype | None,
    chunk_lengths: tuple[int, ...] | None,
    context_length: int | None,
    expert_window: int | None,
    experts_dtype: RowDtype,
    shard_size: int,
    max_memory: int,
    shards: tuple[int, int] | None,
    assemble: bool,
    engine: Literal["ray"] | None,
    address: str | None,
    force: bool,
    as_json: bool,
    notes: Console,
) -> None:
    """Write a trained CHECKPOINT as a BUNDLE.

    CHECKPOINT is a folder with config.json, weights and, if the model has one, a tokenizer; or the URL of such a
    folder on the Hub (hf://OWNER/NAME[@REVISION]) or in object storage (s3://BUCKET/PATH, gs://BUCKET/PATH). BUNDLE may
    be a URL of object storage, too. The checkpoint has our own format, the format of the published MoLE models, in
    training or lookup form, or that of Gemma 4 E2B or E4B. Weights are model.safetensors, pytorch_model.bin, or several
    files with an index. If the command fails, BUNDLE does not change. The same command
    continues an interrupted export.

    \b
    Examples:
      molkv-export export examples/stdlib-mini stdlib-mini.bundle
      molkv-export export examples/stdlib-mini small.bundle --dense-dtype int4 --experts-dtype int8
      molkv-export export MoLE-160M-4E mole.bundle
      molkv-export export google-gemma-4-E2B-it gemma.bundle --dense-dtype int4 --experts-dtype int4
      molkv-export export my-model my-model.bundle --experts-dtype float32 --shard-size 512MiB
      molkv-export export my-model phone.bundle --profile coreml --dense-dtype float16 --context-length 512
      molkv-export export my-model my-model.bundle --add-profile nnapi --json > export.json
      molkv-export export my-model my-model.bundle --shards 2/8
      molkv-export export my-model my-model.bundle --assemble
      molkv-export export my-model my-model.bundle --engine ray --address 10.0.0.1:6379
      molkv-export export hf://owner/name s3://bucket/my-model.bundle
    """
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    _refuse_options_without_effect(dense_dtype, is_new=add_profile is None, is_part=shards is not None)
    if shards is not None:
        _write_part(checkpoint, bundle, shards, experts_dtype, shard_size, max_memory, as_json, notes)
        return
    graph = molkv_export.GraphOptions(
        dense_dtype, block_size, kv_dtype, chunk_lengths, context_length, expert_window, window_dtype, lm_head_dtype
    )
    if add_profile is None:
        manifest = molkv_export.export(
            checkpoint,
            bundle,
            profiles=profiles,
            graph=graph,
            experts_dtype=experts_dtype,
            shard_size=shard_size,
            max_memory=max_memory,
            assemble=assemble,
            engine=engine,
            address=address,
            force=force,
            command=command,
            console=notes,
        )
        _note_own_reading(bundle, manifest, notes)
    else:
        with renamed(profile="add_profile"):
            manifest = molkv_export.add_profile(
                checkpoint, bundle, add_profile, graph=graph, force=force, command=command, console=notes
            )
    _print(bundle, manifest, as_json)


def _write_part(
    checkpoint: Path | str,
    bundle: Path | str,
    shards: tuple[int, int],
    experts_dtype: RowDtype,
    shard_size: int,
    max_memory: int,
    as_json: bool,
    notes: Console,
) -> None:
    info = molkv_export.write_part(
        checkpoint,
        bundle,
        shards,
        experts_dtype=experts_dtype,
        shard_size=shard_size,
        max_memory=max_memory,
        console=notes,
    )
    if as_json:
        print_json(info)
    else:
        click.echo(f"{info.folder}: part {info.part}, {info.shards} shards, {human_bytes(info.size)}")


def _print(bundle: Path | str, manifest: Manifest, as_json: bool) -> None:
    facts = _facts(bundle, manifest)
    if as_json:
        print_json(facts)
        return
    graphs = ", ".join(f"{name} ({_dtypes(info)})" for name, info in manifest.graphs.items())
    click.echo(
        f"{bundle}: {facts['files']} files, {human_bytes(facts['size'])}, graphs {graphs}, "
        f"experts {facts['experts_dtype']}"
    )


def _refuse_options_without_effect(dense_dtype: DenseDtype, *, is_new: bool, is_part: bool) -> None:
    """Refuse options on the command line that would change nothing.

    Raises:
        click.BadParameter: The command line has such an option.
    """
    context = click.get_current_context()
    given = {p.name: p for p in context.command.params if context.get_parameter_source(p.name or "") is _TYPED}
    needs_int4 = {"block_size": "only int4 weights have blocks", "lm_head_dtype": "only int4 graphs have this choice"}
    for name, reason in needs_int4.items():
        if dense_dtype != "int4" and name in given:
            message = f"found --dense-dtype {dense_dtype}, expected int4, since {reason}"
            raise click.BadParameter(message, param=given[name])
    if "address" in given and "engine" not in given:
        raise click.BadParameter("found without --engine ray, which needs it", param=given["address"])
    if "engine" in given and "assemble" in given:
        message = "found with --assemble, which computes no shard; leave this option out"
        raise click.BadParameter(message, param=given["engine"])
    for name in ("profiles", *_OF_STORE, "shards", "assemble", "engine"):
        if not is_new and name in given:
            message = "found with --add-profile, which adds graphs only; leave this option out"
            raise click.BadParameter(message, param=given[name])
    for name in given if is_part else ():
        if name not in _OF_A_PART:
            message = "found with --shards, which writes only a part of the expert store; leave this option out"
            raise click.BadParameter(message, param=given[name])


def _facts(bundle: Path | str, manifest: Manifest) -> dict[str, Any]:
    """Return the content of the printed summary, for JSON. The number of files includes the manifest."""
    place = resolve_location(bundle)
    if isinstance(place, Path):
        size_of_manifest = (place / MANIFEST).stat().st_size
    else:
        size_of_manifest = RemoteFolder(place, OutputError).files[MANIFEST].size
    return {
        "bundle": str(bundle),
        "files": len(manifest.files) + 1,
        "size": sum(info.size for info in manifest.files.values()) + size_of_manifest,
        "graphs": {
            name: {"dense_dtype": info.dense_dtype, "kv_dtype": info.kv_dtype, "window_dtype": info.window_dtype}
            for name, info in manifest.graphs.items()
        },
        "experts_dtype": manifest.experts.dtype,
    }


def _dtypes(graph: GraphInfo) -> str:
    """Return the dtype of the weights, and those of the KV cache and the expert window if they are not float32."""
    others = {"KV cache": graph.kv_dtype, "expert window": graph.window_dtype}
    return ", ".join([graph.dense_dtype, *(f"{name} {dtype}" for name, dtype in others.items() if dtype != "float32")])


def _note_own_reading(bundle: Path | str, manifest: Manifest, notes: Console) -> None:
    """Print how to compare with a user's own code, for a family whose paper leaves choices open."""
    from molkv_export.families import FAMILIES  # needs PyTorch, but --help must work without it

    note = FAMILIES[manifest.model.model_type].note
    if note and manifest.model.layers_with_experts:
        command = f"molkv-export validate {shlex.quote(str(bundle))} --expected FILE"
        print_line(notes, f"{note}: {command} (docs/parity.md)")
