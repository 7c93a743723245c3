"""Folders that exist only when they are complete."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from molkv_runtime.errors import OutputError


@contextmanager
def atomic_folder(out: Path, *, is_ours: Callable[[Path], bool], force: bool = False) -> Iterator[Path]:
    """Give a temporary sibling of `out` to write into; on success it becomes `out`, on any failure it vanishes.

    Args:
        out: The folder to make.
        is_ours: Whether an existing folder holds nothing but what we wrote; only such a one is ever replaced.
        force: Replace an existing folder, which stays as it is until the new one is complete.

    Raises:
        OutputError: `out` exists and is not to be replaced, its parent cannot be written, or the disk is full.
    """
    check_output(out, is_ours=is_ours, force=force)
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
        # numpy reports a write that the disk could not take whole without an errno.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, None):
            raise OutputError(f"{out}: the disk is full; nothing was kept, free some space and try again") from error
        raise OutputError(f"{out}: cannot be written ({error.strerror}); nothing was kept") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_output(out: Path, *, is_ours: Callable[[Path], bool], force: bool) -> None:
    """Check that a folder may be written, before work starts; arguments as in `atomic_folder`.

    Raises:
        OutputError: It exists and is not to be replaced.
    """
    try:
        exists, empty = out.exists() or out.is_symlink(), out.is_dir() and not any(out.iterdir())
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from error
    if not exists:
        return
    if not force:
        raise OutputError(f"{out}: exists already; pass --force to replace it")
    if out.is_symlink() or not out.is_dir():
        raise OutputError(f"{out}: is not a folder; --force replaces folders only")
    if not empty and not is_ours(out):
        raise OutputError(f"{out}: holds files that are not ours to replace; remove it or choose another folder")


def _replace(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".old")
    try:
        out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
