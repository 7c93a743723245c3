"""Is a checkpoint the one that a bundle was made from, and does it stay so while it is read?"""

from __future__ import annotations

from collections.abc import Callable

from molkv_bundle import Bundle, CheckpointError, MolkvError
from molkv_export.checkpoints import Checkpoint
from molkv_export.checkpoints.files import changed, file_state
from molkv_export.families import open_checkpoint


class HashedSource:
    """A checkpoint and the hashes of the bytes that it is read from."""

    def __init__(self, checkpoint: Checkpoint, advance: Callable[[int], object] = lambda _: None) -> None:
        """Hash the files of an open checkpoint; `advance` is told the number of bytes after each piece."""
        self._checkpoint = checkpoint
        self._states = dict(checkpoint.states)
        self._error: CheckpointError | None = None
        self.hashes = checkpoint.sha256(advance)
        """SHA-256 by file."""

    def check(self) -> None:
        """Check that no file has changed since the checkpoint was opened.

        Files that were only touched, or replaced by ones with the same bytes, have not: what looks changed is opened
        and hashed again.

        Raises:
            CheckpointError: One has; what was read may be of both.
        """
        if self._error is not None:
            raise self._error
        states = {path: file_state(path) for path in self._states}
        different = [path for path, state in states.items() if state != self._states[path]]
        if not different:
            return
        error = changed(different[0])
        try:
            with open_checkpoint(self._checkpoint.folder) as now:
                same = now.reads_as(self._checkpoint) and now.sha256() == self.hashes
        except MolkvError:
            same = False
        if not same:
            self._error = error
            raise error
        self._states = states


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
