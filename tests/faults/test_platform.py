"""Systems and disks that lack features of Linux, and environments without package metadata."""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molkv_bundle import Bundle, BundleError, OutputError
from molkv_export import __version__, export
from molkv_export.tables.direct_file import DirectFile, aligned_zeros
from molkv_runtime import ExpertStore, Generator, selftest
from tests.processes import run_cli, run_script

ROOT = Path(__file__).parent.parent.parent
UNLOCKED = (
    "bundle: the file system cannot lock folders, so do not write to this folder from two processes at the same time"
)
UNSYNCED = "the file system cannot sync folders, so check the files after a power cut"


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("molkv")


def _contents(folder: Path) -> dict[str, bytes]:
    """Return all files except the manifest, which holds the time and the command of the export."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def _python(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


# --- Windows


def _bare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = _python("-X", "warn_default_encoding", "-m", "tests.faults.bare_system", *arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_an_export_on_a_bare_system_gives_the_same_bytes_and_one_warning(
    checkpoint: Path, bundles: Callable[..., Path], tmp_path: Path
) -> None:
    done = _bare("export", checkpoint, tmp_path / "bundle", "--experts-dtype", "float32")
    assert done.stderr.replace("\n", "").count("the file system cannot") == 2, done.stderr
    assert f"{UNLOCKED}; {UNSYNCED}" in done.stderr
    assert _contents(tmp_path / "bundle") == _contents(bundles("molkv"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    again = _bare("export", checkpoint, tmp_path / "bundle", "--experts-dtype", "float16", "--force")
    assert "experts float16" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["run", "--prompt", "def ", "--max-new-tokens", "8"],
        ["run", "--prompt", "def ", "--max-new-tokens", "8", "--mmap"],
        ["selftest"],
        ["verify"],
        ["inspect"],
        ["bench", "--prompts", "8", "--contexts", "16", "--steps", "2", "--runs", "1", "--storage", "warm"],
    ],
)
def test_the_driver_runs_on_a_bare_system_without_warnings(command: list[str], stdlib_mini_bundle: Path) -> None:
    done = _bare(command[0], stdlib_mini_bundle, *command[1:])
    assert done.stdout
    assert "cannot" not in done.stderr
    if command[0] == "run":
        assert done.stdout == run_cli("run", stdlib_mini_bundle, *command[1:]).stdout


def test_seeking_reads_from_many_threads_return_the_right_bytes(
    bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.FileIO):
        def seek(self, *arguments: int) -> int:
            place = super().seek(*arguments)
            time.sleep(1e-4)  # time for another thread to move the position
            return place

    bundle = Bundle(bundles("molkv"))
    ids = np.arange(0, bundle.config.vocab_size, 2)  # no neighbours: each record is a read, and several threads read
    with ExpertStore(bundle) as store:
        expected = store.gather(ids).tobytes()
    monkeypatch.delattr(os, "preadv")
    monkeypatch.setattr(io, "FileIO", Slow)
    with ExpertStore(bundle, verify_checksums=False) as store:
        assert [store.gather(ids).tobytes() == expected for _ in range(5)] == [True] * 5


def test_a_read_that_fails_after_seeking_names_the_record(
    bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "preadv")
    with ExpertStore(Bundle(bundles("molkv"))) as store:
        monkeypatch.setattr(io, "FileIO", _raise(errno.EIO))
        with pytest.raises(BundleError, match=r"cannot be read at byte \d+ \(Input/output error\).*token id 5\b"):
            store.gather(np.array([5]))


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EINVAL])
def test_reading_works_where_the_system_refuses_advice(
    error: int, bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unadvised(mmap.mmap):
        def madvise(self, *_: object) -> None:
            raise OSError(error, os.strerror(error))

    expected = [token.id for token in Generator(bundles("molkv")).stream([[5, 17, 3]], max_new_tokens=9)]
    monkeypatch.setattr(os, "posix_fadvise", _raise(error))
    monkeypatch.setattr(mmap, "mmap", Unadvised)
    for access in ("pread", "mmap"):
        generator = Generator(bundles("molkv"), store_access=access)  # type: ignore[arg-type]
        assert [token.id for token in generator.stream([[5, 17, 3]], max_new_tokens=9)] == expected


# --- disks


def _raise(number: int, times: list[object] | None = None) -> Callable[..., Any]:
    def refuse(*arguments: object, **_: object) -> None:
        if times is not None:
            times.append(arguments)
        raise OSError(number, os.strerror(number))

    return refuse


def _export_with(checkpoint: Path, bundle: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    export(checkpoint, bundle, experts_dtype="float32")
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL])
def test_a_disk_without_locks_gives_one_warning(
    error: int,
    checkpoint: Path,
    bundles: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = _contents(bundles("molkv"))  # before locks fail, since the fixture takes one
    monkeypatch.setattr(fcntl, "flock", _raise(error))
    assert _export_with(checkpoint, tmp_path / "bundle", caplog) == [f"{tmp_path}/{UNLOCKED}"]
    assert _contents(tmp_path / "bundle") == expected


def _fsync(error: int, *, folders: bool) -> Callable[[int], None]:
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir() is folders:
            raise OSError(error, os.strerror(error))
        original(descriptor)

    return fsync


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_that_cannot_sync_folders_gives_one_warning(
    error: int,
    checkpoint: Path,
    bundles: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = _contents(bundles("molkv"))
    monkeypatch.setattr(os, "fsync", _fsync(error, folders=True))
    assert _export_with(checkpoint, tmp_path / "bundle", caplog) == [f"{tmp_path}/bundle: {UNSYNCED}"]
    assert _contents(tmp_path / "bundle") == expected


@pytest.mark.parametrize(
    ("error", "message"), [(errno.EIO, r"cannot be written \(Input/output error\)"), (errno.ENOSPC, "the disk is full")]
)
@pytest.mark.parametrize("folders", [False, True])
def test_a_disk_that_fails_while_it_syncs_is_an_error(
    folders: bool, error: int, message: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _fsync(error, folders=folders))
    with pytest.raises(OutputError, match=message):
        export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_ordinary_disk_gives_no_warning(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _export_with(checkpoint, tmp_path / "bundle", caplog) == []


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_refuses_direct_access_is_written_through_the_page_cache(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(fcntl, "fcntl", _raise(error, asked))
    file, data = DirectFile(tmp_path / "file"), aligned_zeros(4096, np.dtype(np.uint8))
    data[:] = 7
    for _ in range(3):
        assert file.write(memoryview(data)) == 4096
    assert file.sync() == 3 * 4096
    file.close()
    assert (tmp_path / "file").read_bytes() == bytes([7]) * 3 * 4096
    assert len(asked) == 1


def test_a_link_in_the_place_of_the_partial_folder_is_not_followed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    (tmp_path / ".bundle.partial").symlink_to("mine")
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\)"):
        export(checkpoint, tmp_path / "bundle")
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"


# --- package metadata

_CHECKOUT = """
import importlib.metadata, runpy, sys

