"""`molkv-export run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from molkv_export.commands.options import PATH, provider_options
from molkv_runtime import Generator, Target, describe_placements


def _bias(text: str) -> tuple[int, float]:
    """Read a token id and a number, such as 42=-5.

    Raises:
        click.BadParameter: It is something else.
    """
    token, _, number = text.partition("=")
    try:
        return int(token), float(number)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a token id and a number; expected one such as 42=-5") from error


@click.command("run")
@click.argument("bundle", type=PATH)
@click.option("--prompt", "prompts", multiple=True, required=True, help="Text to continue; several run as a batch.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Tokens to add at most.")
@click.option("--temperature", type=float, help="0 is greedy. [default: the bundle's]")
@click.option("--top-k", type=int, help="Draw from the k likeliest tokens; 0 is off. [default: the bundle's]")
@click.option("--top-p", type=float, help="Draw from the likeliest of this share; 1 is off. [default: the bundle's]")
@click.option(
    "--min-p", type=float, help="Drop tokens below this share of the likeliest; 0 is off. [default: the bundle's]"
)
@click.option("--repetition-penalty", type=float, help="Of tokens in prompt or text; 1 is off. [default: the bundle's]")
@click.option("--presence-penalty", type=float, default=0.0, show_default=True, help="Of tokens in the text.")
@click.option("--frequency-penalty", type=float, default=0.0, show_default=True, help="Of each time in the text.")
@click.option(
    "--logit-bias",
    "logit_biases",
    type=_bias,
    metavar="ID=NUMBER",
    multiple=True,
    help="Number to add to the logit of a token id: --logit-bias 42=-5. Can be repeated.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random draws.")
@provider_options
@click.option("--mmap", "use_mmap", is_flag=True, help="Read the expert store through a memory map.")
@click.option("--no-checksums", is_flag=True, help="Do not check the records that are read.")
@click.option("--threads", type=int, help="Threads in one operator. [default: one per core]")
def run_command(
    bundle: Path,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    presence_penalty: float,
    frequency_penalty: float,
    logit_biases: tuple[tuple[int, float], ...],
    seed: int,
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
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    sampling = replace(
        generator.default_sampling,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=dict(logit_biases),
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    pieces = generator.stream_text(prompts, max_new_tokens=max_new_tokens, sampling=sampling)
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
