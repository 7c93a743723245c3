"""Option types that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO

import click

from molkv_bundle import PROFILES, OutputError
from molkv_runtime import PRESETS, Sampling

PATH = click.Path(path_type=Path)

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def byte_size(text: str) -> int:
    """Read a size such as 500MB, 1GiB or 1048576.

    Raises:
        click.BadParameter: It is none.
    """
    match = re.fullmatch(r"(\d+)\s*([kmg]?i?)b?", text.strip().lower())
    if not match or match[2] not in _UNITS:
        raise click.BadParameter(f"{text!r} is not a size; expected a number of bytes or one such as 500MB or 1GiB")
    return int(match[1]) * _UNITS[match[2]]


def counts(text: str) -> tuple[int, ...]:
    """Read numbers with commas between them, such as 64,256.

    Raises:
        click.BadParameter: It is something else.
    """
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise click.BadParameter(f"{text!r} is not a list of numbers; expected one such as 64,256")
    return tuple(map(int, text.split(",")))


def assignment(text: str) -> tuple[str, str]:
    """Read a name and a value, such as MLComputeUnits=ALL.

    Raises:
        click.BadParameter: It is something else.
    """
    name, is_one, content = text.partition("=")
    if not name or not is_one:
        raise click.BadParameter(f"{text!r} is not an option; expected one such as MLComputeUnits=ALL")
    return name, content


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


def _one_each(
    _context: click.Context, _parameter: click.Parameter, biases: tuple[tuple[int, float], ...]
) -> dict[int, float]:
    """Return the biases by token id.

    Raises:
        click.BadParameter: An id has several.
    """
    found = dict(biases)
    for token in found:
        if [other for other, _ in biases].count(token) > 1:
            raise click.BadParameter(f"token id {token} has several numbers, expected one")
    return found


def write_out(file: BinaryIO, content: bytes) -> None:
    """Write a file that an option has opened.

    Raises:
        OutputError: The disk is full, or fails.
    """
    try:
        file.write(content)
        file.flush()  # click passes over what goes wrong when it closes the file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"{file.name}: cannot be written ({error.strerror})") from error


def provider_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say who computes: profile, provider, provider_options and require_provider."""
    options = [
        click.option(
            "--profile",
            type=click.Choice(PROFILES),
            help="Which graph of BUNDLE. [default: what suits the provider best]",
        ),
        click.option("--provider", default="cpu", show_default=True, help=f"Execution provider: {', '.join(PRESETS)}."),
        click.option(
            "--provider-option",
            "provider_options",
            type=assignment,
            metavar="NAME=VALUE",
            multiple=True,
            help="Of the provider, before the preset's: --provider-option MLComputeUnits=ALL. Can be repeated.",
        ),
        click.option("--require-provider", is_flag=True, help="Fail if ONNX Runtime places any node elsewhere."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how tokens are chosen; the command gets `sampling`, the given fields of `Sampling`."""
    names = [each.name for each in fields(Sampling)]

    @wraps(command)
    def gathered(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in names}
        return command(sampling={name: value for name, value in given.items() if value is not None}, **arguments)

    unset = "[default: the bundle's]"
    options = [
        click.option("--temperature", type=float, help=f"0 is greedy. {unset}"),
        click.option("--top-k", type=int, help=f"Draw from the k likeliest tokens; 0 is off. {unset}"),
        click.option("--top-p", type=float, help=f"Draw from the likeliest of this share; 1 is off. {unset}"),
        click.option("--min-p", type=float, help=f"Drop tokens below this share of the likeliest; 0 is off. {unset}"),
        click.option("--repetition-penalty", type=float, help=f"Of tokens in prompt or text; 1 is off. {unset}"),
        click.option(
            "--presence-penalty",
            type=float,
            default=0.0,
            show_default=True,
            help="Subtracted from the logits of tokens in the generated text.",
        ),
        click.option(
            "--frequency-penalty",
            type=float,
            default=0.0,
            show_default=True,
            help="Subtracted from the logit of a token for each time that it is in the generated text.",
        ),
        click.option(
            "--logit-bias",
            type=_bias,
            callback=_one_each,
            metavar="ID=NUMBER",
            multiple=True,
            help="Number to add to the logit of a token id: --logit-bias 42=-5. Can be repeated.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the random draws."),
    ]
    for option in reversed(options):
        gathered = option(gathered)
    return gathered
