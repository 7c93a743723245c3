"""The RAM that the state of sequences needs, and the RAM that is available."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from molkv_bundle import KVDtype, ModelConfig, NotEnoughMemoryError, WindowDtype
from molkv_runtime.families import window_bytes

# For control groups of version 2 and of version 1: the file with the limit, the file with the usage, the file with the
# statistics, and the prefix of keys in the statistics. The usage includes the page cache, which can be freed; the
# statistics contain its size.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)


def cache_bytes(config: ModelConfig, length: int, kv_dtype: KVDtype = "float32") -> int:
    """Return the bytes of the KV cache of one sequence of `length` tokens."""
    numbers = sum(cache.num_key_value_heads * cache.head_dim for cache in config.kv_caches())
    return 2 * np.dtype(kv_dtype).itemsize * numbers * length


def state_bytes(config: ModelConfig, batch_size: int, length: int, kv_dtype: KVDtype, window_dtype: WindowDtype) -> int:
    """Return the bytes of RAM that the state of `batch_size` sequences of `length` tokens each takes."""
    window = window_bytes(config, length, window_dtype)
    each = cache_bytes(config, length, kv_dtype) + window + 4 * config.vocab_size
    return batch_size * each + 2 * window  # a part of a prompt needs at least two windows


def check_memory(needed: int, what: str) -> None:
    """Check that `needed` bytes of RAM are available. `what` says in the message which data needs them.

    Raises:
        NotEnoughMemoryError: There is not enough RAM.
    """
    # The operating system provides memory when a process first writes to it. So a request for too much memory
    # succeeds, and the process is killed later, without an error message.
    free = available_memory()
    if needed > free:
        raise NotEnoughMemoryError(
            f"{what} need {needed / 1024**2:,.0f} MiB of RAM, {free / 1024**2:,.0f} MiB are free; ask for fewer or "
            "shorter sequences"
        )


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of RAM that are available without swapping, on the machine and in the control group.

    Only Linux reports these numbers. On other systems the result is `sys.maxsize`.

    Args:
        root: The folder that holds the system's `proc` and `sys`.
    """
    found = [sys.maxsize]
    groups = root / "sys" / "fs" / "cgroup"
    try:
        lines = dict(
            line.split(":", 1) for line in (root / "proc" / "meminfo").read_text(encoding="ascii").splitlines()
        )
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    for limit, usage, statistics, prefix in _LIMITS:
        try:
            stat = dict(line.split() for line in (groups / statistics).read_text(encoding="ascii").splitlines())
            files = sum(int(stat[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
            found.append(_number(groups / limit) - _number(groups / usage) + files)
        except (OSError, KeyError, ValueError):  # no such control group, or no limit ("max")
            continue
    return max(0, min(found))


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
