"""Bundles whose files are links, as in caches and content-addressed stores."""

from __future__ import annotations

import hashlib
from pathlib import Path

LAYOUTS = ("cache", "graph only")
WEIGHTS_ELSEWHERE = ("weights only", "folder each")


def hugging_face_cache(bundle: Path, root: Path) -> Path:
    """Copy a bundle into the layout of huggingface_hub. Return the snapshot, whose files link to `../../blobs/HASH`."""
    repository, revision = root / "models--org--name", "0123456789abcdef0123456789abcdef01234567"
    snapshot, blobs = repository / "snapshots" / revision, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for path in bundle.iterdir():
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    return snapshot


def linked(bundle: Path, root: Path, layout: str) -> Path:
    """Copy a bundle into one of the layouts and return its folder."""
    if layout == "cache":
        return hugging_face_cache(bundle, root)
    folder = root / "linked"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(bundle.iterdir())):
        name = path.name
        is_linked = {"weights only": name.endswith(".data"), "graph only": name.endswith(".onnx")}.get(layout, True)
        place = root / "elsewhere" / str(number) / "content é" if is_linked else folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
        if is_linked:
            (folder / name).symlink_to(place)
    return folder
