"""SHA-256 of files, with progress."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

_CHUNK_BYTES = 4 * 1024 * 1024


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
