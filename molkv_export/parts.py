"""The expert store in parts, which several processes or machines write into one shared folder.

`write_part` writes some of the shards; `collect_parts` moves the shards of all parts into a bundle that `export`
assembles. Part i of n is in `.NAME.parts/i-of-n` beside the bundle NAME, with a journal of its own. So each part is
locked, resumed and repeated by itself, on any machine that sees the folder. In object storage, the shards of all parts
are in the folder of the bundle, and each part has a journal there.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from rich.console import Console

from molkv_bundle import ArgumentError, OutputError, RowDtype, Shard, Table
from molkv_export.disk_and_ram import check_free_space
from molkv_export.families import open_checkpoint
from molkv_export.output import LocalOutput
from molkv_export.remote_output import open_output
from molkv_export.source.hashes import hash_checkpoint
from molkv_export.tables.plan import (
    DEFAULT_MAX_MEMORY,
    DEFAULT_SHARD_SIZE,
    plan_memory,
    plan_table,
    shard_bytes,
    with_id,
)
from molkv_export.tables.resume import Journal, origin_of, resume_export
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
        checkpoint: Folder or URL with config.json and weights, see `export`.
        bundle: The folder of the later bundle, beside which the part is written; or a URL of object storage, to whose
            folder the shards are uploaded.
        shards: (i, n) for part i of n parts. It holds every n-th shard, beginning with the i-th. Every machine needs
            the same checkpoint and the same options.
        experts_dtype: Dtype of the values in the store.
        shard_size: Largest size of a shard, in bytes.
        max_memory: RAM in bytes for writing, see `export`.
        console: Console for progress bars and messages; None for no output.

    Raises:
        ConfigError, CheckpointError: The checkpoint is missing, damaged or unsupported, or changes while it is read.
        OutputError: The part is being written by another process, or cannot be written; there is a remote bundle.
        ArgumentError: There are more parts than shards, or an option is impossible.
        RequestError: A dtype cannot hold the model.
    """
    part = Part(*shards)
    output = open_output(bundle, part=part.folder)
    output.check(force=False)
    with open_checkpoint(checkpoint) as source:
        rows, table = row_source(source), plan_table(source.config, experts_dtype, shard_size)
        memory = plan_memory(rows, table, max_memory, torch.get_num_threads())
        if not 1 <= part.number <= part.parts <= len(table.shards):
            expected = f"I/N with 1 <= I <= N <= {len(table.shards)} (the number of shards)"
            raise ArgumentError("shards", str(part), expected)
        with output.folder(force=False) as folder, byte_progress(console) as progress:
            hashed = hash_checkpoint(source, progress)
            origin = origin_of(hashed.hashes)
            table = with_id(table, origin)
            arguments = store_arguments(origin, experts_dtype, shard_size)
            journal, message = resume_export(folder, arguments, output.is_finished)
            if message:
                print_line(progress.console, f"{output.name}, part {part}: {message}")
            missing = [shard for shard in part.shards(table) if shard.file not in journal.shards]
            total = sum(shard_bytes(shard, table) for shard in missing)
            on_disk = sum(shard_bytes(shard, table) for shard in output.on_disk(missing))
            check_free_space(on_disk, folder, output.name)
            task = progress.add_task(f"expert store, part {part}", total=total, visible=total > 0)
            write_table(
                rows,
                table,
                memory,
                folder,
                shards=missing,
                finish=partial(output.finish, folder, journal, hashed.check),
                advance=lambda count: progress.advance(task, count),
            )
            output.finish_shards(folder, journal, table)
        size = sum(info.size for info in journal.shards.values())
        return PartInfo(str(part), output.part_name, len(journal.shards), size)


def store_arguments(origin: dict[str, str], experts_dtype: str, shard_size: int) -> dict[str, str]:
    """Return everything that determines the bytes of a store, by names that the user knows."""
    return {**origin, "--experts-dtype": experts_dtype, "--shard-size": str(shard_size)}


def collect_parts(output: LocalOutput, table: Table, journal: Journal, folder: Path) -> None:
    """Move the shards of all parts into the unfinished bundle, and note them in its journal.

    Args:
        output: The place of the later bundle.
        table: The table with its id.
        journal: The journal of the unfinished bundle; it gets the shards that are new, and the kinds of CPU.
        folder: The folder of the unfinished bundle.

    Raises:
        OutputError: A part was written from another checkpoint, with other options or versions; a shard is missing or
            has another size than its journal says.
    """
    found, places = output.parts(), dict[str, str]()
    for part, theirs in found.items():
        _check_arguments(part, theirs.arguments, journal.arguments)
        for shard in table.shards:
            info, size = theirs.shards.get(shard.file), output.size_in_part(part, shard.file)
            if info is None or shard.file in journal.shards or size is None:
                continue
            if size != info.size:
                raise OutputError(
                    f"{part}: {shard.file} has {size} bytes, expected {info.size}; remove {part} and write this part "
                    "again"
                )
            journal.shards[shard.file], places[shard.file] = info, part
            journal.note_machines(theirs.machines)
    absent = [number for number, shard in enumerate(table.shards, 1) if shard.file not in journal.shards]
    if absent:
        raise OutputError(
            f"{output.parts_name}: {len(absent)} of {len(table.shards)} shards are missing "
            f"({', '.join(map(str, absent))}), expected all; write the parts that hold them with --shards I/N (part I "
            "has the shards I, I + N, ...)"
        )
    journal.save(folder)  # before the files move, so that a crash between the two leaves each shard in one place
    for name, part in places.items():
        output.take(part, name, folder)


def _check_arguments(part: str, found: dict[str, str], expected: dict[str, str]) -> None:
    different = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    if different:
        key = different[0]
        raise OutputError(
            f"{part}: was written with another {', '.join(different)}: {key} is {found.get(key, 'absent')}, expected "
            f"{expected.get(key, 'absent')}; remove it and write the part again with the same checkpoint, options and "
            "versions"
        )
