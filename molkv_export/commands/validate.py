"""`molkv-export validate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from molkv_export.commands.options import PATH, provider_options, write_out
from molkv_export.terminal import console, status
from molkv_runtime import Target

if TYPE_CHECKING:
    from molkv_export import Report, Scope


@click.command("validate")
@click.argument("bundle", type=PATH)
@click.option("--checkpoint", type=PATH, help="The checkpoint that the bundle was exported from.")
@click.option("--against", type=PATH, help="Another bundle of the model to compare with, instead of a checkpoint.")
@click.option(
    "--expected",
    type=PATH,
    help="Texts and their logits that your own code wrote (safetensors), instead of a checkpoint.",
)
@click.option("--text", type=PATH, help="UTF-8 text to compare on. [default: held-out standard library modules]")
@click.option("--quick", is_flag=True, help="Compare one text, 4 short continuations and 1024 records.")
@click.option("--sequences", type=int, help="Texts to compare. [default: 8]")
@click.option("--continuations", type=int, help="Greedy continuations to compare. [default: 20]")
@click.option("--new-tokens", type=int, help="Tokens in each continuation. [default: 256]")
@click.option(
    "--bisect", "with_bisection", is_flag=True, help="Compare inside the layers; name the first that is wrong."
)
@click.option("--plot", type=PATH, help="Draw the error by layer to a PNG or SVG file; implies --bisect.")
@click.option("--report", "report_folder", type=PATH, help="Write an HTML page and JSON to a folder.")
@click.option("--json", "json_file", type=click.File("wb", lazy=False), help="Write the report as JSON, too.")
@provider_options
def validate_command(
    bundle: Path,
    checkpoint: Path | None,
    against: Path | None,
    expected: Path | None,
    text: Path | None,
    quick: bool,
    sequences: int | None,
    continuations: int | None,
    new_tokens: int | None,
    with_bisection: bool,
    plot: Path | None,
    report_folder: Path | None,
    json_file: BinaryIO | None,
    profile: str | None,
    provider: str,
    provider_options: tuple[tuple[str, str], ...],
    require_provider: bool,
) -> None:
    """Show that BUNDLE is the model that was trained: run both, compare, and exit with 1 if a gate fails.

    PyTorch runs the checkpoint; the host driver runs the bundle in every phase (one-shot and chunked prefill, decode,
    window wrap-around, mixed batches, the context's end) and writes greedy text. docs/parity.md explains the gates.

    The checkpoint is run by our reading of the papers. If your own code is what defines the model, let it write texts
    and logits to a file and compare with --expected: "Your own code" in docs/parity.md has the recipe.

    \b
    Examples:
      molkv-export validate stdlib-mini.bundle --checkpoint examples/stdlib-mini
      molkv-export validate my.bundle --checkpoint my-model --text novel.txt --report my-report
      molkv-export validate my.bundle --checkpoint my-model --quick --bisect --plot layers.png
      molkv-export validate my.bundle --checkpoint my-model --profile coreml --provider onnx-reference --quick
      molkv-export validate int4.bundle --against float32.bundle
      molkv-export validate my.bundle --expected expected.safetensors
    """
    from molkv_export import validate
    from molkv_export.parity.report import print_report

    scope = _scope(quick, sequences=sequences, continuations=continuations, new_tokens=new_tokens)
    _check_places(report_folder, plot)
    with status("loading") as show:
        report = validate(
            bundle,
            checkpoint,
            against=against,
            expected=expected,
            text=text,
            scope=scope,
            target=Target(provider, dict(provider_options), require_provider),
            profile=profile or "",
            with_bisection=with_bisection or plot is not None or (report_folder is not None and checkpoint is not None),
            report_progress=lambda what: show(f"comparing: {what}"),
        )
    print_report(report, console())
    _write(report, json_file, report_folder, plot)
    sys.exit(1 if report.failures else 0)


def _scope(quick: bool, **asked: int | None) -> Scope | None:
    """Return how much is to be compared; None leaves that to `validate`."""
    from molkv_export.parity.compared_texts import QUICK, Scope

    given = {name: value for name, value in asked.items() if value is not None}
    return msgspec.structs.replace(QUICK if quick else Scope(), **given) if quick or given else None


def _check_places(report_folder: Path | None, plot: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    from molkv_export.parity.report import check_plot, check_report_folder

    if plot is not None:
        check_plot(plot)
    if report_folder is not None:
        check_report_folder(report_folder)


def _write(report: Report, json_file: BinaryIO | None, report_folder: Path | None, plot: Path | None) -> None:
    from molkv_export.parity.report import write_plot, write_report

    if json_file is not None:
        write_out(json_file, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if report_folder is not None:
        write_report(report, report_folder)
    if plot is not None:
        write_plot(report, plot)
