"""Reading files and folders that may come from strangers: JSON into typed values, hashes, what a folder holds."""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from molkv_bundle.errors import MolkvError

T = TypeVar("T")

_SHOWN = 80  # characters

_CHUNK_BYTES = 4 * 1024 * 1024
_LEFT_BY_SYSTEMS = frozenset((".ds_store", "thumbs.db", "desktop.ini"))
_APPLE_DOUBLE = "._"  # prefix of what macOS keeps beside a file where the disk has no place for it


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
    """Return a value out of such a file as JSON, for a message, cut short."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def read_bytes(path: Path, error: type[MolkvError], hint: str) -> bytes:
    """Read a whole file; `hint` says what was expected there."""
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror}); {hint}") from cause


def file_sha256(file: Path | int, advance: Callable[[int], object] = lambda _: None) -> str:
    """Hash a file; `advance` is told the number of bytes after each piece. Gives hexadecimal digits.

    Args:
        file: Its path, or a descriptor that it is open by, which stays open.
        advance: See above.

    Raises:
        OSError: The file cannot be read.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
    with open(file, "rb", buffering=0, closefd=not isinstance(file, int)) as opened:
        opened.seek(0)
        while count := opened.readinto(buffer):
            digest.update(buffer[:count])
            advance(count)
    return digest.hexdigest()


def is_system_file(path: Path) -> bool:
    """Return whether a path names a file that macOS or Windows leaves in a folder; a folder never is one."""
    name = path.name.lower()
    return (name in _LEFT_BY_SYSTEMS or name.startswith(_APPLE_DOUBLE)) and not path.is_dir()


def contents(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, without the files that systems leave there.

    Raises:
        OSError: It is not a folder, or cannot be read.
    """
    return sorted(path for path in folder.iterdir() if not is_system_file(path))
