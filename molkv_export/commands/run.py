"""`molkv-export run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from molkv_export.commands.options import PATH, provider_options, sampling_options
from molkv_runtime import Generator, Target, describe_placements


@click.command("run")
@click.argument("bundle", type=PATH)
@click.option("--prompt", "prompts", multiple=True, required=True, help="Text to continue; several run as a batch.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Tokens to add at most.")
@sampling_options
@provider_options
@click.option("--mmap", "use_mmap", is_flag=True, help="Read the expert store through a memory map.")
@click.option("--no-checksums", is_flag=True, help="Do not check the records that are read.")
@click.option("--threads", type=int, help="Threads in one operator. [default: one per core]")
def run_command(
    bundle: Path,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    sampling: dict[str, Any],
    profile: str | None,
    provider: str,
    provider_options: tuple[tuple[str, str], ...],
    require_provider: bool,
    use_mmap: bool,
    no_checksums: bool,
    threads: int | None,
) -> None:
    """Generate text with BUNDLE. Needs no PyTorch.

    \b
    Examples:
      molkv-export run stdlib-mini.bundle --prompt "def "
      molkv-export run stdlib-mini.bundle --prompt "import " --prompt "class " --temperature 0.8 --top-p 0.95
      molkv-export run stdlib-mini.bundle --prompt "def " --temperature 1 --min-p 0.05 --logit-bias 10=-5
      molkv-export run my.bundle --prompt "def " --provider coreml --provider-option MLComputeUnits=CPUAndNeuralEngine
    """
    generator = Generator(
        bundle,
        target=Target(provider, dict(provider_options), require_provider, threads),
        profile=profile or "",
        store_access="mmap" if use_mmap else "pread",
        verify_checksums=not no_checksums,
    )
    if provider != "cpu":
        click.echo(f"{generator.bundle.profile}: {describe_placements(generator.placements)}", err=True)
    chosen = replace(generator.default_sampling, **sampling)
    pieces = generator.stream_text(prompts, max_new_tokens=max_new_tokens, sampling=chosen)
    if len(prompts) == 1:
        click.echo(prompts[0], nl=False)
        for _, piece in pieces:
            click.echo(piece, nl=False)
        click.echo()
        return
    texts = list(prompts)
    for index, piece in pieces:
        texts[index] += piece
    for number, text in enumerate(texts, start=1):
        click.secho(f"--- prompt {number}", fg="cyan")
        click.echo(text)
