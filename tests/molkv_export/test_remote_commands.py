"""The commands with the URL of a bundle: the same results as with its folder, and one line for each problem."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from molkv_bundle import MolkvError
from molkv_export.commands import cli
from tests.hub_server import Hub
from tests.models import STDLIB_MINI
from tests.remote_servers import contents

pytestmark = pytest.mark.slow

URL = "hf://me/model"


@pytest.fixture
def published(hub: Hub, stdlib_mini_bundle: Path) -> Hub:
    hub.put("me/model", {**contents(stdlib_mini_bundle), "README.md": b"---\n---\n"})
    return hub


def _run(*arguments: str | Path, stdin: str = "") -> Result:
    done = CliRunner().invoke(cli, [str(word) for word in arguments], input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def _json(*arguments: str | Path) -> Any:
    done = _run(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_run_gives_the_same_tokens_and_says_what_was_read(published: Hub, stdlib_mini_bundle: Path) -> None:
    options = ("--prompt", "def ", "--max-new-tokens", "12", "--temperature", "0.8", "--seed", "4")
    local = _json("run", stdlib_mini_bundle, *options)
    assert _json("run", URL, *options)["tokens"] == local["tokens"]
    published.log.clear()
    done = _run("run", URL, *options, "-v")
    assert done.stdout == f"def {local['text']}\n"
    assert re.search(r"records: \d+ from the cache, 0 over the network, in 0 requests of 0 bytes", done.stderr)
    assert published.requests("/experts-") == []


def test_a_download_shows_its_progress_unless_it_is_quiet(published: Hub, cache: Path) -> None:
    assert published.repos
    assert _run("run", URL, "--prompt", "def ", "--max-new-tokens", "2", "-q").stderr == ""
    for path in (cache / "files").iterdir():
        path.unlink()
    assert "downloading model.onnx.data" in _run("run", URL, "--prompt", "def ", "--max-new-tokens", "2").stderr


def test_chat_runs_a_remote_bundle(published: Hub, stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    assert published.repos
    (tmp_path / "template").write_text("{{ messages[-1].content }}")
    options = ("--template", tmp_path / "template", "--max-new-tokens", "6")
    local = _run("chat", stdlib_mini_bundle, *options, stdin="import os\n")
    assert _run("chat", URL, *options, stdin="import os\n").stdout == local.stdout != ""


@pytest.mark.parametrize("command", ["verify", "selftest", "inspect"])
def test_checks_give_the_same_results(command: str, published: Hub, stdlib_mini_bundle: Path) -> None:
    assert published.repos
    local, remote = _json(command, stdlib_mini_bundle), _json(command, URL)
    if command == "inspect":
        assert (local.pop("path"), remote.pop("path")) == (str(stdlib_mini_bundle), URL)
    assert remote == local


def test_validate_compares_a_remote_bundle(published: Hub, stdlib_mini_bundle: Path) -> None:
    assert published.repos
    options = ("--sequences", "1", "--continuations", "1", "--new-tokens", "4")
    report = _json("validate", URL, "--checkpoint", STDLIB_MINI, *options)
    assert report["bundle"].startswith(f"{URL}@")
    assert report["records"]["records"] > 0
    assert _run("validate", stdlib_mini_bundle, "--against", URL, *options).exit_code == 0


def test_bench_measures_records_of_the_cache(published: Hub) -> None:
    assert published.repos
    options = ("--prompts", "8", "--contexts", "16", "--steps", "2", "--runs", "1")
    assert {each["storage"] for each in _json("bench", URL, *options)["prefill"]} == {"warm"}
    done = _run("bench", URL, *options, "--storage", "cold")
    assert done.exit_code == 2
    assert "--storage': found cold, expected warm: " in done.stderr


def test_what_needs_a_folder_says_how_to_download_it(published: Hub, tmp_path: Path) -> None:
    assert published.repos
    with pytest.raises(MolkvError) as caught:
        _run("package", URL, tmp_path / "out", "--target", "native")
    assert str(caught.value) == (
        "hf://me/model: package reads every file of the bundle; download it first, for example with: "
        "hf download me/model --local-dir FOLDER"
    )
    done = _run("run", URL, "--prompt", "x", "--mmap")
    assert done.exit_code == 2
    assert "'--mmap': found mmap, expected pread for a remote bundle" in done.stderr


def test_a_file_url_is_a_folder_also_for_package(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    url = f"file://{stdlib_mini_bundle}"
    assert _run("package", url, tmp_path / "out", "--target", "native").exit_code == 0
    assert _run("run", url, "--prompt", "x", "--mmap", "--max-new-tokens", "2").exit_code == 0


def test_a_damaged_remote_bundle_is_named(published: Hub, make_damage: Callable[[bytes], bytes]) -> None:
    name = "experts-00001-of-00001.safetensors"
    published.put("me/model", {name: make_damage(published.content("me/model", name))})
    done = _run("verify", URL)
    assert done.exit_code == 1
    assert re.fullmatch(r"DAMAGED hf://me/model@\w+/experts-\S+: record 9 \(token id 9\) fails its .*\n", done.stdout)


@pytest.fixture
def make_damage(stdlib_mini_bundle: Path) -> Callable[[bytes], bytes]:
    """Return a function that changes a bit of record 9."""
    table = json.loads((stdlib_mini_bundle / "manifest.json").read_bytes())["tables"]["experts"]
    at = table["shards"][0]["data_offset"] + 9 * table["stride"] + 100
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
