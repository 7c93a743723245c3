"""The estimate of disk space and RAM that `export` prints before it starts."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from molkv_bundle import OutputError, Table
from molkv_export import export
from molkv_export.checkpoints import Checkpoint
from molkv_export.disk_and_ram import DiskAndRam, estimate_disk_and_ram
from molkv_export.families import open_checkpoint
from molkv_export.profiles import GraphOptions, plan_graphs
from molkv_export.tables.plan import DEFAULT_MAX_MEMORY, plan_memory, plan_table
from molkv_export.tables.rows import RowSource, row_source


@pytest.fixture
def source(checkpoints: Callable[[str], Path]) -> Iterator[Checkpoint]:
    with open_checkpoint(checkpoints("molkv")) as opened:
        yield opened


def _store(source: Checkpoint) -> tuple[RowSource, Table]:
    return row_source(source), plan_table(source.config, "float16", 20_000)


def _estimate(source: Checkpoint, folder: Path, finished: set[str], out: Path = Path("out")) -> DiskAndRam:
    rows, store = _store(source)
    graphs = plan_graphs(source.config, ["cpu"], GraphOptions(), "float16")
    memory = plan_memory(rows, store, DEFAULT_MAX_MEMORY, cores=2)
    return estimate_disk_and_ram(source, graphs, store, memory, finished=finished, folder=folder, out=out)


def test_the_estimate_of_disk_space_is_right_and_excludes_finished_shards(
    source: Checkpoint, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = _estimate(source, tmp_path, set()).disk
    manifest = export(checkpoints("molkv"), tmp_path / "bundle", shard_size=20_000)
    sizes = {shard.file: manifest.files[shard.file].size for shard in manifest.experts.shards}
    dense = whole - sum(sizes.values())
    # Small weights are stored in the graph's own file.
    assert dense == pytest.approx(manifest.files["model.onnx.data"].size, rel=0.02)
    first = manifest.experts.shards[0].file
    assert _estimate(source, tmp_path, {first}).disk == whole - sizes[first]
    assert _estimate(source, tmp_path, set(sizes)).disk == dense


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1024))
    with pytest.raises(OutputError, match=r"here: needs \d.* of disk space, but 1.0 KiB are free"):
        _estimate(source, tmp_path, set(), Path("here"))


def test_the_estimate_is_printed_before_the_export_starts(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    shown = io.StringIO()
    export(checkpoints("molkv"), tmp_path / "bundle", console=Console(file=shown))
    assert [line.split()[0] for line in shown.getvalue().splitlines()[:2]] == ["warning:", "needs"]


def test_the_estimate_is_one_line() -> None:
    needs = DiskAndRam(disk=2**30, free=2**31, ram=2**20)
    ram = "1.0 MiB of RAM in addition to the RAM of the libraries"
    assert str(needs) == f"needs 1.0 GiB of disk space (2.0 GiB free), and {ram}"


def test_the_estimate_of_memory_is_within_the_allowed_memory(source: Checkpoint) -> None:
    rows, store = _store(source)
    many = msgspec.structs.replace(store, shards=(msgspec.structs.replace(store.shards[0], count=10_000_000),))
    for allowed in (100_000_000, 300_000_000):
        memory = plan_memory(rows, many, allowed, cores=2)
        assert 0.8 * allowed < memory.total <= allowed


def test_more_cores_compute_at_a_time_as_far_as_memory_allows(source: Checkpoint) -> None:
    rows, store = _store(source)
    many = msgspec.structs.replace(store, shards=(msgspec.structs.replace(store.shards[0], count=10_000_000),))
    plans = [plan_memory(rows, many, 1_000_000_000, cores) for cores in (1, 2, 8, 1000)]
    assert [plan.threads for plan in plans[:3]] == [1, 2, 8]
    assert 8 < plans[3].threads < 1000
    for plan in plans:
        assert plan.total <= 1_000_000_000
        assert plan.slab_ids >= plan.threads * rows.ids_at_once
