"""Folders on the Hub, in object storage and on the disk: reading, writing, and one line for each problem."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from molkv_bundle import (
    BundleError,
    MissingExtraError,
    MolkvError,
    RemoteFolder,
    RequestError,
    download_command,
    is_remote,
    local_folder,
    remote,
    remote_errors,
)
from tests.hub_server import Hub
from tests.remote_servers import CLOSED, use_hub

CONTENT = bytes(range(256)) * 80_000  # 20 MB: several requests of a download


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder that can be written."""
    if request.param == "file":
        return f"file://{tmp_path}/remote/folder"
    return f"{request.getfixturevalue('bucket')}/remote/folder"


def test_files_that_are_written_can_be_listed_read_and_removed(url: str, tmp_path: Path) -> None:
    folder = RemoteFolder(url, BundleError)
    assert folder.files == {}
    (tmp_path / "here").write_bytes(CONTENT)
    folder.upload(tmp_path / "here", "a.bin", _hash(CONTENT))
    (tmp_path / "small").write_bytes(b"small")
    folder.upload(tmp_path / "small", "b.txt")
    folder = RemoteFolder(f"{url}/", BundleError)
    assert {name: file.size for name, file in folder.files.items()} == {"a.bin": len(CONTENT), "b.txt": 5}
    assert all(file.version for file in folder.files.values())
    assert folder.read("a.bin", 1000, 3000) == CONTENT[1000:3000]
    seen: list[int] = []
    folder.download("a.bin", tmp_path / "copy", seen.append)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert (sum(seen), len(seen)) == (len(CONTENT), 3)
    folder.remove("a.bin")
    assert set(folder.list()) == {"b.txt"}


