"""Write folders that appear only when they are complete."""

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

# Error codes of systems that cannot sync a file or folder. Some network disks cannot sync folders (EINVAL). Windows
# cannot open folders (EACCES), and cannot sync a file that is open only for reading (EBADF).
_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EBADF}

_UNLOCKED = "the file system cannot lock folders, so do not write to this folder from two processes at the same time"
_UNSYNCED = "the file system cannot sync folders, so check the files after a power cut"
_LOG = logging.getLogger(__name__)  # by default, Python prints warnings to stderr


def sync(file: int | Path) -> bool:
    """Flush a file, given by descriptor or path, or the list of names in a folder to the disk.

    Returns:
        Whether the system supports this.

    Raises:
        OSError: The disk is full, or a write fails.
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
    """Create a partial folder `.NAME.partial` beside `out`, and yield its path. After the block, rename it to `out`.

    The partial folder is locked while it is written. If the system cannot lock or sync this folder, one warning is
    logged. After a failure or an interruption, a partial folder without a journal is removed. A partial folder with a
    journal is kept, and the next attempt continues in this folder.

    Args:
        out: The folder to create.
        is_ours: Function that returns whether an existing folder holds only files that this program wrote. Other
            folders are never replaced.
        force: Replace an existing folder. The old folder stays unchanged until the new folder is complete. An empty
            folder is always replaced.
        journal: Name of a file that lists finished work; empty if there is none. A partial folder with this file is
            kept after a failure. The journal is removed when the folder is complete.

    Raises:
        OutputError: The folder `out` exists and must not or cannot be replaced; another process writes `out`; the
            parent folder cannot be written; or the disk is full.
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
                kept = f"finished files are kept in {partial} for the next attempt"
            else:
                shutil.rmtree(partial, ignore_errors=True)
            if not isinstance(error, OSError):
                error.add_note(kept)
                raise
            raise _failed(out, error, kept) from error


