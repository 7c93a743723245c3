"""`push`: the model card, the order of the upload, repeated and interrupted uploads, and bad places."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_bundle import (
    MANIFEST,
    ArgumentError,
    Bundle,
    BundleError,
    MissingExtraError,
    MolkvError,
    OutputError,
    RemoteFolder,
    remote,
    verify,
)
from molkv_export import GraphOptions, inspect, push
from molkv_export.model_card import MARK
from molkv_runtime import Generator
from tests.hub_server import Hub
from tests.processes import CLI, run_cli
from tests.remote_servers import contents

# The way in which huggingface_hub sends files without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

URL = "hf://me/model"
CARD = "README.md"


@pytest.fixture
def bundle(bundles: Callable[..., Path]) -> Path:
    """A small bundle in two shards. Tests must not change it."""
    return bundles("molkv", "float16", shard_size=80_000)


@pytest.fixture
def other(bundles: Callable[..., Path]) -> Path:
    """A bundle of the same model with one shard and other weights."""
    return bundles("molkv", "float16", graph=GraphOptions(dense_dtype="int8"))


def _uploads(hub: Hub) -> list[str]:
    """Return the hashes of the files that were sent since the last call."""
    found = [request.path.rpartition("/")[2] for request in hub.requests("PUT /lfs/")]
    hub.log.clear()
    return found


def test_a_bundle_on_the_hub_is_complete_and_can_be_run(hub: Hub, bundle: Path) -> None:
    info = push(bundle, URL)
    there = hub.files("me/model")
    assert {name: hub.contents[there[name]] for name in contents(bundle)} == contents(bundle)
    assert set(there) == {*contents(bundle), CARD, ".gitattributes"}
    assert info.url == f"hf://me/model@{hub.repos['me/model'].branches['main']}"
    assert (info.files, info.unchanged, info.removed) == (len(contents(bundle)) + 1, [], [])
    assert info.size == sum(len(hub.contents[there[name]]) for name in there if name != ".gitattributes")
    assert verify(info.url).findings == []
    tokens = [[token.id for token in Generator(each).stream([[1, 2, 3]], max_new_tokens=9)] for each in (bundle, URL)]
    assert tokens[0] == tokens[1]
    assert CARD not in contents(bundle)


def test_the_manifest_becomes_visible_last(hub: Hub, bundle: Path) -> None:
    push(bundle, URL)
    commits = list(hub.repos["me/model"].commits.values())
    assert [MANIFEST in files for files in commits] == [False, False, True]  # the first one creates the repository
    assert set(commits[-1]) - set(commits[-2]) == {MANIFEST}


def test_the_model_card_has_sizes_parity_and_a_command_for_each_driver(hub: Hub, bundle: Path) -> None:
    push(bundle, URL)
    card = hub.content("me/model", CARD).decode()
    header, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert header.splitlines()[:2] == ["library_name: molkv-export", "pipeline_tag: text-generation"]
    assert "- molkv" in header.splitlines()
    table = Bundle(bundle).manifest.experts
    assert f"97 records of {table.stride} bytes" in text
    assert "| prefill in chunks | " in text
    assert "| step-by-step decode | " in text
    for command in (
        "molkv-export run hf://me/model\n",
        'Generator("hf://me/model")',
        "hf download me/model --local-dir my.bundle",
        "molkv run my.bundle --onnxruntime ",
        "--target android",
        "--target ios",
        "--target web",
    ):
        assert command in text
    assert Bundle(bundle).manifest.sha256 in text


def test_a_second_push_sends_nothing(hub: Hub, bundle: Path) -> None:
    first = push(bundle, URL)
    hub.log.clear()
    again = push(bundle, URL)
    assert hub.requests(r"(PUT|POST /api/models|POST .*batch)") == []
    assert again.url == first.url
    assert again.unchanged == sorted([*contents(bundle), CARD])


def test_an_interrupted_push_is_continued(hub: Hub, bundle: Path) -> None:
    sent: list[str] = []

    def fail_later(method: str, path: str) -> int:
        sent.extend([path] if method == "PUT" else [])
        return 403 if method == "PUT" and len(sent) > 3 else 0

    hub.fail = fail_later
    with pytest.raises(OutputError, match=r"hf://me/model: cannot be uploaded \(.*Error while uploading '.*403"):
        push(bundle, URL)
    with pytest.raises(BundleError, match=f"has no {MANIFEST}; expected"):
        Bundle(URL)
    before = set(hub.contents)
    hub.fail = lambda _method, _path: 0
    _uploads(hub)
    push(bundle, URL)
    second = _uploads(hub)
    assert len(second) == 2  # of five large files
    assert not before & set(second)
    assert verify(URL).findings == []


def test_a_push_that_ends_before_the_manifest_is_recognized(hub: Hub, bundle: Path) -> None:
    commits: list[str] = []

    def fail_second_commit(_method: str, path: str) -> int:
        commits.extend([path] if "/commit/" in path else [])
        return 500 if len(commits) > 1 else 0

    hub.fail = fail_second_commit
    with pytest.raises(OutputError):
        push(bundle, URL)
    hub.fail = lambda _method, _path: 0
    with pytest.raises(BundleError, match=f"files but no {MANIFEST}, which is uploaded last: the upload"):
        Bundle(URL)
    _uploads(hub)
    info = push(bundle, URL)
    assert _uploads(hub) == []
    assert set(contents(bundle)) - set(info.unchanged) == {MANIFEST}


def test_another_bundle_replaces_the_one_before(hub: Hub, bundle: Path, other: Path) -> None:
    push(bundle, URL)
    number = len(hub.repos["me/model"].commits)
    info = push(other, URL)
    old, new = set(contents(bundle)), set(contents(other))
    assert info.removed == sorted(old - new)
    assert len(info.removed) == 2  # shards
    assert set(hub.files("me/model")) == {*new, CARD, ".gitattributes"}
    assert verify(URL).findings == []
    between = list(hub.repos["me/model"].commits.values())[number:-1]
    assert not any(MANIFEST in files for files in between)


def test_a_replacement_that_is_interrupted_leaves_no_files_of_the_old_bundle(
    hub: Hub, bundle: Path, other: Path
) -> None:
    push(bundle, URL)
    commits: list[str] = []

    def fail_second_commit(_method: str, path: str) -> int:
        commits.extend([path] if "/commit/" in path else [])
        return 500 if len(commits) > 1 else 0

    hub.fail = fail_second_commit
    with pytest.raises(OutputError):
        push(other, URL)
    assert MANIFEST not in hub.files("me/model")
    hub.fail = lambda _method, _path: 0
    push(other, URL)
    assert set(hub.files("me/model")) == {*contents(other), CARD, ".gitattributes"}


def test_a_card_that_a_person_wrote_is_kept(hub: Hub, bundle: Path) -> None:
    push(bundle, URL)
    assert MARK in hub.content("me/model", CARD).decode()
    hub.put("me/model", {CARD: b"---\nlicense: mit\n---\nMy model.\n"})
    push(bundle, URL)
    assert hub.content("me/model", CARD) == b"---\nlicense: mit\n---\nMy model.\n"


@pytest.mark.parametrize("name", [CARD, MANIFEST])
def test_a_large_file_where_a_small_one_is_expected_is_not_read(
    name: str, hub: Hub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LARGEST_WHOLE", 100_000)
    hub.put("me/model", {name: bytes(100_001)})
    with pytest.raises(OutputError, match=rf"^hf://me/model@\w+/{name}: has 100001 bytes, expected at most 100000, "):
        push(bundle, URL)


def test_a_repository_can_be_private_and_a_branch_is_created(hub: Hub, bundle: Path) -> None:
    push(bundle, f"{URL}@next", private=True)
    assert hub.repos["me/model"].private
    assert MANIFEST in hub.files("me/model", "next")
    assert MANIFEST not in hub.files("me/model")
    assert Bundle(f"{URL}@next").manifest == Bundle(bundle).manifest


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/remote/model"
    return f"{request.getfixturevalue('bucket')}/model"


def test_object_storage_gets_the_manifest_last_and_no_file_twice(
    url: str, bundle: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def uploaded() -> list[str]:
        names = [each.getMessage() for each in caplog.records if each.name == "molkv_export.uploading"]
        caplog.clear()
        return [name.partition(": uploading")[0].rpartition("/")[2] for name in names]

    with caplog.at_level(logging.INFO, "molkv_export"):
        info = push(bundle, url)
        assert info.url == url
        sent = uploaded()
        assert sorted(sent) == sorted([*contents(bundle), CARD])
        assert sent[-1] == MANIFEST
        assert verify(url).findings == []
        assert push(bundle, url).unchanged == sorted([*contents(bundle), CARD])
        assert uploaded() == []
        assert len(push(other, url).removed) == 2
        shared = set(contents(bundle).items()) & set(contents(other).items())
        assert not {name for name, _ in shared} & set(uploaded())
    assert verify(url).findings == []


def test_an_interrupted_push_to_object_storage_is_recognized_and_continued(
    bucket: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, sent, upload = f"{bucket}/model", list[str](), RemoteFolder.upload

    def watched(self: RemoteFolder, path: Path, name: str, sha256: str = "") -> None:
        sent.append(name)
        upload(self, path, name, sha256)

    def interrupted(self: RemoteFolder, path: Path, name: str, sha256: str = "") -> None:
        if len(sent) == 3:
            raise KeyboardInterrupt
        watched(self, path, name, sha256)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "upload", interrupted)
        with pytest.raises(KeyboardInterrupt):
            push(bundle, url)
    with pytest.raises(BundleError, match=f"has 3 files but no {MANIFEST}, which is uploaded last"):
        Bundle(url)
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "upload", watched)
        assert push(bundle, url).unchanged == sorted(sent[:3])
    assert sorted(sent) == sorted([*contents(bundle), CARD])  # each one once
    assert verify(url).findings == []


def test_a_replacement_in_object_storage_that_is_interrupted_leaves_no_files_of_the_old_bundle(
    url: str, bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(bundle, url)

    def interrupted(_self: RemoteFolder, _path: Path, _name: str, _sha256: str = "") -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "upload", interrupted)
        with pytest.raises(KeyboardInterrupt):
            push(other, url)
    assert MANIFEST not in RemoteFolder(url, OutputError).files
    push(other, url)
    assert set(RemoteFolder(url, OutputError).files) == {*contents(other), CARD}


def test_a_bundle_that_is_damaged_is_not_uploaded(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "bundle")
    shard = next(damaged.glob("experts-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"fails its self-test, so it is not uploaded: .* fails its checksum"):
        push(damaged, URL)
    assert set(hub.files("me/model")) == {".gitattributes"}


def _message(bundle: Path | str, url: str, error: type[MolkvError]) -> str:
    with pytest.raises(error) as caught:
        push(bundle, url)
    return str(caught.value)


def test_bad_places_are_one_clear_line(
    hub: Hub, bundle: Path, hub_settings: pytest.MonkeyPatch, s3_settings: pytest.MonkeyPatch, running_s3: str
) -> None:
    assert "url: found somewhere, expected hf://OWNER/NAME" in _message(bundle, "somewhere", ArgumentError)
    assert "is not the URL of a repository, expected hf://OWNER/NAME" in _message(bundle, "hf://me", OutputError)
    assert "push reads a bundle on this machine; download it first" in _message(URL, URL, MolkvError)
    s3_settings.setenv("AWS_ENDPOINT_URL", running_s3)
    assert "there is no such bucket" in _message(bundle, "s3://none/model", OutputError)
    with pytest.raises(ArgumentError, match="private: found with another URL, expected hf://OWNER/NAME"):
        push(bundle, "s3://none/model", private=True)
    hub_settings.setenv("HF_TOKEN", "hf_wrong")
    assert "access denied; check your credentials" in _message(bundle, URL, OutputError)
    assert hub.repos == {}
    hub_settings.setitem(sys.modules, "huggingface_hub", None)  # type: ignore[arg-type]
    assert "pip install 'molkv-export[hub]'" in _message(bundle, URL, MissingExtraError)


@pytest.mark.slow
def test_a_folder_with_the_files_of_a_repository_is_a_sound_bundle(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    push(bundle, URL)
    for name, digest in hub.files("me/model").items():
        (tmp_path / name).write_bytes(hub.contents[digest])
    (tmp_path / ".cache").mkdir()  # `hf download` makes it
    (tmp_path / "LICENSE").write_text("MIT")
    assert verify(tmp_path).findings == []
    assert inspect(tmp_path).files == inspect(bundle).files


@pytest.mark.slow
def test_a_killed_push_is_continued_by_the_command(hub: Hub, bundle: Path) -> None:
    def slow(method: str, _path: str) -> int:
        time.sleep(0.5 * len(hub.requests("PUT /lfs")) if method == "PUT" else 0)
        return 0

    hub.fail = slow
    with subprocess.Popen([sys.executable, CLI, "push", bundle, URL, "-q"], stderr=subprocess.DEVNULL) as first:
        while len(hub.requests("PUT /lfs")) < 2:
            assert first.poll() is None
            time.sleep(0.05)
        first.kill()
    time.sleep(2)  # the server may still answer requests of the killed process
    before = set(hub.contents)
    hub.fail = lambda _method, _path: 0
    hub.log.clear()
    second = run_cli("push", bundle, URL, "-q")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout.startswith("hf://me/model@")
    assert not before & set(_uploads(hub))
    assert verify(URL).findings == []


@pytest.mark.slow
def test_an_error_of_the_command_is_one_line(hub: Hub, bundle: Path) -> None:
    hub.fail = lambda method, _path: 403 if method == "PUT" else 0
    done = run_cli("push", bundle, URL, "-q")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: hf://me/model: cannot be uploaded (Error while uploading '")
    assert done.stderr.count("\n") == 1
