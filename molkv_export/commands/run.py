"""`molkv-export run`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from molkv_export.commands.options import PATH, common_options, provider_options, sampling_options
from molkv_export.terminal import print_line
from molkv_runtime import Generator, Sampling, Target, describe_placements

_UNUSED_WHEN_GREEDY = ("top_k", "top_p", "min_p", "seed")
_LOG = logging.getLogger(__name__)


@click.command("run")
@click.argument("bundle", type=PATH)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    required=True,
    help="Text to continue. The option can be repeated; all prompts run as one batch.",
)
@click.option(
    "--max-new-tokens",
    type=int,
    default=128,
    show_default=True,
    help="Largest number of tokens to generate for each prompt.",
)
@sampling_options
@provider_options()
@click.option("--mmap", "use_mmap", is_flag=True, help="Read the expert store through a memory map.")
@click.option("--no-checksums", is_flag=True, help="Do not check the checksums of the records.")
@click.option("--threads", type=int, help="Number of threads of one operator. [default: one per physical core]")
@common_options
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
    notes: Console,
) -> None:
    """Generate text with BUNDLE. The command does not need PyTorch.

    At temperature 0 the text is greedy, and --top-k, --top-p, --min-p and --seed have no effect.

    \b
    Examples:
      molkv-export run stdlib-mini.bundle --prompt "def "
      molkv-export run stdlib-mini.bundle --prompt "import " --prompt "class " --temperature 0.8 --top-p 0.95
      molkv-export run stdlib-mini.bundle --prompt "def " --temperature 1 --min-p 0.05 --logit-bias 10=-5
      molkv-export run my.bundle --prompt "def " --provider coreml --provider-option MLComputeUnits=CPUAndNeuralEngine
    """
    Sampling(**sampling)  # raises on an impossible value, before the bundle is loaded
    generator = Generator(
        bundle,
        target=Target(provider, dict(provider_options), require_provider, threads),
        profile=profile or "",
        store_access="mmap" if use_mmap else "pread",
        verify_checksums=not no_checksums,
    )
    if provider != "cpu" and not _LOG.isEnabledFor(logging.INFO):  # --verbose shows the placements anyway
        print_line(notes, f"{generator.bundle.profile}: {describe_placements(generator.placements)}")
    chosen = replace(generator.default_sampling, **sampling)
    _report_sampling(chosen, sampling, generator, notes)
    pieces = generator.stream_text(prompts, max_new_tokens=max_new_tokens, sampling=chosen)
    if len(prompts) == 1:
        _print_stream(prompts[0], pieces, notes)
        return
    texts = list(prompts)
    for index, piece in pieces:
        texts[index] += piece
    for number, text in enumerate(texts, start=1):
        click.secho(f"--- prompt {number}", fg="cyan")
        click.echo(text)


def _report_sampling(chosen: Sampling, given: dict[str, Any], generator: Generator, notes: Console) -> None:
    """Log each value of the sampling with its origin, and print a note about given options that have no effect."""
    from_bundle = generator.bundle.manifest.generation.sampling.__struct_fields__
    values = []
    for name, value in asdict(chosen).items():
        origin = "command line" if name in given else "bundle" if name in from_bundle else "default"
        values.append(f"{name} {_as_text(value)} ({origin})")
    _LOG.info("sampling: %s", ", ".join(values))
    off = Sampling()
    unused = [
        f"--{name.replace('_', '-')}"
        for name in _UNUSED_WHEN_GREEDY
        if given.get(name, getattr(off, name)) != getattr(off, name)
    ]
    if unused and chosen.temperature == 0:
        print_line(
            notes,
            f"note: at temperature 0 (greedy text) these options have no effect: {', '.join(unused)}; "
            "to sample, add an option such as --temperature 0.8",
        )


def _as_text(value: float | dict[int, float]) -> str:
    """Return a field of `Sampling` in the form of the command line's options."""
    if isinstance(value, dict):
        return " ".join(f"{token}={bias:g}" for token, bias in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print_stream(prompt: str, pieces: Iterator[tuple[int, str]], notes: Console) -> None:
    """Print a prompt and its continuation, then notes.

    The text ends with a line break even if an error interrupts it.
    """
    click.echo(prompt, nl=False)
    captured = notes.capture()
    try:
        with captured:
            try:
                for _, piece in pieces:
                    click.echo(piece, nl=False)
            finally:
                click.echo()
    finally:
        if messages := captured.get():
            print_line(notes, messages.rstrip("\n"))