@contextmanager
def locked_folder(folder: Path, out: Path, kept_in: str | Path = "") -> Iterator[Path]:
    """Create a folder in which a part of `out` is written, lock it, and yield it. After a failure, it stays as it is.

    Args:
        folder: The folder.
        out: The path of the output, for messages.
        kept_in: The place in which finished files are kept after a failure, for messages; default: the folder.

    Raises:
        OutputError: Another process has locked the folder, it cannot be written, or the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    with _locked(folder, out) as lacks:
        if lacks:
            _LOG.warning("%s: %s", folder, "; ".join(lacks))
        kept = f"finished files are kept in {kept_in or folder} for the next attempt"
        try:
            yield folder
        except OSError as error:
            raise _failed(out, error, kept) from error
        except BaseException as error:
            error.add_note(kept)
            raise


def _failed(out: Path, error: OSError, kept: str) -> OutputError:
    # numpy raises an error without errno if it could write only a part of an array.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, None):
        return OutputError(f"{out}: the disk is full; {kept}, free some space and try again")
    return OutputError(f"{out}: cannot be written ({error.strerror}); {kept}")


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[list[str]]:
    """Create and lock a folder; yield a list of warnings, which is empty if the folder is locked.

    The kernel releases the lock when the process ends, even if the process is killed.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        if not stat.S_ISDIR(partial.lstat().st_mode):  # a symbolic link could point to a folder of the user
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW) if fcntl else None
    except OSError as error:
        raise _unwritable(out if error.errno == errno.ENAMETOOLONG else out.parent, error) from error
    if descriptor is None:
        yield [_UNLOCKED]
        return
    try:
        lacks = _lock(descriptor)
        # The process that held the lock until now may have renamed or removed the folder.
        if lacks is None or not (partial.exists() and os.path.samestat(os.fstat(descriptor), partial.stat())):
            raise OutputError(
                f"{out}: is being written by another process; wait until that process ends, or choose another folder"
            )
        yield lacks
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> list[str] | None:
    """Lock a folder; return a list of warnings, or None if another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # many network disks cannot lock folders, and the errno differs between them
        return [_UNLOCKED]
    return []


def _recover(out: Path) -> None:
    """Repair the folders after a process was killed while it replaced an old folder by a new folder."""
    old = _sibling(out, "old")
    if old.is_dir() and not out.exists():
        old.rename(out)
    elif old.is_dir():
        shutil.rmtree(old)


def partial_of(out: Path) -> Path:
    """Return the path of the partial folder in which `out` is written."""
    return _sibling(out, "partial")


def parts_of(out: Path) -> Path:
    """Return the path of the folder with the parts of `out` that several processes write."""
    return _sibling(out, "parts")


def _sibling(out: Path, suffix: str) -> Path:
    here = out.absolute()  # the path "." has no name
    return here.parent / f".{here.name}.{suffix}"


def clear(folder: Path, keep: Container[str] = ()) -> None:
    """Remove everything in a folder except the names in `keep`."""
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():  # for example, a temporary folder of a library that was killed
            shutil.rmtree(path)
        else:
            path.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link to a file of a folder that will be replaced; copy the file if a hard link is not safe.

    The file is copied if the file system has no hard links. The file is also copied if it is a symbolic link or has
    several hard links, since another program could then change its content.

    Raises:
        OSError: The file cannot be read, or the copy cannot be written.
    """
    if not source.is_symlink() and source.stat().st_nlink == 1:
        with suppress(OSError):
            target.hardlink_to(source)
            return
    copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file; follow symbolic links.

    If the file system supports reflinks, the copy shares the disk blocks of the original file.

    Raises:
        OSError: The file cannot be read, or the copy cannot be written.
    """
    with suppress(AttributeError, OSError):  # some systems and some file systems have no copy_file_range
        with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
            left = os.fstat(old.fileno()).st_size
            while left and (count := os.copy_file_range(old.fileno(), new.fileno(), left)):
                left -= count
        if not left:
            return
    shutil.copyfile(source, target)


def check_output(out: Path, *, is_ours: Callable[[Path], bool], force: bool) -> None:
    """Check, before any other work, that a folder may be written; arguments as in `atomic_folder`.

    Raises:
        OutputError: The folder exists and must not be replaced, or the folder cannot be written or replaced.
    """
    try:
        exists = _exists(out)
        _exists(partial_of(out))  # raises an error if the name with .partial is too long
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
        raise OutputError(
            f"{out}: holds files that molkv-export did not write, so it is not replaced; remove it or choose another "
            "folder"
        )


def _check_can_be_renamed(out: Path) -> None:
    if out.name == "..":
        raise OutputError(f"{out}: ends in '..'; pass the folder's own name")
    if os.path.ismount(out):
        raise OutputError(f"{out}: is a mount point, which cannot be replaced; choose a folder inside it")
    with suppress(FileNotFoundError):  # the current directory may have been removed
        if Path.cwd().is_relative_to(out.resolve()):
            raise OutputError(
                f"{out}: is the current directory or one of its parents, so this folder cannot be replaced; run the "
                "command in another directory, or choose a folder inside this one"
            )


def _exists(path: Path) -> bool:
    """Return whether a path exists; a broken link exists, too. Unlike `Path.exists`, raise all other errors."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _unwritable(path: Path, error: OSError) -> OutputError:
    hint = ""
    if error.errno == errno.ENAMETOOLONG:
        hint = "; a folder is first written as .NAME.partial, so choose a shorter name"
    return OutputError(f"{path}: cannot be written ({error.strerror}){hint}")


def _is_resumable(partial: Path, journal: str) -> bool:
    return bool(journal) and (partial / journal).exists()


def _publish(new: Path, out: Path, journal: str) -> None:
    # The contents are synced before the folder is renamed, so that even a power cut cannot leave an incomplete folder.
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
