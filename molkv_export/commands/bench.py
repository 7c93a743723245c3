"""`molkv-export bench`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from molkv_export.bench.machine import can_drop_from_page_cache
from molkv_export.bench.measure import CONTEXTS, PROMPTS, bench
from molkv_export.bench.report import Storage, markdown, print_bench
from molkv_export.commands.options import LOCATION, common_options, counts, json_option, print_json, provider_options
from molkv_export.terminal import console, print_line, status
from molkv_runtime import Target

_STORAGE: dict[str, tuple[Storage, ...]] = {"both": ("warm", "cold"), "warm": ("warm",), "cold": ("cold",)}


@click.command("bench")
@click.argument("bundle", type=LOCATION)
@click.option(
    "--prompts",
    type=counts,
    metavar="NUMBERS",
    help=f"Lengths of prompts, in tokens. [default: those of {','.join(map(str, PROMPTS))} that fit]",
)
@click.option(
    "--contexts",
    type=counts,
    metavar="NUMBERS",
    help=f"Lengths of sequences after decode, in tokens. [default: those of {','.join(map(str, CONTEXTS))} that fit]",
)
@click.option(
    "--batches",
    type=counts,
    metavar="NUMBERS",
    default="1",
    show_default=True,
    help="Numbers of sequences that decode together.",
)
@click.option("--steps", type=int, default=64, show_default=True, help="Number of decode steps in a run.")
@click.option(
    "--runs",
    type=int,
    default=3,
    show_default=True,
    help="Number of runs of each measurement; the tables show medians.",
)
@click.option(
    "--storage",
    type=click.Choice(list(_STORAGE)),
    help="State of the records before a run: in the page cache (warm), or dropped from the page cache (cold). "
    "[default: both; warm if this system cannot drop files from its page cache]",
)
@click.option("--threads", type=int, help="Number of threads of ONNX Runtime. [default: one per core]")
@provider_options()
@json_option
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the result in Markdown.")
@common_options
def bench_command(
    bundle: Path | str,
    prompts: tuple[int, ...] | None,
    contexts: tuple[int, ...] | None,
    batches: tuple[int, ...],
    steps: int,
    runs: int,
    storage: str | None,
    threads: int | None,
    profile: str | None,
    target: Target,
    as_json: bool,
    as_markdown: bool,
    notes: Console,
) -> None:
    """Measure how fast BUNDLE runs on this machine.

    The command measures prefill and decode on random token ids: tokens per second, the time of each part of the work,
    bytes read, memory, and the share of the memory bandwidth that is used. docs/performance.md explains the numbers.
    The command needs neither PyTorch nor a checkpoint.

    \b
    Examples:
      molkv-export bench stdlib-mini.bundle
      molkv-export bench my.bundle --prompts 256,1024 --contexts 512 --batches 1,8 --storage warm
      molkv-export bench my.bundle --threads 1 --json > bench.json
      molkv-export bench my.bundle --markdown > bench.md
    """
    if as_json and as_markdown:
        raise click.UsageError("found --json and --markdown, expected at most one of them")
    if storage is None and not can_drop_from_page_cache():
        print_line(notes, "note: measures warm storage only, because this system cannot drop files from its page cache")
    with status(notes, "loading") as show:
        report = bench(
            bundle,
            prompts=prompts,
            contexts=contexts,
            batches=batches,
            steps=steps,
            runs=runs,
            storage=_STORAGE[storage] if storage else None,
            target=target._replace(threads=threads),
            profile=profile or "",
            report_progress=show,
        )
    if as_json:
        print_json(report)
    elif as_markdown:
        click.echo(markdown(report), nl=False)
    else:
        print_bench(report, console())
