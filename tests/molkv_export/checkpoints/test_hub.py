"""Checkpoints on a server with the endpoints of the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import molkv_bundle.remote
from molkv_bundle import CheckpointError
from molkv_export import export
from molkv_export.checkpoints import remote
from tests.hub_server import Hub

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("molkv")


def test_a_revision_of_a_repository_gives_the_bundle_of_a_local_copy_and_each_byte_once(
    hub: Hub, checkpoint: Path, bundles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 10_000)
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    first = hub.put("me/model", {**files, "README.md": b"about", "flax_model.msgpack": bytes(10**6)})
    hub.put("me/model", {**files, "config.json": b"{}"})
    export(f"hf://me/model@{first}", tmp_path / "bundle", shard_size=9_000)
    found, expected = tmp_path / "bundle", bundles("molkv", "float16", shard_size=9_000)
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        path.name: path.read_bytes() for path in expected.iterdir()
    }
    fetched = [request for request in hub.log if request.range and request.status == 206]
    ranges = [request.range for request in fetched if request.size > len(files["config.json"])]
    assert len(ranges) == len(set(ranges)) == -(-len(files[WEIGHTS]) // 10_000)
    assert sum(request.size for request in fetched) <= len(files[WEIGHTS]) + len(files["config.json"])


def test_a_large_file_where_a_small_one_is_expected_is_not_copied(
    hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(molkv_bundle.remote, "LARGEST_WHOLE", 100_000)
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    hub.put("me/model", {**files, "tokenizer.json": bytes(100_001)})
    message = r"^hf://me/model@\w+/tokenizer\.json: has 100001 bytes, expected at most 100000, "
    with pytest.raises(CheckpointError, match=message):
        export("hf://me/model", tmp_path / "bundle")


def test_repositories_that_cannot_be_read_are_one_line(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.put("me/model", {path.name: path.read_bytes() for path in checkpoint.iterdir()})
    hub.put("me/empty", {"README.md": b"about"})
    for url, message in {
        "hf://me/none": "the Hub has no repository me/none, or it is private",
        "hf://me/model@v9": "the Hub has no revision 'v9' of me/model",
        "hf://model": "is not the URL of a repository",
        "hf://me/empty": "/config.json: cannot be read (No such file or directory); a checkpoint needs a config.json",
    }.items():
        with pytest.raises((CheckpointError, ValueError), match=re.escape(message)) as caught:
            export(url, tmp_path / "bundle")
        assert "\n" not in str(caught.value)
        assert "hf://" in str(caught.value)
    hub.damage = lambda _, data: data[:-1] + b"\1" if len(data) > 10_000 else data
    with pytest.raises(
        CheckpointError, match=r"hf://me/model@\w+/model.safetensors: arrived with the sha256 .*, but the"
    ):
        export("hf://me/model", tmp_path / "bundle")
