"""Output that cannot be written: existing files stay, and no partial file is left."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from molkv_bundle import Bundle, OutputError
from molkv_export import export
from molkv_export.tables import table_writer
from tests.manifests import edit_manifest

pytestmark = pytest.mark.slow


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("molkv")


def test_an_existing_folder_is_refused_without_force(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "bundle")
    before = _contents(tmp_path)
    with pytest.raises(OutputError, match="bundle: exists already; pass --force to replace it"):
        export(checkpoint, tmp_path / "bundle", experts_dtype="float32")
    assert _contents(tmp_path) == before


def test_force_replaces_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "bundle")
    export(checkpoint, tmp_path / "bundle", experts_dtype="float32", force=True)
    assert Bundle(tmp_path / "bundle").manifest.experts.dtype == "float32"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("foreign", [False, True])
def test_force_replaces_a_bundle_of_another_version_without_foreign_files(
    foreign: bool, checkpoint: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle)
    edit_manifest(bundle, lambda manifest: manifest.update(schema_version=1, graphs={"cpu": {"of": "old"}}))
    if foreign:
        (bundle / "diary.txt").write_text("mine")
        with pytest.raises(OutputError, match="holds files that molkv-export did not write"):
            export(checkpoint, bundle, force=True)
        return
    export(checkpoint, bundle, force=True)
    assert Bundle(bundle).manifest.schema_version > 1


def test_force_does_not_replace_a_folder_that_is_not_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "manifest.json").write_text('{"manifest_version": 3}')
    export(checkpoint, tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("text")
    before = _contents(tmp_path)
    for name in ("thesis", "extension", "bundle"):
        with pytest.raises(OutputError, match=f"{name}: holds files that molkv-export did not write"):
            export(checkpoint, tmp_path / name, force=True)
    with pytest.raises(OutputError, match="file: is not a folder; --force replaces folders only"):
        export(checkpoint, tmp_path / "file", force=True)
    assert _contents(tmp_path) == before


def test_with_force_the_old_bundle_stays_when_the_new_one_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(checkpoint, tmp_path / "bundle")
    before = _contents(tmp_path)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(table_writer, "fill", fail)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, tmp_path / "bundle", force=True)
    assert _contents(tmp_path) == before


def test_a_full_disk_is_an_error_of_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(table_writer, "fill", full)
    with pytest.raises(OutputError, match="bundle: the disk is full; nothing was kept, free some space"):
        export(checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def _occupy(disk: Path) -> None:
    """Fill the rest of a disk."""
    with (disk / "somebody-elses").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(checkpoint: Path, small_disk: Path) -> None:
    _occupy(small_disk)
    with pytest.raises(OutputError, match=r"bundle: needs \d.* of disk space, but 0 B are free; free"):
        export(checkpoint, small_disk / "bundle")
    assert [path.name for path in small_disk.iterdir()] == ["somebody-elses"]


def test_a_disk_that_fills_up_while_the_graph_is_written(
    checkpoint: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("molkv_export.graph.files.attach_weights", lambda *_: _occupy(small_disk))
    with pytest.raises(OutputError, match="the disk is full; nothing was kept, free some space and try again"):
        export(checkpoint, small_disk / "bundle")
    assert [path.name for path in small_disk.iterdir()] == ["somebody-elses"]


def test_a_disk_that_fills_up_in_the_store_loses_no_finished_shard(
    checkpoint: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = table_writer.fill, []

    def fill(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 8:
            _occupy(small_disk)
        original(*arguments)

    export(checkpoint, tmp_path / "whole", shard_size=12_000)
    monkeypatch.setattr(table_writer, "fill", fill)
    with pytest.raises(OutputError, match=r"the disk is full; finished files are kept in .*\.partial for the next"):
        export(checkpoint, small_disk / "bundle", shard_size=12_000)
    assert not (small_disk / "bundle").exists()
    (small_disk / "somebody-elses").unlink()
    calls_before = len(calls)
    export(checkpoint, small_disk / "bundle", shard_size=12_000)
    assert 0 < len(calls) - calls_before < len(Bundle(small_disk / "bundle").manifest.experts.shards)
    assert _contents(small_disk / "bundle") == _contents(tmp_path / "whole")


def test_a_parent_that_is_a_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file: cannot be written \("):
        export(checkpoint, tmp_path / "file" / "bundle")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_export_leaves_no_files(signal_number: signal.Signals, checkpoint: Path, tmp_path: Path) -> None:
    """Send a real signal to a real process while it writes the store."""
    slow = (
        "import sys, time\n"
        "from molkv_export.tables import table_writer\n"
        "fill = table_writer.fill\n"
        "table_writer.fill = lambda *a: (print('writing', flush=True), time.sleep(60), fill(*a))\n"
        "from molkv_export.commands import main\n"
        "main()\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-c", slow, "export", str(shutil.copytree(checkpoint, tmp_path / "c")), "bundle"]
    process = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert list(work.iterdir())  # the partial bundle is there
    time.sleep(0.1)
    process.send_signal(signal_number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "error: interrupted; nothing was kept"
    assert "Traceback" not in stderr
    assert list(work.iterdir()) == []
