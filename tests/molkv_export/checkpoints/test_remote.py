"""Checkpoints on the Hub and in object storage: the same bundle, every byte fetched once, and one line for errors."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import molkv_export.exporter as exporting
from molkv_bundle import Bundle, CheckpointError, MolkvError, RemoteFile, RemoteFolder, cache_folder
from molkv_export import add_profile, export, validate, write_part
from molkv_export.checkpoints import remote
from molkv_export.checkpoints.remote import RemoteError
from molkv_export.families import open_checkpoint
from molkv_export.parity.compared_texts import QUICK
from molkv_export.tables import table_writer
from molkv_export.tables.resume import JOURNAL
from tests.molkv_export.s3 import Bucket

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
SHARD_SIZE = 9_000
BLOCK = 10_000  # bytes, so that the small models have many blocks


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use a cache folder of the test's own, and check that nothing is left in it."""
    monkeypatch.setenv("MOLKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BLOCK", BLOCK)
    yield cache_folder()
    assert not list(cache_folder().glob("checkpoints/*"))


@dataclasses.dataclass
class _Hub:
    """A stand-in for the Hub: a local folder, with the hashes that the Hub knows."""

    folder: Path
    reads: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)
    fails_after: int = 10**9  # reads

    def connect(self, url: str, error: type[MolkvError]) -> RemoteFolder:
        return _HubFolder(self, url, error)


class _HubFolder(RemoteFolder):
    def __init__(self, hub: _Hub, url: str, error: type[MolkvError]) -> None:
        self._hub, self._kind = hub, error
        super().__init__(f"file://{hub.folder}", error)
        self.url = f"{url}@{'c' * 40}"

    def list(self) -> dict[str, RemoteFile]:
        return {
            name: file._replace(sha256=hashlib.sha256((self._hub.folder / name).read_bytes()).hexdigest())
            for name, file in super().list().items()
        }

    def read(self, name: str, start: int, stop: int) -> bytes:
        if len(self._hub.reads) >= self._hub.fails_after:
            raise self._kind(f"{self.url}/{name}: the server does not answer; check the address and the network")
        self._hub.reads.append((name, start, stop))
        return super().read(name, start, stop)


@pytest.fixture
def hub(checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Hub:
    hub = _Hub(shutil.copytree(checkpoints("molkv"), tmp_path / "hub"))
    monkeypatch.setattr(remote, "RemoteFolder", hub.connect)
    return hub


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _export(source: str | Path, bundle: Path) -> dict[str, bytes]:
    export(source, bundle, shard_size=SHARD_SIZE)
    return _contents(bundle)


def _check_read_once(reads: list[tuple[str, int, int]]) -> None:
    assert len(reads) == len(set(reads))
    for name in {name for name, _, _ in reads}:
        ranges = sorted((start, stop) for other, start, stop in reads if other == name)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges))


@pytest.mark.parametrize("name", ["molkv", "mole/lookup"])
def test_the_hub_gives_the_bundle_of_a_local_copy_and_each_byte_once(
    name: str, checkpoints: Callable[[str], Path], bundles: Callable[..., Path], hub: _Hub, tmp_path: Path
) -> None:
    hub.folder = checkpoints(name)
    assert _export("hf://owner/name", tmp_path / "bundle") == _contents(bundles(name, "float16", shard_size=SHARD_SIZE))
    _check_read_once(hub.reads)
    assert {read[0] for read in hub.reads} == {"config.json", WEIGHTS}


