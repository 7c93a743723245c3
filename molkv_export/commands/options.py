"""Option types that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from molkv_export.profiles import PROFILES
from molkv_runtime.providers import PRESETS

PATH = click.Path(path_type=Path)

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


class ByteSize(click.ParamType[int]):
    """A size such as 500MB, 1GiB or 1048576."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Give the size in bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)\s*([kmg]?i?)b?", value.strip().lower())
        if not match or match[2] not in _UNITS:
            self.fail(f"{value!r} is not a size; expected a number of bytes or one such as 500MB or 1GiB", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


class Counts(click.ParamType[tuple[int, ...]]):
    """Numbers with commas between them, such as 64,256."""

    name = "numbers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Give the numbers."""
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", value):
            self.fail(f"{value!r} is not a list of numbers; expected one such as 64,256", param, ctx)
        return tuple(map(int, value.split(",")))


class Assignments(click.ParamType[tuple[str, str]]):
    """A name and a value, such as MLComputeUnits=ALL."""

    name = "name=value"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Give name and value."""
        if isinstance(value, tuple):
            return value
        name, is_one, content = value.partition("=")
        if not name or not is_one:
            self.fail(f"{value!r} is not an option; expected one such as MLComputeUnits=ALL", param, ctx)
        return name, content


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
            type=Assignments(),
            multiple=True,
            help="Of the provider, before the preset's: --provider-option MLComputeUnits=ALL. Can be repeated.",
        ),
        click.option("--require-provider", is_flag=True, help="Fail if ONNX Runtime places any node elsewhere."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
