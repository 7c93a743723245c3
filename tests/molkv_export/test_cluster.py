"""Exports by a Ray cluster. The clusters run on this machine, each with several nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ray.cluster_utils import Cluster

from molkv_bundle import (
    Bundle,
    BundleError,
    CheckpointError,
    MissingExtraError,
    OutputError,
    RemoteFolder,
    RequestError,
    file_sha256,
    read_manifest,
)
from molkv_export import export
from molkv_export.atomic_folder import partial_of
from molkv_export.families import open_checkpoint
from molkv_export.tables import cluster
from molkv_export.tables.cluster import TASKS, Job, versions
from molkv_export.tables.plan import Memory, plan_table
from molkv_export.tables.resume import JOURNAL, read_journal
from tests.models import CONFIGS, random_model, save_checkpoint
from tests.molkv_export.s3 import Bucket
from tests.processes import CLI, ROOT

SHARD_SIZE = 500_000
PATIENCE_SECONDS = 240
_OBJECT_STORE = 80 * 1024**2  # bytes; Ray's smallest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with some shards that take some tenths of a second each."""
    config = msgspec.structs.replace(CONFIGS["molkv"], hidden_size=128, expert_intermediate_size=1024, vocab_size=1500)
    return save_checkpoint(random_model(config), tmp_path_factory.mktemp("cluster") / "checkpoint")


