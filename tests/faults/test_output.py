"""Output that cannot be written: what was there stays, and nothing half-written is left."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molkv_export.export import export
from molkv_export.tables import store_writer
from molkv_runtime import Bundle, OutputError


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
    assert Bundle(tmp_path / "bundle").manifest.store.dtype == "float32"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_force_does_not_replace_what_is_not_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "manifest.json").write_text('{"manifest_version": 3}')
    export(checkpoint, tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("text")
    before = _contents(tmp_path)
    for name in ("thesis", "extension", "bundle"):
        with pytest.raises(OutputError, match=f"{name}: holds files that are not ours to replace"):
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

    monkeypatch.setattr(store_writer, "_pack", fail)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, tmp_path / "bundle", force=True)
    assert _contents(tmp_path) == before


def test_a_full_disk_is_said_in_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_writer, "_pack", full)
    with pytest.raises(OutputError, match="bundle: the disk is full; nothing was kept, free some space"):
        export(checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("size", ["64k", "300k", "500k"])
def test_a_disk_that_is_really_full(size: str, checkpoint: Path, tmp_path: Path) -> None:
    """Wherever the disk fills up: in the dense weights, in the store, at its end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        with pytest.raises(OutputError, match="the disk is full"):
            export(checkpoint, disk / "bundle", experts_dtype="float32")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_parent_that_is_a_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file: cannot be written \("):
        export(checkpoint, tmp_path / "file" / "bundle")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_in_the_middle_leaves_nothing_behind(
    signal_number: signal.Signals, checkpoint: Path, tmp_path: Path
) -> None:
    """A real process, stopped by a real signal while it writes the store."""
    slow = (
        "import sys, time\n"
        "from molkv_export.tables import store_writer\n"
        "pack = store_writer._pack\n"
        "store_writer._pack = lambda *a: (print('writing', flush=True), time.sleep(60), pack(*a))\n"
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
    assert stderr.splitlines()[-1] == "error: interrupted; no incomplete output was left behind"
    assert "Traceback" not in stderr
    assert list(work.iterdir()) == []
