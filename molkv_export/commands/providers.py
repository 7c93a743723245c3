"""`molkv-export providers`."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from molkv_export.commands.options import common_options, json_option, print_json
from molkv_export.terminal import console
from molkv_runtime import available_providers


@click.command("providers")
@json_option
@common_options
def providers_command(as_json: bool, notes: Console) -> None:
    """Show the execution providers that this machine has.

    The command lists the providers that ONNX Runtime contains, those of installed plug-ins with their devices, and the
    profiles that each provider takes, best first. For the other providers, it shows what to install.

    \b
    Examples:
      molkv-export providers
      molkv-export providers --json > providers.json
    """
    del notes
    found = available_providers()
    if as_json:
        print_json({"providers": found})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("provider", "from", "devices", "profiles"):
        table.add_column(column, overflow="fold")
    for each in found:
        table.add_row(each.name, each.source or "absent", ", ".join(each.devices), ", ".join(each.profiles))
    console().print(table)
    for each in found:
        if each.problem:
            click.echo(f"{each.name}: {each.problem}")
