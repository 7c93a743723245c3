"""Checking of every byte of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from molkv_bundle.bundle import Bundle
from molkv_bundle.errors import BundleError, printable
from molkv_bundle.files import contents, file_sha256
from molkv_bundle.manifest import MANIFEST, Shard
from molkv_bundle.shard import OpenShard

_NAMED_RECORDS = 10
_LOG = logging.getLogger(__name__)


class Verification(NamedTuple):
    """The result of checking a bundle."""

    files: int  # number of checked files, the manifest included
    size: int  # total size of these files, in bytes
    findings: list[str]  # one for each error; empty: the bundle is unchanged since its export


def verify(path: Path, advance: Callable[[int, int], object] = lambda _done, _total: None) -> Verification:
    """Compare the SHA-256 of every file with the manifest, and name each damaged file and record.

    Args:
        path: Folder of the bundle.
        advance: A function that is called after each piece with its size and the size of all files, in bytes.

    Raises:
        BundleError: The folder is not a complete bundle.
    """
    bundle = Bundle(path)
    files = bundle.manifest.files
    total = sum(info.size for info in files.values())
    known = {MANIFEST, *files}
    findings = [f"{extra}: is not part of the bundle" for extra in contents(path) if extra.name not in known]
    shards = {shard.file: shard for shard in bundle.manifest.experts.shards}
    for name, info in files.items():
        try:
            digest = file_sha256(path / name, lambda count: advance(count, total))
        except OSError as error:
            findings.append(f"{path / name}: cannot be read ({error.strerror})")
            continue
        _LOG.info("%s: sha256 %s, %s", path / name, digest, "as exported" if digest == info.sha256 else "damaged")
        if digest != info.sha256:
            damage = _damage(bundle, shards[name]) if name in shards else []
            whole = f"{path / name}: has sha256 {digest[:12]}..., the manifest says {info.sha256[:12]}..."
            findings += damage or [whole]
    size = (path / MANIFEST).stat().st_size + total
    # Names may hold line breaks, which could forge lines in the output of a command.
    return Verification(1 + len(files), size, [printable(finding) for finding in findings])


def _damage(bundle: Bundle, shard: Shard) -> list[str]:
    """Return findings for the first 10 damaged records of a shard, and one with the number of further records."""
    try:
        found = list(_damaged_records(bundle, shard))
    except BundleError as error:
        return [str(error)]
    more = [f"{bundle.path / shard.file}: {len(found) - _NAMED_RECORDS} more records are damaged"]
    return found[:_NAMED_RECORDS] + (more if len(found) > _NAMED_RECORDS else [])


def _damaged_records(bundle: Bundle, shard: Shard) -> Iterator[str]:
    table = bundle.manifest.experts
    opened = OpenShard(bundle.path / shard.file, shard, table, "pread", verify_checksums=True)
    record = memoryview(bytearray(table.stride))
    for row in range(shard.first_row, shard.first_row + shard.count):
        try:
            opened.read(row, [record])
        except BundleError as error:
            yield str(error)
    opened.close()
