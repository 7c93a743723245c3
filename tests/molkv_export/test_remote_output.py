"""Bundles that are written to object storage: the same bytes, little local disk, and no bundle that looks complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import molkv_export.exporter as exporting
from molkv_bundle import CheckpointError, OutputError, RemoteFolder, RequestError, cache_folder, remote
from molkv_export import add_profile, export, write_part
from molkv_export.commands import cli
from molkv_export.source.hashes import HashedSource
from molkv_export.tables import resume, table_writer
from molkv_export.tables.resume import JOURNAL
from tests.molkv_export.interrupts import interrupt_fill
from tests.molkv_export.s3 import Bucket

pytestmark = pytest.mark.slow

SHARD_SIZE = 9_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOLKV_CACHE", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def s3(bucket: str) -> Iterator[Bucket]:
    found = Bucket(bucket)
    yield found
    found.close()


@pytest.fixture
def url(bucket: str) -> str:
    """The URL of an empty folder."""
    return f"{bucket}/bundle"


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("molkv")


@pytest.fixture
def whole(bundles: Callable[..., Path]) -> dict[str, bytes]:
    """The files of a bundle that is written to a folder."""
    return {path.name: path.read_bytes() for path in bundles("molkv", "float16", shard_size=SHARD_SIZE).iterdir()}


def _export(checkpoint: Path, url: str, **options: Any) -> None:
    export(checkpoint, url, **{"shard_size": SHARD_SIZE, **options})


def test_a_bundle_in_object_storage_has_the_bytes_of_a_local_one(
    s3: Bucket, checkpoint: Path, whole: dict[str, bytes], url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded, upload, on_disk = list[str](), RemoteFolder.upload, list[int]()

    def counted(self: RemoteFolder, path: Path, name: str, sha256: str = "") -> None:
        uploaded.append(name)
        on_disk.append(len(list(path.parent.glob("experts-*"))))
        upload(self, path, name, sha256)

    monkeypatch.setattr(RemoteFolder, "upload", counted)
    _export(checkpoint, url)
    assert s3.contents(url) == whole
    assert uploaded[-1] == "manifest.json"
    others = [name for name in uploaded if name != JOURNAL]
    assert len(others) == len(set(others)) == len(whole)
    shards = [count for name, count in zip(uploaded, on_disk, strict=True) if name.startswith("experts-")]
    assert max(shards) <= 2 < len(shards)
    assert not list(cache.glob("exports/*"))


def test_a_checkpoint_in_object_storage_makes_a_bundle_in_object_storage(
    s3: Bucket, checkpoint: Path, whole: dict[str, bytes], url: str
) -> None:
    arguments = ["export", s3.put_folder(checkpoint, "source"), url, "--shard-size", str(SHARD_SIZE), "--json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    found = s3.contents(url)
    assert {name: data for name, data in found.items() if name != "manifest.json"} == {
        name: data for name, data in whole.items() if name != "manifest.json"
    }
    assert f'"size": {sum(map(len, found.values()))}' in result.stdout


def test_an_interrupted_upload_goes_on_also_on_another_machine(
    s3: Bucket, checkpoint: Path, whole: dict[str, bytes], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_fill(4, patch)
        with pytest.raises(KeyboardInterrupt) as caught:
            _export(checkpoint, url)
    assert caught.value.__notes__ == [f"finished files are kept in {url} for the next attempt"]
    half = s3.contents(url)
    assert sorted(half) == [*sorted(whole)[:3], JOURNAL]
    with pytest.raises(CheckpointError, match=r"has a name that the exporter does not read"):
        export(url, tmp_path / "bundle")
    monkeypatch.setenv("MOLKV_CACHE", str(tmp_path / "other machine"))
    calls = interrupt_fill(0, monkeypatch)
    _export(checkpoint, url)
    assert s3.contents(url) == whole
    assert len(calls) == len([name for name in whole if name.startswith("experts-")]) - 3


def test_a_resumed_export_names_all_kinds_of_cpu(checkpoint: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(resume, "machine", lambda: "old CPU")
        interrupt_fill(4, patch)
        with pytest.raises(KeyboardInterrupt):
            _export(checkpoint, url)
    monkeypatch.setattr(resume, "machine", lambda: "new CPU")
    assert export(checkpoint, url, shard_size=SHARD_SIZE).provenance.tools["cpus"] == "old CPU; new CPU"


def test_a_shard_that_is_damaged_or_missing_is_written_again(
    s3: Bucket, checkpoint: Path, whole: dict[str, bytes], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_fill(4, patch)
        with pytest.raises(KeyboardInterrupt):
            _export(checkpoint, url)
    names = [name for name in s3.contents(url) if name != JOURNAL]
    s3.put(f"{url}/{names[0]}", b"short")
    s3.remove(f"{url}/{names[1]}")
    _export(checkpoint, url)
    assert s3.contents(url) == whole


def test_only_force_replaces_a_bundle_and_nothing_replaces_other_files(
    s3: Bucket, checkpoint: Path, whole: dict[str, bytes], url: str
) -> None:
    _export(checkpoint, url, shard_size=12_000)
    before = s3.contents(url)
    with pytest.raises(OutputError, match="exists already; pass --force to replace it"):
        _export(checkpoint, url)
    with pytest.raises(OutputError, match="exists already; remove it first"):
        write_part(checkpoint, url, (1, 2), shard_size=SHARD_SIZE)
    assert s3.contents(url) == before
    _export(checkpoint, url, force=True)
    assert s3.contents(url) == whole
    s3.put(f"{url}/notes.txt", b"mine")
    before = s3.contents(url)
    for other in (url, s3.put_folder(checkpoint, "other")):
        with pytest.raises(OutputError, match="holds files that molkv-export did not write, so it is not replaced"):
            _export(checkpoint, other, force=True)
    assert s3.contents(url) == before


def test_an_interrupted_replacement_still_removes_the_files_of_the_old_bundle(
    s3: Bucket, checkpoint: Path, whole: dict[str, bytes], url: str
) -> None:
    _export(checkpoint, url, profiles=("cpu", "nnapi"))
    assert not s3.contents(url).keys() <= whole.keys()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_fill(4, patch)
        with pytest.raises(KeyboardInterrupt):
            _export(checkpoint, url, force=True)
    assert "manifest.json" not in s3.contents(url)
    _export(checkpoint, url)
    assert s3.contents(url) == whole


@pytest.mark.parametrize("name", ["manifest.json", JOURNAL, JOURNAL.replace(".json", "-1-of-2.json")])
def test_a_large_file_where_a_small_one_is_expected_is_not_read(
    name: str, s3: Bucket, checkpoint: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LARGEST_WHOLE", 100_000)
    s3.put(f"{url}/{name}", bytes(100_001))
    with pytest.raises(OutputError, match=rf"^{url}/{name}: has 100001 bytes, expected at most 100000, "):
        _export(checkpoint, url, force=name == "manifest.json", assemble=name not in ("manifest.json", JOURNAL))


def test_nothing_stays_if_the_checkpoint_changes(
    s3: Bucket, checkpoint: Path, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def changed(_self: HashedSource) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise CheckpointError("model.safetensors: was changed")

    monkeypatch.setattr(HashedSource, "check", changed)
    with pytest.raises(CheckpointError, match="was changed"):
        _export(checkpoint, url)
    assert s3.contents(url) == {}
    assert not list(cache.glob("exports/*"))


def test_a_shard_that_changes_after_its_upload_is_an_error(
    s3: Bucket, checkpoint: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = exporting.write_golden

    def remove(*arguments: Any) -> None:
        golden(*arguments)
        name = min(name for name in s3.contents(url) if name.startswith("experts-"))
        s3.put(f"{url}/{name}", b"short")

    monkeypatch.setattr(exporting, "write_golden", remove)
    with pytest.raises(OutputError, match=r"experts-00001-of-.*: has 5 bytes, expected "):
        _export(checkpoint, url)
    assert "manifest.json" not in s3.contents(url)


# --- parts


def test_parts_from_several_machines_make_the_bundle(
    s3: Bucket, checkpoint: Path, whole: dict[str, bytes], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (3, 1):
        monkeypatch.setenv("MOLKV_CACHE", str(tmp_path / f"machine {number}"))
        info = write_part(checkpoint, url, (number, 3), shard_size=SHARD_SIZE)
        assert info.folder == url
    with pytest.raises(OutputError, match=r"shards are missing \(2, 5, .*write the parts that hold them with --shards"):
        _export(checkpoint, url, assemble=True)
    with monkeypatch.context() as patch:  # a part that is interrupted is resumed
        interrupt_fill(2, patch)
        with pytest.raises(KeyboardInterrupt):
            write_part(checkpoint, url, (2, 3), shard_size=SHARD_SIZE)
    calls = interrupt_fill(0, monkeypatch)
    write_part(checkpoint, url, (2, 3), shard_size=SHARD_SIZE)
    assert len(calls) == len(range(2, len([name for name in whole if name.startswith("experts-")]) + 1, 3)) - 1
    calls.clear()
    _export(checkpoint, url, assemble=True)
    assert calls == []
    assert s3.contents(url) == whole


def test_parts_with_other_options_are_one_line(checkpoint: Path, url: str) -> None:
    write_part(checkpoint, url, (1, 1), shard_size=SHARD_SIZE)
    with pytest.raises(OutputError, match=rf"{url}/.*-1-of-1\.json: was written with another --shard-size: "):
        _export(checkpoint, url, assemble=True, shard_size=12_000)


def test_a_part_does_not_make_a_complete_bundle_incomplete(
    s3: Bucket, checkpoint: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine has written the same part, and made the bundle, while this part was running."""
    fill = table_writer.fill

    def late(*arguments: Any) -> None:
        s3.put(f"{url}/manifest.json", b"of another machine")
        fill(*arguments)

    monkeypatch.setattr(table_writer, "fill", late)
    write_part(checkpoint, url, (1, 3), shard_size=SHARD_SIZE)
    assert s3.contents(url)["manifest.json"] == b"of another machine"


# --- errors


def test_places_that_cannot_be_written_are_one_line(
    checkpoint: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"^hf://a/b: export does not .*then run: molkv-export push FOLDER hf://a/b$"):
        _export(checkpoint, "hf://a/b")
    with pytest.raises(OutputError, match=r"^s3://missing/b"):
        _export(checkpoint, "s3://missing/b")
    with pytest.raises(RequestError, match=r": a profile is added to a folder on this machine; "):
        add_profile(checkpoint, url, "coreml")
    fills = interrupt_fill(0, monkeypatch)

    def refuse(_self: RemoteFolder, _path: Path, name: str, _sha256: str = "") -> None:
        raise OutputError(f"{url}/{name}: access denied")

    monkeypatch.setattr(RemoteFolder, "upload", refuse)
    with pytest.raises(OutputError, match="access denied"):
        _export(checkpoint, url)
    assert fills == []  # found before the work


def test_a_file_url_is_a_folder_of_this_machine(checkpoint: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    _export(checkpoint, f"file://{tmp_path}/bundle")
    assert {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()} == whole
