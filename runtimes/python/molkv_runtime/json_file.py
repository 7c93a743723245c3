"""Reading JSON files that may come from strangers into typed values."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from molkv_runtime.errors import MolkvError

T = TypeVar("T")


def decode_json(data: bytes, kind: type[T], path: Path, error: type[MolkvError]) -> T:
    """Decode JSON as a type.

    Args:
        data: The content of the file.
        kind: What it must be.
        path: Where it comes from, for the message.
        error: What to raise when it is something else.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as cause:
        raise error(f"{path}: {cause}") from cause
    except RecursionError as cause:
        raise error(f"{path}: is nested too deeply") from cause


def read_bytes(path: Path, error: type[MolkvError], hint: str) -> bytes:
    """Read a whole file; `hint` says what was expected there."""
    try:
        return path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror}); {hint}") from cause
