"""Interrupted exports: they can be killed at any moment and resumed, and never leave an incomplete bundle."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from molkv_bundle import Bundle, BundleError, FileInfo, OutputError
from molkv_export import export
from molkv_export.atomic_folder import atomic_folder
from molkv_export.tables.resume import JOURNAL, Journal, read_journal
from tests.molkv_export.interrupts import interrupt_fill
from tests.processes import FORKSERVER

pytestmark = pytest.mark.slow

SHARD_SIZE = 9_000
KILLS = 50
PARTIAL = ".bundle.partial"


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("molkv")


@pytest.fixture
def whole(bundles: Callable[..., Path]) -> Path:
    """The bundle of an export without interruption."""
    return bundles("molkv", "float16", shard_size=SHARD_SIZE)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _export(checkpoint: Path, bundle: Path) -> None:
    """Run an export in a child process. A top-level function, so that multiprocessing can pickle it."""
    export(checkpoint, bundle, shard_size=SHARD_SIZE, force=True)


def test_after_fifty_kills_no_bundle_is_incomplete_and_the_bytes_are_equal(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    """Kill exports with SIGKILL at random moments. Every second export replaces an existing bundle."""
    expected, bundle = _contents(whole), tmp_path / "bundle"
    moments, kills, resumed = random.Random(0), 0, 0
    duration = 600.0  # seconds of a whole export; measured by the first one
    while kills < KILLS:
        start = time.monotonic()
        child = FORKSERVER.Process(target=_export, args=(checkpoint, bundle))
        child.start()
        child.join(moments.uniform(0, duration))
        if child.is_alive():
            child.kill()
            child.join()
            kills += 1
            resumed += (tmp_path / PARTIAL / JOURNAL).exists()
            assert not _opens(tmp_path / PARTIAL) or _contents(tmp_path / PARTIAL).keys() >= expected.keys()
        else:
            assert child.exitcode == 0
            duration = min(duration, 1.2 * (time.monotonic() - start))
            print(f"killed {kills} times so far; an export takes {duration:.2f} s")
            assert _contents(bundle) == expected
            if moments.random() < 0.5:
                shutil.rmtree(bundle)
        # At this moment there is a complete bundle or none. During a replacement there is none for an instant.
        assert not bundle.exists() or _contents(bundle) == expected
    assert resumed > KILLS / 10  # else all kills came too early to test anything
    _export(checkpoint, bundle)
    assert _contents(bundle) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def _opens(folder: Path) -> bool:
    try:
        Bundle(folder)
    except BundleError:
        return False
    return True


def _cut_short(checkpoint: Path, bundle: Path, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_fill(10, patch)
        with pytest.raises(KeyboardInterrupt) as caught:
            export(checkpoint, bundle, **{"shard_size": SHARD_SIZE, **options})
    assert caught.value.__notes__[0].startswith("finished files are kept in ")
    assert not bundle.exists()


def _export_saying(checkpoint: Path, bundle: Path, **options: Any) -> str:
    said = io.StringIO()
    export(checkpoint, bundle, console=Console(file=said), **{"shard_size": SHARD_SIZE, **options})
    return said.getvalue()


def test_the_same_command_resumes_after_the_finished_shards(
    checkpoint: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut_short(checkpoint, tmp_path / "bundle")
    calls = interrupt_fill(0, monkeypatch)
    said = _export_saying(checkpoint, tmp_path / "bundle")
    assert "resuming an unfinished export: " in said
    assert len(calls) < len(Bundle(whole).manifest.experts.shards)
    assert 0 not in calls
    assert _contents(tmp_path / "bundle") == _contents(whole)


@pytest.mark.parametrize("finished_shards", [False, True])
def test_temporary_folders_of_a_killed_export_are_removed(
    finished_shards: bool, checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    if finished_shards:
        _cut_short(checkpoint, tmp_path / "bundle")
    left = tmp_path / ".bundle.partial" / ".model.onnx.data.abc"
    left.mkdir(parents=True)
    (left / "0").write_bytes(b"half")
    export(checkpoint, tmp_path / "bundle", shard_size=SHARD_SIZE)
    assert _contents(tmp_path / "bundle") == _contents(whole)


def test_a_finished_shard_that_was_damaged_is_written_again(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    _cut_short(checkpoint, tmp_path / "bundle")
    shard = min((tmp_path / PARTIAL).glob("experts-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "1 damaged shard(s) will be written again" in _export_saying(checkpoint, tmp_path / "bundle")
    assert _contents(tmp_path / "bundle") == _contents(whole)


@pytest.mark.parametrize("journal", [b"", b"{", b"[]", b'{"arguments": {}, "shards": {"../whole": {}}}'])
def test_with_a_damaged_journal_the_export_starts_again(
    journal: bytes, checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    _cut_short(checkpoint, tmp_path / "bundle")
    (tmp_path / PARTIAL / JOURNAL).write_bytes(journal)
    export(checkpoint, tmp_path / "bundle", shard_size=SHARD_SIZE)
    assert _contents(tmp_path / "bundle") == _contents(whole)


def test_a_journal_whose_hashes_are_no_hashes_is_damaged(tmp_path: Path) -> None:
    Journal({}, {"shard": FileInfo(size=1, sha256="0" * 64)}).save(tmp_path)
    assert read_journal(tmp_path) is not None
    (tmp_path / JOURNAL).write_bytes((tmp_path / JOURNAL).read_bytes().replace(b"0" * 64, b"../../movie"))
    assert read_journal(tmp_path) is None


def test_other_arguments_restart_the_export_with_a_note(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "whole", shard_size=SHARD_SIZE, experts_dtype="int8")
    _cut_short(checkpoint, tmp_path / "bundle")
    said = _export_saying(checkpoint, tmp_path / "bundle", experts_dtype="int8")
    assert "found an unfinished export with different --experts-dtype; starting from the beginning" in said
    assert _contents(tmp_path / "bundle") == _contents(tmp_path / "whole")


def test_a_changed_checkpoint_restarts_the_export_with_a_note(
    checkpoint: Path, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    export(checkpoints("molkv-gated"), tmp_path / "whole", shard_size=SHARD_SIZE)
    _cut_short(checkpoint, tmp_path / "bundle")
    said = _export_saying(checkpoints("molkv-gated"), tmp_path / "bundle")
    assert "found an unfinished export with different config.json, model.safetensors; starting from the" in said
    assert _contents(tmp_path / "bundle") == _contents(tmp_path / "whole")


def test_an_export_resumes_with_less_memory_to_the_same_bytes(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    _cut_short(checkpoint, tmp_path / "bundle")
    assert "resuming" in _export_saying(checkpoint, tmp_path / "bundle", max_memory=40 * 2**20)
    assert _contents(tmp_path / "bundle") == _contents(whole)


def test_two_exports_cannot_write_the_same_folder(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    """The second export is refused at once, and the first one is not affected."""
    slow = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from molkv_export import export\n"
        "from molkv_export.tables import table_writer\n"
        "fill = table_writer.fill\n"
        "def slow(*arguments):\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    fill(*arguments)\n"
        "    table_writer.fill = fill\n"
        "table_writer.fill = slow\n"
        f"export(Path(sys.argv[1]), Path(sys.argv[2]), shard_size={SHARD_SIZE})\n"
    )
    bundle = tmp_path / "bundle"
    first = subprocess.Popen(
        [sys.executable, "-c", slow, str(checkpoint), str(bundle)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == b"writing\n"
        with pytest.raises(OutputError, match=r"bundle: is being written by another process; wait until that"):
            export(checkpoint, bundle, shard_size=SHARD_SIZE, force=True)
        first.stdin.write(b"go on\n")
        first.stdin.close()
        assert first.wait(60) == 0
    assert _contents(bundle) == _contents(whole)


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(
    checkpoint: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle, experts_dtype="int8")
    old = _contents(bundle)
    original = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == PARTIAL:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, target)

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(Path, "rename", killed)
            with atomic_folder(bundle, is_ours=lambda _: True, force=True, journal=JOURNAL) as folder:
                shutil.copytree(whole, folder, dirs_exist_ok=True)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not bundle.exists()
    with pytest.raises(OutputError, match="exists already"):  # the old bundle is restored
        export(checkpoint, bundle)
    assert _contents(bundle) == old


def test_a_read_only_folder_is_refused_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    """Use a file system that is mounted read-only, because root can write to read-only folders."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a read-only disk")
    try:
        with pytest.raises(OutputError, match=r"disk: cannot be written \(Read-only file system\)"):
            export(checkpoint, disk / "bundle")
    finally:
        subprocess.run(["umount", disk], check=True)
