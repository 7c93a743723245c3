"""`molkv-export push`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from molkv_export.commands.options import LOCATION, common_options, json_option, print_json
from molkv_export.terminal import human_bytes


@click.command("push")
@click.argument("bundle", type=LOCATION)
@click.argument("url")
@click.option("--private", is_flag=True, help="If a repository is created on the Hub, make it private.")
@json_option
@common_options
def push_command(bundle: Path | str, url: str, private: bool, as_json: bool, notes: Console) -> None:
    """Publish BUNDLE on the Hugging Face Hub or in object storage.

    URL is hf://OWNER/NAME[@BRANCH], s3://BUCKET/PATH, gs://BUCKET/PATH or file:///PATH. The other commands can then run
    the bundle from there. The command runs the self-test first. It writes a model card (README.md): sizes, the results
    of the self-test, and how to run the bundle with each driver. After an interruption, repeat the command: files that
    are there are not uploaded again. The token for the Hub is that of `hf auth login` or HF_TOKEN. The command does not
    need PyTorch.

    \b
    Examples:
      molkv-export push stdlib-mini.bundle hf://me/stdlib-mini --private
      molkv-export push stdlib-mini.bundle s3://my-bucket/models/stdlib-mini
    """
    from molkv_export import push

    info = push(bundle, url, private=private, console=notes)
    if as_json:
        print_json(info)
        return
    old = f", {len(info.unchanged)} of them were there" if info.unchanged else ""
    click.echo(f"{info.url}: {info.files} files, {human_bytes(info.size)}{old}")
    for name in info.removed:
        click.echo(f"  removed {name}, a file of the bundle before")
