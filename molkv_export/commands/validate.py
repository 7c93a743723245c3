"""`molkv-export validate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console

from molkv_export.commands.options import (
    LOCATION,
    PATH,
    common_options,
    json_option,
    print_json,
    provider_options,
    renamed,
)
from molkv_export.terminal import console, status
from molkv_runtime import Target

if TYPE_CHECKING:
    from molkv_export import Report, Scope


@click.command("validate")
@click.argument("bundle", type=LOCATION)
@click.option("--checkpoint", type=LOCATION, help="Checkpoint that the bundle was exported from: a folder or a URL.")
@click.option("--against", type=LOCATION, help="Another bundle of the model, as the reference instead of a checkpoint.")
@click.option(
    "--expected",
    type=PATH,
    help="Texts and logits from your own code (safetensors), as the reference instead of a checkpoint.",
)
@click.option(
    "--text",
    type=PATH,
    help="UTF-8 text on which both models run. [default: held-out modules of Python's standard library]",
)
@click.option("--quick", is_flag=True, help="Compare only one text, 4 short continuations and 1024 records.")
@click.option("--sequences", type=int, help="Number of texts to compare. [default: 8]")
@click.option("--continuations", type=int, help="Number of greedy continuations to compare. [default: 20]")
@click.option("--new-tokens", type=int, help="Number of tokens in each continuation. [default: 256]")
@click.option(
    "--bisect",
    "with_bisection",
    is_flag=True,
    help="Also compare values inside the layers, and name the first wrong layer.",
)
@click.option("--plot", type=PATH, help="Draw the errors of all layers in a PNG or SVG file; implies --bisect.")
@click.option("--report", "report_folder", type=PATH, help="Write an HTML page and a JSON file to this folder.")
@provider_options("onnx-reference")
@json_option
@common_options
def validate_command(
    bundle: Path | str,
    checkpoint: Path | str | None,
    against: Path | str | None,
    expected: Path | None,
    text: Path | None,
    quick: bool,
    sequences: int | None,
    continuations: int | None,
    new_tokens: int | None,
    with_bisection: bool,
    plot: Path | None,
    report_folder: Path | None,
    profile: str | None,
    target: Target,
    as_json: bool,
    notes: Console,
) -> None:
    """Compare BUNDLE with the trained model.

    The command exits with 1 if a gate (a limit for a difference) fails. PyTorch runs the checkpoint. The host driver
    runs the bundle in every phase (one-shot and chunked prefill, decode, window wrap-around, mixed batches, the end of
    the context) and writes greedy text. docs/parity.md explains the gates.

    The checkpoint runs with our implementation of the papers. If your own code defines the model, write its texts and
    logits to a file and compare with --expected: "Your own code" in docs/parity.md has a recipe.

    \b
    Examples:
      molkv-export validate stdlib-mini.bundle --checkpoint examples/stdlib-mini
      molkv-export validate my.bundle --checkpoint my-model --text novel.txt --report my-report
      molkv-export validate my.bundle --checkpoint my-model --quick --bisect --plot layers.png
      molkv-export validate my.bundle --checkpoint my-model --profile coreml --provider onnx-reference --quick
      molkv-export validate int4.bundle --against float32.bundle --json > validate.json
      molkv-export validate my.bundle --expected expected.safetensors
    """
    from molkv_export import validate

    given = _given(sequences=sequences, continuations=continuations, new_tokens=new_tokens)
    _check_places(report_folder, plot)
    options = {"scope": next(iter(given), "quick"), "with_bisection": "with_bisection" if with_bisection else "plot"}
    with renamed(**options), status(notes, "loading") as show:
        report = validate(
            bundle,
            checkpoint,
            against=against,
            expected=expected,
            text=text,
            scope=_scope(quick, given),
            target=target,
            profile=profile or "",
            with_bisection=with_bisection or plot is not None or (report_folder is not None and checkpoint is not None),
            report_progress=show,
        )
    _print(report, as_json)
    _write(report, report_folder, plot)
    sys.exit(1 if report.failures else 0)


def _given(**options: int | None) -> dict[str, int]:
    """Return the options that are on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _scope(quick: bool, given: dict[str, int]) -> Scope | None:
    """Return how much to compare; None selects the default of `validate`."""
    from molkv_export.parity.compared_texts import QUICK, Scope

    return msgspec.structs.replace(QUICK if quick else Scope(), **given) if quick or given else None


def _check_places(report_folder: Path | None, plot: Path | None) -> None:
    """Check that the report and the plot can be written, before the comparison starts."""
    from molkv_export.parity.report import check_plot, check_report_folder

    if plot is not None:
        check_plot(plot)
    if report_folder is not None:
        check_report_folder(report_folder)


def _print(report: Report, as_json: bool) -> None:
    from molkv_export.parity.report import print_report

    if as_json:
        print_json(report)
    else:
        print_report(report, console())


def _write(report: Report, report_folder: Path | None, plot: Path | None) -> None:
    from molkv_export.parity.report import write_plot, write_report

    if report_folder is not None:
        write_report(report, report_folder)
    if plot is not None:
        write_plot(report, plot)
