"""`molkv-export verify`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from molkv_bundle import verify
from molkv_export.commands.options import LOCATION, common_options, json_option, print_json
from molkv_export.terminal import byte_progress, counter, human_bytes


@click.command("verify")
@click.argument("bundle", type=LOCATION)
@json_option
@common_options
def verify_command(bundle: Path | str, as_json: bool, notes: Console) -> None:
    """Check BUNDLE for damaged files.

    The command compares every byte with the checksums in the manifest. It does not need PyTorch. If anything is
    damaged, it prints the file, the record and the token id, and exits with 1.

    \b
    Examples:
      molkv-export verify stdlib-mini.bundle
      molkv-export verify stdlib-mini.bundle --json > verify.json
    """
    with byte_progress(notes) as progress:
        result = verify(bundle, counter(progress, "checking"))
    if as_json:
        print_json(result._asdict())
    else:
        for finding in result.findings:
            click.echo(f"DAMAGED {finding}")
        if not result.findings:
            click.echo(f"{bundle}: {result.files} files, {human_bytes(result.size)}, all as exported")
    sys.exit(1 if result.findings else 0)
