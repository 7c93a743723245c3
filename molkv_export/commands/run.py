"""`molkv-export run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from molkv_bundle import ArgumentError, RequestError
from molkv_export.commands.generation import GenerationOptions, generation_options, print_pieces
from molkv_export.commands.options import LOCATION, common_options
from molkv_runtime import Completion, Generator, Options

_MAX_PROMPT_BYTES = 64 * 1024**2
_STDIN = Path("-")


@click.command("run")
@click.argument("bundle", type=LOCATION)
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="Text to continue. The option can be repeated; all prompts run as one batch.",
)
@click.option(
    "--prompt-file",
    "prompt_files",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    multiple=True,
    help="File whose whole content (UTF-8, at most 64 MiB) is a prompt; - reads standard input. The option can be "
    "repeated. These prompts come after those of --prompt.",
)
@generation_options(max_new_tokens=128)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object for each prompt, on a line, instead of text."
)
@click.option(
    "--logprobs",
    type=int,
    metavar="K",
    help="With --json: add the log-probability of each token, and the K likeliest tokens at its position.",
)
@common_options
def run_command(
    bundle: Path | str,
    prompts: tuple[str, ...],
    prompt_files: tuple[Path, ...],
    generation: GenerationOptions,
    as_json: bool,
    logprobs: int | None,
    notes: Console,
) -> None:
    """Generate text with BUNDLE. The command does not need PyTorch.

    At temperature 0 the text is greedy, and --top-k, --top-p, --min-p and --seed have no effect.

    \b
    Examples:
      molkv-export run stdlib-mini.bundle --prompt "def "
      molkv-export run stdlib-mini.bundle --prompt "import " --prompt "class " --temperature 0.8 --top-p 0.95
      molkv-export run stdlib-mini.bundle --prompt "def " --temperature 1 --min-p 0.05 --logit-bias 10=-5
      molkv-export run stdlib-mini.bundle --prompt-file module.py --stop "class " --lookup 8
      molkv-export run stdlib-mini.bundle --prompt-file - --json --logprobs 3 < module.py
      molkv-export run my.bundle --prompt "def " --provider coreml --provider-option MLComputeUnits=CPUAndNeuralEngine
    """
    if not prompts and not prompt_files:
        raise click.UsageError("found no prompt, expected --prompt TEXT or --prompt-file FILE")
    if (times := prompt_files.count(_STDIN)) > 1:
        raise ArgumentError("prompt_files", f"- {times} times", "at most once: standard input can be read once")
    if logprobs is not None and not as_json:
        raise ArgumentError("logprobs", "without --json", "with it: the numbers are only in the JSON object")
    texts = [*prompts, *map(_read_prompt, prompt_files)]
    generator, options = generation.open(bundle, notes)
    for file, text in zip(prompt_files, texts[len(prompts) :], strict=True):
        _check_length(generator, _name(file), text)
    if as_json:
        options["logprobs"] = logprobs
        for prompt, completion in zip(texts, generator.complete(texts, **options), strict=True):
            click.echo(msgspec.json.encode(_as_json(prompt, completion, with_logprobs=logprobs is not None)))
        return
    if len(texts) == 1:
        _print_text(generator, texts[0], options, notes)
        return
    for index, piece in generator.stream_text(texts, **options):
        texts[index] += piece
    for number, text in enumerate(texts, start=1):
        click.secho(f"--- prompt {number}", fg="cyan")
        click.echo(text)


def _print_text(generator: Generator, prompt: str, options: Options, notes: Console) -> None:
    pieces = generator.text(prompt, **options)
    click.echo(prompt, nl=False)
    print_pieces(pieces, notes)


def _name(path: Path) -> str:
    return "standard input" if path == _STDIN else str(path)


def _check_length(generator: Generator, name: str, prompt: str) -> None:
    """Check the prompt of a file. The error of `Generator` would not name the file.

    Raises:
        RequestError: The prompt is empty, or too long for the model's context.
    """
    count, context = len(generator.encode([prompt])[0]), generator.config.max_position_embeddings
    if not 0 < count <= context:
        raise RequestError(f"{name}: has {count} tokens, expected 1 to {context} (the model's context)")


def _read_prompt(path: Path) -> str:
    """Return the content of a file, or of standard input, without any change.

    Raises:
        RequestError: The file cannot be read, is too large, or is not UTF-8.
    """
    name = _name(path)
    if path == _STDIN and sys.stdin is None:
        raise RequestError(f"{name}: is closed, expected a prompt")
    try:
        if path == _STDIN:
            data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(_MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{name}: cannot be read ({error.strerror}); expected a file with a prompt") from error
    if len(data) > _MAX_PROMPT_BYTES:
        raise RequestError(f"{name}: has more than {_MAX_PROMPT_BYTES} bytes (64 MiB), expected a prompt")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: is not UTF-8 text ({error}); expected a prompt in UTF-8") from error


def _as_json(prompt: str, completion: Completion, *, with_logprobs: bool) -> dict[str, Any]:
    """Return the JSON object of one prompt; docs/command-line.md lists the fields."""
    found: dict[str, Any] = {
        "prompt": prompt,
        "text": completion.text,
        "tokens": [token.id for token in completion.tokens],
        "finish": completion.finish,
        "timings": {
            "prompt_tokens": len(completion.prompt_ids),
            "new_tokens": len(completion.tokens),
            "first_token_seconds": completion.first_token_seconds,
            "seconds": completion.seconds,
        },
    }
    if with_logprobs:
        found["logprobs"] = [
            {"id": token.id, "logprob": token.logprob, "best": [each._asdict() for each in token.best]}
            for token in completion.tokens
        ]
    return found