@pytest.fixture(scope="module")
def shards(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The SHA-256 of each shard that one process writes."""
    bundle = tmp_path_factory.mktemp("alone") / "bundle"
    export(checkpoint, bundle, shard_size=SHARD_SIZE)
    return _shards(bundle)


def _shards(bundle: Path) -> dict[str, str]:
    manifest = Bundle(bundle).manifest
    return {shard.file: manifest.files[shard.file].sha256 for shard in manifest.experts.shards}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's files, without which a process would find a cluster of another test.

    Ray's sockets are in it, and the path of a socket must be short.
    """
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _cluster(folder: Path, nodes: int, hook: str = "") -> Iterator[Cluster]:
    """Start a head that runs no tasks, and nodes with one CPU each. Their processes run `hook` at their start."""
    (folder / "hook").mkdir()
    (folder / "hook/sitecustomize.py").write_text(hook)
    path = os.pathsep.join([str(folder / "hook"), str(ROOT), str(ROOT / "runtimes/python")])
    common = {"object_store_memory": _OBJECT_STORE, "temp_dir": str(folder), "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**common, "num_cpus": 0}, shutdown_at_exit=False)
    try:
        for _ in range(nodes):
            cluster.add_node(
                num_cpus=1,
                object_store_memory=_OBJECT_STORE,
                temp_dir=str(folder),
                env_vars={**os.environ, "PYTHONPATH": path},
            )
        yield cluster
    finally:
        cluster.shutdown()


def _start(checkpoint: Path | str, bundle: Path | str, ray_folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, CLI, "export", checkpoint, bundle, "--shard-size", str(SHARD_SIZE), "--engine", "ray"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [*command, *options],
        env={**environment, "RAY_TMPDIR": str(ray_folder)},
        stdout=-1,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output


def _wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def _worker_in(folder: Path) -> int:
    """Return the process that writes a file in a folder, or 0 if there is none."""
    for process in Path("/proc").iterdir():
        try:
            if any(os.path.realpath(file).startswith(str(folder)) for file in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    return 0


@pytest.mark.slow
def test_three_nodes_of_which_one_and_a_worker_die_write_the_same_shards(
    checkpoint: Path, shards: dict[str, str], ray_folder: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    with _cluster(ray_folder, nodes=3) as nodes:
        process = _start(checkpoint, bundle, ray_folder, "--address", nodes.address)
        partial = partial_of(bundle)
        _wait_for(lambda: process.poll() is not None or (read_journal(partial) and len(read_journal(partial).shards)))
        os.kill(_wait_for(lambda: _worker_in(partial / TASKS)), signal.SIGKILL)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        code, output = _finish(process)
    assert code == 0, output
    assert len(shards) > 5
    assert _shards(bundle) == shards
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.slow
def test_a_head_is_started_where_there_is_none(
    checkpoint: Path, shards: dict[str, str], ray_folder: Path, tmp_path: Path
) -> None:
    code, output = _finish(_start(checkpoint, tmp_path / "bundle", ray_folder))
    assert code == 0, output
    assert _shards(tmp_path / "bundle") == shards


@pytest.mark.slow
def test_nodes_read_and_write_object_storage(
    checkpoint: Path,
    shards: dict[str, str],
    bucket: str,
    ray_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOLKV_CACHE", str(tmp_path / "cache"))
    with closing(Bucket(bucket)) as s3, _cluster(ray_folder, nodes=2) as nodes:
        source, url = s3.put_folder(checkpoint, "source"), f"{bucket}/bundle"
        code, output = _finish(_start(source, url, ray_folder, "--address", nodes.address))
        assert code == 0, output
        found = RemoteFolder(url, BundleError)
        for name in found.files:
            found.download(name, tmp_path / name)
    assert JOURNAL not in found.files
    assert {name: file_sha256(tmp_path / name) for name in shards} == shards
    manifest = read_manifest(tmp_path)
    assert {name: manifest.files[name].sha256 for name in shards} == shards
    assert not [path for kind in ("exports", "tasks") for path in (tmp_path / "cache" / kind).glob("*")]


@pytest.mark.slow
def test_a_node_with_another_version_is_refused(checkpoint: Path, ray_folder: Path, tmp_path: Path) -> None:
    hook = "import molkv_export; molkv_export.__version__ = '9.9'"
    with _cluster(ray_folder, nodes=1, hook=hook) as nodes:
        code, output = _finish(_start(checkpoint, tmp_path / "bundle", ray_folder, "-q", "--address", nodes.address))
    assert code == 1
    assert f"has molkv-export 9.9 and torch {versions()['torch']}, expected molkv-export" in output.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_the_next_attempt_keeps_finished_shards(
    checkpoint: Path, shards: dict[str, str], ray_folder: Path, tmp_path: Path
) -> None:
    hook = (
        "import errno\n"
        "from molkv_export.tables.direct_file import DirectFile\n"
        "sync, calls = DirectFile.sync, []\n"
        "def full(file):\n"
        "    calls.append(file)\n"
        "    if len(calls) > 2:\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    return sync(file)\n"
        "DirectFile.sync = full\n"
    )
    bundle = tmp_path / "bundle"
    with _cluster(ray_folder, nodes=1, hook=hook) as nodes:
        code, output = _finish(_start(checkpoint, bundle, ray_folder, "-q", "--address", nodes.address))
    assert code == 1
    last = output.splitlines()[-1]  # Ray itself reports each attempt before it
    assert "cannot be written, in 4 attempts (No space left on device); free some space on the nodes" in last
    kept = read_journal(partial_of(bundle))
    assert kept is not None
    assert len(kept.shards) == 2
    assert sorted(path.name for path in partial_of(bundle).glob("experts-*")) == sorted(kept.shards)
    assert not (partial_of(bundle) / TASKS).exists()
    export(checkpoint, bundle, shard_size=SHARD_SIZE)
    assert _shards(bundle) == shards


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:99999", "127.0.0.1:1", "no-such-host.invalid:6379"])
def test_an_address_without_a_cluster_is_refused(address: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"address: found {address}, expected "):
        export(checkpoint, tmp_path / "bundle", engine="ray", address=address)


def test_a_node_that_sees_other_files_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        files, hashes = source.versions, source.sha256()
        table = plan_table(source.config, "float16", SHARD_SIZE)
    job = Job(str(checkpoint), files, hashes, table, Memory(1, 1, 0), str(tmp_path), "")
    job.check_node()
    for same in (job, job._replace(files={})):  # there is another state of the same files on other machines
        with same.open_checkpoint():
            pass
    other = job._replace(files={}, hashes={})
    with pytest.raises(CheckpointError, match="another checkpoint there; give"), other.open_checkpoint():
        pass
    absent = job._replace(checkpoint=str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=r"node .*absent: is not a folder"), absent.open_checkpoint():
        pass
    with pytest.raises(OutputError, match=r"does not see .*absent; BUNDLE must be in a folder that all nodes share"):
        job._replace(folder=str(tmp_path / "absent")).check_node()


def test_without_ray_the_message_says_how_to_install_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'molkv-export\[ray\]'"):
        export(checkpoint, tmp_path / "bundle", engine="ray")
