"""Folders that exist only when they are complete."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from molkv_bundle import OutputError, contents

# Some network disks sync no folders (EINVAL); Windows opens none (EACCES), and syncs no file that is open for reading
# only (EBADF).
_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EBADF}

_UNLOCKED = "cannot be locked here, so do not write to it from two processes at once"
_UNSYNCED = "files cannot be forced to this disk, so check them after a power cut"
_LOG = logging.getLogger(__name__)  # warnings go to stderr, unless the program has other plans


def sync(file: int | Path) -> bool:
    """Bring an open file, a file, or the names in a folder to the disk; return whether the system can do that.

    Raises:
        OSError: The disk is full, or fails.
    """
    try:
        if isinstance(file, int):
            os.fsync(file)
            return True
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_folder(
    out: Path,
    *,
    is_ours: Callable[[Path], bool],
    force: bool = False,
    journal: str = "",
) -> Iterator[Path]:
    """Yield a sibling of `out`, `.NAME.partial`, to write into; on success it becomes `out`.

    It is locked while it is written; what the system cannot do of that is logged as one warning. Where the work fails
    or is interrupted it vanishes, unless there is something in it to go on with; so it can hold what an earlier attempt
    has left.

    Args:
        out: The folder to make.
        is_ours: Whether an existing folder holds nothing but what we wrote; only such a one is ever replaced.
        force: Replace an existing folder, which stays as it is until the new one is complete. An empty one is
            replaced in any case.
        journal: Name of a file that says what is finished. While it is there, a partial folder is kept; the finished
            one does not have it.

    Raises:
        OutputError: `out` exists and is not to be replaced or cannot be, another process writes it, its parent cannot
            be written, or the disk is full.
    """
    partial = partial_of(out)
    with _locked(partial, out) as lacks:
        try:
            if not sync(partial):
                lacks.append(_UNSYNCED)
            if lacks:
                _LOG.warning("%s: %s", out, "; ".join(lacks))
            _recover(out)
            check_output(out, is_ours=is_ours, force=force)
            if not _is_resumable(partial, journal):
                clear(partial)
            yield partial
            _publish(partial, out, journal)
        except BaseException as error:
            kept = "nothing was kept"
            if _is_resumable(partial, journal):
                kept = f"what is finished is kept in {partial} for the next attempt"
            else:
                shutil.rmtree(partial, ignore_errors=True)
            if not isinstance(error, OSError):
                error.add_note(kept)
                raise
            # numpy reports a write that the disk could not take whole without an errno.
            if error.errno in (errno.ENOSPC, errno.EDQUOT, None):
                raise OutputError(f"{out}: the disk is full; {kept}, free some space and try again") from error
            raise OutputError(f"{out}: cannot be written ({error.strerror}); {kept}") from error


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[list[str]]:
    """Make a folder and hold it; the lock is the kernel's, so that it ends with the process, however that ends.

    Gives what to warn of: nothing, where the folder is locked.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        if not stat.S_ISDIR(partial.lstat().st_mode):  # a link would lead to files of others
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW) if fcntl else None
    except OSError as error:
        raise _unwritable(out if error.errno == errno.ENAMETOOLONG else out.parent, error) from error
    if descriptor is None:
        yield [_UNLOCKED]
        return
    try:
        lacks = _lock(descriptor)
        # Who held it until now may have published or removed it.
        if lacks is None or not (partial.exists() and os.path.samestat(os.fstat(descriptor), partial.stat())):
            raise OutputError(f"{out}: is being written by another process; wait for it or choose another folder")
        yield lacks
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> list[str] | None:
    """Lock a folder; return what to warn of, or None if another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # many network disks lock no folders; each kind has an errno of its own
        return [_UNLOCKED]
    return []


def _recover(out: Path) -> None:
    """Mend what a process leaves that is killed while it puts a new folder in the place of an old one."""
    old = _sibling(out, "old")
    if old.is_dir() and not out.exists():
        old.rename(out)
    elif old.is_dir():
        shutil.rmtree(old)


def partial_of(out: Path) -> Path:
    """Name the folder in which `out` is written."""
    return _sibling(out, "partial")


def _sibling(out: Path, suffix: str) -> Path:
    here = out.absolute()  # "." has a name, too
    return here.parent / f".{here.name}.{suffix}"


def clear(folder: Path, keep: Container[str] = ()) -> None:
    """Remove everything in a folder but the files named; libraries that were killed may have left folders, too."""
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Link a file of a folder that is about to be replaced to a second name.

    Where the file system cannot do that, and where others could change or share the file (it is a link, or has more
    names than this one), copy it.

    Raises:
        OSError: The file cannot be read, or the copy cannot be written.
    """
    if not source.is_symlink() and source.stat().st_nlink == 1:
        with suppress(OSError):
            target.hardlink_to(source)
            return
    copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file, or of what a link leads to; where the file system can, both share blocks (reflink).

    Raises:
        OSError: The file cannot be read, or the copy cannot be written.
    """
    with suppress(AttributeError, OSError):  # not every system has the call, nor does every disk take it
        with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
            left = os.fstat(old.fileno()).st_size
            while left and (count := os.copy_file_range(old.fileno(), new.fileno(), left)):
                left -= count
        if not left:
            return
    shutil.copyfile(source, target)


def check_output(out: Path, *, is_ours: Callable[[Path], bool], force: bool) -> None:
    """Check that a folder may be written, before work starts; arguments as in `atomic_folder`.

    Raises:
        OutputError: It exists and is not to be replaced, or can be neither written nor replaced.
    """
    try:
        exists = _exists(out)
        _exists(partial_of(out))  # its name is longer
        is_folder = exists and out.is_dir() and not out.is_symlink()
        is_empty = is_folder and not contents(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    if is_folder:
        _check_can_be_renamed(out)
    if not exists or is_empty:
        return
    if not force:
        raise OutputError(f"{out}: exists already; pass --force to replace it")
    if not is_folder:
        raise OutputError(f"{out}: is not a folder; --force replaces folders only")
    if not is_ours(out):
        raise OutputError(f"{out}: holds files that are not ours to replace; remove it or choose another folder")


def _check_can_be_renamed(out: Path) -> None:
    if out.name == "..":
        raise OutputError(f"{out}: ends in '..'; give the folder by its own name")
    if os.path.ismount(out):
        raise OutputError(f"{out}: is a mount point, which cannot be replaced; choose a folder inside it")
    with suppress(FileNotFoundError):  # the current directory may be gone
        if Path.cwd().is_relative_to(out.resolve()):
            raise OutputError(
                f"{out}: is the current directory or holds it, so it cannot be replaced; "
                "run the command elsewhere, or choose a folder inside it"
            )


def _exists(path: Path) -> bool:
    """Return whether there is anything of this name; unlike `Path.exists`, raise whatever else goes wrong."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _unwritable(path: Path, error: OSError) -> OutputError:
    hint = ""
    if error.errno == errno.ENAMETOOLONG:
        hint = "; a folder is written as .NAME.partial first, choose a shorter name"
    return OutputError(f"{path}: cannot be written ({error.strerror}){hint}")


def _is_resumable(partial: Path, journal: str) -> bool:
    return bool(journal) and (partial / journal).exists()


def _publish(new: Path, out: Path, journal: str) -> None:
    # The disk gets the contents before it gets the name, so that not even a power cut shows an incomplete folder.
    for path in (*new.iterdir(), new):
        sync(path)
    if journal:
        (new / journal).unlink(missing_ok=True)
    old = _sibling(out, "old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)