def from_name(name):
    if name in ("molkv-export", "molkv_export", "onnxruntime"):  # onnxruntime-gpu brings the module onnxruntime
        raise importlib.metadata.PackageNotFoundError(name)
    return original(name)

original = importlib.metadata.Distribution.from_name
importlib.metadata.Distribution.from_name = from_name
root = sys.argv.pop(1)
# Python adds only the script's folder where the project is not installed.
sys.path[:] = [root, *(path for path in sys.path if path not in ("", root, root + "/runtimes/python"))]
runpy.run_path(root + "/cli.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_checkout_needs_no_package_metadata(checkpoint: Path, tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = _python("-c", _CHECKOUT, ROOT, *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version").endswith(f"version {__version__}\n")
    run("export", checkpoint, tmp_path / "bundle")
    assert Bundle(tmp_path / "bundle").manifest.provenance.tools["molkv-export"] == __version__
    assert selftest(tmp_path / "bundle").failures == []
    quick = ("--sequences", "1", "--continuations", "1", "--new-tokens", "4")
    assert "PASS" in run("validate", tmp_path / "bundle", "--checkpoint", checkpoint, *quick)


# --- nohup

_SIGNALLED = """
import os, signal, sys
from molkv_export.commands import main
from molkv_export.tables import table_writer
fill, seen = table_writer.fill, []

def hang_up(*arguments):
    fill(*arguments)
    if not seen:
        seen.append(True)
        os.kill(os.getpid(), signal.SIGHUP)

table_writer.fill = hang_up
if sys.argv.pop(1) == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("with_nohup", [True, False])
def test_a_hangup_ends_an_export_unless_nohup_started_it(with_nohup: bool, checkpoint: Path, tmp_path: Path) -> None:
    start = "nohup" if with_nohup else "plain"
    script = tmp_path / "export.py"
    script.write_text(_SIGNALLED)
    done = run_script(script, start, "export", checkpoint, tmp_path / "bundle", "-q")
    if with_nohup:
        assert done.returncode == 0, done.stderr
        assert selftest(tmp_path / "bundle").failures == []
    else:
        assert done.returncode == 128 + signal.SIGINT
        assert done.stderr == "error: interrupted; nothing was kept\n"
