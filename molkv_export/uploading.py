"""Publish a bundle on the Hugging Face Hub, in object storage, or in a folder."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console

from molkv_bundle import (
    MANIFEST,
    ArgumentError,
    Bundle,
    BundleError,
    OutputError,
    RemoteFolder,
    decode_manifest,
    file_sha256,
    is_remote,
    local_folder,
)
from molkv_export.hub_upload import prepare_repository, upload_to_hub
from molkv_export.model_card import MARK, model_card
from molkv_export.terminal import byte_progress, counter
from molkv_runtime import selftest

CARD = "README.md"
_URLS = "hf://OWNER/NAME[@BRANCH], s3://BUCKET/PATH, gs://BUCKET/PATH or file:///PATH"
_LOG = logging.getLogger(__name__)


class PushInfo(msgspec.Struct, frozen=True):
    """What `push` has done."""

    url: str  # on the Hub, with the commit
    files: int  # number of files, with the manifest and the model card
    size: int  # bytes of these files
    unchanged: list[str]  # files that were there
    removed: list[str]  # files of another bundle, which was there before


def push(bundle: str | Path, url: str, *, private: bool = False, console: Console | None = None) -> PushInfo:
    """Check a bundle, write a model card, and upload both. The manifest is uploaded last.

    After an interruption, call this again: files that are there are not uploaded again.

    Args:
        bundle: Folder of the bundle.
        url: Where to upload it: hf://owner/name[@branch], s3://bucket/path, gs://bucket/path or file:///path. A
            repository or branch on the Hub is created if there is none; a bucket is not.
        private: If a repository is created, make it private.
        console: Console that shows progress; by default, none.

    Raises:
        ArgumentError: The URL is not one of these, or `private` is given for another place than the Hub.
        BundleError: The bundle is not complete, is damaged, or fails its self-test.
        OutputError: The server does not answer, or refuses a file.
        MissingExtraError: The packages for this kind of URL are not installed.
    """
    path = local_folder(bundle, "push reads a bundle on this machine")
    if not is_remote(url):
        raise ArgumentError("url", url, _URLS)
    is_hub = url.startswith("hf://")
    if private and not is_hub:
        raise ArgumentError("private", "with another URL", "hf://OWNER/NAME")
    opened = Bundle(path)
    if is_hub:
        prepare_repository(url, private=private)
    target = RemoteFolder(url, OutputError)  # before the long self-test
    card = _card(opened, target, url, console)
    with _staging(opened, card) as folder:
        change = _change(opened, folder, target)
        if is_hub and (change.new or change.removed):
            shows_progress = console is not None and not console.quiet
            final = upload_to_hub(folder, url, **change._asdict(), shows_progress=shows_progress)
        else:
            final = target.url
            _upload(opened, folder, target, change, console)
        files = [path.name for path in folder.iterdir()]
        size = sum((folder / name).stat().st_size for name in files)
    Bundle(final)  # checks that everything is there
    unchanged = sorted(set(files) - set(change.new))
    return PushInfo(final, len(files), size, unchanged, change.removed)


def _card(bundle: Bundle, target: RemoteFolder, url: str, console: Console | None) -> str:
    """Run the self-test, and return the model card; "" if the target has one that we did not write."""
    with byte_progress(console) as progress:
        tested = selftest(bundle.path, profile=bundle.profile, advance=counter(progress, "checking files"))
    if tested.failures:
        raise BundleError(f"{bundle.path}: fails its self-test, so it is not uploaded: {tested.failures[0]}")
    there = _content(target, CARD)
    is_ours = not there or MARK.encode() in there
    return model_card(bundle, tested, url) if is_ours else ""


@contextmanager
def _staging(bundle: Bundle, card: str) -> Iterator[Path]:
    """Make a temporary folder with links to the files of a bundle, and the model card."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in (*bundle.manifest.files, MANIFEST):
            (folder / file).symlink_to((bundle.path / file).resolve())
        if card:
            (folder / CARD).write_text(card, encoding="utf-8")
        yield folder


class _Change(NamedTuple):
    """The difference between a folder and its target."""

    new: list[str]  # files of the folder that the target does not have; the manifest is the last one
    removed: list[str]  # files of the target that belong to the bundle that it held before
    drops_manifest: bool  # whether the target has the manifest of another bundle


def _change(bundle: Bundle, folder: Path, target: RemoteFolder) -> _Change:
    names = [*bundle.manifest.files, *([CARD] if (folder / CARD).exists() else []), MANIFEST]
    new = [name for name in names if not target.holds(name, folder / name, _sha256(bundle, folder / name))]
    try:
        old = _content(target, MANIFEST)
        before = set(decode_manifest(old, target.url).files) if old else set()
    except BundleError:  # it is replaced
        before = set()
    removed = sorted(before & target.files.keys() - set(names))
    return _Change(new, removed, drops_manifest=MANIFEST in target.files and MANIFEST in new)


def _sha256(bundle: Bundle, path: Path) -> str:
    info = bundle.manifest.files.get(path.name)
    return info.sha256 if info else file_sha256(path)


def _content(target: RemoteFolder, name: str) -> bytes:
    """Return the content of a small file of the target; empty if there is none."""
    return target.read_whole(name) if name in target.files else b""


def _upload(bundle: Bundle, folder: Path, target: RemoteFolder, change: _Change, console: Console | None) -> None:
    """Upload a folder to object storage. An object is there as a whole or not at all."""
    if change.drops_manifest:  # so that nobody takes old and new files for a bundle
        target.remove(MANIFEST)
    for name in change.removed:  # now, since a later push could not find them without the manifest
        target.remove(name)
    sizes = {name: (folder / name).stat().st_size for name in change.new}
    with byte_progress(console) as progress:
        task = progress.add_task("uploading", total=sum(sizes.values()))
        for name, size in sizes.items():
            _LOG.info("%s/%s: uploading %d bytes", target.url, name, size)
            target.upload(folder / name, name, _sha256(bundle, folder / name))
            progress.update(task, advance=size)
