"""Is a checkpoint the one that a bundle was made from?"""

from __future__ import annotations

from molkv_export.checkpoints import Checkpoint
from molkv_runtime.bundle import Bundle
from molkv_runtime.errors import CheckpointError


def check_source(bundle: Bundle, checkpoint: Checkpoint, hashes: dict[str, str]) -> None:
    """Compare a checkpoint's hashes, by file, with those that a bundle's manifest has.

    Raises:
        CheckpointError: It is another one.
    """
    expected = bundle.manifest.provenance.source
    for name, found in hashes.items():
        if expected.get(name) != found:
            raise CheckpointError(
                f"{checkpoint.folder / name}: sha256 is {found[:12]}..., but {bundle.path} was made from "
                f"{expected.get(name, 'none')[:12]}...; give the checkpoint that the bundle was exported from"
            )
