"""Resuming an export: a journal in the unfinished bundle lists the finished shards."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from molkv_bundle import BundleError, FileInfo, OutputError, decode_json, file_sha256
from molkv_export import __version__
from molkv_export.atomic_folder import clear, partial_of, sync

JOURNAL = "export-in-progress.json"


class Journal(msgspec.Struct):
    """The content of the file JOURNAL: the arguments of an export and its finished shards."""

    arguments: dict[str, str]  # everything that determines the bytes of the store
    shards: dict[str, FileInfo] = {}  # by the name of the file
    machines: list[str] = []  # the kinds of CPU that wrote the shards
    replaces: list[str] = []  # files of the bundle in object storage that is being replaced

    def save(self, folder: Path) -> None:
        """Write the journal with an atomic rename, so that a crash leaves either the old or the new journal."""
        new = folder / f"{JOURNAL}.new"
        with new.open("wb") as file:
            file.write(msgspec.json.encode(self))
            file.flush()
            sync(file.fileno())
        new.replace(folder / JOURNAL)

    def finish(self, folder: Path, check: Callable[[], None], name: str, info: FileInfo, by: str = "") -> None:
        """Note a new shard, after `check` has found that the checkpoint is still the one that was hashed.

        `by` is the kind of CPU that wrote the shard; default: the one of this machine.
        """
        check()
        self.shards[name] = info
        self.note_machines([by or machine()])
        self.save(folder)

    def note_machines(self, kinds: list[str]) -> None:
        """Note kinds of CPU that wrote shards."""
        self.machines = list(dict.fromkeys([*self.machines, *kinds]))


def machine() -> str:
    """Return the kind of CPU. Sums in another order give other last bits, and the order depends on the CPU."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def origin_of(hashes: dict[str, str]) -> dict[str, str]:
    """Return all inputs except the layout that determine the bytes of records: hashes and versions of software."""
    return {**hashes, "molkv-export": __version__, "torch": str(torch.__version__)}


def check_nothing_unfinished(bundle: Path) -> None:
    """Raise an error if an unfinished export to this bundle exists.

    Raises:
        OutputError: There is one.
    """
    partial = partial_of(bundle)
    if (partial / JOURNAL).exists():
        raise OutputError(
            f"{partial}: holds an unfinished export to {bundle}; run the same export command again to finish it, or "
            "remove this folder"
        )


def is_undamaged(path: Path, info: FileInfo) -> bool:
    """Return whether a file has this size and this hash."""
    try:
        return path.stat().st_size == info.size and file_sha256(path) == info.sha256
    except OSError:
        return False


def resume_export(
    folder: Path, arguments: dict[str, str], is_finished: Callable[[Path, FileInfo], bool] = is_undamaged
) -> tuple[Journal, str]:
    """Prepare a folder for an export: keep finished shards of an export with these arguments, remove everything else.

    Args:
        folder: A folder in which an earlier export may have been interrupted.
        arguments: Everything that determines the bytes of the store; the keys are names that the user knows.
        is_finished: Function that returns whether a shard of the unfinished export can be kept.

    Returns:
        The journal with the undamaged shards that were found. A message for the user if the folder held an
        unfinished export, else "".
    """
    unfinished = read_journal(folder)
    journal, message = Journal(arguments), ""
    if unfinished is not None and unfinished.arguments and unfinished.arguments != arguments:
        different = _changed(unfinished.arguments, arguments)
        message = f"found an unfinished export with different {different}; starting from the beginning"
    elif unfinished is not None and unfinished.shards:
        found = unfinished.shards
        journal.shards = {file: info for file, info in found.items() if is_finished(folder / file, info)}
        journal.machines = unfinished.machines if journal.shards else []
        message = f"resuming an unfinished export: {len(journal.shards)} shard(s) are finished"
        if damaged := len(found) - len(journal.shards):
            message += f", {damaged} damaged shard(s) will be written again"
    clear(folder, keep=(*journal.shards, JOURNAL))
    if journal.shards:
        journal.save(folder)
    else:
        (folder / JOURNAL).unlink(missing_ok=True)
    return journal, message


def read_journal(folder: Path) -> Journal | None:
    """Return the journal of a folder; None if the journal is missing or damaged."""
    path = folder / JOURNAL
    try:
        return decode_json(path.read_bytes(), Journal, path, BundleError)
    except (OSError, BundleError):
        return None


def _changed(old: dict[str, str], new: dict[str, str]) -> str:
    return ", ".join(sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)))
