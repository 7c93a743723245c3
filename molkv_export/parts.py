"""The expert store in parts, which several processes or machines write into one shared folder.

`write_part` writes some of the shards; `collect_parts` moves the shards of all parts into a bundle that `export`
assembles. Part i of n is in `.NAME.parts/i-of-n` beside the bundle NAME, with a journal of its own. So each part is
locked, resumed and repeated by itself, on any machine that sees the folder.
"""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from rich.console import Console

from molkv_bundle import ArgumentError, OutputError, RowDtype, Shard, Table
from molkv_export.atomic_folder import locked_folder, parts_of
from molkv_export.disk_and_ram import check_free_space
from molkv_export.families import open_checkpoint
from molkv_export.source.hashes import hash_checkpoint
from molkv_export.tables.plan import (
    DEFAULT_MAX_MEMORY,
    DEFAULT_SHARD_SIZE,
    plan_memory,
    plan_table,
    shard_bytes,
    with_id,
)
from molkv_export.tables.resume import Journal, origin_of, read_journal, resume_export
from molkv_export.tables.rows import row_source
from molkv_export.tables.table_writer import write_table
from molkv_export.terminal import byte_progress, print_line


class Part(NamedTuple):
    """Part `number` of `parts`, which holds every `parts`-th shard."""

    number: int  # 1 to parts
    parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    @property
    def folder(self) -> str:
        """The name of the folder with the shards of this part."""
        return f"{self.number}-of-{self.parts}"

    def shards(self, table: Table) -> tuple[Shard, ...]:
        """Return the shards of this part."""
        return table.shards[self.number - 1 :: self.parts]


class PartInfo(msgspec.Struct, frozen=True):
    """The result of writing a part."""

    part: str  # such as "3/8"
    folder: str
    shards: int
    size: int  # of all shards, in bytes


def write_part(
    checkpoint: str | Path,
    bundle: str | Path,
    shards: tuple[int, int],
    *,
    experts_dtype: RowDtype = "float16",
    shard_size: int = DEFAULT_SHARD_SIZE,
    max_memory: int = DEFAULT_MAX_MEMORY,
    console: Console | None = None,
) -> PartInfo:
    """Write a part of the expert store of a bundle that `export` with `assemble` makes later.

    If a part is interrupted, even by SIGKILL, the same call resumes it: finished shards are checked and kept.

    Args:
        checkpoint: Folder with config.json and weights, see `export`.
        bundle: The folder of the later bundle. The part is written beside it.
        shards: (i, n) for part i of n parts. It holds every n-th shard, beginning with the i-th. Every machine needs
            the same checkpoint and the same options.
        experts_dtype: Dtype of the values in the store.
        shard_size: Largest size of a shard, in bytes.
        max_memory: RAM in bytes for writing, see `export`.
        console: Console for progress bars and messages; None for no output.

    Raises:
        ConfigError, CheckpointError: The checkpoint is missing, damaged or unsupported, or changes while it is read.
        OutputError: The part is being written by another process, or cannot be written.
        ArgumentError: There are more parts than shards, or an option is impossible.
        RequestError: A dtype cannot hold the model.
    """
    bundle, part = Path(bundle), Part(*shards)
    with open_checkpoint(checkpoint) as source:
        rows, table = row_source(source), plan_table(source.config, experts_dtype, shard_size)
        memory = plan_memory(rows, table, max_memory, torch.get_num_threads())
        if not 1 <= part.number <= part.parts <= len(table.shards):
            expected = f"I/N with 1 <= I <= N <= {len(table.shards)} (the number of shards)"
            raise ArgumentError("shards", str(part), expected)
        folder = parts_of(bundle) / part.folder
        with locked_folder(folder, bundle), byte_progress(console) as progress:
            hashed = hash_checkpoint(source, progress)
            origin = origin_of(hashed.hashes)
            table = with_id(table, origin)
            journal, message = resume_export(folder, store_arguments(origin, experts_dtype, shard_size))
            if message:
                print_line(progress.console, f"{bundle}, part {part}: {message}")
            missing = [shard for shard in part.shards(table) if shard.file not in journal.shards]
            total = sum(shard_bytes(shard, table) for shard in missing)
            check_free_space(total, folder, bundle)
            task = progress.add_task(f"expert store, part {part}", total=total, visible=total > 0)
            write_table(
                rows,
                table,
                memory,
                folder,
                shards=missing,
                finish=partial(journal.finish, folder, hashed.check),
                advance=lambda count: progress.advance(task, count),
            )
            journal.save(folder)  # also if there was nothing to do
        size = sum(info.size for info in journal.shards.values())
        return PartInfo(str(part), str(folder), len(journal.shards), size)


