"""Locations of checkpoints and bundles: paths, and the URLs of remote folders."""

from __future__ import annotations

from pathlib import Path

from molkv_bundle import is_remote

_FILE = "file://"


def location(place: str | Path) -> str | Path:
    """Return the URL of a remote folder as it is, and every other place as a path; file:///FOLDER is a path, too."""
    text = str(place)
    if text.startswith(_FILE):
        return Path(text.removeprefix(_FILE))
    return text if is_remote(text) else Path(place)
