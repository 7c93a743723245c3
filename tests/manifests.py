"""Changes of a bundle with a matching manifest, as an attacker or a later exporter makes them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the fields of a manifest and write its new checksum."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest)
    seal_manifest(bundle / "manifest.json", json.dumps(manifest))


def seal_manifest(path: Path, text: str) -> None:
    """Write the text of a manifest with the checksum that belongs to it."""
    zeros = "0" * 64
    blank = re.sub(r'"sha256": *"[0-9a-f]{64}"(\s*}\s*)$', rf'"sha256": "{zeros}"\1', text)
    path.write_text(blank.replace(zeros, hashlib.sha256(blank.encode()).hexdigest()))


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file of a bundle, and its size and checksum in the manifest."""
    (bundle / name).write_bytes(content)
    info = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(bundle, lambda manifest: manifest["files"].update({name: info}))
