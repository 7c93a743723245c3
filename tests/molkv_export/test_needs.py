"""What an export says it will take."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from molkv_bundle import OutputError, StoreInfo
from molkv_export import export
from molkv_export.checkpoints import Checkpoint
from molkv_export.checkpoints.open import open_checkpoint
from molkv_export.exporter import DEFAULT_MAX_MEMORY
from molkv_export.needs import Needs, estimate
from molkv_export.tables.plan import Memory, plan_memory, plan_store
from molkv_export.tables.rows import RowSource, row_source


@pytest.fixture
def source(checkpoints: Callable[[str], Path]) -> Iterator[Checkpoint]:
    with open_checkpoint(checkpoints("molkv")) as opened:
        yield opened


def _plan(source: Checkpoint) -> tuple[RowSource, StoreInfo, Memory]:
    rows = row_source(source)
    store = plan_store(source.config, "float16", 20_000)
    return rows, store, plan_memory(rows, store, DEFAULT_MAX_MEMORY)


def test_the_store_takes_exactly_what_is_said_and_finished_shards_nothing(
    source: Checkpoint, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    rows, store, memory = _plan(source)
    whole = estimate(rows, store, memory, tmp_path, tmp_path, finished=set(), dense=1500, weight=0, golden=0)
    manifest = export(checkpoints("molkv"), tmp_path / "bundle", shard_size=20_000)
    sizes = {shard.file: manifest.files[shard.file].size for shard in manifest.store.shards}
    assert whole.store == sum(sizes.values())
    assert whole.disk == whole.store + 1500
    assert whole.seconds > 0
    first = store.shards[0].file
    rest = estimate(rows, store, memory, tmp_path, tmp_path, finished={first}, dense=0, weight=0, golden=0)
    assert rest.store == whole.store - sizes[first]
    nothing = estimate(rows, store, memory, tmp_path, tmp_path, finished=set(sizes), dense=0, weight=0, golden=0)
    assert (nothing.store, nothing.disk, nothing.seconds) == (0, 0, 0.0)


def test_the_trial_leaves_nothing_behind(source: Checkpoint, tmp_path: Path) -> None:
    estimate(*_plan(source), tmp_path, tmp_path, finished=set(), dense=1000, weight=0, golden=0)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1024))
    with pytest.raises(OutputError, match=r"here: needs \d.* of disk, 1.0 KiB are free"):
        estimate(*_plan(source), tmp_path, Path("here"), finished=set(), dense=0, weight=0, golden=0)


def test_it_is_printed_before_the_export_starts(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    shown = io.StringIO()
    export(checkpoints("molkv"), tmp_path / "bundle", console=Console(file=shown))
    assert [line.split()[0] for line in shown.getvalue().splitlines()[:2]] == ["warning:", "needs"]


def test_minutes_are_said_as_minutes() -> None:
    needs = Needs(ram=2**20, store=0, disk=2**30, free=2**31, seconds=89.5)
    assert (
        str(needs) == "needs 1.0 GiB of disk (2.0 GiB free), 1.0 MiB of RAM beyond the libraries' own, about 1 min 30 s"
    )


def test_memory_that_is_said_is_within_what_was_allowed(source: Checkpoint) -> None:
    rows, store, _ = _plan(source)
    many = msgspec.structs.replace(store, shards=(msgspec.structs.replace(store.shards[0], count=10_000_000),))
    for allowed in (100_000_000, 300_000_000):
        memory = plan_memory(rows, many, allowed)
        assert 0.8 * allowed < memory.total <= allowed
