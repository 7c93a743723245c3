"""Files of a checkpoint: whether they hold what their names say, and whether they stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from molkv_bundle import CheckpointError

_POINTER = b"version https://git-lfs.github.com/spec/"


class FileState(NamedTuple):
    """What changes when the content of a file does, or when another file takes its name."""

    device: int
    inode: int
    size: int  # bytes
    modified_ns: int
    changed_ns: int  # also where a copy keeps the time of modification


def file_state(path: Path) -> FileState | None:
    """Return the state of a file; None if there is none. Take it before the file is read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def changed(path: Path) -> CheckpointError:
    """Return the error for a file that is another one than when it was first read."""
    return CheckpointError(
        f"{path}: was changed while it was being read; let nothing write to the checkpoint and run the command again"
    )


def refuse_pointer(path: Path) -> None:
    """Refuse what Git leaves in the place of a large file that was not downloaded.

    Raises:
        CheckpointError: The file is a pointer of Git LFS.
    """
    try:
        if not path.is_file():  # pipes and folders are refused where they are read
            return
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError:
        return
    if start == _POINTER:
        raise CheckpointError(
            f"{path}: is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder, or download it"
        )
