"""Temporary folders for files that are too large for /tmp: many systems keep /tmp in RAM."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from molkv_bundle import cache_folder

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """Make a folder in the folder `kind` of the cache folder, and remove it after the block.

    Folders that killed processes have left are removed, too: a process holds a lock on its folder as long as it runs.

    Raises:
        OSError: The folder cannot be made.
    """
    parent = cache_folder() / kind
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _locked(parent, wait=True):  # so no process removes a folder that is not locked yet
            for path in parent.iterdir():
                with _locked(path) as is_unused:
                    if is_unused:
                        shutil.rmtree(path, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(dir=parent))
            stack.enter_context(_locked(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a folder during the block; yield whether that was possible. Windows cannot lock folders."""
    if fcntl is None:
        yield False
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its process has just removed it
        yield False
        return
    try:
        is_locked = False
        with suppress(OSError):  # another process has the lock, or the file system has none
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_locked = True
        yield is_locked
    finally:
        os.close(descriptor)
