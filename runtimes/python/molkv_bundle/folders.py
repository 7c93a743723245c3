"""Listing folders that a desktop system may have shown to somebody."""

from __future__ import annotations

from pathlib import Path

_LEFT_BY_SYSTEMS = frozenset((".ds_store", "thumbs.db", "desktop.ini"))
_APPLE_DOUBLE = "._"  # prefix of what macOS keeps beside a file where the disk has no place for it


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
