"""Checks that a checkpoint is the source of a bundle, and that its files do not change while they are read."""

from __future__ import annotations

import logging

from rich.progress import Progress

from molkv_bundle import Bundle, CheckpointError, MolkvError
from molkv_export.checkpoints import Checkpoint
from molkv_export.checkpoints.files import changed, file_state
from molkv_export.families import open_checkpoint
from molkv_export.terminal import timed

_LOG = logging.getLogger(__name__)


class HashedSource:
    """An open checkpoint with the hashes of its files."""

    def __init__(self, checkpoint: Checkpoint, hashes: dict[str, str]) -> None:
        """Take an open checkpoint, and the SHA-256 of each of its files, by name."""
        self.checkpoint = checkpoint
        self._states = dict(checkpoint.states)
        self._error: CheckpointError | None = None
        self.hashes = hashes
        """SHA-256 of each file, by name."""

    def check(self) -> None:
        """Check that no file has changed since the checkpoint was opened.

        If the state of a file (such as its modification time) is different, the checkpoint is opened and hashed again.
        The check passes if the bytes of all files are the same.

        Raises:
            CheckpointError: A file has changed, so the data that were read may be a mix of old and new.
        """
        if self._error is not None:
            raise self._error
        if self.checkpoint.mirror is not None:
            self.checkpoint.mirror.check()
            return
        states = {path: file_state(path) for path in self._states}
        different = [path for path, state in states.items() if state != self._states[path]]
        if not different:
            return
        error = changed(different[0])
        try:
            with open_checkpoint(self.checkpoint.folder) as now:
                same = now.reads_as(self.checkpoint) and now.sha256() == self.hashes
        except MolkvError:
            same = False
        if not same:
            self._error = error
            raise error
        self._states = states


def hash_checkpoint(checkpoint: Checkpoint, progress: Progress) -> HashedSource:
    """Hash the files of an open checkpoint, and show the progress."""
    task = progress.add_task("checkpoint's hash", total=sum(path.stat().st_size for path in checkpoint.files))
    with timed(_LOG, "checkpoint's hash"):
        return HashedSource(checkpoint, checkpoint.sha256(lambda count: progress.advance(task, count)))


def check_source(bundle: Bundle, checkpoint: Checkpoint, hashes: dict[str, str]) -> None:
    """Check that a checkpoint's files have the hashes in a bundle's manifest; `hashes` has one for each file name.

    Raises:
        CheckpointError: The bundle was made from another checkpoint.
    """
    expected = bundle.manifest.provenance.source
    for name, found in hashes.items():
        if expected.get(name) != found:
            raise CheckpointError(
                f"{checkpoint.folder / name}: sha256 is {found[:12]}..., but {bundle.where} was made from "
                f"{expected.get(name, 'none')[:12]}...; pass the checkpoint that the bundle was exported from"
            )
