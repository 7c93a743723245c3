"""Option types that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click

from molkv_bundle import PROFILES, OutputError
from molkv_runtime import PRESETS

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
