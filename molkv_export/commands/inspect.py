"""`molkv-export inspect`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from molkv_export.commands.options import LOCATION, common_options, json_option, print_json
from molkv_export.inspection import inspect, print_inspection
from molkv_export.terminal import console, status


@click.command("inspect")
@click.argument("bundle", type=LOCATION)
@json_option
@common_options
def inspect_command(bundle: Path | str, as_json: bool, notes: Console) -> None:
    """Show the content of BUNDLE.

    The command shows sizes in RAM and on storage, the expert store, inputs and outputs of the graphs, dtypes, files and
    provenance.

    \b
    Examples:
      molkv-export inspect stdlib-mini.bundle
      molkv-export inspect stdlib-mini.bundle --json > inspect.json
    """
    with status(notes, "reading"):
        found = inspect(bundle)
    if as_json:
        print_json(found)
    else:
        print_inspection(found, console())
