"""Folders that exist only when they are complete."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from molkv_runtime.errors import OutputError


@contextmanager
def atomic_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary sibling of `out` to write into; on success it becomes `out`, on any failure it vanishes.

    With `force`, an existing folder stays as it is until the new one is complete.

    Raises:
        OutputError: `out` exists (without `force`), its parent cannot be written, or the disk is full.
    """
    if out.exists() and not force:
        raise OutputError(f"{out}: exists already; pass --force to replace it")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder or nothing; --force replaces folders only")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide the result from other users
    except OSError as error:
        raise OutputError(f"{out.parent}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        _replace(temporary, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{out}: the disk is full; nothing was kept, free some space and try again") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".old")
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old)
