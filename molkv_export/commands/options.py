"""Option types that several commands share."""

from __future__ import annotations

import re
from pathlib import Path

import click

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