def test_only_what_is_needed_is_fetched_from_the_hub(
    checkpoints: Callable[[str], Path], hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the store needs a part of the tables, and neither other formats nor the hash need a byte."""
    monkeypatch.setattr(remote, "BLOCK", 1_000)
    hub.folder = shutil.copytree(checkpoints("molkv/lookup"), tmp_path / "more")
    (hub.folder / "flax_model.msgpack").write_bytes(bytes(50_000))
    (hub.folder / "tokenizer.model").write_bytes(bytes(1_000))
    (hub.folder / "onnx").mkdir()
    write_part("hf://owner/name", tmp_path / "bundle", (1, 9), shard_size=SHARD_SIZE)
    _check_read_once(hub.reads)
    assert {read[0] for read in hub.reads} == {"config.json", WEIGHTS}
    fetched = sum(stop - start for _, start, stop in hub.reads)
    assert fetched < (hub.folder / WEIGHTS).stat().st_size * 2 / 3


def test_profiles_are_added_and_bundles_validated_from_the_hub(hub: _Hub, tmp_path: Path) -> None:
    for name, source in (("here", hub.folder), ("there", "hf://owner/name")):
        export(source, tmp_path / name, shard_size=SHARD_SIZE)
        add_profile(source, tmp_path / name, "coreml")
    assert _contents(tmp_path / "here") == _contents(tmp_path / "there")
    report = validate(tmp_path / "here", "hf://owner/name", scope=QUICK)
    assert report.failures == []
    assert report.reference == "hf://owner/name"


def test_blocks_are_fetched_at_the_same_time(hub: _Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    read, running, most = RemoteFolder.read, list[int](), list[int]()

    def slow(self: RemoteFolder, name: str, start: int, stop: int) -> bytes:
        running.append(start)
        most.append(len(running))
        time.sleep(0.02)
        running.remove(start)
        return read(self, name, start, stop)

    monkeypatch.setattr(RemoteFolder, "read", slow)
    with open_checkpoint("hf://owner/name") as source:
        for name in source.parameters:
            source.tensor(name)
    assert max(most) >= 4
    _check_read_once(hub.reads)


def test_an_index_and_a_pickle_are_read_from_the_hub(hub: _Hub, tmp_path: Path) -> None:
    tensors = load((hub.folder / WEIGHTS).read_bytes())
    (hub.folder / WEIGHTS).unlink()
    places = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        (hub.folder / file).write_bytes(save(part))
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert _export("hf://owner/name", tmp_path / "1") == _export(hub.folder, tmp_path / "2")
    _check_read_once(hub.reads)
    for path in hub.folder.glob("model*"):
        path.unlink()
    torch.save(tensors, hub.folder / "pytorch_model.bin")
    hub.reads.clear()
    assert _export("hf://owner/name", tmp_path / "3") == _export(hub.folder, tmp_path / "4")
    _check_read_once(hub.reads)


# --- errors


def _refused(source: str, bundle: Path, kind: type[MolkvError], message: str) -> None:
    with pytest.raises(kind) as caught:
        export(source, bundle, shard_size=SHARD_SIZE)
    assert message in str(caught.value)
    assert "cache" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not bundle.exists()


def test_bytes_that_differ_from_the_hash_of_the_hub_are_an_error(
    hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server or a proxy changes one byte of a weight."""
    read, size = RemoteFolder.read, (hub.folder / WEIGHTS).stat().st_size

    def damaged(self: RemoteFolder, name: str, start: int, stop: int) -> bytes:
        data = bytearray(read(self, name, start, stop))
        if stop == size:
            data[-4] ^= 1
        return bytes(data)

    monkeypatch.setattr(RemoteFolder, "read", damaged)
    message = f"hf://owner/name@{'c' * 40}/{WEIGHTS}: arrived with the sha256 "
    _refused("hf://owner/name", tmp_path / "bundle", CheckpointError, message)
    assert not list(tmp_path.glob(".*"))  # no shard is kept


def test_a_network_that_fails_is_one_line(hub: _Hub, tmp_path: Path) -> None:
    hub.fails_after = 3
    _refused("hf://owner/name", tmp_path / "bundle", RemoteError, "/model.safetensors: the server does not answer")


def test_a_disk_that_becomes_full_is_one_line(hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free space is not known before, since only some blocks may be needed."""
    opened = Path.open

    def full(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "r+b" and len(hub.reads) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RemoteError, match=rf"{WEIGHTS}: cannot be copied to .* \(No space left on device\); free some"):
        _export("hf://owner/name", tmp_path / "bundle")


def test_a_folder_that_is_no_checkpoint_is_named_by_its_url(
    hub: _Hub, stdlib_mini_bundle: Path, tmp_path: Path
) -> None:
    url, bundle = f"hf://owner/name@{'c' * 40}", tmp_path / "bundle"
    weights = (hub.folder / WEIGHTS).read_bytes()
    (hub.folder / WEIGHTS).write_bytes(weights[:-5])
    _refused("hf://owner/name", bundle, CheckpointError, f"{url}/{WEIGHTS}: tensor ")
    (hub.folder / WEIGHTS).write_bytes(b"\x80\x02}q" + bytes(100))
    _refused("hf://owner/name", bundle, CheckpointError, f"{url}/{WEIGHTS}: is a pickle")
    (hub.folder / WEIGHTS).unlink()
    _refused("hf://owner/name", bundle, CheckpointError, f"{url}: holds no weights, expected ")
    (hub.folder / "config.json").unlink()
    _refused("hf://owner/name", bundle, CheckpointError, f"{url}: holds no files, expected a checkpoint")
    for path in stdlib_mini_bundle.iterdir():
        if path.name != "manifest.json":  # as in a bundle that is uploaded at this moment
            shutil.copy(path, hub.folder)
    message = "model.onnx: is an ONNX graph, expected a checkpoint"
    _refused("hf://owner/name", bundle, CheckpointError, message)


# --- object storage


@pytest.fixture
def s3(bucket: str) -> Iterator[Bucket]:
    found = Bucket(bucket)
    yield found
    found.close()


def test_object_storage_gives_the_bundle_of_a_local_copy_and_each_byte_once(
    s3: Bucket,
    checkpoints: Callable[[str], Path],
    bundles: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, reads = RemoteFolder.read, []

    def counted(self: RemoteFolder, name: str, start: int, stop: int) -> bytes:
        reads.append((name, start, stop))
        return read(self, name, start, stop)

    monkeypatch.setattr(RemoteFolder, "read", counted)
    url = s3.put_folder(checkpoints("molkv"), "models/molkv")
    found = _export(url, tmp_path / "bundle")
    assert found == _contents(bundles("molkv", "float16", shard_size=SHARD_SIZE))
    _check_read_once(reads)
    assert sum(stop - start for name, start, stop in reads if name == WEIGHTS) == len(
        (checkpoints("molkv") / WEIGHTS).read_bytes()
    )


def test_a_file_that_changes_in_object_storage_ends_the_export(
    s3: Bucket, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.put_folder(checkpoints("molkv"), "changing")
    other = bytearray((checkpoints("molkv") / WEIGHTS).read_bytes())
    other[-1] ^= 1
    golden = exporting.write_golden

    def change(*arguments: Any) -> None:
        s3.put(f"{url}/{WEIGHTS}", bytes(other))
        golden(*arguments)

    monkeypatch.setattr(exporting, "write_golden", change)
    _refused(url, tmp_path / "bundle", CheckpointError, f"{url}/{WEIGHTS}: was changed while it was being read; stop")
    assert not (tmp_path / ".bundle.partial" / JOURNAL).exists()
    monkeypatch.setattr(exporting, "write_golden", golden)
    with open_checkpoint(url) as source:
        assert source.mirror is not None
        s3.put(f"{url}/generation_config.json", b"{}")
        with pytest.raises(CheckpointError, match=r"generation_config\.json: was changed"):
            source.mirror.check()


def test_an_export_goes_on_after_the_network_has_failed(
    s3: Bucket,
    checkpoints: Callable[[str], Path],
    bundles: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server does not answer when the third shard is checked."""
    url = s3.put_folder(checkpoints("molkv"), "network")
    listed, calls, filled = RemoteFolder.list, [], []

    def fail(self: RemoteFolder) -> dict[str, RemoteFile]:
        calls.append(1)
        if len(calls) == 4:  # the first call is that of opening
            raise RemoteError(f"{url}: the server does not answer")
        return listed(self)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "list", fail)
        with pytest.raises(RemoteError, match="does not answer") as caught:
            _export(url, tmp_path / "bundle")
    assert caught.value.__notes__[0].startswith("finished files are kept in ")
    fill = table_writer.fill
    monkeypatch.setattr(table_writer, "fill", lambda *arguments: (filled.append(arguments[3]), fill(*arguments)))
    whole = bundles("molkv", "float16", shard_size=SHARD_SIZE)
    assert _export(url, tmp_path / "bundle") == _contents(whole)
    assert len(filled) == len(Bundle(whole).manifest.experts.shards) - 2


def test_a_bucket_that_is_missing_and_a_server_that_does_not_answer_are_one_line(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    _refused("s3:///models", bundle, CheckpointError, "s3:///models: names no bucket, expected s3://BUCKET/PATH")
    _refused(f"{bucket}/none", bundle, CheckpointError, f"{bucket}/none: holds no files, expected a check")
    _refused("s3://missing/models", bundle, CheckpointError, "s3://missing/models: ")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    _refused(f"{bucket}/models", bundle, CheckpointError, f"{bucket}/models: the server does not answer")


# --- places on this machine


def test_a_file_url_is_a_folder_of_this_machine(
    checkpoints: Callable[[str], Path], bundles: Callable[..., Path], tmp_path: Path
) -> None:
    found = _export(f"file://{checkpoints('molkv')}", tmp_path / "bundle")
    assert found == _contents(bundles("molkv", "float16", shard_size=SHARD_SIZE))


def test_a_cache_folder_that_is_too_small_or_not_writable_is_one_line(
    s3: Bucket, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.put_folder(checkpoints("molkv"), "space")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 0, 10))
        with pytest.raises(CheckpointError, match=r"space: needs .* of disk space for a copy in .*, but 10 B are free"):
            export(url, tmp_path / "bundle")
    with monkeypatch.context() as patch:
        (tmp_path / "file").write_bytes(b"")
        patch.setenv("MOLKV_CACHE", str(tmp_path / "file"))
        with pytest.raises(CheckpointError, match=r"space: cannot be copied to .* set MOLKV_CACHE to a folder"):
            export(url, tmp_path / "bundle")


@pytest.mark.usefixtures("hub")
def test_the_copy_of_a_killed_process_is_removed_and_that_of_a_running_one_stays(cache: Path) -> None:
    (cache / "checkpoints" / "killed").mkdir(parents=True)
    (cache / "checkpoints" / "killed" / WEIGHTS).write_bytes(b"half")
    with open_checkpoint("hf://owner/name") as first, open_checkpoint("hf://owner/name") as second:
        assert {path.name for path in (cache / "checkpoints").iterdir()} == {first.folder.name, second.folder.name}
