"""The command line on a system that has less than Linux: `python -m tests.faults.bare_system ARGUMENTS...`.

Everything that Python on Windows lacks is removed. The libraries are imported before that, because they are built for
this system and may need it.
"""

from __future__ import annotations

import errno
import importlib
import mmap
import os
import runpy
import shutil
import signal
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
_LIBRARIES = ("click", "msgspec", "numpy", "onnxruntime", "rich.progress", "tokenizers")
_EXPORTERS = ("onnx", "onnxruntime.tools", "onnxscript", "safetensors.torch", "torch.nn.functional")
_ABSENT: dict[Any, tuple[str, ...]] = {
    os: (
        *("pread", "preadv", "readv", "pwrite", "pwritev", "posix_fadvise", "POSIX_FADV_WILLNEED", "RWF_NOWAIT"),
        *("O_DIRECT", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "sched_getaffinity", "fork", "geteuid", "getuid"),
    ),
    mmap: ("PROT_READ", "PROT_WRITE", "MAP_SHARED", "MAP_PRIVATE", "MADV_RANDOM", "MADV_WILLNEED"),
    signal: ("SIGHUP",),
}


class _Mmap(mmap.mmap):
    def madvise(self, *_: object) -> None:
        raise AttributeError("madvise")


def take_away() -> None:
    """Remove from this process what Windows lacks, and refuse what the `os` functions of Windows refuse."""
    import fcntl

    opens, syncs = os.open, os.fsync

    def refuse_folders(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if not options.get("dir_fd") and Path(os.fsdecode(path)).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opens(path, flags, *rest, **options)

    def refuse_what_is_read_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or fcntl.fcntl(descriptor, fcntl.F_GETFL) & 3 == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        syncs(descriptor)

    for module, names in _ABSENT.items():
        for name in names:
            delattr(module, name)
    os.open, os.fsync, mmap.mmap = refuse_folders, refuse_what_is_read_only, _Mmap  # type: ignore[misc, assignment]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    for name in ("fcntl", "resource", "pwd", "grp"):
        sys.modules[name] = None  # type: ignore[assignment]


if __name__ == "__main__":
    for library in (*_LIBRARIES, *(_EXPORTERS if sys.argv[1] in ("export", "inspect") else ())):
        importlib.import_module(library)
    take_away()
    if sys.flags.warn_default_encoding:  # no module of ours may open a text file in the locale's encoding
        warnings.filterwarnings("error", category=EncodingWarning, module="molkv_")
    sys.argv[0] = "cli.py"
    runpy.run_path(str(ROOT / "cli.py"), run_name="__main__")
