"""Bundles on the Hub and in object storage: what is downloaded, what is kept, and which bundles are refused."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from molkv_bundle import (
    MANIFEST,
    NO_DIGEST,
    Bundle,
    BundleError,
    MolkvError,
    OutputError,
    RemoteFolder,
    cache_folder,
    read_manifest,
    verify,
    write_manifest,
)
from tests.hub_server import Hub
from tests.manifests import edit_manifest
from tests.remote_servers import contents

URL = "hf://me/model"
SHARD = "experts-00001-of-00001.safetensors"
DATA = "model.onnx.data"


@pytest.fixture
def files(bundles: Callable[..., Path]) -> dict[str, bytes]:
    """The files of a small bundle."""
    return contents(bundles("molkv"))


@pytest.fixture
def published(hub: Hub, files: dict[str, bytes]) -> Hub:
    """A Hub with the bundle, and with files that are usual beside one."""
    hub.put("me/model", {**files, "README.md": b"---\n---\n", ".gitattributes": b"*.data filter=lfs"})
    return hub


def _downloads(hub: Hub) -> list[str]:
    """Return the names of the files that were asked for since the last call."""
    names = [request.path.rpartition("/")[2] for request in hub.requests(r"GET /me/model/resolve/")]
    hub.log.clear()
    return names


def test_only_files_that_are_used_are_downloaded_and_only_once(published: Hub, bundles: Callable[..., Path]) -> None:
    local, remote = Bundle(bundles("molkv")), Bundle(URL)
    assert remote.manifest == local.manifest
    assert remote.where == f"hf://me/model@{published.repos['me/model'].branches['main']}"
    assert remote.remote is not None
    assert _downloads(published) == [MANIFEST]
    paths, expected = remote.graph_paths(), local.graph_paths()
    assert {length: path.read_bytes() for length, path in paths.items()} == {
        length: path.read_bytes() for length, path in expected.items()
    }
    assert sorted(_downloads(published)) == ["model.onnx", DATA]
    assert Bundle(URL).graph_paths() == paths
    assert _downloads(published) == [MANIFEST]


def test_a_bundle_in_object_storage_is_downloaded_too(bucket: str, bundles: Callable[..., Path]) -> None:
    local = bundles("molkv")
    folder = RemoteFolder(f"{bucket}/model", OutputError)
    for path in local.iterdir():
        folder.upload(path, path.name)
    remote = Bundle(f"{bucket}/model")
    assert remote.file(DATA).read_bytes() == (local / DATA).read_bytes()
    assert verify(remote).findings == []


def test_a_folder_on_this_machine_is_read_where_it_is(bundles: Callable[..., Path], cache: Path) -> None:
    bundle = Bundle(f"file://{bundles('molkv')}")
    assert bundle.file(DATA) == bundles("molkv") / DATA
    assert bundle.remote is None
    assert not cache.exists()


def test_two_versions_of_a_bundle_share_the_files_that_are_the_same(
    published: Hub, bundles: Callable[..., Path], tmp_path: Path
) -> None:
    Bundle(URL).graph_paths()
    shutil.copy(bundles("molkv") / MANIFEST, tmp_path / MANIFEST)
    manifest = read_manifest(tmp_path)
    provenance = msgspec.structs.replace(manifest.provenance, command="another one")
    write_manifest(msgspec.structs.replace(manifest, provenance=provenance, sha256=NO_DIGEST), tmp_path)
    published.put("me/model", {MANIFEST: (tmp_path / MANIFEST).read_bytes()})
    _downloads(published)
    newer = Bundle(URL)
    assert newer.manifest.sha256 != manifest.sha256
    assert newer.file(DATA).exists()
    assert _downloads(published) == [MANIFEST]


def test_a_damaged_file_of_the_cache_is_downloaded_again(published: Hub, files: dict[str, bytes]) -> None:
    path = Bundle(URL).file(DATA)
    path.write_bytes(bytes(len(files[DATA])))
    _downloads(published)
    assert Bundle(URL).file(DATA).read_bytes() == files[DATA]
    assert _downloads(published) == [MANIFEST, DATA]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_an_interrupted_download_is_continued(is_damaged: bool, published: Hub, files: dict[str, bytes]) -> None:
    bundle = Bundle(URL)
    part = cache_folder() / "files" / f"{bundle.manifest.files[DATA].sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000 if is_damaged else files[DATA][:1000])
    assert bundle.file(DATA).read_bytes() == files[DATA]
    ranges = [request.range for request in published.requests("GET /cdn/")]
    last = len(files[DATA]) - 1
    assert ranges == [f"bytes=1000-{last}", *([f"bytes=0-{last}"] if is_damaged else [])]
    assert not part.exists()


def test_a_hash_that_is_a_path_writes_nothing_outside_the_cache(
    published: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / MANIFEST).write_bytes(files[MANIFEST])
    movie = tmp_path / "movie"
    edit_manifest(tmp_path, lambda manifest: manifest["files"][DATA].update(sha256=str(movie)))
    published.put("me/model", {MANIFEST: (tmp_path / MANIFEST).read_bytes()})
    with pytest.raises(BundleError, match=r"^hf://\S+/manifest\.json: Expected `str` matching regex .*sha256`$"):
        Bundle(URL).file(DATA)
    assert not list(tmp_path.glob("movie*"))


def test_a_file_that_is_not_the_file_of_the_manifest_is_refused(published: Hub, files: dict[str, bytes]) -> None:
    published.put("me/model", {DATA: bytes(len(files[DATA]))})
    bundle = Bundle(URL)
    with pytest.raises(BundleError, match=r"model@\w+/model\.onnx\.data: has sha256 .*, the manifest says .* push the"):
        bundle.file(DATA)
    assert contents(cache_folder() / "files") == {f"{bundle.manifest.files[DATA].sha256}.part": b""}


def test_several_readers_download_a_file_once(published: Hub, files: dict[str, bytes]) -> None:
    opened = [Bundle(URL) for _ in range(4)]
    published.delay = 0.05
    with ThreadPoolExecutor() as pool:
        paths = list(pool.map(lambda bundle: bundle.file(DATA), opened))
    assert all(path.read_bytes() == files[DATA] for path in paths)
    assert len(published.requests("GET /cdn/")) == 1
    assert [path.name for path in (cache_folder() / "files").iterdir()] == [opened[0].manifest.files[DATA].sha256]


def test_a_cache_that_cannot_be_written_is_an_error(published: Hub, cache: Path) -> None:
    cache.write_text("a file")
    bundle = Bundle(URL)
    assert published.log
    with pytest.raises(OutputError, match=r"cannot be written \(.*\); MOLKV_CACHE chooses another folder"):
        bundle.file(DATA)


def test_the_user_chooses_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("MOLKV_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "molkv-export"
    monkeypatch.setenv("MOLKV_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def _refused(url: str = URL) -> str:
    with pytest.raises(MolkvError) as caught:
        Bundle(url)
    return str(caught.value)


def test_a_bundle_that_is_half_uploaded_is_refused(published: Hub, files: dict[str, bytes]) -> None:
    published.remove("me/model", DATA)
    assert f"/{DATA}: is missing, the manifest says {len(files[DATA])} bytes: the upload is not complete" in _refused()
    published.put("me/model", {DATA: files[DATA][:-1]})
    assert f"/{DATA}: has {len(files[DATA]) - 1} bytes, the manifest says {len(files[DATA])} bytes: the" in _refused()
    published.remove("me/model", MANIFEST)
    assert f"but no {MANIFEST}, which is uploaded last: the upload is not complete; repeat the command" in _refused()


def test_a_repository_without_a_bundle_is_refused(hub: Hub) -> None:
    hub.put("me/model", {"README.md": b"hello"})
    assert f"has no {MANIFEST}; expected the files of a bundle in this folder" in _refused()
    hub.put("me/model", {MANIFEST: b"{}"})
    assert f"/{MANIFEST}: schema_version: found none, expected 4" in _refused()


def test_a_profile_that_a_remote_bundle_lacks_is_an_error_with_its_url(published: Hub) -> None:
    assert published.repos
    with pytest.raises(BundleError, match=r"hf://me/model@\w+: has no graph for profile 'nnapi'; available: cpu"):
        Bundle(URL, profile="nnapi")


def test_verify_reads_every_byte_and_keeps_nothing(
    published: Hub, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []
    with caplog.at_level(logging.INFO, "molkv_bundle"):
        result = verify(URL, lambda count, _total: done.append(count))
    assert (result.findings, result.files) == ([], len(files))
    assert result.size == sum(map(len, files.values())) == sum(done) + len(files[MANIFEST])
    assert "model.onnx: sha256" in caplog.text
    assert not cache_folder().exists()
    published.put("me/model", {"notes.txt": b"x"})
    assert [finding.rpartition("/")[2] for finding in verify(URL).findings] == ["notes.txt: is not part of the bundle"]


def test_verify_names_damaged_records_and_files(published: Hub, files: dict[str, bytes]) -> None:
    manifest = Bundle(URL).manifest
    (shard,), stride = manifest.experts.shards, manifest.experts.stride
    damaged = bytearray(files[SHARD])
    for row in (3, 96):
        damaged[shard.data_offset + row * stride + 5] ^= 1
    published.put("me/model", {SHARD: bytes(damaged), "model.onnx": files["model.onnx"][::-1]})
    findings = verify(URL).findings
    assert len(findings) == 3
    assert "record 3 (token id 3) fails its checksum: the file was damaged or replaced after the upload" in findings[0]
    assert "record 96 (token id 96) fails" in findings[1]
    assert "/model.onnx: has sha256 " in findings[2]