def test_a_download_continues_where_it_ended(url: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(CONTENT)
    RemoteFolder(url, BundleError).upload(tmp_path / "here", "a.bin")
    (tmp_path / "copy").write_bytes(CONTENT[:1_000_000])
    seen: list[int] = []
    RemoteFolder(url, BundleError).download("a.bin", tmp_path / "copy", seen.append, start=1_000_000)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert sum(seen) == len(CONTENT) - 1_000_000


def test_a_file_that_is_too_large_is_not_read_as_a_whole(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in {"a.bin": CONTENT, "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        RemoteFolder(url, BundleError).upload(tmp_path / name, name)
    folder = RemoteFolder(url, BundleError)
    assert folder.read_whole("a.bin") == CONTENT
    assert folder.read_whole("empty") == b""
    monkeypatch.setattr(remote, "LARGEST_WHOLE", len(CONTENT) - 1)
    with pytest.raises(BundleError, match=rf"^{url}/a\.bin: has 20480000 bytes, expected at most 20479999, [^\n]*$"):
        folder.read_whole("a.bin")


def test_a_folder_knows_whether_it_holds_a_file(url: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"content")
    (tmp_path / "other").write_bytes(b"another")  # as long
    RemoteFolder(url, BundleError).upload(tmp_path / "here", "a", _hash(b"content"))
    folder = RemoteFolder(url, BundleError)
    assert folder.holds("a", tmp_path / "here", _hash(b"content"))
    assert not folder.holds("a", tmp_path / "other", _hash(b"another"))
    assert not folder.holds("b", tmp_path / "here", _hash(b"content"))


def test_a_folder_may_have_characters_that_mean_something_in_urls(url: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"content")
    for name in ("run#1", "run?a=b", "run%201", "run 1", "run"):
        place = f"{url}/{name}/model"
        RemoteFolder(place, BundleError).upload(tmp_path / "here", "a", _hash(b"content"))
        folder = RemoteFolder(place, BundleError)
        assert set(folder.files) == {"a"}, name
        assert folder.holds("a", tmp_path / "here", _hash(b"content")), name
        assert folder.read("a", 0, 7) == b"content", name
        folder.remove("a")
        assert folder.list() == {}, name


def test_the_top_of_a_bucket_is_a_folder(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"content")
    RemoteFolder(bucket, BundleError).upload(tmp_path / "here", "a", _hash(b"content"))
    folder = RemoteFolder(bucket, BundleError)
    assert folder.read("a", 0, 7) == b"content"
    assert folder.holds("a", tmp_path / "here", _hash(b"content"))


def test_the_hub_holds_large_files_and_small_files(hub: Hub, tmp_path: Path) -> None:
    hub.put("me/model", {"large.onnx": b"weights", "small.json": b"{}"})
    folder = RemoteFolder("hf://me/model", BundleError)
    for name, data in {"large.onnx": b"weights", "small.json": b"{}"}.items():
        (tmp_path / name).write_bytes(data)
        assert folder.holds(name, tmp_path / name, _hash(data))
        (tmp_path / name).write_bytes(data[::-1])
        assert not folder.holds(name, tmp_path / name, _hash(data[::-1]))


def test_a_folder_on_the_hub_is_read_from_one_commit(hub: Hub, tmp_path: Path) -> None:
    first = hub.put("me/model", {"a.bin": CONTENT, "b.txt": b"one"})
    folder = RemoteFolder("hf://me/model", BundleError)
    hub.put("me/model", {"a.bin": b"new", "b.txt": b"two"})
    assert folder.url == f"hf://me/model@{first}"
    assert folder.files["a.bin"].sha256 == _hash(CONTENT)
    assert folder.read("a.bin", 5, 10) == CONTENT[5:10]
    assert folder.read("b.txt", 0, 3) == b"one"
    folder.download("a.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert RemoteFolder("hf://me/model@main", BundleError).files["a.bin"].size == 3
    assert RemoteFolder(f"hf://me/model@{first}", BundleError).files["a.bin"].size == len(CONTENT)


def test_a_private_repository_needs_the_token_of_the_hub(hub: Hub, hub_settings: pytest.MonkeyPatch) -> None:
    hub.put("me/model", {"a": b"secret"})
    hub.repos["me/model"].private = True
    assert RemoteFolder("hf://me/model", BundleError).read("a", 0, 6) == b"secret"
    hub_settings.delenv("HF_TOKEN")
    with pytest.raises(BundleError, match=r"no repository me/model, or it is private; .*`hf auth login`"):
        RemoteFolder("hf://me/model", BundleError)


def _message(url: str) -> str:
    with pytest.raises(MolkvError) as caught:
        RemoteFolder(url, BundleError)
    assert str(caught.value).startswith(url)
    return str(caught.value)


def test_problems_of_the_hub_are_one_clear_line(hub: Hub) -> None:
    hub.put("me/model", {"a": b"1"})
    assert "is not the URL of a repository, expected hf://OWNER/NAME[@REVISION]" in _message("hf://me")
    assert "is not the URL of a repository" in _message("hf://me/model/folder")
    assert "the Hub has no repository me/none, or it is private" in _message("hf://me/none")
    assert "the Hub has no revision 'v9' of me/model" in _message("hf://me/model@v9")
    hub.fail = lambda _method, _path: 403
    assert "access denied; check your credentials and their permissions" in _message("hf://me/model")


def test_problems_of_reading_are_one_clear_line(hub: Hub) -> None:
    hub.put("me/model", {"a.bin": b"12345"})
    folder = RemoteFolder("hf://me/model", BundleError)
    with pytest.raises(BundleError, match=r"/b: does not exist"):
        folder.read("b", 0, 1)
    with pytest.raises(BundleError, match=r"a\.bin: gave 3 bytes for the range 2 to 9; is it truncated\?"):
        folder.read("a.bin", 2, 9)
    hub.fail = lambda _method, path: 401 if path.startswith("/cdn") else 0
    with pytest.raises(BundleError, match=r"a\.bin: access denied"):
        folder.read("a.bin", 0, 5)


def test_a_server_that_does_not_answer_is_an_error(
    hub_settings: pytest.MonkeyPatch, s3_settings: pytest.MonkeyPatch
) -> None:
    use_hub(hub_settings, CLOSED)
    assert "the server does not answer; check the address and the network" in _message("hf://me/model")
    s3_settings.setenv("AWS_ENDPOINT_URL", CLOSED)
    assert "the server does not answer; check the address and the network" in _message("s3://bucket/run-403/model")


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (
            OSError("GET http://server/b/run-403/dns gave status code: 500 Internal Server Error"),
            "cannot be reached or",
        ),
        (OSError("timed out for path 403"), "the server does not answer"),
        (OSError("GET http://server/b/x gave status code: 403: <Code>none</Code>"), "access denied"),
        (OSError("401 Client Error: Unauthorized for url: http://server/b/x"), "access denied"),
        (OSError("<Error><Code>AccessDenied</Code></Error>"), "access denied"),
    ],
)
def test_the_meaning_of_an_error_does_not_depend_on_names(error: OSError, meaning: str) -> None:
    with (
        pytest.raises(BundleError, match=f"^s3://b/run-403/dns: {meaning}"),
        remote_errors("s3://b/run-403/dns", BundleError),
    ):
        raise error


def test_a_file_to_upload_that_cannot_be_read_is_not_an_error_of_the_server(url: str, tmp_path: Path) -> None:
    folder = RemoteFolder(url, BundleError)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none")):
        folder.upload(tmp_path / "none", "a")
    assert folder.list() == {}


def test_problems_of_a_bucket_are_one_clear_line(bucket: str, hub: Hub, s3_settings: pytest.MonkeyPatch) -> None:
    assert _message("s3://no-such-bucket/x").endswith(": there is no such bucket; check its name, or create it first")
    assert _message("s3:///x") == "s3:///x: names no bucket, expected s3://BUCKET/PATH"
    with pytest.raises(BundleError, match=r"/x/a: does not exist"):
        RemoteFolder(f"{bucket}/x", BundleError).read("a", 0, 1)
    hub.fail = lambda _method, _path: 403  # any server that refuses everything
    s3_settings.setenv("AWS_ENDPOINT_URL", hub.url)
    assert "access denied; check your credentials and their permissions" in _message("s3://bucket/x")


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("hf://me/model", "huggingface_hub", "hub"),
        ("s3://bucket/x", "obstore.store", "s3"),
        ("gs://bucket/x", "obstore.store", "gs"),
        ("file:///x", "fsspec.implementations.local", "hub"),
    ],
)
def test_missing_packages_are_named(url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        RemoteFolder(url, BundleError)
    assert str(caught.value) == (
        f"{url}: the package {module.partition('.')[0]} is not installed; "
        f"install it with: pip install 'molkv-export[{extra}]'"
    )


def test_locations_are_paths_or_urls() -> None:
    assert [is_remote(text) for text in ("hf://a/b", "s3://a", "gs://a", "file:///a")] == [True] * 4
    assert [is_remote(text) for text in ("a", "/a/hf://b", "https://a", Path("hf://a/b"))] == [False] * 4
    assert local_folder("file:///a/b", "") == Path("/a/b")
    assert local_folder("a/b", "") == Path("a/b")
    with pytest.raises(RequestError, match=r"hf://a/b@v1: reads all; .* hf download a/b --revision v1 --local-dir FOL"):
        local_folder("hf://a/b@v1", "reads all")
    assert download_command("s3://b/x", "here") == "aws s3 cp --recursive s3://b/x here"
