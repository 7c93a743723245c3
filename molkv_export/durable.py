"""Bringing what was written to the disk, as far as the file system can do that."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# Some network disks sync no folders (EINVAL); Windows opens none (EACCES), and syncs no file that is open for reading
# only (EBADF).
_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EBADF}


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
