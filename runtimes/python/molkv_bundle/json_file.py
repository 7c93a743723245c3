"""Reading JSON files that may come from strangers into typed values."""

from __future__ import annotations

import errno
import json
import stat
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from molkv_bundle.errors import MolkvError

T = TypeVar("T")

_SHOWN = 80  # characters


def decode_json(data: bytes, kind: type[T], path: Path, error: type[MolkvError]) -> T:
    """Decode JSON as a type. Not msgspec's own decoder: of two equal keys it takes the last without a word.

    Args:
        data: The content of the file.
        kind: What it must be.
        path: Where it comes from, for the message.
        error: What to raise when it is something else.
    """
    try:
        plain = json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
        return msgspec.convert(plain, kind)
    except ValueError as cause:  # JSON's, Unicode's and msgspec's errors are ValueErrors
        raise error(f"{path}: {cause}") from cause
    except RecursionError as cause:
        raise error(f"{path}: is nested too deeply") from cause


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def check_regular(path: Path) -> None:
    """Refuse devices and pipes, which may have no end, or no beginning.

    Raises:
        OSError: The path is one, or is not there.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a device or a pipe")


def shown(value: object) -> str:
    """Give a value out of such a file as JSON, for a message, cut short."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def read_bytes(path: Path, error: type[MolkvError], hint: str) -> bytes:
    """Read a whole file; `hint` says what was expected there."""
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror}); {hint}") from cause
