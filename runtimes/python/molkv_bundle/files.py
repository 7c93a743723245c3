"""Reading of untrusted files and folders: decoding of JSON to typed values, hashes, and lists of files."""

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
_APPLE_DOUBLE = "._"  # prefix of files for macOS metadata, on disks whose file system cannot store it


def decode_json(data: bytes, kind: type[T], path: Path | str, error: type[MolkvError]) -> T:
    """Decode JSON to a value of a type.

    msgspec's own decoder is not used, because it accepts duplicate keys and silently uses only the last value.

    Args:
        data: The content of the file.
        kind: The type of the result.
        path: The path or URL of the file, for the message.
        error: The exception to raise if the content is not JSON, or does not have this type.
    """
    try:
        plain = json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
        return msgspec.convert(plain, kind)
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise error(f"{path}: is not JSON ({cause})") from cause
    except ValueError as cause:  # a msgspec.ValidationError, or an error of the two hooks
        raise error(f"{path}: {cause}") from cause
    except RecursionError as cause:
        raise error(f"{path}: is nested too deeply") from cause


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def check_regular(path: Path) -> None:
    """Check that a path is a regular file or a folder, since reading a device or a pipe may never end.

    Raises:
        OSError: The path is a device or a pipe, or does not exist.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a device or a pipe")


def shown(value: object) -> str:
    """Return a value of a file as JSON for an error message, cut to 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode. Python marks bytes that are not text with surrogates, which are not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_bytes(path: Path, error: type[MolkvError], hint: str) -> bytes:
    """Read a whole file.

    Args:
        path: The path of the file.
        error: The exception to raise if the file cannot be read.
        hint: The end of the error message, which says which file was expected.
    """
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror}); {hint}") from cause


def file_sha256(file: Path | int, advance: Callable[[int], object] = lambda _: None) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    Args:
        file: The path of the file, or the descriptor of an open file, which stays open.
        advance: Called after each piece with the number of its bytes.

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


def is_plain_name(name: str) -> bool:
    """Return whether a name from an untrusted source is that of a file in a folder, and leads nowhere else."""
    return bool(name) and name == Path(name).name and name not in (".", "..") and "\\" not in name and "\0" not in name


def is_system_file(path: Path) -> bool:
    """Return whether a path is a file, not a folder, that macOS or Windows creates in folders by itself."""
    name = path.name.lower()
    return (name in _LEFT_BY_SYSTEMS or name.startswith(_APPLE_DOUBLE)) and not path.is_dir()


def contents(folder: Path) -> list[Path]:
    """Return the sorted paths in a folder, without the files that macOS and Windows create there.

    Raises:
        OSError: The path is not a folder, or cannot be read.
    """
    return sorted(path for path in folder.iterdir() if not is_system_file(path))
