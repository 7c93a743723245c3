"""`molkv-export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from molkv_export.bench.measure import CONTEXTS, PROMPTS, bench
from molkv_export.bench.report import Storage, markdown, print_bench
from molkv_export.commands.options import PATH, counts, provider_options, write_out
from molkv_export.terminal import console, status
from molkv_runtime import Target


@click.command("bench")
@click.argument("bundle", type=PATH)
@click.option(
    "--prompts", type=counts, metavar="NUMBERS", help=f"Lengths of prompts. [default: of {PROMPTS}, those that fit]"
)
@click.option(
    "--contexts", type=counts, metavar="NUMBERS", help=f"Lengths at which decode ends. [default: of {CONTEXTS}]"
)
@click.option(
    "--batches", type=counts, metavar="NUMBERS", default="1", show_default=True, help="Sequences that decode together."
)
@click.option("--steps", type=int, default=64, show_default=True, help="Decode steps of a run.")
@click.option("--runs", type=int, default=3, show_default=True, help="Of each measurement; medians are shown.")
@click.option(
    "--storage",
    type=click.Choice(["both", "warm", "cold"]),
    default="both",
    show_default=True,
    help="Records were read before (warm), or are dropped from the page cache (cold).",
)
@click.option("--threads", type=int, help="Threads of ONNX Runtime. [default: one per core]")
@provider_options
@click.option("--json", "json_file", type=click.File("wb", lazy=False), help="Write the report as JSON, too.")
@click.option("--markdown", "markdown_file", type=click.File("wb", lazy=False), help="Write the tables as Markdown.")
def bench_command(
    bundle: Path,
    prompts: tuple[int, ...] | None,
    contexts: tuple[int, ...] | None,
    batches: tuple[int, ...],
    steps: int,
    runs: int,
    storage: str,
    threads: int | None,
    profile: str | None,
    provider: str,
    provider_options: tuple[tuple[str, str], ...],
    require_provider: bool,
    json_file: BinaryIO | None,
    markdown_file: BinaryIO | None,
) -> None:
    """Measure how fast BUNDLE runs on this machine. Needs no PyTorch and no checkpoint.

    Prefill and decode on random token ids, the share of each part, bytes read, memory, and how much of the memory
    bandwidth is used. docs/performance.md explains the numbers.

    \b
    Examples:
      molkv-export bench stdlib-mini.bundle
      molkv-export bench my.bundle --prompts 256,1024 --contexts 512 --batches 1,8 --storage warm
      molkv-export bench my.bundle --threads 1 --json bench.json --markdown bench.md
    """
    kinds: dict[str, tuple[Storage, ...]] = {"both": ("warm", "cold"), "warm": ("warm",), "cold": ("cold",)}
    with status("loading") as show:
        report = bench(
            bundle,
            prompts=prompts,
            contexts=contexts,
            batches=batches,
            steps=steps,
            runs=runs,
            storage=kinds[storage],
            target=Target(provider, dict(provider_options), require_provider, threads),
            profile=profile or "",
            report_progress=lambda what: show(f"measuring: {what}"),
        )
    print_bench(report, console())
    if json_file is not None:
        write_out(json_file, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if markdown_file is not None:
        write_out(markdown_file, markdown(report).encode())
