"""`molkv-export verify`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from molkv_bundle import verify
from molkv_export.commands.options import PATH
from molkv_export.terminal import byte_progress, console, counter, human_bytes


@click.command("verify")
@click.argument("bundle", type=PATH)
def verify_command(bundle: Path) -> None:
    """Check every byte of BUNDLE against its manifest: nothing lost, nothing changed. Needs no PyTorch.

    Exits with 1 if something is damaged, and names the file, the record and the token id.

    \b
    Example:
      molkv-export verify stdlib-mini.bundle
    """
    with byte_progress(console(stderr=True)) as progress:
        result = verify(bundle, counter(progress, "checking"))
    for finding in result.findings:
        click.echo(f"DAMAGED {finding}")
    if result.findings:
        sys.exit(1)
    click.echo(f"{bundle}: {result.files} files, {human_bytes(result.size)}, all as exported")
