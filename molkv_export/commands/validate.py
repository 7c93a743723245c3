"""`molkv-export validate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import click
import msgspec
from rich.console import Console

from molkv_export.commands.options import PATH


@click.command("validate")
@click.argument("bundle", type=PATH)
@click.option("--checkpoint", type=PATH, required=True, help="The checkpoint that the bundle was exported from.")
@click.option("--text", type=PATH, help="UTF-8 text to compare on. [default: held-out standard library modules]")
@click.option("--sequences", type=int, default=8, show_default=True, help="Texts of a whole context to compare.")
@click.option("--continuations", type=int, default=20, show_default=True, help="Greedy continuations to compare.")
@click.option("--new-tokens", type=int, default=256, show_default=True, help="Tokens in each continuation.")
@click.option("--provider", default="cpu", show_default=True, help="Execution provider that runs the bundle.")
@click.option("--json", "json_file", type=click.File("wb", lazy=False), help="Write the report as JSON, too.")
def validate_command(
    bundle: Path,
    checkpoint: Path,
    text: Path | None,
    sequences: int,
    continuations: int,
    new_tokens: int,
    provider: str,
    json_file: BinaryIO | None,
) -> None:
    r"""Show that BUNDLE is the model that was trained: run both, compare, and exit with 1 if a gate fails.

    PyTorch runs the checkpoint; the host driver runs the bundle in every phase (one-shot and chunked prefill, decode,
    window wrap-around, mixed batches) and writes greedy text. The gates are explained in docs/architecture.md.

    \b
    Examples:
      molkv-export validate stdlib-mini.bundle --checkpoint examples/stdlib-mini
      molkv-export validate my.bundle --checkpoint my-model --text novel.txt --json report.json
    """
    from molkv_export.parity.report import print_report
    from molkv_export.parity.validate import Scope, validate

    errors = Console(stderr=True)
    with errors.status("loading") as status:
        report = validate(
            bundle,
            checkpoint,
            text=text,
            scope=Scope(sequences, continuations, new_tokens),
            provider=provider,
            report_progress=lambda what: status.update(f"comparing: {what}"),
        )
    print_report(report, Console())
    if json_file is not None:
        json_file.write(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    sys.exit(1 if report.failures else 0)
