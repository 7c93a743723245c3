"""Checking of every byte of a bundle."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from molkv_bundle.bundle import Bundle
from molkv_bundle.errors import BundleError, printable
from molkv_bundle.files import contents, file_sha256
from molkv_bundle.manifest import MANIFEST, Shard
from molkv_bundle.remote import RemoteFolder
from molkv_bundle.shard import OpenShard, RemoteShard

_NAMED_RECORDS = 10
_READ_BYTES = 8 * 1024**2
BESIDE_BUNDLES = frozenset(("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitattributes", ".cache", ".git"))
"""Names that the Hub, or a person who publishes a bundle, puts beside the files of the bundle."""

_LOG = logging.getLogger(__name__)


class Verification(NamedTuple):
    """The result of checking a bundle."""

    files: int  # number of checked files, the manifest included
    size: int  # total size of these files, in bytes
    findings: list[str]  # one for each error; empty: the bundle is unchanged since its export


def verify(
    bundle: Bundle | str | Path, advance: Callable[[int, int], object] = lambda _done, _total: None
) -> Verification:
    """Compare the SHA-256 of every file with the manifest, and name each damaged file and record.

    The files of a remote bundle are read over the network, but not kept.

    Args:
        bundle: An open bundle, or the folder or URL of a bundle.
        advance: A function that is called after each piece with its size and the size of all files, in bytes.

    Raises:
        BundleError: The folder is not a complete bundle, or a remote file cannot be read.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    files = bundle.manifest.files
    total = sum(info.size for info in files.values())
    findings = [f"{bundle.where}/{extra}: is not part of the bundle" for extra in _extras(bundle)]
    shards = {shard.file: shard for shard in bundle.manifest.experts.shards}
    for name, info in files.items():
        where = f"{bundle.where}/{name}"
        try:
            digest = _sha256(bundle, name, lambda count: advance(count, total))
        except OSError as error:
            findings.append(f"{where}: cannot be read ({error.strerror})")
            continue
        _LOG.info("%s: sha256 %s, %s", where, digest, "as exported" if digest == info.sha256 else "damaged")
        if digest != info.sha256:
            damage = _damage(bundle, shards[name]) if name in shards else []
            whole = f"{where}: has sha256 {digest[:12]}..., the manifest says {info.sha256[:12]}..."
            findings += damage or [whole]
    manifest = bundle.remote.files[MANIFEST].size if bundle.remote else (bundle.path / MANIFEST).stat().st_size
    # Names may hold line breaks, which could forge lines in the output of a command.
    return Verification(1 + len(files), manifest + total, [printable(finding) for finding in findings])


def _extras(bundle: Bundle) -> list[str]:
    """Return the names of files that are neither in the manifest nor usual beside a bundle."""
    there = sorted(bundle.remote.files) if bundle.remote else [path.name for path in contents(bundle.path)]
    return [name for name in there if name not in {MANIFEST, *bundle.manifest.files, *BESIDE_BUNDLES}]


def _sha256(bundle: Bundle, name: str, advance: Callable[[int], object]) -> str:
    if bundle.remote is None:
        return file_sha256(bundle.path / name, advance)
    digest = hashlib.sha256()
    for piece in bundle.remote.pieces(name):
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()


def _damage(bundle: Bundle, shard: Shard) -> list[str]:
    """Return findings for the first 10 damaged records of a shard, and one with the number of further records."""
    damaged = _damaged_records if bundle.remote is None else partial(_damaged_remote_records, bundle.remote)
    try:
        found = list(damaged(bundle, shard))
    except BundleError as error:
        return [str(error)]
    more = [f"{bundle.where}/{shard.file}: {len(found) - _NAMED_RECORDS} more records are damaged"]
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


def _damaged_remote_records(folder: RemoteFolder, bundle: Bundle, shard: Shard) -> Iterator[str]:
    opened = RemoteShard(folder, shard, bundle.manifest.experts)
    step = max(1, _READ_BYTES // bundle.manifest.experts.stride)
    for first in range(opened.first_row, opened.stop_row, step):
        for row, record in opened.read(first, min(step, opened.stop_row - first)).items():
            if not opened.is_sound(row, record):
                yield opened.damage(row)