def store_arguments(origin: dict[str, str], experts_dtype: str, shard_size: int) -> dict[str, str]:
    """Return everything that determines the bytes of a store, by names that the user knows."""
    return {**origin, "--experts-dtype": experts_dtype, "--shard-size": str(shard_size)}


def collect_parts(bundle: Path, table: Table, journal: Journal, folder: Path) -> None:
    """Move the shards of all parts into the unfinished bundle, and note them in its journal.

    Args:
        bundle: The folder of the later bundle.
        table: The table with its id.
        journal: The journal of the unfinished bundle; it gets the shards that are new, and the kinds of CPU.
        folder: The folder of the unfinished bundle.

    Raises:
        OutputError: A part was written from another checkpoint, with other options or versions; a shard is missing or
            has another size than its journal says.
    """
    found, places = _journals(bundle, journal.arguments), dict[str, Path]()
    for part, theirs in found.items():
        for shard in table.shards:
            path, info = part / shard.file, theirs.shards.get(shard.file)
            if info is None or shard.file in journal.shards or not path.exists():
                continue
            if path.stat().st_size != info.size:
                raise OutputError(
                    f"{path}: has {path.stat().st_size} bytes, expected {info.size}; remove {part} and write this part "
                    "again"
                )
            journal.shards[shard.file], places[shard.file] = info, path
            journal.note_machines(theirs.machines)
    absent = [number for number, shard in enumerate(table.shards, 1) if shard.file not in journal.shards]
    if absent:
        raise OutputError(
            f"{parts_of(bundle)}: {len(absent)} of {len(table.shards)} shards are missing "
            f"({', '.join(map(str, absent))}), expected all; write the parts that hold them with --shards I/N (part I "
            "has the shards I, I + N, ...)"
        )
    journal.save(folder)  # before the files move, so that a crash between the two leaves each shard in one place
    for name, path in places.items():
        path.rename(folder / name)


def _journals(bundle: Path, arguments: dict[str, str]) -> dict[Path, Journal]:
    """Return the journals of all parts by their folders, in the order of the parts."""
    parts = parts_of(bundle)
    names = [re.fullmatch(r"(\d+)-of-(\d+)", path.name) for path in (parts.iterdir() if parts.is_dir() else ())]
    found = {}
    for name in sorted((match for match in names if match), key=lambda match: (int(match[2]), int(match[1]))):
        journal = read_journal(parts / name[0])
        if journal is None:
            continue  # the part has no finished shard
        different = sorted(
            key
            for key in arguments.keys() | journal.arguments.keys()
            if journal.arguments.get(key) != arguments.get(key)
        )
        if different:
            key = different[0]
            raise OutputError(
                f"{parts / name[0]}: was written with another {', '.join(different)}: {key} is "
                f"{journal.arguments.get(key, 'absent')}, expected {arguments.get(key, 'absent')}; remove this folder "
                "and write the part again with the same checkpoint, options and versions"
            )
        found[parts / name[0]] = journal
    return found


def remove_parts(bundle: Path) -> None:
    """Remove the folder of all parts, after their shards have become a bundle."""
    shutil.rmtree(parts_of(bundle), ignore_errors=True)
