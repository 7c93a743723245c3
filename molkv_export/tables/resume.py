"""What an export that was cut short has finished, so that the next one can go on."""

from __future__ import annotations

from pathlib import Path

import msgspec

from molkv_bundle import BundleError, FileInfo, decode_json, file_sha256
from molkv_export.atomic_folder import clear
from molkv_export.durable import sync

JOURNAL = "export-in-progress.json"


class Journal(msgspec.Struct):
    """The arguments of an export and its finished shards. It is written when there is one, and after each of them."""

    arguments: dict[str, str]  # all that decides on the bytes of the store
    shards: dict[str, FileInfo] = {}

    def save(self, folder: Path) -> None:
        """Write the journal so that there is always a whole one."""
        new = folder / f"{JOURNAL}.new"
        with new.open("wb") as file:
            file.write(msgspec.json.encode(self))
            file.flush()
            sync(file.fileno())
        new.replace(folder / JOURNAL)


def read_journal(folder: Path) -> Journal | None:
    """Give the journal of a folder; None if there is none, or not a whole one."""
    path = folder / JOURNAL
    try:
        return decode_json(path.read_bytes(), Journal, path, BundleError)
    except (OSError, BundleError):
        return None


def take_up(folder: Path, arguments: dict[str, str]) -> tuple[Journal, str]:
    """Make a folder ready to export into: keep what can be used again, remove the rest.

    Returns:
        The journal, with the shards that are there and whole; and what to tell the user about them, if anything.
    """
    old = read_journal(folder)
    journal, message = Journal(arguments), ""
    if old is not None and old.arguments != arguments:
        changed = sorted(k for k in arguments.keys() | old.arguments.keys() if old.arguments.get(k) != arguments.get(k))
        message = f"an unfinished export of other {', '.join(changed)} is there; starting anew"
    elif old is not None and old.shards:
        journal.shards = {name: info for name, info in old.shards.items() if _is_whole(folder / name, info)}
        message = f"going on with an unfinished export: {len(journal.shards)} shard(s) are there already"
        if damaged := len(old.shards) - len(journal.shards):
            message += f", {damaged} damaged one(s) will be written again"
    clear(folder, keep=(*journal.shards, JOURNAL))
    if journal.shards:
        journal.save(folder)
    else:
        (folder / JOURNAL).unlink(missing_ok=True)
    return journal, message


def _is_whole(path: Path, info: FileInfo) -> bool:
    try:
        return path.stat().st_size == info.size and file_sha256(path) == info.sha256
    except OSError:
        return False
