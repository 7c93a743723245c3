"""`molkv-export inspect`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from molkv_export.commands.options import PATH
from molkv_export.inspection import inspect, print_inspection
from molkv_export.terminal import console


@click.command("inspect")
@click.argument("bundle", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect_command(bundle: Path, as_json: bool) -> None:
    """Show what is in BUNDLE: sizes in RAM and on storage, graph inputs and outputs, dtypes, provenance.

    \b
    Examples:
      molkv-export inspect stdlib-mini.bundle
      molkv-export inspect stdlib-mini.bundle --json
    """
    found = inspect(bundle)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
    else:
        print_inspection(found, console())
